//! The kernels against the unit goldens of `tests/fixtures`, at every level of this machine.

use emberlm_backends::cpu::{self, BlockScales, CodeBook4, IntegerRows, Level, Matrix, Weight};
use emberlm_backends::types::{DeltaRuleInputs, DeltaRuleShape};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::PathBuf;

struct Fixture {
    bytes: Vec<u8>,
    cases: Vec<Value>,
}

impl Fixture {
    fn open(name: &str) -> Fixture {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
        let bytes = std::fs::read(folder.join("cases.safetensors")).unwrap();
        let cases = std::fs::read(folder.join("cases.json")).unwrap();
        Fixture { bytes, cases: serde_json::from_slice(&cases).unwrap() }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }
}

fn floats(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = tensors.tensor(name).unwrap();
    match tensor.dtype() {
        safetensors::Dtype::F32 => {
            let words = tensor.data().chunks_exact(4);
            words.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        }
        safetensors::Dtype::F16 => {
            let words = tensor.data().chunks_exact(2);
            words.map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect()
        }
        dtype => panic!("{name} is {dtype:?}"),
    }
}

fn bytes(tensors: &SafeTensors, name: &str) -> Vec<u8> {
    tensors.tensor(name).map_or(Vec::new(), |tensor| tensor.data().to_vec())
}

fn close(name: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let bound = tolerance * want.abs().max(1.0);
        assert!((got - want).abs() <= bound, "{name}[{i}]: {got}, expected {want}");
    }
}

fn check_values(name: &str, w: &Weight, want: &[f32]) {
    let mut got = vec![f32::NAN; want.len()];
    cpu::dequantize_rows(w, 0, w.n, &mut got);
    assert_eq!(got, want, "{name} dequantised");
    let ids: Vec<usize> = (0..w.n).rev().collect();
    cpu::embed(&ids, w, &mut got);
    for (id, row) in ids.iter().zip(got.chunks_exact(w.k)) {
        assert_eq!(row, &want[id * w.k..(id + 1) * w.k], "{name} embedded");
    }
}

#[test]
fn nf4_values_are_exact() {
    let fixture = Fixture::open("unit_quant");
    let tensors = fixture.tensors();
    let cases: Vec<&Value> = fixture.cases.iter().filter(|case| case.get("double").is_some()).collect();
    assert!(!cases.is_empty());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let part = |suffix: &str| format!("{name}.{suffix}");
        let codes = bytes(&tensors, name);
        let code_book: [f32; 16] = floats(&tensors, &part("quant_map")).try_into().unwrap();
        let state = bytes(&tensors, &part("quant_state.bitsandbytes__nf4"));
        let state: Value = serde_json::from_slice(&state).unwrap();
        let (single, scale_codes, map, absmax);
        let scales = if case["double"].as_bool().unwrap() {
            scale_codes = bytes(&tensors, &part("absmax"));
            map = floats(&tensors, &part("nested_quant_map"));
            absmax = floats(&tensors, &part("nested_absmax"));
            let offset = state["nested_offset"].as_f64().unwrap() as f32;
            let block = state["nested_blocksize"].as_u64().unwrap() as usize;
            BlockScales::Double { codes: &scale_codes, map: &map, absmax: &absmax, block, offset }
        } else {
            single = floats(&tensors, &part("absmax"));
            BlockScales::Single(&single)
        };
        let block = state["blocksize"].as_u64().unwrap() as usize;
        let (n, k) = (case["shape"][0].as_u64().unwrap() as usize, case["shape"][1].as_u64().unwrap() as usize);
        let data = Matrix::CodeBook4(CodeBook4 { codes: &codes, code_book: &code_book, block, scales });
        let want = floats(&tensors, &part("dequant_f32"));
        for level in Level::available() {
            let name = format!("{name} on {}", level.name());
            cpu::with_level(level, || check_values(&name, &Weight { n, k, data }, &want));
        }
    }
}

