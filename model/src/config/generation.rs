//! The author's generation defaults (`generation_config.json`).
//!
//! # Untrusted input
//! Nothing in this file is needed to run a model, so nothing in it stops a run: what cannot be used is told in a warning and counts
//! as not stated. transformers loads a model beside a damaged file too.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::fields::Fields;
use super::generation_keys::{
    UNSUPPORTED, UNSUPPORTED_IN_DRAWS, Unusable, bad_words, decay, sequence_bias, stated, stop_strings,
};
use super::json;
use super::limits::{MAX_CONFIG_BYTES, MAX_POSITIONS};
use crate::Result;
use crate::checkpoint::ModelDir;
use crate::sampling::{LogitsProcessors, SamplingConfig};

/// How tokens are chosen, and how many, where a caller says nothing; everything is optional.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GenerationDefaults {
    /// Sample, rather than take the most likely token.
    pub do_sample: Option<bool>,
    /// Divides the logits; 0 means greedy.
    pub temperature: Option<f64>,
    /// Candidates kept by rank; 0 keeps all.
    pub top_k: Option<usize>,
    /// Candidates kept by cumulative probability, in (0, 1].
    pub top_p: Option<f64>,
    /// Candidates kept by probability relative to the best, in [0, 1).
    pub min_p: Option<f64>,
    /// Above 1 discourages tokens already seen.
    pub repetition_penalty: Option<f64>,
    /// Tokens to generate at most.
    pub max_new_tokens: Option<usize>,
}

/// What the author states about generation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Of the options that callers have too.
    pub defaults: GenerationDefaults,
    /// Tokens of prompt and output at most.
    pub max_length: Option<usize>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// First token of a text.
    pub bos_token_id: Option<u32>,
    /// Token for padding.
    pub pad_token_id: Option<u32>,
    /// Strings that end a text.
    pub stop_strings: Vec<String>,
    /// Rules about single tokens.
    pub processors: LogitsProcessors,
    /// Keys that are stated and would change the text, but are not supported.
    pub unsupported: Vec<String>,
    /// The same for keys that would change drawn texts only.
    pub unsupported_in_draws: Vec<String>,
    /// What is stated and cannot be used, as sentences that name the file and the key; it counts as not stated.
    pub unusable: Vec<String>,
}

impl GenerationConfig {
    /// File name in a model directory.
    pub const FILE: &str = "generation_config.json";

    /// Candidates that a draw keeps where nothing is stated, as in transformers.
    pub const DEFAULT_TOP_K: usize = 50;

    /// Reads the file; without one, every option is unset. What cannot be used is unset too, and a warning names it.
    ///
    /// # Errors
    /// When the file cannot be read, or is beyond every size.
    pub fn from_dir(dir: &ModelDir) -> Result<Self> {
        Ok(match dir.read(Self::FILE, MAX_CONFIG_BYTES)? {
            Some(bytes) => Self::from_json(&dir.path().join(Self::FILE), &bytes),
            None => Self::default(),
        })
    }

    /// Reads the bytes of the file; `path` is for warnings.
    pub fn from_json(path: &Path, bytes: &[u8]) -> Self {
        let out = Self::parse(path, bytes);
        for message in &out.unusable {
            tracing::warn!("{message}");
        }
        out
    }

    fn parse(path: &Path, bytes: &[u8]) -> Self {
        let nothing = |message: String| Self { unusable: vec![message], ..Self::default() };
        // As Python's json, and unlike the other files: the last of equal keys counts.
        let value: Value = match json::from_slice(bytes) {
            Ok(value) => value,
            Err(message) => {
                return nothing(format!("{}: {message}; no generation default is taken from it", path.display()));
            }
        };
        match Fields::root(path, &value) {
            Ok(root) => Self::read(&root),
            Err(error) => nothing(format!("{error}; no generation default is taken from it")),
        }
    }

