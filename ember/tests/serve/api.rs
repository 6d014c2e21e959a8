//! What the endpoints answer.

use serde_json::{Value, json};

use crate::client::{Server, chunks, joined};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A greedy chat.
fn chat(more: Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": "tell me a story"}], "max_tokens": 40, "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn a_stream_is_the_whole_answer_in_parts() {
    let server = Server::start(&[]);
    for more in [
        json!({}),
        json!({"n": 3, "temperature": 1.0, "seed": 7}),
        json!({"logprobs": true, "top_logprobs": 2, "trace": true}),
        json!({"stop": [" a", "the"]}),
        json!({"max_tokens": 1}),
    ] {
        let whole = server.ok(CHAT, &chat(more.clone()));
        let mut body = chat(more.clone());
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let parts = chunks(&server.stream(CHAT, &body));
        for (i, choice) in (0..).zip(whole["choices"].as_array().unwrap()) {
            assert_eq!(joined(&parts, i, "/delta/content"), choice["message"]["content"].as_str().unwrap(), "{more}");
            assert_eq!(joined(&parts, i, "/delta/role"), "assistant");
            assert_eq!(joined(&parts, i, "/finish_reason"), choice["finish_reason"].as_str().unwrap(), "{more}");
            let told = |pointer: &str| -> Vec<Value> {
                let of_choice = parts.iter().flat_map(|part| part["choices"].as_array().unwrap());
                let lists =
                    of_choice.filter(|one| one["index"] == i).filter_map(|one| one.pointer(pointer)?.as_array());
                lists.flatten().cloned().collect()
            };
            let none = Vec::new();
            assert_eq!(&told("/trace"), choice["trace"].as_array().unwrap_or(&none), "{more}");
            // Sums of a pass depend on who shares it; the texts do not.
            assert_eq!(told("/logprobs/content").len(), choice["logprobs"]["content"].as_array().map_or(0, Vec::len));
        }
        assert_eq!(parts.last().unwrap()["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
        let text = json!({"prompt": "Once upon", "max_tokens": 20, "temperature": 0, "stop": ["zzz"], "echo": true, "logprobs": 1});
        let whole = server.ok(TEXT, &text);
        let mut body = text.clone();
        body["stream"] = true.into();
        let parts = chunks(&server.stream(TEXT, &body));
        assert_eq!(joined(&parts, 0, "/text"), whole["choices"][0]["text"].as_str().unwrap());
    }
}

#[test]
fn usage_is_told_at_the_end_of_a_stream_when_asked_for() {
    let server = Server::start(&[]);
    let without = chunks(&server.stream(CHAT, &chat(json!({"stream": true}))));
    assert!(without.iter().all(|chunk| chunk.get("usage").is_none()));
    let asked = json!({"stream": true, "stream_options": {"include_usage": true}});
    let with = chunks(&server.stream(CHAT, &chat(asked)));
    let (last, before) = with.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert!(before.iter().all(|chunk| chunk["usage"].is_null()));
    let usage = &last["usage"];
    let number = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(number("total_tokens"), number("prompt_tokens") + number("completion_tokens"));
    assert!(number("prompt_tokens") > 5 && usage["prompt_tokens_details"]["cached_tokens"].is_u64(), "{usage}");
    let prompt = chat(json!({}));
    assert_eq!(server.ok("/tokenize", &prompt)["count"], usage["prompt_tokens"]);
}

#[test]
fn a_stop_string_ends_both_endpoints_and_is_in_no_part() {
    let server = Server::start(&[]);
    let whole = server.ok(CHAT, &chat(json!({})));
    let text = content(&whole);
    let stop: String = text.chars().skip(11).take(5).collect();
    let before = text.split(&stop).next().unwrap();
    assert!(!before.is_empty(), "{text:?}");
    for n in 1..=stop.len() {
        // Each prefix of a stop string is held back at first.
        let never = format!("{}\u{1}", &stop[..n]);
        assert_eq!(content(&server.ok(CHAT, &chat(json!({"stop": [never]})))), text);
    }
    let body = chat(json!({"stop": stop, "stream": true}));
    let parts = chunks(&server.stream(CHAT, &body));
    assert_eq!(joined(&parts, 0, "/delta/content"), before);
    assert_eq!(joined(&parts, 0, "/finish_reason"), "stop");
    let ids = server.ok("/tokenize", &chat(json!({})))["tokens"].clone();
    let answer = server.ok(TEXT, &json!({"prompt": ids, "max_tokens": 40, "temperature": 0, "stop": [stop]}));
    assert_eq!(answer["choices"][0]["text"], before);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[test]
fn a_seed_gives_the_same_text_whoever_is_there() {
    let server = Server::start(&[]);
    let drawn = |more: Value| {
        let mut body = chat(json!({"temperature": 1.2}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let alone = server.ok(CHAT, &drawn(json!({"seed": 5})));
    let others: Vec<_> =
        (0..6).map(|i| server.begin(CHAT, &drawn(json!({"seed": 100 + i, "ignore_eos": true})))).collect();
    let among = server.ok(CHAT, &drawn(json!({"seed": 5})));
    drop(others);
    assert_eq!(content(&alone), content(&among));
    let fresh: Vec<Value> = (0..4).map(|_| server.ok(CHAT, &drawn(json!({})))).collect();
    assert!(fresh.iter().any(|answer| content(answer) != content(&fresh[0])));
    let seed = &fresh[0]["choices"][0]["seed"];
    assert_eq!(content(&server.ok(CHAT, &drawn(json!({ "seed": seed })))), content(&fresh[0]));
    // Several answers to one prompt have seeds of their own, each of which repeats its answer.
    let several = server.ok(CHAT, &drawn(json!({"n": 3, "seed": 5})));
    assert_eq!(several["choices"][0]["message"], alone["choices"][0]["message"]);
    let third = server.ok(CHAT, &drawn(json!({"seed": several["choices"][2]["seed"]})));
    assert_eq!(several["choices"][2]["message"], third["choices"][0]["message"]);
}

/// What is most likely is no draw, and neither is a prompt alone.
#[test]
fn a_seed_is_told_where_something_is_drawn() {
    let seed = |server: &Server, more: Value| {
        let mut whole = json!({"messages": [{"role": "user", "content": "a story"}], "max_tokens": 2, "seed": 3});
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let told = server.ok(CHAT, &whole)["choices"][0]["seed"].clone();
        whole["stream"] = true.into();
        let parts = chunks(&server.stream(CHAT, &whole));
        let streamed = parts.iter().filter_map(|part| part.pointer("/choices/0/seed")).next_back().cloned();
        assert_eq!(streamed.as_ref(), Some(&told), "{more}");
        whole["prompt"] = "Once".into();
        whole["stream"] = false.into();
        assert_eq!(server.ok(TEXT, &whole)["choices"][0]["seed"], told, "{more}");
        told
    };
    let server = Server::start(&[]);
    assert_eq!(seed(&server, json!({"temperature": 1})), 3);
    assert_eq!(seed(&server, json!({"temperature": 0})), Value::Null);
    let body = json!({"prompt": "Once", "max_tokens": 0, "echo": true, "seed": 3, "temperature": 1});
    assert_eq!(server.ok(TEXT, &body)["choices"][0]["seed"], Value::Null);
    assert_eq!(seed(&Server::start(&["--greedy"]), json!({})), Value::Null);
}

/// -1 is no bound in every API, and 16 tokens are what `/v1/completions` has where nothing is said.
#[test]
fn minus_one_is_no_bound() {
    let server = Server::start(&[]);
    let answer = |most: Value| {
        let whole = server.ok(TEXT, &json!({"prompt": "Once upon", "temperature": 0, "max_tokens": most}));
        (whole["usage"]["completion_tokens"].as_u64().unwrap(), whole["choices"][0]["text"].clone())
    };
    assert_eq!(answer(Value::Null).0, 16);
    let (tokens, text) = answer((-1).into());
    assert!(tokens > 16, "{tokens} tokens");
    assert_eq!((tokens, text), answer(100_000.into()));
}

#[test]
fn every_seed_is_told_as_it_was_given_and_repeats_its_answer() {
    let server = Server::start(&[]);
    let drawn = |seed: &Value, n: usize| {
        server.ok(CHAT, &chat(json!({"temperature": 1.2, "max_tokens": 12, "seed": seed, "n": n})))["choices"].clone()
    };
    for (given, told) in [
        (json!(0), vec![json!(0)]),
        (json!(i64::MIN), vec![json!(i64::MIN)]),
        (json!(1_u64 << 63), vec![json!(1_u64 << 63)]),
        // As JavaScript and Python write whole numbers now and then.
        (json!(4.0), vec![json!(4)]),
        (json!(-3.0), vec![json!(-3)]),
        // -1 would ask for a fresh one.
        (json!(-2), vec![json!(-2), json!(0), json!(1)]),
        (json!(u64::MAX - 1), vec![json!(u64::MAX - 1), json!(u64::MAX), json!(0)]),
    ] {
        let choices = drawn(&given, told.len());
        for (i, told) in told.iter().enumerate() {
            assert_eq!(&choices[i]["seed"], told, "of {given}");
            assert_eq!(drawn(told, 1)[0]["message"], choices[i]["message"], "{told} of {given}");
        }
    }
    // A fresh one each, with a number that can be given again.
    for minus_one in [json!(-1), json!(-1.0)] {
        assert!(drawn(&minus_one, 1)[0]["seed"].as_u64().is_some_and(|seed| seed < 1 << 53), "{minus_one}");
    }
}

#[test]
fn tools_that_are_left_out_are_logged_once() {
    let mut server = Server::start(&[]);
    let function = json!({"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}});
    let ask = |server: &Server, tools: Value| {
        server.ok("/v1/responses", &json!({"input": "hi", "max_output_tokens": 1, "tools": tools}));
    };
    ask(&server, json!([function]));
    for _ in 0..2 {
        ask(&server, json!([function, {"type": "web_search"}, {"type": "local\nshell"}]));
    }
    server.wait_for("left out: \"web_search\", \"local\\nshell\"");
    assert_eq!(server.log().matches("left out").count(), 1, "{}", server.log());
}

#[test]
fn the_end_of_the_context_is_told_and_not_moved() {
    let server = Server::start(&["--ctx-size", "64"]);
    let answer = server.ok(CHAT, &json!({"messages": [{"role": "user", "content": "hi"}], "ignore_eos": true}));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["total_tokens"], 64);
    let ids = vec![40; 64];
    let refused = server.post(TEXT, &json!({ "prompt": ids }));
    assert_eq!(refused.status, 400);
    assert!(refused.message().contains("64 tokens, and the context of this server has 64"), "{}", refused.body);
    assert_eq!(refused.json()["error"]["code"], "context_length_exceeded");
    let long = "word ".repeat(200);
    let refused = server.post(CHAT, &json!({"messages": [{"role": "user", "content": long}]}));
    assert_eq!(refused.json()["error"]["code"], "context_length_exceeded");
}

#[test]
fn conversations_do_not_hear_each_other() {
    let server = Server::start(&["--parallel", "4"]);
    let words = ["red", "blue", "green", "fox", "tree", "moon", "boat", "lamp"];
    let prompt = |word: &str| format!("The {word} {word} {word} {word} {word} is a").repeat(3);
    let body = |word: &str| json!({"prompt": prompt(word), "max_tokens": 24, "temperature": 0});
    let alone: Vec<Value> =
        words.iter().map(|word| server.ok(TEXT, &body(word))["choices"][0]["text"].clone()).collect();
    for _ in 0..3 {
        let mut all: Vec<_> = words.iter().map(|word| server.begin(TEXT, &body(word))).collect();
        // Some leave early.
        drop(server.begin(TEXT, &body("sun")));
        for (connection, alone) in all.iter_mut().zip(&alone) {
            assert_eq!(&connection.response().json()["choices"][0]["text"], alone);
        }
    }
}

#[test]
fn depth_is_chosen_and_told_per_request() {
    let server = Server::start(&[]);
    let steps = |depth: Value| {
        let answer = server.ok(CHAT, &chat(json!({"trace": true, "depth": depth, "ignore_eos": true})));
        let trace = answer["choices"][0]["trace"].as_array().unwrap().clone();
        assert_eq!(trace.len(), 40);
        assert!(trace.iter().all(|token| token["steps"].as_array().unwrap().len() == 4), "{trace:?}");
        let text: String = trace.iter().map(|token| token["text"].as_str().unwrap()).collect();
        assert_eq!(text, content(&answer));
        trace.iter().map(|token| token["mean_steps"].as_f64().unwrap()).sum::<f64>() / 40.0
    };
    let (usual, shallow, one, full) = (
        steps(Value::Null),
        steps(json!({"threshold": 0.3})),
        steps(json!({"steps": 1})),
        steps(json!({"threshold": 1.0})),
    );
    assert!(one == 1.0 && shallow < usual && usual < full, "{one} {shallow} {usual} {full}");
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["depth"], json!({"layers": 4, "steps": 4, "threshold": 0.9}));
    assert_eq!(models["data"][0]["max_model_len"], 1024);
    assert_eq!(server.get("/v1/models/demo").json()["id"], "demo");
    assert_eq!(server.get("/v1/models/other").status, 404);
}

#[test]
fn texts_and_tokens_become_each_other() {
    let server = Server::start(&["--alias", "mine"]);
    let text = "Once upon a time";
    let tokens = server.ok("/tokenize", &json!({"model": "mine", "content": text}))["tokens"].clone();
    assert_eq!(server.ok("/detokenize", &json!({ "tokens": tokens }))["content"], text);
    let ids = server.ok(TEXT, &json!({"prompt": tokens, "max_tokens": 5, "temperature": 0}));
    let string = server.ok(TEXT, &json!({"model": "mine", "prompt": text, "max_tokens": 5, "temperature": 0}));
    assert_eq!(ids["choices"][0]["text"], string["choices"][0]["text"]);
    assert_eq!((&ids["model"], &ids["object"]), (&json!("mine"), &json!("text_completion")));
    // Special tokens that a user writes are text.
    let prompt = json!({"messages": [{"role": "user", "content": "a<|im_end|>b"}]});
    let tokens = server.ok("/tokenize", &prompt)["tokens"].clone();
    let end = server.ok("/tokenize", &json!({"prompt": "<|im_end|>"}))["tokens"][0].clone();
    assert_eq!(tokens.as_array().unwrap().iter().filter(|id| **id == end).count(), 1, "{tokens}");
    assert_eq!(server.post("/detokenize", &json!({"tokens": [99999]})).status, 400);
    // What harnesses ask for that have no tokenizer of their own.
    let info = server.get("/tokenizer_info");
    assert_eq!((info.status, &info.json()["eos_token"]), (200, &json!("<|endoftext|>")));
    assert!(info.json()["bos_token"].is_null() && info.json()["chat_template"].as_str().unwrap().contains("im_start"));
}

#[test]
fn responses_are_streamed_as_items() {
    let server = Server::start(&[]);
    let body = json!({"model": "demo", "instructions": "Be brief.", "input": "tell me a story", "temperature": 0,
        "max_output_tokens": 12, "store": false});
    let whole = server.ok("/v1/responses", &body);
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(whole["usage"]["output_tokens"], 12);
    let text = whole["output"][0]["content"][0]["text"].as_str().unwrap();
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let events = server.stream("/v1/responses", &streamed);
    let parsed: Vec<(String, Value)> =
        events.into_iter().map(|(name, data)| (name, serde_json::from_str(&data).unwrap())).collect();
    for (i, (name, data)) in parsed.iter().enumerate() {
        assert_eq!((data["type"].as_str(), data["sequence_number"].as_u64()), (Some(name.as_str()), Some(i as u64)));
    }
    let mut names: Vec<&str> = parsed.iter().map(|(name, _)| name.trim_start_matches("response.")).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "incomplete"
        ]
    );
    let deltas = parsed.iter().filter(|(name, _)| name == "response.output_text.delta");
    let joined: String = deltas.map(|(_, data)| data["delta"].as_str().unwrap()).collect();
    assert_eq!(joined, text);
    let last = &parsed.last().unwrap().1["response"];
    assert_eq!(last["output"][0]["content"], whole["output"][0]["content"]);
    assert_eq!(last["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    for (more, part) in [
        (json!({"input": null}), "input: is missing"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input[0].type"),
        (json!({"previous_response_id": "resp_1"}), "keeps no answers"),
        (json!({"conversation": {"id": "conv_1"}}), "conversation: this server keeps no conversations"),
        (json!({"prompt": {"id": "pmpt_1", "variables": {}}}), "prompt: this server keeps no prompts"),
    ] {
        let mut wrong = body.clone();
        wrong.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let response = server.post("/v1/responses", &wrong);
        assert!(response.status == 400 && response.message().contains(part), "{}", response.body);
    }
}

#[test]
fn messages_are_streamed_as_blocks() {
    let server = Server::start(&[]);
    let body = json!({"model": "demo", "max_tokens": 12, "temperature": 0,
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "tell me a story"}]}]});
    let whole = server.ok("/v1/messages", &body);
    assert_eq!((&whole["type"], &whole["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(whole["stop_reason"], "max_tokens");
    let text = whole["content"][0]["text"].as_str().unwrap();
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let events = server.stream("/v1/messages", &streamed);
    let parsed: Vec<(String, Value)> =
        events.into_iter().map(|(name, data)| (name, serde_json::from_str(&data).unwrap())).collect();
    assert!(parsed.iter().all(|(name, data)| data["type"] == *name));
    let mut names: Vec<&str> = parsed.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let joined: String = parsed.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
    assert_eq!(joined, text);
    assert_eq!(parsed[parsed.len() - 2].1["delta"]["stop_reason"], "max_tokens");
    let count = server.ok("/v1/messages/count_tokens", &body)["input_tokens"].as_u64().unwrap();
    let usage = &whole["usage"];
    assert_eq!(count, usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap());
    // The header changes with every call, and would keep prompts from ever sharing a beginning.
    let mut billed = body.clone();
    let header = json!({"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=f00;"});
    billed["system"].as_array_mut().unwrap().insert(0, header);
    assert_eq!(server.ok("/v1/messages/count_tokens", &billed)["input_tokens"], count);
    // The text of a last message of the assistant is the beginning of the answer, as it stands.
    let (asked, begun) = (json!({"role": "user", "content": "a fox"}), "The fox ran to the");
    let counted = |messages: Value| {
        server.ok("/v1/messages/count_tokens", &json!({ "messages": messages }))["input_tokens"].as_u64().unwrap()
    };
    let begun_tokens =
        server.ok("/tokenize", &json!({"prompt": begun, "add_special_tokens": false}))["count"].as_u64().unwrap();
    let message = json!({"role": "assistant", "content": begun});
    assert_eq!(counted(json!([asked, message])), counted(json!([asked])) + begun_tokens);
    let continued = json!({"messages": [asked, message], "max_tokens": 8, "temperature": 0});
    let text = server.ok("/v1/messages", &continued)["content"][0]["text"].clone();
    let mut chat = continued.clone();
    chat["continue_final_message"] = true.into();
    let answer = server.ok("/v1/chat/completions", &chat);
    assert_eq!(answer["choices"][0]["message"]["content"], text);
    // Counted as it is read, and nothing of the message is left out.
    assert_eq!(server.ok("/tokenize", &chat)["count"], answer["usage"]["prompt_tokens"]);
    let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    chat["messages"][1]["tool_calls"] = json!([call]);
    let refused = server.post("/v1/chat/completions", &chat);
    assert!(refused.status == 400 && refused.message().contains("no calls"), "{}", refused.body);
    let spaced = json!({"messages": [asked, {"role": "assistant", "content": "The "}], "max_tokens": 8});
    let refused = server.post("/v1/messages", &spaced);
    assert!(refused.status == 400 && refused.message().contains("white space"), "{}", refused.body);
    let wrong = server.post("/v1/messages", &json!({"messages": [], "max_tokens": 1}));
    assert_eq!((wrong.status, &wrong.json()["error"]["type"]), (400, &json!("invalid_request_error")));
    assert_eq!(wrong.json()["type"], "error");
    let missing = server.post("/v1/messages", &json!({"messages": [{"role": "user", "content": "hi"}]}));
    assert!(missing.status == 400 && missing.message().contains("max_tokens"), "{}", missing.body);
}

/// As written, but for the port. Left out where there is no curl.
#[cfg(unix)]
#[test]
fn the_curl_lines_of_the_readme_work() {
    use std::process::Command;
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("left out: curl is not installed");
        return;
    }
    let server = Server::start(&[]);
    let readme = std::fs::read_to_string(crate::project::project("README.md")).unwrap();
    let lines: Vec<&str> = readme.lines().filter(|line| line.starts_with("curl ")).collect();
    assert!(!lines.is_empty());
    for line in lines {
        assert!(line.contains("127.0.0.1:8080"), "{line}");
        let output =
            Command::new("sh").args(["-c", &line.replace("127.0.0.1:8080", &server.address)]).output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(!content(&answer).is_empty(), "{line}: {answer}");
    }
}
