//! What models say only now and then, from a model that says it at will: calls in the forms of each family, characters that are cut over
//! tokens, strings to stop at.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{Server, chunks, joined};
use crate::scripted::{ANSWER, model};

fn server(directory: &TempDir) -> Server {
    Server::start(&["-m", directory.path().to_str().unwrap(), "--alias", "demo"])
}

/// What Llama's own templates mention.
const LLAMA: &str = "{# Environment: ipython #}{{ tools|tojson if tools }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}<|answer|>";
/// What Qwen's do.
const QWEN: &str = "{# <think> <tool_call> <function= #}{{ tools|tojson if tools }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}<|answer|>";

fn tools(name: &str) -> Value {
    let parameters =
        json!({"type": "object", "properties": {"word": {"type": "string"}, "times": {"type": "integer"}}});
    json!([{"type": "function", "function": {"name": name, "parameters": parameters}}])
}

fn body(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Look up."}], "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A whole answer and a streamed one, which has to say the same: content, calls with their arguments, and why it ended.
fn answered(server: &Server, more: Value) -> (String, Vec<(String, Value)>, String) {
    let asked = body(more);
    let whole = server.ok("/v1/chat/completions", &asked);
    let choice = &whole["choices"][0];
    let content = choice["message"]["content"].as_str().unwrap_or_default().to_owned();
    let call = |call: &Value| {
        let function = &call["function"];
        let arguments = function["arguments"].as_str().unwrap();
        (function["name"].as_str().unwrap().to_owned(), serde_json::from_str(arguments).unwrap())
    };
    let calls: Vec<(String, Value)> =
        choice["message"]["tool_calls"].as_array().into_iter().flatten().map(call).collect();
    let mut streamed = asked.clone();
    streamed["stream"] = true.into();
    let parts = chunks(&server.stream("/v1/chat/completions", &streamed));
    assert_eq!(joined(&parts, 0, "/delta/content"), content);
    for (i, (name, arguments)) in calls.iter().enumerate() {
        let deltas =
            parts.iter().flat_map(|part| part["choices"][0]["delta"]["tool_calls"].as_array().into_iter().flatten());
        let of_call: Vec<&Value> = deltas.filter(|delta| delta["index"] == i).map(|delta| &delta["function"]).collect();
        let text = |field: &str| of_call.iter().filter_map(|function| function[field].as_str()).collect::<String>();
        assert_eq!((&text("name"), &serde_json::from_str::<Value>(&text("arguments")).unwrap()), (name, arguments));
    }
    let reason = choice["finish_reason"].as_str().unwrap();
    let last = parts.iter().find_map(|part| part["choices"][0]["finish_reason"].as_str());
    assert_eq!(last, Some(reason));
    (content, calls, reason.to_owned())
}

#[test]
fn a_call_of_llama_needs_a_tool_of_its_name() {
    let call = r#"{"name": "look_up", "parameters": {"word": "fox"}}"#;
    let pieces = [&b"{\"name\": \"look_"[..], b"up\", \"para", b"meters\": {\"word\": \"fo", b"x\"}}"];
    let tagged: Vec<&[u8]> = [&b"<|python_tag|>"[..]].into_iter().chain(pieces).collect();
    // The token is a special one, which no text shows; the parser sees it.
    for pieces in [&tagged[..], &pieces[..]] {
        let directory = model(LLAMA, pieces);
        let server = server(&directory);
        let (content, calls, reason) = answered(&server, json!({"tools": tools("look_up")}));
        assert_eq!((content.as_str(), reason.as_str()), ("", "tool_calls"));
        assert_eq!(calls, [("look_up".to_owned(), json!({"word": "fox"}))]);
        // The same as another API has it: one block, which is the call.
        let asked = json!({"messages": [{"role": "user", "content": "Look up."}], "max_tokens": 50,
            "tools": [{"name": "look_up", "input_schema": {"type": "object"}}]});
        let message = server.ok("/v1/messages", &asked);
        assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("tool_use"), &Value::Null));
        let block = &message["content"];
        assert_eq!((block.as_array().unwrap().len(), &block[0]["input"]), (1, &json!({"word": "fox"})));
        let mut asked = json!({"input": "Look up.", "tools": [{"type": "function", "name": "look_up", "parameters": {"type": "object"}}]});
        let whole = server.ok("/v1/responses", &asked);
        asked["stream"] = true.into();
        let events = server.stream("/v1/responses", &asked);
        let last: Value = serde_json::from_str(&events.last().unwrap().1).unwrap();
        for output in [&whole["output"], &last["response"]["output"]] {
            let items: Vec<&str> =
                output.as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap()).collect();
            let arguments: Value = serde_json::from_str(output[0]["arguments"].as_str().unwrap()).unwrap();
            assert_eq!((items, arguments), (vec!["function_call"], json!({"word": "fox"})));
        }
        // No tools, another one, or none to be called: it is what the model says.
        for more in
            [json!({}), json!({"tools": tools("spell")}), json!({"tools": tools("look_up"), "tool_choice": "none"})]
        {
            let (content, calls, reason) = answered(&server, more.clone());
            assert_eq!(
                (content.strip_prefix("<|python_tag|>").unwrap_or(&content), reason.as_str()),
                (call, "stop"),
                "{more}"
            );
            assert!(calls.is_empty());
        }
    }
}

