//! The tensors that are written against those that the formats' own programs have written.

use std::path::Path;

use emberlm_quant::format::{quantize_int8_rows, quantize_nf4, quantize_truequant};
use emberlm_quant::host::{FloatType, HostStorage, HostWeight};
use serde_json::Value;

use super::{CodeBookLayout, RowLayout, StoredTensor, code_book_slots, encode};
use crate::checkpoint::{Checkpoint, Dtype};

fn cases() -> (Vec<Value>, Checkpoint) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/unit_quant");
    let list = std::fs::read(folder.join("cases.json")).expect("the list");
    let checkpoint = Checkpoint::open(&folder.join("cases.safetensors")).expect("the tensors");
    (serde_json::from_slice(&list).expect("JSON"), checkpoint)
}

fn source(checkpoint: &Checkpoint, name: &str) -> HostWeight {
    let info = checkpoint.info(name).expect("a source");
    let float = match info.dtype {
        Dtype::F32 => FloatType::F32,
        Dtype::F16 => FloatType::F16,
        _ => FloatType::Bf16,
    };
    let storage = HostStorage::Dense(float, checkpoint.data(name).expect("its data"));
    HostWeight { n: info.shape[0], k: info.shape[1], storage }
}

fn assert_stored(checkpoint: &Checkpoint, tensors: &[StoredTensor]) {
    for StoredTensor { name, dtype, shape, data, .. } in tensors {
        let info = checkpoint.info(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!((*dtype, shape), (info.dtype, &info.shape), "{name}");
        assert_eq!(*data, checkpoint.data(name).expect("data"), "{name}");
    }
}

/// Codes, scales and the JSON of the state, byte for byte.
#[test]
fn nf4_is_what_bitsandbytes_writes() {
    let (cases, checkpoint) = cases();
    let mut seen = 0;
    for case in cases.iter().filter(|case| case["name"].as_str().is_some_and(|name| name.starts_with("nf4."))) {
        let name = case["name"].as_str().expect("a name");
        let (weight, double) = (source(&checkpoint, &format!("{name}.source")), case["double"] == true);
        let slots = code_book_slots(name, [weight.n, weight.k], CodeBookLayout::nf4(double));
        let tensors = encode(&slots, &quantize_nf4(&weight, double).expect("quantised")).expect("encoded");
        assert_eq!(tensors.len(), if double { 6 } else { 4 });
        assert_stored(&checkpoint, &tensors);
        seen += 1;
    }
    assert!(seen >= 12, "{seen}");
}

/// Rows, scales and numbers of rows, byte for byte, and the entry of `nanollm_modules`.
#[test]
fn rows_are_what_nano_compact_writes() {
    let (cases, checkpoint) = cases();
    let mut kinds = Vec::new();
    for case in cases.iter().filter(|case| case["name"].as_str().is_some_and(|name| name.starts_with("nano."))) {
        let (name, spec) = (case["name"].as_str().expect("a name"), &case["spec"]);
        let weight = source(&checkpoint, &format!("{name}.source"));
        let number = |key: &str| spec[key].as_u64().unwrap_or(0);
        let (layout, quantised) = match spec["kind"].as_str() {
            Some("embedding") => (RowLayout::Embedding, quantize_int8_rows(&weight)),
            Some("int8_linear") => (RowLayout::Int8, quantize_int8_rows(&weight)),
            _ => {
                let (bits, keep) = (number("bits") as u32, number("prot_rows") as usize);
                (RowLayout::Mixed { bits, keep }, quantize_truequant(&weight, bits, keep))
            }
        };
        let shape = [weight.n, weight.k];
        let slots = layout.slots(name, shape);
        // Some exporters call the scales of an embedding so.
        let scales = checkpoint.info(&format!("{name}.scales")).is_some();
        let mut tensors = layout.encode(&slots, &quantised.expect("quantised")).expect("encoded");
        tensors.iter_mut().filter(|tensor| scales && tensor.name.ends_with(".scale")).for_each(|t| t.name.push('s'));
        assert_stored(&checkpoint, &tensors);
        let made = layout.spec(shape, spec["has_bias"] == true);
        made.as_object()
            .expect("an object")
            .iter()
            .for_each(|(key, value)| assert_eq!(*value, spec[key], "{name} {key}"));
        kinds.push((spec["kind"].clone(), number("bits")));
    }
    for bits in [2, 4, 6, 8] {
        assert!(kinds.iter().any(|kind| kind.1 == bits), "{bits} bits");
    }
}
