//! `/tokenize`: the tokens that a chat becomes, in the form that a client asks for.

use serde_json::{Value, json};

use crate::client::Server;
use crate::templates::{model, server};

const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}|{{ m.content }}]{% endfor %}{% if add_generation_prompt %}[assistant|{% endif %}";

/// A chat of a question and an answer with more fields.
fn chat(more: Value) -> Value {
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let mut body = json!({"messages": messages, "max_tokens": 1});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn rendered(server: &Server, body: &Value) -> String {
    let tokens = server.ok("/tokenize", body)["tokens"].clone();
    server.ok("/detokenize", &json!({ "tokens": tokens }))["content"].as_str().unwrap().to_owned()
}

#[test]
fn a_chat_ends_as_it_is_asked_to() {
    let directory = model(TEMPLATE);
    let server = server(&directory);
    let (bare, prompted) = ("[user|a][assistant|b]", "[user|a][assistant|b][assistant|");
    for (more, expected) in [
        (json!({}), prompted),
        (json!({"add_generation_prompt": null}), prompted),
        (json!({"add_generation_prompt": true}), prompted),
        (json!({"add_generation_prompt": false}), bare),
        (json!({"continue_final_message": true}), "[user|a][assistant|b"),
        (json!({"continue_final_message": true, "add_generation_prompt": false}), "[user|a][assistant|b"),
    ] {
        let asked = chat(more.clone());
        assert_eq!(rendered(&server, &asked), expected, "{more}");
        // As the same chat is read for an answer.
        let read = server.ok("/v1/chat/completions", &asked)["usage"]["prompt_tokens"].clone();
        assert_eq!(server.ok("/tokenize", &asked)["count"], read, "{more}");
    }
    for (more, part) in [
        (json!({"continue_final_message": true, "add_generation_prompt": true}), "excludes add_generation_prompt"),
        (json!({"add_generation_prompt": "no"}), "add_generation_prompt: expected true or false"),
        (json!({"add_special_tokens": 1}), "add_special_tokens: expected true or false"),
        (json!({"return_token_strs": 1}), "return_token_strs: expected true or false"),
    ] {
        let refused = server.post("/tokenize", &chat(more));
        assert!(refused.status == 400 && refused.message().contains(part), "{}", refused.body);
    }
}

#[test]
fn tokens_around_a_chat_are_there_where_they_are_asked_for() {
    let directory = model(TEMPLATE);
    let path = directory.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let (begin, id) = ("<|endoftext|>", tokenizer["added_tokens"][0]["id"].clone());
    assert_eq!(tokenizer["added_tokens"][0]["content"], begin);
    let single = json!([{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
    let pair = json!([{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]);
    tokenizer["post_processor"] = json!({"type": "TemplateProcessing", "single": single, "pair": pair,
        "special_tokens": {begin: {"id": begin, "ids": [id], "tokens": [begin]}}});
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let server = server(&directory);
    let tokens = |more: Value| server.ok("/tokenize", &chat(more))["tokens"].as_array().unwrap().clone();
    let plain = tokens(json!({}));
    assert_eq!(tokens(json!({"add_special_tokens": false})), plain);
    let around = [vec![id.clone()], plain.clone()].concat();
    assert_eq!(tokens(json!({"add_special_tokens": true})), around);
    // The prompt of an answer is the same one.
    let read = server.ok("/v1/chat/completions", &chat(json!({"add_special_tokens": true})));
    assert_eq!(read["usage"]["prompt_tokens"], around.len());
    // Texts have them unless asked otherwise.
    let text =
        |more: bool| server.ok("/tokenize", &json!({"prompt": "a", "add_special_tokens": more}))["count"].clone();
    assert_eq!((text(true), text(false)), (json!(2), json!(1)));
    assert_eq!(server.ok("/tokenize", &json!({"prompt": "a"}))["count"], 2);
}

#[test]
fn tokens_are_spelled_where_that_is_asked_for() {
    let directory = model(TEMPLATE);
    let server = server(&directory);
    let told = server.ok("/tokenize", &json!({"prompt": "a fox<|im_end|>", "return_token_strs": true}));
    let spelled: Vec<&str> = told["token_strs"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert_eq!(spelled.len(), told["tokens"].as_array().unwrap().len());
    // As the vocabulary has them, with its letter for a space.
    assert_eq!(spelled.concat(), "a\u{120}fox<|im_end|>");
    let of_chat = server.ok("/tokenize", &chat(json!({"return_token_strs": true})));
    assert_eq!(of_chat["token_strs"].as_array().unwrap().len(), of_chat["tokens"].as_array().unwrap().len());
    assert!(server.ok("/tokenize", &chat(json!({}))).get("token_strs").is_none());
}

#[test]
fn tokens_are_counted_beyond_the_context() {
    let server = Server::start(&["--ctx-size", "64"]);
    let text = "word ".repeat(200);
    let chat = json!({"messages": [{"role": "user", "content": text}], "max_tokens": 1});
    let count = server.ok("/tokenize", &chat)["count"].as_u64().unwrap();
    assert!(count > 200 && server.ok("/tokenize", &json!({"prompt": text}))["count"].as_u64().unwrap() > 190);
    assert_eq!(server.ok("/v1/messages/count_tokens", &chat)["input_tokens"], count);
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let refused = server.post(path, &chat);
        let part = format!("the prompt has {count} tokens");
        assert!(refused.status == 400 && refused.message().contains(&part), "{path}: {}", refused.body);
    }
}
