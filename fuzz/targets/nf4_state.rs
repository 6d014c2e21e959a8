//! The state of a bitsandbytes tensor and the sizes of its parts: four bytes say how much longer or shorter than right the packed codes
//! and the scales are, the rest is the JSON.
#![no_main]

use std::sync::LazyLock;

use emberlm_fuzz::{container, fixture, load};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

static CONFIG: LazyLock<Vec<u8>> = LazyLock::new(|| fixture("leanllama_nf4/config.json"));

const NAME: &str = "model.layers.0.mlp.down_proj.weight";

fuzz_target!(|data: &[u8]| {
    let Some((sizes, state)) = data.split_first_chunk::<4>() else { return };
    let size = |at: usize, right: usize| (right + usize::from(sizes[at])).saturating_sub(128);
    let (codes, scales) = (size(0, 10_240), size(1, 320));
    let mut parts = vec![
        ("", "U8", codes),
        (".absmax", if sizes[3] & 1 == 0 { "U8" } else { "F32" }, scales),
        (".quant_map", "F32", 16),
        (".quant_state.bitsandbytes__nf4", "U8", state.len()),
    ];
    if sizes[3] & 2 == 0 {
        parts.extend([(".nested_absmax", "F32", size(2, 2)), (".nested_quant_map", "F32", 256)]);
    }
    let (mut header, mut bytes) = (serde_json::Map::new(), Vec::new());
    for (suffix, dtype, count) in parts {
        let begin = bytes.len();
        match suffix {
            ".quant_state.bitsandbytes__nf4" => bytes.extend(state),
            _ => bytes.resize(begin + count * if dtype == "F32" { 4 } else { 1 }, 0),
        }
        let info = json!({ "dtype": dtype, "shape": [count], "data_offsets": [begin, bytes.len()] });
        header.insert(format!("{NAME}{suffix}"), info);
    }
    let header = serde_json::Value::Object(header).to_string();
    load(&[("config.json", &CONFIG), ("model.safetensors", &container(header.as_bytes(), &bytes))]);
});
