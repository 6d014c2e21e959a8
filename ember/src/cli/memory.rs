//! Memory of this process.

use emberlm::model::Pretrained;
use emberlm::model::text::{TextFiles, TextProcessor};
use serde::Serialize;

/// What the program takes besides weights, cache, scratch and tokenizer, in bytes: its code as far as it runs, threads, config,
/// template. Of the 19 MiB that are resident when the demo model generates, on Linux; code without optimisation is larger.
pub const PROGRAM: usize = if cfg!(debug_assertions) { 38 << 20 } else { 18 << 20 };

/// As [`PROGRAM`], before a model is loaded.
const STARTED: usize = if cfg!(debug_assertions) { 25 << 20 } else { 14 << 20 };

/// What a tokenizer takes, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct TokenizerMemory {
    /// From when it is loaded on.
    pub resident: usize,
    /// While `tokenizer.json` is parsed, the program included.
    pub peak: usize,
}

impl TokenizerMemory {
    /// By the number of tokens, as measured on Linux with BPE vocabularies of 16,000 to 151,000 tokens and about as many merges
    /// (tokenizers 0.23): the vocabulary is held in both directions, the merges in one, at 230 to 280 bytes per token. The parser
    /// holds the whole file as a tree of values and then each merge as two texts, at 960 to 1070 bytes per token; where the file
    /// writes a merge as one text, at 720.
    pub fn of(pretrained: &Pretrained, text: &TextProcessor) -> Self {
        let tokens = text.vocab_size();
        let per_token = if merges_are_pairs(pretrained) { 1040 } else { 720 };
        Self { resident: 260 * tokens, peak: STARTED + per_token * tokens }
    }
}

/// Whether `tokenizer.json` writes a merge as a list of two texts.
fn merges_are_pairs(pretrained: &Pretrained) -> bool {
    let Ok(files) = TextFiles::from_dir(pretrained.weights().checkpoint().dir()) else { return false };
    let key = b"\"merges\":";
    let at = files.tokenizer_json.windows(key.len()).position(|part| part == key).unwrap_or(0);
    let rest = files.tokenizer_json.iter().skip(at + key.len()).filter(|byte| !byte.is_ascii_whitespace());
    rest.take(2).eq(b"[[")
}

/// Peak resident memory of this process in bytes, where the system reports it.
pub fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