#[test]
fn a_call_of_qwen_has_the_types_of_its_schema() {
    // Cut into tokens at the bars.
    let said = "<think>|Which one|?</thi|nk>\n\n|Wait.|\n<tool_|call>\n<function=look|_up>|\n<parameter=word>\n|4|2\n</parameter>|\
                \n<parameter=times>\n3|\n</parameter>\n|</function>\n</tool_call>";
    let pieces: Vec<&[u8]> = said.split('|').map(str::as_bytes).collect();
    let directory = model(QWEN, &pieces);
    let server = server(&directory);
    let (content, calls, reason) = answered(&server, json!({"tools": tools("look_up")}));
    assert_eq!((content.as_str(), reason.as_str()), ("Wait.", "tool_calls"));
    assert_eq!(calls, [("look_up".to_owned(), json!({"word": "42", "times": 3}))]);
    let whole = server.ok("/v1/chat/completions", &body(json!({"tools": tools("look_up")})));
    assert_eq!(whole["choices"][0]["message"]["reasoning_content"], "Which one?");
}

#[test]
fn characters_are_whole_however_tokens_cut_them() {
    let text = "na\u{ef}ve \u{1f600}\u{2615} \u{65e5}\u{672c}!";
    // Every byte beyond ASCII is cut from the next somewhere.
    let pieces = [
        &b"na\xc3"[..],
        b"\xafve ",
        b"\xf0",
        b"\x9f\x98",
        b"\x80\xe2",
        b"\x98\x95 \xe6",
        b"\x97",
        b"\xa5\xe6\x9c",
        b"\xac!",
    ];
    assert_eq!(pieces.concat(), text.as_bytes());
    let directory = model("{{ messages[0].content }}<|answer|>", &pieces);
    let server = server(&directory);
    let (content, _, _) = answered(&server, json!({}));
    assert_eq!(content, text);
    let prompt = json!({"prompt": ANSWER, "temperature": 0});
    assert_eq!(server.ok("/v1/completions", &prompt)["choices"][0]["text"], text);
    for most in 1..=pieces.len() {
        // One that is cut off has no half of a character either.
        let asked = json!({"prompt": ANSWER, "temperature": 0, "max_tokens": most, "stream": true});
        let parts = chunks(&server.stream("/v1/completions", &asked));
        let texts: Vec<&str> = parts.iter().filter_map(|part| part["choices"][0]["text"].as_str()).collect();
        let whole = server.ok("/v1/completions", &json!({"prompt": ANSWER, "temperature": 0, "max_tokens": most}));
        assert_eq!(whole["choices"][0]["text"], texts.concat());
        let shown = texts.concat();
        assert!(text.starts_with(&shown), "{most}: {texts:?}");
    }
}

#[test]
fn the_string_that_ended_a_message_is_told() {
    let directory = model("{{ messages[0].content }}<|answer|>", &[b"one tw", b"o thr", b"ee fo", b"ur"]);
    let server = server(&directory);
    let table = [
        (json!({}), "one two three four", "end_turn", Value::Null),
        (json!({"stop_sequences": ["zzz", "three four five"]}), "one two three four", "end_turn", Value::Null),
        (json!({"stop_sequences": []}), "one two three four", "end_turn", Value::Null),
        (json!({"stop_sequences": ["zzz", "two three"]}), "one ", "stop_sequence", json!("two three")),
        (json!({"stop_sequences": ["four"]}), "one two three ", "stop_sequence", json!("four")),
        (json!({"max_tokens": 2, "stop_sequences": ["four"]}), "one two thr", "max_tokens", Value::Null),
    ];
    for (more, text, reason, sequence) in table {
        let mut asked = json!({"messages": [{"role": "user", "content": "Count."}], "max_tokens": 50});
        asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let whole = server.ok("/v1/messages", &asked);
        assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!(reason), &sequence), "{more}");
        assert_eq!(whole["content"], json!([{"type": "text", "text": text}]), "{more}");
        asked["stream"] = true.into();
        let events = server.stream("/v1/messages", &asked);
        let parsed: Vec<Value> = events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
        let start = &parsed[0]["message"];
        assert_eq!((&start["stop_reason"], &start["stop_sequence"]), (&Value::Null, &Value::Null));
        let end = &parsed[parsed.len() - 2]["delta"];
        assert_eq!((&end["stop_reason"], &end["stop_sequence"]), (&json!(reason), &sequence), "{more}");
        let deltas: String = parsed.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
        assert_eq!(deltas, text, "{more}");
    }
}

