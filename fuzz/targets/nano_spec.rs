//! nano_compact_spec.json, beside the tensors of a model.
#![no_main]

use std::sync::LazyLock;

use emberlm_fuzz::{fixture, load};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static FILES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let mut config: Value = serde_json::from_slice(&fixture("nano_compact/config.json")).expect("JSON");
    config["nanollm_modules"] = Value::Null;
    [config.to_string().into_bytes(), fixture("nano_compact/model.safetensors")]
});

fuzz_target!(|data: &[u8]| {
    let [config, weights] = &*FILES;
    load(&[("config.json", config), ("model.safetensors", weights), ("nano_compact_spec.json", data)]);
});
