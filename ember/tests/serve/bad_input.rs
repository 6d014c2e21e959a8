//! What clients send that cannot be used: each is told what is wrong, and the server goes on.

use serde_json::{Value, json};

use crate::client::Server;

fn chat(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn fields_that_cannot_be_used_are_named() {
    let server = Server::start(&[]);
    let many: Vec<Value> = (0..4097).map(|_| json!({"role": "user", "content": ""})).collect();
    let schema = json!({"type": "function", "function": {"name": "f", "parameters": []}});
    let table = [
        (json!({"messages": null}), 400, "messages", "is missing"),
        (json!({"messages": "hi"}), 400, "messages", "expected a list, found \"hi\""),
        (json!({"messages": []}), 400, "messages", "there is none"),
        (json!({ "messages": many }), 400, "messages", "4097 messages"),
        (json!({"messages": [{"role": "robot", "content": ""}]}), 400, "messages[0].role", "robot"),
        (json!({"messages": [{"role": "user", "content": 1}]}), 400, "messages[0].content", "text"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
            400,
            "messages[0].content[0]",
            "image_url",
        ),
        (json!({"model": "gpt-7"}), 404, "model", "there is no model \"gpt-7\"; this server has demo"),
        (json!({"model": 7}), 400, "model", "expected a text, found 7"),
        (json!({"n": 0}), 400, "n", "from 1 to 16, found 0"),
        (json!({"n": 1_000_000}), 400, "n", "from 1 to 16, found 1000000"),
        (json!({"n": 1.5}), 400, "n", "found 1.5"),
        (json!({"max_tokens": 0}), 400, "max_tokens", "found 0"),
        (json!({"max_tokens": -2}), 400, "max_tokens", "from 1 on, or -1, found -2"),
        (json!({"max_tokens": "many"}), 400, "max_tokens", "found \"many\""),
        (json!({"temperature": -1}), 400, "temperature", "found -1"),
        (json!({"temperature": "hot"}), 400, "temperature", "found \"hot\""),
        (json!({"top_p": 2}), 400, "top_p", "from 0 to 1, found 2"),
        (json!({"min_p": 1.5}), 400, "min_p", "from 0 to 1, found 1.5"),
        (json!({"top_k": -5}), 400, "top_k", "from 0 to 4294967295, or -1, found -5"),
        (json!({"repetition_penalty": 0}), 400, "repetition_penalty", "positive"),
        (json!({"frequency_penalty": 3}), 400, "frequency_penalty", "found 3"),
        (json!({"presence_penalty": []}), 400, "presence_penalty", "found a list"),
        (json!({"seed": 0.5}), 400, "seed", "from -9223372036854775808 to 18446744073709551615, found 0.5"),
        (json!({"seed": 1e19 * 2.0}), 400, "seed", "found 2e+19"),
        (json!({"seed": -1e19}), 400, "seed", "found -1e+19"),
        (json!({"stop": 1}), 400, "stop", "found 1"),
        (json!({"stop": [1]}), 400, "stop", "found 1"),
        (json!({"stop": vec!["x"; 17]}), 400, "stop", "17 strings"),
        (json!({"stop": "x".repeat(1025)}), 400, "stop", "1025 bytes"),
        (json!({"logit_bias": {"x": 1}}), 400, "logit_bias", "no token id"),
        (json!({"logit_bias": {"640": 1}}), 400, "logit_bias", "no token id below 640"),
        (json!({"logit_bias": {"1": 101}}), 400, "logit_bias", "found 101"),
        (json!({"top_logprobs": 2}), 400, "top_logprobs", "needs logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), 400, "top_logprobs", "found 21"),
        (json!({"stream": "yes"}), 400, "stream", "found \"yes\""),
        (json!({"stream_options": {"include_usage": 1}}), 400, "stream_options.include_usage", "found 1"),
        (json!({"tools": {}}), 400, "tools", "found an object"),
        (json!({"tools": [{"type": "function"}]}), 400, "tools[0].function", "is missing"),
        (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), 400, "tools[0].function.name", "a b"),
        (json!({ "tools": [schema] }), 400, "tools[0].function.parameters", "found a list"),
        (json!({"depth": 2}), 400, "depth", "found 2"),
        (json!({"depth": {"threshold": 2}}), 400, "depth.threshold", "found 2"),
        (json!({"depth": {"steps": 5}}), 400, "", "steps"),
        (json!({"depth": {"steps": 0}}), 400, "depth.steps", "found 0"),
        (json!({"chat_template_kwargs": {"messages": []}}), 400, "chat_template_kwargs", "messages"),
        (json!({"enable_thinking": "no"}), 400, "enable_thinking", "found \"no\""),
    ];
    for (fields, status, param, part) in table {
        let response = server.post("/v1/chat/completions", &chat(fields.clone()));
        assert_eq!(response.status, status, "{fields}: {}", response.body);
        let error = &response.json()["error"];
        assert!(error["message"].as_str().unwrap().contains(part), "{fields}: {error}");
        if !param.is_empty() {
            assert_eq!(error["param"], param, "{fields}");
        }
    }
    let table = [
        (json!({}), "prompt: is missing"),
        (json!({"prompt": []}), "is empty"),
        (json!({"prompt": {}}), "found an object"),
        (json!({"prompt": [true]}), "found true"),
        (json!({"prompt": [1, "a"]}), "\"a\" is no token id below 640"),
        (json!({"prompt": [640]}), "640 is no token id below 640"),
        (json!({"prompt": [-1]}), "-1 is no token id"),
        (json!({"prompt": vec!["a"; 65]}), "65 prompts"),
        (json!({"prompt": vec!["a"; 64], "n": 3}), "64 prompts with 3 answers"),
        (json!({"prompt": ""}), "no tokens"),
        (json!({"prompt": "a", "logprobs": 21}), "found 21"),
        (json!({"prompt": "a", "suffix": "b"}), "insertion"),
    ];
    for (body, part) in table {
        let response = server.post("/v1/completions", &body);
        assert_eq!(response.status, 400, "{body}: {}", response.body);
        assert!(response.message().contains(part), "{body}: {}", response.body);
    }
    // Clients send many fields that mean nothing here, and nulls.
    let fine = chat(json!({"store": true, "verbosity": "low", "prompt_cache_key": "x", "user": "u", "stop": null,
        "temperature": null, "max_tokens": 1_000_000_000_000_u64, "chat_template": "{{ 1 / 0 }}", "stream": null}));
    assert_eq!(server.post("/v1/chat/completions", &fine).status, 200);
}

#[test]
fn errors_of_other_apis_name_what_was_sent() {
    let server = Server::start(&[]);
    let user = json!({"role": "user", "content": "hi"});
    let text = json!({"type": "text", "text": "hi"});
    let image = json!({"type": "image", "source": {}});
    let messages = [
        (json!({"system": "s", "messages": [user, {"role": "robot", "content": "hi"}]}), "messages[1].role"),
        (json!({"system": [text, 7]}), "system[1]"),
        (
            json!({"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": "a"},
            {"type": "tool_result", "tool_use_id": "2", "content": [text, image]}, text]}]}),
            "messages[0].content[1].content[1]",
        ),
        (
            json!({"messages": [user, {"role": "assistant", "content": [text, {"type": "tool_use", "id": "1", "input": {}}]}]}),
            "messages[1].content[1].name",
        ),
        (json!({"messages": []}), "messages"),
        (json!({"max_tokens": "many"}), "max_tokens"),
        (json!({"stop_sequences": [7]}), "stop_sequences"),
        (
            json!({"tools": [{"type": "bash_1", "name": "bash"}, {"name": "f", "input_schema": []}]}),
            "tools[1].input_schema",
        ),
        (json!({"tools": [{"type": "bash_1", "name": "bash"}, {"name": "a b", "input_schema": {}}]}), "tools[1].name"),
        (
            json!({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "g"}}),
            "tool_choice.name",
        ),
        (json!({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool"}}), "tool_choice.name"),
        (json!({"output_config": {"format": {"type": "yaml"}}}), "output_config.format.type"),
        (json!({"output_config": {"format": {"type": "json_schema"}}}), "output_config.format.schema"),
        (json!({"output_format": {"type": "json_schema", "schema": []}}), "output_format.schema"),
        (json!({"temperature": "hot"}), "temperature"),
    ];
    for (more, place) in messages {
        let mut body = json!({"messages": [user], "max_tokens": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let refused = server.post("/v1/messages", &body);
        assert!(
            refused.status == 400 && refused.message().starts_with(&format!("{place}: ")),
            "{more}: {}",
            refused.body
        );
    }
    let refused = server
        .post("/v1/messages/count_tokens", &json!({"system": "s", "messages": [{"role": "robot", "content": ""}]}));
    assert!(refused.status == 400 && refused.message().starts_with("messages[0].role: "), "{}", refused.body);
    let function = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
    let call = |arguments: &str| json!({"type": "function_call", "call_id": "1", "name": "f", "arguments": arguments});
    let responses = [
        (json!({"instructions": "s", "input": [{"role": "robot", "content": "hi"}]}), "input[0].role"),
        (json!({"input": [user, {"role": "user", "content": [{"type": "input_image"}]}]}), "input[1].content[0]"),
        (json!({"instructions": "s", "input": [user, call("{}"), call("[")]}), "input[2].arguments"),
        (
            json!({"input": [user, call("{}"), {"type": "function_call_output", "call_id": "1", "output": 7}]}),
            "input[2].output",
        ),
        (json!({"input": []}), "input"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (
            json!({"tools": [{"type": "web_search"}, {"type": "function", "name": "f", "parameters": []}]}),
            "tools[1].parameters",
        ),
        (
            json!({"tools": [{"type": "web_search"}, {"type": "function", "function": {"name": "a b"}}]}),
            "tools[1].function.name",
        ),
        (json!({"tools": [function], "tool_choice": {"type": "function", "name": "g"}}), "tool_choice.name"),
        (json!({"tools": [function], "tool_choice": {"type": "function"}}), "tool_choice.name"),
        (json!({"text": {"format": {"type": "yaml"}}}), "text.format.type"),
        (json!({"text": {"format": {"type": "json_schema", "name": "n"}}}), "text.format.schema"),
        (json!({"include": ["message.output_text.logprobs"]}), "include"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"top_logprobs": 21}), "top_logprobs"),
        (json!({"truncation": "end"}), "truncation"),
    ];
    for (more, place) in responses {
        let mut body = json!({"input": "hi", "max_output_tokens": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let refused = server.post("/v1/responses", &body);
        assert!(
            refused.status == 400 && refused.message().starts_with(&format!("{place}: ")),
            "{more}: {}",
            refused.body
        );
        assert_eq!(refused.json()["error"]["param"], place, "{more}");
    }
}

#[test]
fn the_bounds_of_top_p_and_min_p_keep_the_most_likely_token() {
    let server = Server::start(&[]);
    let text = |more: Value| {
        let mut body = chat(json!({"max_tokens": 12, "ignore_eos": true}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.ok("/v1/chat/completions", &body)["choices"][0]["message"]["content"].clone()
    };
    let greedy = text(json!({"temperature": 0}));
    for more in [json!({"top_p": 0}), json!({"min_p": 1}), json!({"top_p": 0, "min_p": 1.0, "top_k": 40})] {
        assert_eq!(text(more.clone()), greedy, "{more}");
        let mut hot = more.clone();
        hot["temperature"] = 2.into();
        assert_eq!(text(hot), greedy, "{more}");
    }
}

#[test]
fn paths_and_encodings_that_cannot_be_read_are_errors_in_json() {
    let server = Server::start(&[]);
    let refused = server.get("/v1/models/%ff");
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (400, &json!("invalid_request_error")));
    let body = chat(json!({})).to_string();
    for path in ["/v1/chat/completions", "/v1/messages", "/tokenize"] {
        let refused = server.send("POST", path, &[("content-encoding", "gzip")], "\u{1f}\u{8b}");
        assert_eq!(refused.status, 415, "{path}: {}", refused.body);
        assert!(refused.message().contains("Content-Encoding: \"gzip\""), "{path}: {}", refused.body);
        // What is as it is may say so, and may begin with a byte order mark.
        let marked = format!("\u{feff}{body}");
        let answer = server.send("POST", path, &[("content-encoding", "identity")], &marked);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
}

#[test]
fn bodies_that_are_none_are_refused_before_they_are_parsed() {
    let server = Server::start(&[]);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let nested = format!("{{\"messages\": {deep}}}");
    let large = "x".repeat((16 << 20) + 1);
    let table = [
        ("", 400, "no JSON"),
        ("{", 400, "no JSON"),
        ("[]", 400, "no object"),
        ("null", 400, "no object"),
        ("{}\u{feff}", 400, "no JSON"),
        ("{\"a\": 1e999}", 400, "no JSON"),
        (nested.as_str(), 400, "nested deeper than 64"),
        (large.as_str(), 413, "larger than 16 MiB"),
    ];
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize", "/detokenize"]
    {
        for (body, status, part) in &table {
            let response = server.send("POST", path, &[], body);
            let start: String = body.chars().take(40).collect();
            assert_eq!(response.status, *status, "{path} {start}: {}", response.body);
            assert!(response.message().contains(part), "{path} {start}: {}", response.body);
        }
    }
    // A length that is only claimed is not waited for.
    let response = server.send("POST", "/v1/completions", &[("content-length", "104857600")], "{}");
    assert_eq!(response.status, 413);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn what_is_no_http_is_no_harm() {
    use std::io::{Read, Write};
    let server = Server::start(&[]);
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"GET\r\n\r\n", b"\r\n\r\n\r\n", &[0; 4096]] {
        let mut stream = std::net::TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let long = "x".repeat(1 << 20);
    let response = server.send("GET", "/health", &[("x-long", &long)], "");
    assert_eq!(response.status, 431);
    assert_eq!(server.get("/health").status, 200);
}
