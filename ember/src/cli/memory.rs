//! Memory of this process.

use emberlm::model::text::TextProcessor;
use serde::Serialize;

/// What the program takes besides weights, cache, scratch and tokenizer, in bytes: its code as far as it runs, threads, config,
/// template. Of the 22 MiB that are resident when the demo model generates, on Linux; code without optimisation is larger.
pub const PROGRAM: usize = if cfg!(debug_assertions) { 40 << 20 } else { 21 << 20 };

/// As [`PROGRAM`], before a model is loaded.
pub const STARTED: usize = if cfg!(debug_assertions) { 25 << 20 } else { 14 << 20 };

/// Bytes of a tokenizer per token of its vocabulary, as measured on Linux with BPE vocabularies of 16,000 to 151,000 tokens and about as
/// many merges (tokenizers 0.23): the vocabulary is held in both directions, the merges in one, at 230 to 280.
pub const TOKENIZER_PER_TOKEN: usize = 260;

/// The same while `tokenizer.json` is parsed, with vocabularies of 16,000 to 128,000 tokens: the file and each merge as two texts are there
/// too, at 500; at 440 where the file writes a merge as one text.
pub const PARSER_PER_TOKEN: usize = 500;

/// What a tokenizer takes, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct TokenizerMemory {
    /// From when it is loaded on.
    pub resident: usize,
    /// While `tokenizer.json` is parsed, the program included.
    pub peak: usize,
}

impl TokenizerMemory {
    /// By the number of tokens.
    pub fn of(text: &TextProcessor) -> Self {
        let tokens = text.vocab_size();
        Self { resident: TOKENIZER_PER_TOKEN * tokens, peak: STARTED + PARSER_PER_TOKEN * tokens }
    }
}

/// Peak resident memory of this process in bytes, where the system reports it.
pub fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
