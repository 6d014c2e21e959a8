//! The header of a safetensors file, and the plan of a model from it. The first byte says which: a whole file follows, or a header
//! for which data of the right length is made.
#![no_main]

use std::sync::LazyLock;

use emberlm_fuzz::{container, fixture, load};
use libfuzzer_sys::fuzz_target;

static CONFIGS: LazyLock<[Vec<u8>; 3]> =
    LazyLock::new(|| ["leanllama", "crest_k4", "nano_compact"].map(|name| fixture(&format!("{name}/config.json"))));

/// Longest data that is made.
const MOST: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let file = if kind % 4 == 0 { rest.to_vec() } else { container(rest, &vec![0; end(rest)]) };
    load(&[("config.json", &CONFIGS[usize::from(kind / 4) % 3]), ("model.safetensors", &file)]);
});

/// The largest end of a range.
fn end(header: &[u8]) -> usize {
    let Ok(serde_json::Value::Object(tensors)) = serde_json::from_slice(header) else { return 0 };
    let ends = tensors.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64());
    ends.max().and_then(|end| usize::try_from(end).ok()).filter(|&end| end <= MOST).unwrap_or(0)
}