    fn read(root: &Fields) -> Self {
        let mut unusable = Unusable::default();
        let share = |key| root.number(key, "a number from 0 to 1", |x| SamplingConfig::SHARES.contains(&x));
        let defaults = GenerationDefaults {
            do_sample: unusable.or(root.boolean("do_sample")),
            temperature: unusable
                .or(root.number("temperature", "a number from 0 to 100", |x| (0.0..=100.0).contains(&x))),
            top_k: unusable.or(root.integer("top_k", 0, u32::MAX as usize)),
            top_p: unusable.or(share("top_p")),
            min_p: unusable.or(share("min_p")),
            repetition_penalty: unusable
                .or(root.number("repetition_penalty", "a number above 0, at most 100", |x| x > 0.0 && x <= 100.0)),
            max_new_tokens: unusable.or(root.size("max_new_tokens", MAX_POSITIONS)),
        };
        let mut out = Self {
            defaults,
            max_length: unusable.or(root.size("max_length", MAX_POSITIONS)),
            eos_token_ids: unusable.ids(root, "eos_token_id"),
            bos_token_id: unusable.or(root.token_id("bos_token_id")),
            pad_token_id: unusable.or(root.token_id("pad_token_id")),
            stop_strings: unusable.or(stop_strings(root)),
            processors: LogitsProcessors {
                sequence_bias: unusable.or(sequence_bias(root)),
                no_repeat_ngram_size: unusable.count(root, "no_repeat_ngram_size"),
                bad_words_ids: unusable.or(bad_words(root)),
                min_length: unusable.count(root, "min_length"),
                min_new_tokens: unusable.count(root, "min_new_tokens"),
                exponential_decay_length_penalty: unusable.or(decay(root)),
                suppress_tokens: unusable.ids(root, "suppress_tokens"),
                begin_suppress_tokens: unusable.ids(root, "begin_suppress_tokens"),
                ..LogitsProcessors::default()
            },
            unsupported: stated(root, UNSUPPORTED),
            unsupported_in_draws: stated(root, UNSUPPORTED_IN_DRAWS),
            unusable: Vec::new(),
        };
        out.unusable = unusable.0;
        out
    }

