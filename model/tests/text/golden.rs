//! Tokenizer and chat template against what transformers computed, for every fixture.

use std::path::{Path, PathBuf};

use emberlm_model::text::{ChatOptions, Message, TextProcessor};
use serde::Deserialize;
use serde_json::{Map, Value};

const FIXTURES: [&str; 7] =
    ["crest_k2", "crest_k4", "crest_k4_nf4", "leanllama", "leanllama_kv", "leanllama_nf4", "nano_compact"];

#[derive(Deserialize)]
struct Golden {
    texts: Vec<Text>,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    ids_no_special: Vec<u32>,
    decoded: String,
    decoded_skip_special: String,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    kwargs: Map<String, Value>,
    add_generation_prompt: bool,
    rendered: String,
    ids: Vec<u32>,
}

fn load(fixture: &str) -> (TextProcessor, Golden) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let directory: PathBuf = directory.join(fixture);
    let golden = std::fs::read(directory.join("tokenizer_golden.json")).unwrap();
    let text = TextProcessor::from_dir(&directory).unwrap();
    (text, serde_json::from_slice(&golden).unwrap())
}

#[test]
fn texts() {
    for fixture in FIXTURES {
        let (text, golden) = load(fixture);
        assert!(golden.texts.len() >= 10);
        for case in golden.texts {
            let what = format!("{fixture}: {:?}", case.text);
            assert_eq!(text.encode(&case.text, true).unwrap(), case.ids, "{what}");
            let ids = text.encode(&case.text, false).unwrap();
            assert_eq!(ids, case.ids_no_special, "{what}");
            assert_eq!(text.decode(&ids, false).unwrap(), case.decoded, "{what}");
            let skipped = text.decode(&ids, true).unwrap();
            assert_eq!(skipped, case.decoded_skip_special, "{what}");
        }
    }
}

#[test]
fn chats() {
    for fixture in FIXTURES {
        let (text, golden) = load(fixture);
        assert!(golden.chats.len() >= 8);
        for case in golden.chats {
            let options = ChatOptions {
                add_generation_prompt: case.add_generation_prompt,
                variables: case.kwargs,
                ..ChatOptions::default()
            };
            let rendered = text.render_chat(&case.messages, &options).unwrap();
            assert_eq!(rendered, case.rendered, "{fixture}");
            let ids = text.encode_chat(&case.messages, &options).unwrap();
            assert_eq!(ids, case.ids, "{fixture}");
        }
    }
}

#[test]
fn streams_give_what_decode_gives() {
    for fixture in FIXTURES {
        let (text, golden) = load(fixture);
        for case in golden.texts {
            for skip_special in [false, true] {
                let mut stream = text.decode_stream(skip_special);
                let mut pieces = String::new();
                for &id in &case.ids {
                    pieces.push_str(&stream.push(id).unwrap());
                }
                pieces.push_str(&stream.finish().unwrap());
                let whole = text.decode(&case.ids, skip_special).unwrap();
                assert_eq!(pieces, whole, "{fixture}: {:?}", case.text);
            }
        }
    }
}

#[test]
fn special_tokens_and_sizes() {
    let (text, _) = load("leanllama");
    let special = text.special_tokens();
    let bos = special.bos.as_ref().unwrap();
    assert_eq!((bos.text.as_str(), bos.id), ("<|begin_of_text|>", Some(522)));
    assert_eq!(text.eos_id(), Some(528));
    assert_eq!(special.pad.as_ref().unwrap().id, Some(524));
    assert_eq!(special.unk, None);
    assert_eq!(text.vocab_size(), 530);
    assert_eq!(text.token(529).as_deref(), Some("<|python_tag|>"));
    assert_eq!(text.token(530), None);
    let text = text.for_embedding(529);
    assert_eq!(text.encode("a", true).unwrap(), [522, 64]);
    let error = text.encode("a<|python_tag|>", true).unwrap_err().to_string();
    assert!(error.contains("<|python_tag|>") && error.contains("529"), "{error}");
}
