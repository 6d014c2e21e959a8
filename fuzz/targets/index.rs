//! model.safetensors.index.json, beside the shards of a model.
#![no_main]

use std::sync::LazyLock;

use emberlm_fuzz::{fixture, plan};
use libfuzzer_sys::fuzz_target;

static FILES: LazyLock<Vec<(&str, Vec<u8>)>> = LazyLock::new(|| {
    let names = [
        "config.json",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ];
    names.map(|name| (name, fixture(&format!("crest_k2/{name}")))).into()
});

fuzz_target!(|data: &[u8]| {
    let mut files: Vec<(&str, &[u8])> = FILES.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    files.push(("model.safetensors.index.json", data));
    plan(&files);
});
