//! A record of burn-store, and the plan of a model from it. The first byte says which: a whole file follows, or a map for which the bytes before
//! it and data of the right length are made.
#![no_main]

use std::sync::LazyLock;

use ciborium::Value;
use emberlm_fuzz::{fixture, load};
use libfuzzer_sys::fuzz_target;

static CONFIGS: LazyLock<[Vec<u8>; 3]> =
    LazyLock::new(|| ["leanllama_kv", "crest_k4", "nano_compact"].map(|name| fixture(&format!("{name}/config.json"))));

/// Where data begin, in bytes.
const ALIGNMENT: usize = 256;

/// Longest data that are made.
const MOST: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let file = if kind % 4 == 0 { rest.to_vec() } else { record(rest) };
    load(&[("config.json", &CONFIGS[usize::from(kind / 4) % 3]), ("model.bpk", &file)]);
});

/// A file with this map.
fn record(map: &[u8]) -> Vec<u8> {
    let length = u32::try_from(map.len()).expect("a short input").to_le_bytes();
    let mut file = [b"NRUB\x01\x00", &length[..], map].concat();
    file.resize(file.len().next_multiple_of(ALIGNMENT) + end(map).unwrap_or(0), 0);
    file
}

/// The largest end of a range, where that is not too large.
fn end(map: &[u8]) -> Option<usize> {
    let map: Value = ciborium::from_reader(map).ok()?;
    let ends = field(&map, "tensors")?.as_map()?.iter().filter_map(|(_, tensor)| {
        let end: u64 = field(tensor, "data_offsets")?.as_array()?.get(1)?.as_integer()?.try_into().ok()?;
        usize::try_from(end).ok()
    });
    ends.max().filter(|&end| end <= MOST)
}

fn field<'a>(map: &'a Value, name: &str) -> Option<&'a Value> {
    map.as_map()?.iter().find(|(key, _)| key.as_text() == Some(name)).map(|(_, value)| value)
}