/// Where the tokens of a text begin, whole and streamed.
fn offsets(server: &Server, asked: &Value) -> (String, Vec<u64>) {
    let list = |choice: &Value| -> Vec<u64> {
        let offsets = choice["logprobs"]["text_offset"].as_array();
        offsets.into_iter().flatten().map(|offset| offset.as_u64().unwrap()).collect()
    };
    let mut asked = asked.clone();
    asked.as_object_mut().unwrap().extend(json!({"temperature": 0, "logprobs": 0}).as_object().unwrap().clone());
    let choice = server.ok("/v1/completions", &asked)["choices"][0].clone();
    asked["stream"] = true.into();
    let parts = chunks(&server.stream("/v1/completions", &asked));
    let text = choice["text"].as_str().unwrap();
    assert_eq!(joined(&parts, 0, "/text"), text);
    let streamed: Vec<u64> = parts.iter().flat_map(|part| list(&part["choices"][0])).collect();
    assert_eq!(streamed, list(&choice), "{asked}");
    (text.to_owned(), streamed)
}

/// Changes the tokenizer of a model.
fn retokenize(directory: &TempDir, change: impl Fn(&mut String, &mut Value)) {
    let path = directory.path().join("tokenizer.json");
    let mut text = std::fs::read_to_string(&path).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    change(&mut text, &mut tokenizer);
    std::fs::write(path, tokenizer.to_string()).unwrap();
}

#[test]
fn offsets_of_tokens_are_places_in_the_text_that_is_told() {
    let pieces = [&b"one"[..], b"<|python_tag|>", b" t\xc3", b"\xa9a", b" \xe2\x98", b"\x95", b" end"];
    let directory = model("{{ messages[0].content }}", &pieces);
    let said = "one t\u{e9}a \u{2615} end";
    let of_answer = [0, 3, 3, 5, 7, 8, 9];
    let from = |start: u64| of_answer.map(|offset| start + offset).to_vec();
    let asked = |more: Value| {
        let mut asked = json!({"prompt": format!("Say {ANSWER}")});
        asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        asked
    };
    let plain = server(&directory);
    // A token that is not shown begins where the next one does.
    assert_eq!(offsets(&plain, &asked(json!({}))), (said.to_owned(), from(0)));
    // In a prompt it is as the client wrote it.
    let echoed = (format!("Say {ANSWER}{said}"), [vec![0, 1, 2, 3, 4], from(14)].concat());
    assert_eq!(offsets(&plain, &asked(json!({"echo": true}))), echoed);
    // What a stop string took out is not beyond the text.
    let stopped = ("one t\u{e9}a ".to_owned(), vec![0, 3, 3, 5, 7, 8, 8]);
    assert_eq!(offsets(&plain, &asked(json!({"stop": "\u{2615} e"}))), stopped);
    drop(plain);

    // One that the tokenizer puts before a text is not in the text; in a prompt of ids it is.
    retokenize(&directory, |_, tokenizer| {
        let special = json!({"SpecialToken": {"id": "<|end|>", "type_id": 0}});
        let id = &tokenizer["added_tokens"][1]["id"];
        tokenizer["post_processor"] = json!({"type": "TemplateProcessing", "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [id], "tokens": ["<|end|>"]}}});
    });
    let around = server(&directory);
    let echoed = (format!("Say {ANSWER}{said}"), [vec![0, 0, 1, 2, 3, 4], from(14)].concat());
    assert_eq!(offsets(&around, &asked(json!({"echo": true}))), echoed);
    let ids = around.ok("/tokenize", &asked(json!({})))["tokens"].clone();
    let echoed = (format!("<|end|>Say {ANSWER}{said}"), [vec![0, 7, 8, 9, 10, 11], from(21)].concat());
    assert_eq!(offsets(&around, &asked(json!({"prompt": ids, "echo": true}))), echoed);
    drop(around);

    // Words with a space before them, but for the first.
    let directory = model("{{ messages[0].content }}", &[b" one", b" two", b"<|python_tag|>", b"s", b" end"]);
    retokenize(&directory, |text, tokenizer| {
        *tokenizer = serde_json::from_str(&text.replace('\u{120}', "\u{2581}")).unwrap();
        let metaspace =
            json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true});
        tokenizer["pre_tokenizer"] = metaspace.clone();
        tokenizer["decoder"] = metaspace;
    });
    let words = server(&directory);
    assert_eq!(offsets(&words, &asked(json!({}))), ("one twos end".to_owned(), vec![0, 3, 7, 7, 8]));
    let echoed = (format!("Say {ANSWER}one twos end"), vec![0, 0, 1, 2, 3, 4, 14, 17, 21, 21, 22]);
    assert_eq!(offsets(&words, &asked(json!({"echo": true}))), echoed);
}
