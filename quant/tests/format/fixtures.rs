//! The cases of `tests/fixtures/unit_quant` as host weights.

use std::path::Path;

use bytes::Bytes;
use emberlm_quant::host::{FloatType, HostCodeBook4, HostRows, HostScales, HostStorage, HostWeight};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// The two files of the fixture.
pub struct Fixture {
    data: Vec<u8>,
    cases: Value,
}

/// One bitsandbytes weight with what bitsandbytes made of it.
pub struct Nf4Case {
    pub name: String,
    pub double: bool,
    pub source: HostWeight,
    pub packed: HostWeight,
    pub dequantized: Vec<f32>,
    pub dequantized_stored: HostWeight,
}

/// One Nano weight. `bits` and `keep` are those of `truequant_linear`.
pub struct NanoCase {
    pub name: String,
    pub truequant: Option<(u32, usize)>,
    pub source: HostWeight,
    pub packed: HostWeight,
    pub dequantized: Vec<f32>,
    pub dequantized_f16: HostWeight,
}

impl Fixture {
    pub fn open() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/unit_quant");
        let data = std::fs::read(folder.join("cases.safetensors")).unwrap();
        let cases = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        Self { data, cases }
    }

    pub fn nf4(&self) -> Vec<Nf4Case> {
        let tensors = SafeTensors::deserialize(&self.data).unwrap();
        let cases = self.cases.as_array().unwrap();
        cases.iter().filter(|case| case.get("double").is_some()).map(|case| nf4(&tensors, case)).collect()
    }

    pub fn nano(&self) -> Vec<NanoCase> {
        let tensors = SafeTensors::deserialize(&self.data).unwrap();
        let cases = self.cases.as_array().unwrap();
        cases.iter().filter(|case| case.get("spec").is_some()).map(|case| nano(&tensors, case)).collect()
    }
}

fn nf4(tensors: &SafeTensors, case: &Value) -> Nf4Case {
    let name = case["name"].as_str().unwrap();
    let double = case["double"].as_bool().unwrap();
    let state = bytes(tensors, &format!("{name}.quant_state.bitsandbytes__nf4"));
    let state: Value = serde_json::from_slice(&state).unwrap();
    let stored = match state["dtype"].as_str().unwrap() {
        "float32" => FloatType::F32,
        "float16" => FloatType::F16,
        "bfloat16" => FloatType::Bf16,
        other => panic!("{other}"),
    };
    let absmax = bytes(tensors, &format!("{name}.absmax"));
    let scales = if double {
        HostScales::Double {
            codes: absmax,
            map: floats(tensors, &format!("{name}.nested_quant_map")),
            absmax: floats(tensors, &format!("{name}.nested_absmax")),
            block: state["nested_blocksize"].as_u64().unwrap() as usize,
            offset: state["nested_offset"].as_f64().unwrap() as f32,
        }
    } else {
        HostScales::Single(absmax)
    };
    let source = dense(tensors, &format!("{name}.source"));
    let packed = HostWeight {
        n: source.n,
        k: source.k,
        storage: HostStorage::CodeBook4(HostCodeBook4 {
            codes: bytes(tensors, name),
            code_book: floats(tensors, &format!("{name}.quant_map")).try_into().unwrap(),
            block: state["blocksize"].as_u64().unwrap() as usize,
            scales,
            stored,
        }),
    };
    Nf4Case {
        name: name.into(),
        double,
        source,
        packed,
        dequantized: floats(tensors, &format!("{name}.dequant_f32")),
        dequantized_stored: dense(tensors, &format!("{name}.dequant_stored_dtype")),
    }
}

fn nano(tensors: &SafeTensors, case: &Value) -> NanoCase {
    let name = case["name"].as_str().unwrap();
    let spec = &case["spec"];
    let part = |part: &str| format!("{name}.{part}");
    let source = dense(tensors, &part("source"));
    let (n, k) = (source.n, source.k);
    let (rows, truequant) = if spec["kind"] == "truequant_linear" {
        let bits = spec["bits"].as_u64().unwrap() as u32;
        let protected = spec["prot_rows"].as_u64().unwrap() as usize;
        let packed = tensors.tensor(&part("deg_q_packed")).is_ok();
        let mut wide = bytes(tensors, &part("prot_q")).to_vec();
        let mut narrow = Bytes::new();
        if packed {
            narrow = bytes(tensors, &part("deg_q_packed"));
        } else {
            wide.extend(bytes(tensors, &part("deg_q")));
        }
        let mut scales = floats(tensors, &part("prot_scale"));
        scales.extend(floats(tensors, &part("deg_scale")));
        let mut slots = vec![0; n];
        let order = indices(tensors, &part("prot_idx")).into_iter().chain(indices(tensors, &part("deg_idx")));
        for (slot, row) in order.enumerate() {
            slots[row] = slot as u32;
        }
        let rows = HostRows {
            wide: wide.into(),
            wide_rows: if packed { protected } else { n },
            narrow,
            narrow_bits: if packed { bits } else { 4 },
            scales,
            slots: Some(slots),
        };
        (rows, Some((bits, protected)))
    } else {
        let rows = HostRows {
            wide: bytes(tensors, &part("q")),
            wide_rows: n,
            narrow: Bytes::new(),
            narrow_bits: 4,
            scales: floats(tensors, &part("scale")),
            slots: None,
        };
        (rows, None)
    };
    NanoCase {
        name: name.into(),
        truequant,
        source,
        packed: HostWeight { n, k, storage: HostStorage::Rows(rows) },
        dequantized: floats(tensors, &part("dequant_f32")),
        dequantized_f16: dense(tensors, &part("dequant_f16")),
    }
}

fn bytes(tensors: &SafeTensors, name: &str) -> Bytes {
    Bytes::copy_from_slice(tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data())
}

/// F32 or F16 numbers.
fn floats(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    match view.dtype() {
        Dtype::F32 => view.data().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::F16 => view.data().as_chunks::<2>().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect(),
        other => panic!("{name}: {other:?}"),
    }
}

fn indices(tensors: &SafeTensors, name: &str) -> Vec<usize> {
    bytes(tensors, name).as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b) as usize).collect()
}

fn dense(tensors: &SafeTensors, name: &str) -> HostWeight {
    let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    let float = match view.dtype() {
        Dtype::F32 => FloatType::F32,
        Dtype::F16 => FloatType::F16,
        Dtype::BF16 => FloatType::Bf16,
        other => panic!("{name}: {other:?}"),
    };
    let [n, k] = view.shape() else { panic!("{name}: {:?}", view.shape()) };
    HostWeight { n: *n, k: *k, storage: HostStorage::Dense(float, Bytes::copy_from_slice(view.data())) }
}

/// The buffer of a dense weight.
pub fn dense_bytes(weight: &HostWeight) -> (FloatType, &Bytes) {
    match &weight.storage {
        HostStorage::Dense(float, data) => (*float, data),
        other => panic!("{other:?}"),
    }
}

/// Fails at the first element whose bits differ.
pub fn assert_same_bits(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}: length");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert_eq!(f.to_bits(), e.to_bits(), "{name}: element {i}: {f:e} instead of {e:e}");
    }
}

/// The storage of a weight that must be NF4 or FP4.
pub fn code_book(weight: &HostWeight) -> &HostCodeBook4 {
    match &weight.storage {
        HostStorage::CodeBook4(w) => w,
        other => panic!("{other:?}"),
    }
}

/// The storage of a weight that must be of integer rows.
pub fn rows(weight: &HostWeight) -> &HostRows {
    match &weight.storage {
        HostStorage::Rows(w) => w,
        other => panic!("{other:?}"),
    }
}