    /// How tokens are chosen where nobody says otherwise, by the rules of transformers: greedily unless `do_sample` is true; a draw
    /// is at temperature 1 among the [`DEFAULT_TOP_K`](Self::DEFAULT_TOP_K) best unless the file says otherwise.
    pub fn sampling(&self) -> SamplingConfig {
        let off = SamplingConfig::default();
        let or = |stated: Option<f64>, off: f32| stated.map_or(off, |x| x as f32);
        let stated = self.defaults;
        let repetition_penalty = or(stated.repetition_penalty, off.repetition_penalty);
        if stated.do_sample != Some(true) {
            return SamplingConfig { repetition_penalty, ..SamplingConfig::greedy() };
        }
        SamplingConfig {
            temperature: or(stated.temperature, off.temperature),
            top_k: stated.top_k.unwrap_or(Self::DEFAULT_TOP_K),
            top_p: or(stated.top_p, off.top_p),
            min_p: or(stated.min_p, off.min_p),
            repetition_penalty,
            seed: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> GenerationConfig {
        GenerationConfig::from_json(Path::new("generation_config.json"), json.as_bytes())
    }

    #[test]
    fn sampling_follows_the_rules_of_transformers() {
        let greedy = SamplingConfig::greedy();
        for json in [
            "{}",
            "{\"temperature\": 0.6, \"top_p\": 0.9, \"top_k\": 5}",
            "{\"do_sample\": false}",
            "{\"do_sample\": null}",
        ] {
            assert_eq!(read(json).sampling(), greedy, "{json}");
        }
        let drawn = SamplingConfig { top_k: 50, ..SamplingConfig::default() };
        assert_eq!(read("{\"do_sample\": true}").sampling(), drawn);
        assert_eq!(read("{\"do_sample\": true, \"top_k\": null}").sampling(), drawn);
        assert_eq!(read("{\"do_sample\": true, \"top_k\": 0}").sampling(), SamplingConfig { top_k: 0, ..drawn });
        let all = read("{\"do_sample\": true, \"temperature\": 0.5, \"top_k\": 20, \"top_p\": 0.75, \"min_p\": 0.25}");
        let wanted = SamplingConfig { temperature: 0.5, top_k: 20, top_p: 0.75, min_p: 0.25, ..drawn };
        assert_eq!(all.sampling(), wanted);
        let penalised = SamplingConfig { repetition_penalty: 1.5, ..greedy };
        assert_eq!(read("{\"repetition_penalty\": 1.5}").sampling(), penalised);
    }

    /// What counts as stated; something is told of what does not.
    fn told(config: GenerationConfig, case: &str) -> GenerationConfig {
        assert_eq!(config.unusable.is_empty(), case.contains("null}"), "{case:?}");
        GenerationConfig { unusable: Vec::new(), ..config }
    }

    #[test]
    fn what_cannot_be_used_is_not_stated() {
        let nothing = GenerationConfig::default();
        let files = [
            "",
            " ",
            "[]",
            "3",
            "null",
            "{",
            "{\"top_k\": 5,}",
            "\u{feff}{\"top_k\": 5}",
            "{\"top_k\": 5} x",
            "// a\n{}",
            "'a'",
        ];
        for file in files {
            assert_eq!(told(read(file), file), nothing, "{file:?}");
        }
        assert_eq!(told(GenerationConfig::from_json(Path::new("x"), b"\xff\xfe{\0}\0"), "UTF-16"), nothing);
        assert_eq!(told(read(&"[".repeat(100_000)), "["), nothing);
        let values = [
            "\"pad_token_id\": -1",
            "\"pad_token_id\": [1, 2]",
            "\"pad_token_id\": \"5\"",
            "\"bos_token_id\": -1",
            "\"bos_token_id\": {}",
            "\"eos_token_id\": -1",
            "\"eos_token_id\": \"</s>\"",
            "\"eos_token_id\": 4294967296",
            "\"eos_token_id\": null",
            "\"top_k\": -1",
            "\"top_k\": 2.5",
            "\"top_k\": \"50\"",
            "\"top_p\": -0.5",
            "\"top_p\": 1.5",
            "\"top_p\": \"0.9\"",
            "\"min_p\": 1.5",
            "\"temperature\": -1",
            "\"temperature\": \"0.7\"",
            "\"temperature\": [0.7]",
            "\"repetition_penalty\": 0",
            "\"do_sample\": \"true\"",
            "\"do_sample\": 1",
            "\"max_new_tokens\": -5",
            "\"max_new_tokens\": 0",
            "\"max_length\": \"20\"",
            "\"bad_words_ids\": [5]",
            "\"bad_words_ids\": [[]]",
            "\"bad_words_ids\": [[1, -1]]",
            "\"suppress_tokens\": \"5\"",
            "\"suppress_tokens\": [-1]",
            "\"sequence_bias\": {\"5\": 1}",
            "\"sequence_bias\": [[[5]]]",
            "\"no_repeat_ngram_size\": -1",
            "\"exponential_decay_length_penalty\": [1]",
            "\"stop_strings\": \"\"",
            "\"stop_strings\": [5]",
        ];
        for value in values {
            let file = format!("{{{value}}}");
            assert_eq!(told(read(&file), &file), nothing, "{value}");
            // The other keys count.
            let beside = read(&format!("{{\"do_sample\": true, {value}, \"num_beams\": 1}}")).defaults.do_sample;
            assert!(beside == Some(true) || value.contains("do_sample"), "{value}");
        }
        assert_eq!(read("{\"eos_token_id\": [7, -1, 9]}").eos_token_ids, [7, 9]);
        assert_eq!(read("{\"top_k\": 4, \"top_k\": 5}").defaults.top_k, Some(5));
    }

    #[test]
    fn keys_that_would_change_the_text_are_named() {
        let neutral = "{\"num_beams\": 1, \"typical_p\": 1.0, \"guidance_scale\": null, \"token_healing\": false, \
                       \"encoder_no_repeat_ngram_size\": 0, \"epsilon_cutoff\": 0.0, \"constraints\": [], \"use_cache\": true}";
        assert_eq!(read(neutral), GenerationConfig::default());
        let stated =
            read("{\"num_beams\": 4, \"forced_eos_token_id\": 0, \"typical_p\": 0.9, \"token_healing\": true}");
        assert_eq!(stated.unsupported, ["num_beams", "forced_eos_token_id", "token_healing"]);
        assert_eq!(stated.unsupported_in_draws, ["typical_p"]);
        let biased = read("{\"sequence_bias\": [[[1, 2], 0.5], [[3], -1], [[1, 2], 0.25]]}").processors;
        assert_eq!(biased.sequence_bias, [(vec![3], -1.0), (vec![1, 2], 0.25)]);
        assert_eq!(biased.names(), ["sequence_bias"]);
    }
}
