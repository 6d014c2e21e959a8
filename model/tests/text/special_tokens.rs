//! Special tokens from every file that may name them, against transformers.
//!
//! `data/special_tokens.json` says how the files of a fixture are changed, and what `AutoTokenizer` of transformers 5.23 made of them.

use std::collections::HashMap;

use emberlm_model::text::{ChatOptions, Message, SpecialText, TextFiles, TextProcessor};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::support::files;

#[derive(Deserialize)]
struct Cases {
    /// A tokenizer.json in the manner of SentencePiece.
    spm: Value,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    base: String,
    drop: Vec<String>,
    edit: Map<String, Value>,
    files: HashMap<String, Value>,
    roles: HashMap<String, String>,
    role_ids: HashMap<String, u32>,
    rendered: String,
    vocab: usize,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    plain: Vec<u32>,
    skipped: String,
}

const TEMPLATE: &str =
    "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ sep_token }}|{{ image_token }}|{{ x_token }}";

fn processor(case: &Case, spm: &Value) -> TextProcessor {
    let mut json: Value = match case.base.as_str() {
        "spm" => spm.clone(),
        base => serde_json::from_slice(&files(base).tokenizer_json).unwrap(),
    };
    let added = json["added_tokens"].as_array_mut().unwrap();
    added.retain(|token| !case.drop.iter().any(|drop| token["content"] == json!(drop)));
    for (key, value) in &case.edit {
        json[key] = value.clone();
    }
    let file = |name: &str| case.files.get(name).map(|content| content.to_string().into_bytes());
    let files = TextFiles {
        tokenizer_json: json.to_string().into_bytes(),
        tokenizer_config: file("tokenizer_config.json"),
        special_tokens_map: file("special_tokens_map.json"),
        added_tokens: file("added_tokens.json"),
        chat_template_jinja: Some(TEMPLATE.into()),
        ..TextFiles::default()
    };
    TextProcessor::from_files(&files).unwrap_or_else(|e| panic!("{}: {e}", case.name))
}

#[test]
fn tokens_of_every_file_are_those_of_transformers() {
    let cases: Cases = serde_json::from_str(include_str!("../data/special_tokens.json")).unwrap();
    assert!(cases.cases.len() >= 50);
    for case in &cases.cases {
        let name = &case.name;
        let text = processor(case, &cases.spm);
        let special = text.special_tokens();
        let roles = [
            ("bos_token", &special.bos),
            ("eos_token", &special.eos),
            ("pad_token", &special.pad),
            ("unk_token", &special.unk),
        ];
        for (role, token) in roles {
            let found = token.as_ref().map(|t| (t.text.as_str(), t.id));
            let wanted = case.roles.get(role).map(|t| (t.as_str(), case.role_ids.get(role).copied()));
            assert_eq!(found, wanted, "{name}: {role}");
        }
        // The stop set of the tokenizer is its EOS.
        assert_eq!(text.eos_id(), case.role_ids.get("eos_token").copied(), "{name}");
        let rendered = text.render_chat(&[Message::user("x")], &ChatOptions::default()).unwrap();
        assert_eq!(rendered, case.rendered, "{name}");
        assert_eq!(text.vocab_size(), case.vocab, "{name}");
        for Text { text: sample, ids, plain, skipped } in &case.texts {
            assert_eq!(text.encode(sample, true).unwrap(), *ids, "{name}: {sample:?}");
            assert_eq!(text.encode(sample, false).unwrap(), *plain, "{name}: {sample:?}");
            assert_eq!(text.decode(ids, true).unwrap(), *skipped, "{name}: {sample:?}");
        }
    }
}

