//! Chats whose special-token text stays text: where a message holds none, the ids are those of parsing, whatever the tokenizer does
//! at the start of a text and around its special tokens.

use emberlm_model::text::{ChatOptions, Message, SpecialText, TextFiles, TextProcessor};
use serde_json::{Value, json};

/// A tokenizer of single characters with `<s>`, `</s>` and `<x>` as added tokens, and a template that writes them.
fn tokenizer(normalizer: Value, pre_tokenizer: Value, rules: &Value) -> TextProcessor {
    let mut vocab = serde_json::Map::new();
    let chars = ["<unk>", "▁", "Ġ", "Ċ", "é", "Ã", "©", "▁h", "▁u", "Ġh"].map(str::to_owned);
    for piece in chars.into_iter().chain((' '..='~').map(String::from)) {
        vocab.insert(piece, json!(vocab.len()));
    }
    let first = vocab.len();
    let added: Vec<Value> = ["<s>", "</s>", "<x>"]
        .iter()
        .enumerate()
        .map(|(i, content)| {
            let mut token = json!({"id": first + i, "content": content, "single_word": false, "lstrip": false,
                                   "rstrip": false, "normalized": false, "special": true});
            for (rule, on) in rules.as_object().unwrap() {
                token[rule] = on.clone();
            }
            token
        })
        .collect();
    let json = json!({
        "version": "1.0", "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": vocab, "merges": [["▁", "h"], ["▁", "u"], ["Ġ", "h"]], "unk_token": "<unk>"},
    });
    let template = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }} </s> {% endfor %}<s>";
    let files = TextFiles {
        tokenizer_json: json.to_string().into_bytes(),
        chat_template_jinja: Some(template.into()),
        ..TextFiles::default()
    };
    TextProcessor::from_files(&files).unwrap()
}

fn ids(text: &TextProcessor, content: &str, special_text: SpecialText) -> Vec<u32> {
    let options = ChatOptions { special_text, ..ChatOptions::prompt() };
    text.encode_chat(&[Message::user(content), Message::assistant("ok"), Message::user("hh")], &options).unwrap()
}

fn tokenizers() -> Vec<(String, TextProcessor)> {
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
    let byte_level = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
    let prepend = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]});
    let strip = json!({"type": "Strip", "strip_left": true, "strip_right": true});
    let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                      "strip_accents": true, "lowercase": true});
    let pipelines = [
        ("metaspace first", Value::Null, metaspace("first", true)),
        ("metaspace first unsplit", Value::Null, metaspace("first", false)),
        ("metaspace always", Value::Null, metaspace("always", true)),
        ("metaspace never", Value::Null, metaspace("never", true)),
        ("prepend", prepend, Value::Null),
        ("byte level", Value::Null, byte_level(false)),
        ("byte level with a space", json!({"type": "NFC"}), byte_level(true)),
        ("strip", strip, metaspace("first", true)),
        ("bert", bert, json!({"type": "BertPreTokenizer"})),
        ("lowercase", json!({"type": "Lowercase"}), json!({"type": "Whitespace"})),
    ];
    let rules = [
        json!({}),
        json!({"lstrip": true}),
        json!({"rstrip": true}),
        json!({"lstrip": true, "rstrip": true}),
        json!({"normalized": true}),
        json!({"normalized": true, "rstrip": true, "special": false}),
        json!({"single_word": true}),
    ];
    let mut all = Vec::new();
    for (name, normalizer, pre_tokenizer) in &pipelines {
        for rule in &rules {
            let text = tokenizer(normalizer.clone(), pre_tokenizer.clone(), rule);
            all.push((format!("{name}, {rule}"), text));
        }
    }
    all
}

#[test]
fn text_without_special_tokens_has_the_ids_of_parsing() {
    let samples =
        ["hi", " hi", "hi ", "", "  two  words ", "cafe\u{301} \u{e9}", "a\n\nb\t", "< s> <s", "x <y> z", "H U"];
    for (name, text) in tokenizers() {
        for sample in samples {
            let parsed = ids(&text, sample, SpecialText::Parse);
            assert_eq!(ids(&text, sample, SpecialText::Literal), parsed, "{name}: {sample:?}");
        }
    }
}

#[test]
fn special_tokens_in_text_are_spelled() {
    for (name, text) in tokenizers() {
        let special = |ids: &[u32]| {
            ids.iter()
                .filter(|&&id| text.token(id).is_some_and(|t| t.ends_with('>') && t.len() > 1 && t != "<unk>"))
                .count()
        };
        let plain = special(&ids(&text, "hi", SpecialText::Literal));
        for sample in ["<s>", "a <s> b", "a</s><x>", "  <x>  <x>  ", "<<x>s>"] {
            let found = ids(&text, sample, SpecialText::Literal);
            assert_eq!(special(&found), plain, "{name}: {sample:?}");
            // What stands there is the spelling of the token, character by character.
            assert!(found.len() > ids(&text, "", SpecialText::Literal).len() + 2, "{name}: {sample:?}");
        }
    }
}
