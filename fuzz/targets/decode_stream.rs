//! Streamed decoding: the pieces joined are the text of all ids. The first byte says which tokenizer and whether special tokens count,
//! then two bytes are an id.
#![no_main]

use std::sync::LazyLock;

use emberlm_fuzz::{byte_fallback, fixture};
use emberlm_model::text::{TextFiles, TextProcessor};
use libfuzzer_sys::fuzz_target;

static TOKENIZERS: LazyLock<Vec<TextProcessor>> = LazyLock::new(|| {
    let fixtures = ["crest_k4", "leanllama", "nano_compact"].map(|name| fixture(&format!("{name}/tokenizer.json")));
    let read = |tokenizer_json| {
        TextProcessor::from_files(&TextFiles { tokenizer_json, ..TextFiles::default() }).expect("a tokenizer")
    };
    fixtures.into_iter().chain([byte_fallback()]).map(read).collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let text = &TOKENIZERS[usize::from(kind >> 1) % TOKENIZERS.len()];
    let skip_special = kind & 1 == 1;
    let ids: Vec<u32> = rest.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]])) % 700).collect();
    let mut stream = text.decode_stream(skip_special);
    let mut pieces = String::new();
    for &id in &ids {
        pieces.push_str(&stream.push(id).expect("an id or none"));
    }
    pieces.push_str(&stream.finish().expect("the rest"));
    assert_eq!(pieces, text.decode(&ids, skip_special).expect("a text"), "{ids:?}");
});