#[test]
fn a_token_beyond_the_embedding_is_an_error_where_a_text_holds_it() {
    let mut config: Value = serde_json::from_slice(files("leanllama").tokenizer_config.as_ref().unwrap()).unwrap();
    config["pad_token"] = json!("[PAD]");
    let files = TextFiles { tokenizer_config: Some(config.to_string().into_bytes()), ..files("leanllama") };
    let text = TextProcessor::from_files(&files).unwrap();
    assert_eq!(text.id("[PAD]"), Some(530));
    // Without an embedding there is nothing to be beyond.
    assert_eq!(text.encode("[PAD]", false).unwrap(), [530]);
    let text = text.for_embedding(530);
    assert!(!text.encode("a PAD", true).unwrap().is_empty());
    assert_eq!(text.decode(&[530], false).unwrap(), "[PAD]");
    let chat = |content: &str, special_text| {
        let options = ChatOptions { special_text, ..ChatOptions::prompt() };
        text.encode_chat(&[Message::user(content)], &options)
    };
    for special_text in [SpecialText::Parse, SpecialText::Literal] {
        assert!(chat("hello", special_text).is_ok());
    }
    // As text it is no token.
    assert!(chat("a [PAD]", SpecialText::Literal).is_ok());
    for error in [text.encode("a [PAD] b", true), chat("a [PAD]", SpecialText::Parse)] {
        let error = error.unwrap_err().to_string();
        for part in ["[PAD]", "530", "530 rows"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn roles_and_token_files_of_wrong_types_are_named() {
    let with = |name: &str, content: &str| {
        // A config with added_tokens_decoder keeps the older files from being read.
        let mut files = TextFiles { tokenizer_config: None, ..files("crest_k4") };
        let content = Some(content.as_bytes().to_vec());
        match name {
            "tokenizer_config.json" => files.tokenizer_config = content,
            "special_tokens_map.json" => files.special_tokens_map = content,
            _ => files.added_tokens = content,
        }
        TextProcessor::from_files(&files).unwrap_err().to_string()
    };
    for (name, content, part) in [
        ("tokenizer_config.json", r#"{"added_tokens_decoder": [1]}"#, "added_tokens_decoder"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#, "added_tokens_decoder.x"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"7": "a"}}"#, "added_tokens_decoder.7"),
        ("tokenizer_config.json", r#"{"extra_special_tokens": "a"}"#, "extra_special_tokens"),
        ("tokenizer_config.json", r#"{"extra_special_tokens": [1]}"#, "extra_special_tokens"),
        ("tokenizer_config.json", r#"{"extra_special_tokens": {"a": 1}}"#, "extra_special_tokens.a"),
        ("special_tokens_map.json", "[]", "special_tokens_map.json"),
        ("special_tokens_map.json", r#"{"eos_token": 5}"#, "eos_token"),
        ("added_tokens.json", r#"{"a": "b"}"#, "added_tokens.json: a"),
        ("added_tokens.json", "", "added_tokens.json: is empty"),
    ] {
        let error = with(name, content);
        assert!(error.contains(part), "{name} {content}: {error}");
    }
}

/// Lists of many tokens, most of them there several times, are read in the time that their length takes.
#[test]
fn long_lists_of_tokens_are_read_once() {
    let many: Vec<String> = (0..400_000).map(|i| format!("<{}>", i % 4000)).collect();
    let named: Map<String, Value> = many[..4000].iter().map(|token| (format!("{token}_token"), json!(token))).collect();
    let numbered: Map<String, Value> =
        many[..4000].iter().zip(1000..).map(|(token, id)| (token.clone(), json!(id))).collect();
    for (config, map) in [
        (json!({}), json!({ "additional_special_tokens": many })),
        (json!({ "extra_special_tokens": named }), json!(named)),
    ] {
        let mut files = files("crest_k4");
        files.tokenizer_config = Some(config.to_string().into_bytes());
        files.special_tokens_map = Some(map.to_string().into_bytes());
        files.added_tokens = Some(json!(numbered).to_string().into_bytes());
        let begun = std::time::Instant::now();
        // What becomes of them is not the question.
        let _ = TextProcessor::from_files(&files);
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    }
}
