//! `tokenizer.json` as the tokenizer library reads it.

use serde::Deserialize;
use tokenizers::{AddedToken, Tokenizer};

use super::bpe_file::{self, Added};
use super::catch_panic::catch_panic;
use crate::{Error, Result};

/// A tokenizer as its file has it.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) tokenizer: Tokenizer,
    /// The tokens that the file adds to its vocabulary.
    added: Vec<Added>,
}

/// Parses `tokenizer.json`, without the truncation and padding it may ask for: a prompt is never cut silently.
pub(super) fn parse(json: &[u8]) -> Result<Parsed> {
    catch_panic(|| {
        // Other kinds, and files with more in them than BPE knows, are read by the library, whose errors are those to show.
        let (mut tokenizer, added) = match bpe_file::parse(json) {
            Some(parsed) => parsed,
            None => (Tokenizer::from_bytes(json)?, added_tokens(json)?),
        };
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        Ok(Parsed { tokenizer, added })
    })
}

fn added_tokens(json: &[u8]) -> serde_json::Result<Vec<Added>> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    let file: File = serde_json::from_slice(json)?;
    Ok(file.added_tokens)
}

impl Parsed {
    /// Checks that added tokens have their declared ids. The library numbers them by position and only logs a difference; the model
    /// would then be fed other tokens than it was trained on.
    pub(super) fn check_added_tokens(&self) -> Result<()> {
        for Added { id, token: AddedToken { content, .. } } in &self.added {
            let found = self.tokenizer.token_to_id(content);
            // An empty text is never a token; the library drops it.
            if found != Some(*id) && !content.is_empty() {
                let found = found.map_or("no id".to_owned(), |id| format!("id {id}"));
                return Err(Error::Tokenizer(format!(
                    "tokenizer.json: added token {content:?} declares id {id} but gets {found}; the ids of added tokens must continue the vocabulary"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of_kind(model: Value) -> Value {
        json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": null,
            "added_tokens": [
                {"id": 3, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": true, "normalized": false, "special": true},
                {"id": 4, "content": "ba", "single_word": true, "lstrip": false, "rstrip": false, "normalized": true, "special": false},
            ],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": model,
        })
    }

    /// By way of its own kind of vocabulary or not, a file is what the library makes of it.
    #[test]
    fn a_file_is_what_the_library_makes_of_it() {
        let vocab = json!({"a": 0, "b": 1, "ab": 2});
        let pairs = json!({"type": "BPE", "vocab": vocab, "merges": [["a", "b"]], "ignore_merges": true});
        let more_than_bpe_knows =
            json!({"type": "BPE", "vocab": vocab, "merges": [], "unread": {"by": ["the", "library"]}});
        let settings = json!({
            "type": "BPE", "vocab": vocab, "merges": [["a", "b"]], "dropout": null, "unk_token": "a", "continuing_subword_prefix": "",
            "end_of_word_suffix": "b", "fuse_unk": true, "byte_fallback": true, "ignore_merges": false
        });
        for (model, direct) in [
            (pairs, true),
            (json!({"vocab": vocab, "merges": [["a", "b"]]}), true),
            (json!({"type": "BPE", "vocab": vocab, "merges": ["a b"]}), true),
            (json!({"type": "BPE", "vocab": vocab, "merges": ["#version: 0.2", "a b"]}), false),
            (settings, true),
            (more_than_bpe_knows, false),
            (json!({"type": "WordLevel", "vocab": vocab, "unk_token": "a"}), false),
            (
                json!({"type": "WordPiece", "vocab": vocab, "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}),
                false,
            ),
            (json!({"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0], ["ab", -0.5]], "unk_id": 0}), false),
        ] {
            let file = of_kind(model.clone()).to_string();
            assert_eq!(bpe_file::parse(file.as_bytes()).is_some(), direct, "{model}");
            let mut library: Tokenizer = file.parse().expect("a tokenizer");
            library.with_truncation(None).expect("no truncation");
            let Parsed { tokenizer: parsed, added } = parse(file.as_bytes()).expect("a tokenizer");
            assert_eq!(added.iter().map(|token| token.id).collect::<Vec<_>>(), [3, 4], "{model}");
            assert_eq!(parsed.to_string(false).expect("json"), library.to_string(false).expect("json"), "{model}");
            let text = "ab b<s>  ba ab";
            assert_eq!(parsed.encode(text, true).expect("ids"), library.encode(text, true).expect("ids"), "{model}");
        }
    }

    /// What both refuse is refused in the library's words.
    #[test]
    fn errors_are_those_of_the_library() {
        for model in [
            json!({"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}),
            json!({"type": "BPE", "vocab": {"a": -1}, "merges": []}),
            json!({"type": "BPE", "vocab": {"a": 0}}),
            json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b", "b"]]}),
            json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a"]]}),
            json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"], "a b"]}),
            json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b ab"]}),
            json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 2.0}),
            json!({"type": "Other", "vocab": {"a": 0}, "merges": []}),
            Value::Null,
        ] {
            let file = of_kind(model.clone()).to_string();
            let library = file.parse::<Tokenizer>().expect_err("no tokenizer").to_string();
            let parsed = parse(file.as_bytes()).expect_err("no tokenizer").to_string();
            assert!(parsed.contains(&library), "{model}: {parsed} is not {library}");
        }
    }
}
