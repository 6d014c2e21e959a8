//! Gates of halting that share a matrix: steps are left out of it, and it becomes dense.

use emberlm_model::config::CrestOverrides;
use emberlm_model::export::{ExportOptions, MatrixFormat};
use emberlm_quant::format::{FP4, quantize_fp4, quantize_int8, quantize_nf4};
use emberlm_quant::host::{FloatType, HostScales, HostStorage, HostWeight};
use serde_json::json;

use super::{Target, all, export, logits, open};
use crate::support::{Copy, Tensor, Tensors, fixture};

/// The model with its last steps left out, whichever way its gates are stored.
#[test]
fn steps_are_left_out() {
    let stacked = Copy::of("crest_k4_nf4");
    stacked.change_tensors(stack_gates);
    let quantised: Vec<Copy> = [quantize_nf4 as fn(&HostWeight, bool) -> _, quantize_fp4]
        .into_iter()
        .flat_map(|quantize| [false, true].map(|double| quantised_gates(&|w| quantize(w, double).expect("codes"))))
        .chain([quantised_gates(&|w| quantize_int8(w).expect("codes"))])
        .collect();
    let mut sources = vec![fixture("crest_k4"), fixture("crest_k4_nf4"), stacked.path().to_owned()];
    sources.extend(quantised.iter().map(|copy| copy.path().to_owned()));
    for (at, path) in sources.iter().enumerate() {
        for steps in [1, 2, 3] {
            let fewer = CrestOverrides { num_steps: Some(steps), ..CrestOverrides::default() };
            let source = open(path).depth(&fewer).expect("fewer steps");
            let (target, case) = (Target::new(), format!("source {at}, {steps} steps"));
            let folder = target.path("fewer");
            export(&source, &folder, &ExportOptions::default(), all(MatrixFormat::AsStored)).expect(&case);
            let written = open(&folder);
            assert_eq!(written.weights().discovered_crest().expect("CREST").num_steps, steps, "{case}");
            assert_eq!(logits(&written), logits(&source), "{case}");
            if at == 2 {
                // Gates are one less than steps.
                let gates = written.weights().checkpoint().info("model.layers.1.mlp.gating.weight");
                assert_eq!(gates.map_or(0, |gates| gates.shape[0]), steps - 1, "{case}");
            }
            if steps < 3 {
                assert_ne!(logits(&written), logits(&open(path)), "{case}");
            }
        }
    }
}

/// Also gates that share a matrix, all of them or the first.
#[test]
fn stacked_gates_become_dense() {
    let stacked = Copy::of("crest_k4_nf4");
    stacked.change_tensors(stack_gates);
    let nf4 = quantised_gates(&|w| quantize_nf4(w, true).expect("codes"));
    for (copy, float) in [(&nf4, FloatType::Bf16), (&nf4, FloatType::F32), (&stacked, FloatType::F32)] {
        for num_steps in [None, Some(2)] {
            let fewer = CrestOverrides { num_steps, ..CrestOverrides::default() };
            let source = open(copy.path()).depth(&fewer).expect("steps");
            let (target, case) = (Target::new(), format!("{float} {num_steps:?}"));
            let options = ExportOptions { dense: Some(float), ..ExportOptions::default() };
            let plan = source.export(&options, all(MatrixFormat::Dense(float))).expect(&case);
            assert!(plan.matrices().iter().all(|matrix| matrix.written.is_dense()), "{case}");
            plan.write(&target.path("dense"), &mut |_| ()).expect(&case);
            let written = open(&target.path("dense"));
            for name in written.weights().canonical_names().filter(|name| name.contains("gate")) {
                let entry = written.weights().entry(name).expect("an entry");
                assert!(entry.storage.is_dense(), "{case} {name}");
                if float == FloatType::F32 {
                    // One gate alone is the one of all steps.
                    let known = source.weights().entry(name).is_some();
                    let stacked = if known { name.to_owned() } else { name.replace("halt_gate.", "halt_gates.0.") };
                    let numbers = source.weights().vector(&stacked).expect("numbers");
                    assert_eq!(written.weights().vector(name).expect("numbers"), numbers, "{case} {name}");
                }
            }
            let steps = source.architecture().crest.as_ref().expect("CREST").num_steps;
            assert_eq!(written.weights().discovered_crest().expect("CREST").num_steps, steps, "{case}");
        }
    }
}

/// A model whose gates are one quantised matrix per layer, with rows that end within blocks.
fn quantised_gates(quantize: &dyn Fn(&HostWeight) -> HostWeight) -> Copy {
    let copy = Copy::of("crest_k4_nf4");
    copy.change_tensors(|tensors| {
        stack_gates(tensors);
        let gates: Vec<String> = tensors.keys().filter(|name| name.ends_with(".gating.weight")).cloned().collect();
        assert_eq!(gates.len(), 4);
        for name in gates {
            let Tensor(dtype, shape, data) = tensors.remove(&name).expect("a gate");
            let float = if dtype == "BF16" { FloatType::Bf16 } else { FloatType::F32 };
            let (n, k) = (shape[0], shape[1]);
            let dense = HostWeight { n, k, storage: HostStorage::Dense(float, data.into()) };
            let mut put = |side: &str, dtype: &str, shape: &[usize], bytes: Vec<u8>| {
                tensors.insert(format!("{name}{side}"), Tensor(dtype.into(), shape.to_vec(), bytes));
            };
            let numbers = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            let w = match quantize(&dense).storage {
                HostStorage::CodeBook4(w) => w,
                HostStorage::Int8(w) => {
                    put("", "I8", &[n, k], w.codes.to_vec());
                    put("_scale", "F16", &[n, k.div_ceil(64)], w.scales.to_vec());
                    continue;
                }
                _ => unreachable!("a quantiser of codes"),
            };
            let kind = if w.code_book == FP4 { "fp4" } else { "nf4" };
            let mut state = json!({ "quant_type": kind, "blocksize": w.block, "dtype": "bfloat16", "shape": [n, k] });
            put("", "U8", &[w.codes.len(), 1], w.codes.to_vec());
            put(".quant_map", "F32", &[16], numbers(&w.code_book));
            match &w.scales {
                HostScales::Single(absmax) => put(".absmax", "F32", &[absmax.len() / 4], absmax.to_vec()),
                HostScales::Double { codes, map, absmax, block, offset } => {
                    put(".absmax", "U8", &[codes.len()], codes.to_vec());
                    put(".nested_absmax", "F32", &[absmax.len()], numbers(absmax));
                    put(".nested_quant_map", "F32", &[256], numbers(map));
                    state["nested_blocksize"] = json!(block);
                    state["nested_dtype"] = json!("float32");
                    state["nested_offset"] = json!(offset);
                }
            }
            let state = state.to_string().into_bytes();
            put(&format!(".quant_state.bitsandbytes__{kind}"), "U8", &[state.len()], state);
        }
    });
    copy
}

/// `gates.{0,1,2}` of every layer as one matrix.
fn stack_gates(tensors: &mut Tensors) {
    for layer in 0..4 {
        for leaf in ["weight", "bias"] {
            let name = |gate: usize| format!("model.layers.{layer}.mlp.gates.{gate}.{leaf}");
            let parts: Vec<Tensor> = (0..3).map(|gate| tensors.remove(&name(gate)).expect("a gate")).collect();
            let mut shape = parts[0].1.clone();
            shape[0] = 3;
            let data = parts.iter().flat_map(|part| part.2.clone()).collect();
            tensors.insert(format!("model.layers.{layer}.mlp.gating.{leaf}"), Tensor(parts[0].0.clone(), shape, data));
        }
    }
}