#[test]
fn nano_values_and_products_match() {
    let fixture = Fixture::open("unit_quant");
    let tensors = fixture.tensors();
    let cases: Vec<&Value> = fixture.cases.iter().filter(|case| case.get("spec").is_some()).collect();
    assert!(!cases.is_empty());
    for case in cases {
        let (name, spec) = (case["name"].as_str().unwrap(), &case["spec"]);
        let part = |suffix: &str| format!("{name}.{suffix}");
        let number = |key: &str| spec[key].as_u64().map(|number| number as usize);
        let n = number("out_features").or(number("num_embeddings")).unwrap();
        let k = number("in_features").or(number("embedding_dim")).unwrap();
        let (mut wide, mut narrow, mut scales, mut slots) = (Vec::new(), Vec::new(), Vec::new(), None);
        let (mut wide_rows, mut bits) = (n, 0);
        if spec["kind"] == "truequant_linear" {
            bits = number("bits").unwrap() as u32;
            wide.extend(bytes(&tensors, &part("prot_q")));
            wide.extend(bytes(&tensors, &part("deg_q")));
            wide_rows = wide.len() / k;
            narrow.extend(bytes(&tensors, &part("deg_q_packed")));
            let mut rows = Vec::new();
            for half in ["prot", "deg"] {
                scales.extend(floats(&tensors, &part(&format!("{half}_scale"))));
                let index = bytes(&tensors, &part(&format!("{half}_idx")));
                rows.extend(index.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap()) as usize));
            }
            let mut inverse = vec![0u32; n];
            rows.iter().enumerate().for_each(|(slot, &row)| inverse[row] = slot as u32);
            slots = Some(inverse);
        } else {
            wide.extend(bytes(&tensors, &part("q")));
            scales.extend(floats(&tensors, &part("scale")));
        }
        let rows = IntegerRows {
            wide: &wide,
            wide_rows,
            narrow: &narrow,
            narrow_stride: (k * bits as usize).div_ceil(8),
            narrow_bits: bits,
            scales: &scales,
            slots: slots.as_deref(),
        };
        let w = Weight { n, k, data: Matrix::IntegerRows(rows) };
        let want = floats(&tensors, &part("dequant_f32"));
        let (x, y) = (floats(&tensors, &part("x")), floats(&tensors, &part("y")));
        let bias = tensors.tensor(&part("bias")).is_ok().then(|| floats(&tensors, &part("bias")));
        for level in Level::available() {
            let name = format!("{name} on {}", level.name());
            cpu::with_level(level, || {
                check_values(&name, &w, &want);
                let mut got = vec![f32::NAN; y.len()];
                cpu::linear(&x, x.len() / k, &w, bias.as_deref(), &mut got);
                close(&name, &got, &y, 1e-5);
            });
        }
    }
}

#[test]
fn the_delta_rule_matches_in_any_split() {
    let fixture = Fixture::open("unit_delta_rule");
    let tensors = fixture.tensors();
    for (level, case) in Level::available().into_iter().flat_map(|l| fixture.cases.iter().map(move |c| (l, c))) {
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let name = format!("case.{}", number("id"));
        let part = |suffix: &str| floats(&tensors, &format!("{name}.{suffix}"));
        let (b, t) = (number("B"), number("T"));
        let shape = DeltaRuleShape {
            batch: b,
            seq: t,
            key_heads: number("nk"),
            value_heads: number("nv"),
            key_dim: number("dk"),
            value_dim: number("dv"),
        };
        let states = b * shape.value_heads * shape.key_dim * shape.value_dim;
        let start = if case["initial_state"].as_bool().unwrap() { part("initial_state") } else { vec![0.0; states] };
        let (q, k, v, g, beta) = (part("q"), part("k"), part("v"), part("g"), part("beta"));
        let name = format!("{name} on {}", level.name());
        cpu::with_level(level, || {
            let mut state = start.clone();
            let mut o = vec![f32::NAN; v.len()];
            let rule = DeltaRuleInputs { q: &q[..], k: &k, v: &v, g: &g, beta: &beta };
            cpu::gated_delta_rule(rule, &mut state, &shape, &mut o);
            close(&format!("{name} output"), &o, &part("output"), 1e-5);
            close(&format!("{name} state"), &state, &part("final_state"), 1e-5);
            if b == 1 {
                let mut state = start.clone();
                let mut pieces = Vec::new();
                let cut = t / 3;
                for (from, to) in [(0, cut), (cut, t)] {
                    let shape = DeltaRuleShape { seq: to - from, ..shape };
                    let [q, k, v, g, beta] = [&q, &k, &v, &g, &beta].map(|x| &x[from * x.len() / t..to * x.len() / t]);
                    let mut o = vec![f32::NAN; v.len()];
                    cpu::gated_delta_rule(DeltaRuleInputs { q, k, v, g, beta }, &mut state, &shape, &mut o);
                    pieces.extend(o);
                }
                close(&format!("{name} output in two pieces"), &pieces, &part("output"), 1e-5);
                close(&format!("{name} state after two pieces"), &state, &part("final_state"), 1e-5);
            }
        });
    }
}
