//! config.json, with generation_config.json after the first NUL byte, beside the tensors of a model.
#![no_main]

use std::sync::LazyLock;

use emberlm_fuzz::{fixture, plan};
use libfuzzer_sys::fuzz_target;

static WEIGHTS: LazyLock<[Vec<u8>; 2]> =
    LazyLock::new(|| ["leanllama", "crest_k4"].map(|name| fixture(&format!("{name}/model.safetensors"))));

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |&b| b == 0);
    let config = parts.next().unwrap_or_default();
    let weights = &WEIGHTS[usize::from(config.windows(5).any(|w| w == b"crest"))];
    let mut files = vec![("config.json", config), ("model.safetensors", weights)];
    files.extend(parts.next().map(|generation| ("generation_config.json", generation)));
    plan(&files);
});
