//! What the tokenizer class that `tokenizer_config.json` names changes in `tokenizer.json`.
//!
//! `LlamaTokenizer` of transformers 5 takes vocabulary and merges from the file and nothing else but the post-processor: spaces are
//! always handled as SentencePiece does, with one before the whole text and none after special tokens, where older files of these
//! models put one before every stretch. `Qwen2Tokenizer` is the same in principle, but its files say what the class does.
//! Source: `LlamaTokenizer.__init__` and `AutoTokenizer.from_pretrained` of transformers 5.23.

use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// The class, without the `Fast` of older versions.
pub(super) fn name(config: &Map<String, Value>) -> &str {
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    class.strip_suffix("Fast").unwrap_or(class)
}

/// Whether a `tokenizer.json` is of byte-level BPE. transformers then overrules a config that says `LlamaTokenizer`.
pub(super) fn is_byte_level(json: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct File {
        pre_tokenizer: Option<Part>,
        decoder: Option<Part>,
    }
    #[derive(serde::Deserialize)]
    struct Part {
        r#type: String,
        #[serde(default)]
        pretokenizers: Vec<Part>,
    }
    impl Part {
        fn is_byte_level(&self) -> bool {
            self.r#type == "ByteLevel" || self.pretokenizers.iter().any(|part| part.r#type == "ByteLevel")
        }
    }
    let Ok(File { pre_tokenizer, decoder }) = serde_json::from_slice(json) else { return false };
    [pre_tokenizer, decoder].into_iter().flatten().any(|part| part.is_byte_level())
}

/// The `tokenizer.json` that a class makes of the one in the file; `None` where it is taken as it is.
///
/// # Errors
/// [`Error::Tokenizer`] when the file is no JSON object.
pub(super) fn rebuild(json: &[u8], config: &Map<String, Value>) -> Result<Option<Vec<u8>>> {
    if name(config) != "LlamaTokenizer" || is_byte_level(json) {
        return Ok(None);
    }
    let mut file: Map<String, Value> = serde_json::from_slice(json).map_err(|e| Error::Tokenizer(e.to_string()))?;
    let Some(model) = file.get_mut("model").and_then(Value::as_object_mut) else { return Ok(None) };
    if model.get("type").and_then(Value::as_str) != Some("BPE") {
        return Ok(None);
    }
    for (key, value) in [
        ("fuse_unk", json!(true)),
        ("byte_fallback", json!(true)),
        ("unk_token", Value::Null),
        ("dropout", Value::Null),
    ] {
        model.insert(key.to_owned(), value);
    }
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    let prefix_space = flag("add_prefix_space").unwrap_or(true);
    let scheme = match (prefix_space, flag("legacy")) {
        (false, _) => "never",
        (true, Some(true)) => "always",
        (true, _) => "first",
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix_space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    file.insert("normalizer".to_owned(), Value::Null);
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    file.insert("pre_tokenizer".to_owned(), metaspace);
    file.insert("decoder".to_owned(), json!({"type": "Sequence", "decoders": decoders}));
    if config.get("added_tokens_decoder").is_some_and(Value::is_object) {
        // The config then has them all, and they are added from there.
        file.insert("added_tokens".to_owned(), json!([]));
    }
    serde_json::to_vec(&file).map(Some).map_err(|e| Error::Tokenizer(e.to_string()))
}
