//! Chats through templates of their own, with the weights of the model in the program.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{Server, chunks, joined};
use crate::project::project;

/// The model with another template.
pub fn model(template: &str) -> TempDir {
    let demo = project("demo");
    let directory = TempDir::new().unwrap();
    for name in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(demo.join(name), directory.path().join(name)).unwrap();
    }
    let config = std::fs::read(demo.join("tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["chat_template"] = template.into();
    std::fs::write(directory.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    directory
}

pub fn server(directory: &TempDir) -> Server {
    Server::start(&["-m", directory.path().to_str().unwrap(), "--alias", "demo"])
}

/// The prompt that a chat becomes.
fn rendered(server: &Server, body: &Value) -> String {
    let tokens = server.ok("/tokenize", body)["tokens"].clone();
    server.ok("/detokenize", &json!({ "tokens": tokens }))["content"].as_str().unwrap().to_owned()
}

#[test]
fn what_a_template_refuses_is_the_clients_mistake() {
    let directory = model(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system message, please') }}{% endif %}{{ messages[0].content }}",
    );
    let server = server(&directory);
    let body =
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "max_tokens": 1});
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let refused = server.post(path, &body);
        assert_eq!(refused.status, 400, "{}", refused.body);
        assert!(refused.message().contains("no system message, please"), "{}", refused.body);
    }
}

#[test]
fn system_messages_arguments_and_options_reach_the_template() {
    let directory = model(
        "{% for m in messages %}[{{ m.role }}|{{ m.content }}{% for c in m.tool_calls or [] %}\
         {% for k, v in c.function.arguments|items %}|{{ k }}={{ v }}{% endfor %}{% endfor %}]{% endfor %}\
         {% if enable_thinking is defined and not enable_thinking %}!{% endif %}{{ mood }}{{ tools|length if tools else '' }}",
    );
    let server = server(&directory);
    let messages = json!([
        {"role": "user", "content": "a"},
        {"role": "developer", "content": "b"},
        {"role": "assistant", "content": null,
         "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1, \"y\": \"z\"}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "c"}]},
        {"role": "system", "content": "d"},
    ]);
    let body = json!({"messages": messages, "reasoning_effort": "none", "chat_template_kwargs": {"mood": "?"}});
    assert_eq!(rendered(&server, &body), "[system|b\n\nd][user|a][assistant||x=1|y=z][tool|c]!?");
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let with = json!({"messages": [{"role": "user", "content": "a"}], "tools": tools});
    assert_eq!(rendered(&server, &with), "[user|a]1");
    let none = json!({"messages": [{"role": "user", "content": "a"}], "tools": tools, "tool_choice": "none"});
    assert_eq!(rendered(&server, &none), "[user|a]");
}

/// A trained model's template does so: it knows nothing of tools, and clients send what they sent to others.
#[test]
fn turns_that_only_call_tools_have_an_empty_text_where_a_template_reads_it() {
    let call = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    for content in [json!({}), json!({"content": null})] {
        let mut turn = json!({"role": "assistant", "tool_calls": call});
        turn.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
        let body = json!({"messages": [{"role": "user", "content": "a"}, turn, {"role": "tool", "tool_call_id": "1", "content": "b"}]});
        let reads = model("{% for m in messages %}{{ '[' + m['role'] + ':' + m['content'] + ']' }}{% endfor %}");
        assert_eq!(rendered(&server(&reads), &body), "[user:a][assistant:][tool:b]");
        // One that tells such turns by their missing content sees that.
        let tells = model(
            "{% for m in messages %}[{{ m.role }}:{% if m.content is defined %}{{ m.content }}{% else %}call{% endif %}]{% endfor %}",
        );
        assert_eq!(rendered(&server(&tells), &body), "[user:a][assistant:call][tool:b]");
    }
}

/// A client that waits for a call would wait in vain.
#[test]
fn tools_are_refused_where_the_template_has_none() {
    let plain = model("{% for m in messages %}[{{ m.content }}]{% endfor %}");
    let server = server(&plain);
    let function = json!({"name": "f", "parameters": {"type": "object"}});
    let messages = json!([{"role": "user", "content": "a"}]);
    let tools = json!([{"type": "function", "function": function}]);
    let body = json!({"messages": messages, "max_tokens": 1, "tools": tools});
    for (path, body) in [
        ("/v1/chat/completions", body.clone()),
        ("/tokenize", body.clone()),
        (
            "/v1/messages",
            json!({"messages": messages, "max_tokens": 1, "tools": [{"name": "f", "input_schema": {"type": "object"}}]}),
        ),
        ("/v1/responses", json!({"input": "a", "max_output_tokens": 1, "tools": [{"type": "function", "name": "f"}]})),
    ] {
        let refused = server.post(path, &body);
        assert_eq!(refused.status, 400, "{path}: {}", refused.body);
        assert!(refused.message().contains("the model's chat template has no tools"), "{path}: {}", refused.body);
    }
    // Tools that may not be called need no place in a prompt.
    let mut none = body;
    none["tool_choice"] = "none".into();
    server.ok("/v1/chat/completions", &none);
}

#[test]
fn thoughts_are_told_apart_where_the_prompt_opens_them() {
    let directory = model(
        "{{ messages[-1].content }}{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}",
    );
    let server = server(&directory);
    let body = |more: Value| {
        let mut body =
            json!({"messages": [{"role": "user", "content": "Once upon a"}], "max_tokens": 8, "temperature": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let thinking = server.ok("/v1/chat/completions", &body(json!({})));
    let message = &thinking["choices"][0]["message"];
    // It never ends its thought.
    assert_eq!(message["content"], "");
    let thought = message["reasoning_content"].as_str().unwrap();
    assert!(!thought.is_empty());
    assert!(thinking["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);
    let parts = chunks(&server.stream("/v1/chat/completions", &body(json!({"stream": true}))));
    assert_eq!(joined(&parts, 0, "/delta/reasoning_content"), thought);
    assert_eq!(joined(&parts, 0, "/delta/content"), "");
    let plain = server.ok("/v1/chat/completions", &body(json!({"enable_thinking": false})));
    let message = &plain["choices"][0]["message"];
    assert!(
        !message["content"].as_str().unwrap().is_empty() && message.get("reasoning_content").is_none(),
        "{message}"
    );
    let blocks = server.ok("/v1/messages", &body(json!({})));
    assert_eq!(blocks["content"][0]["type"], "thinking");
    let items = server.ok("/v1/responses", &json!({"input": "Once upon a", "max_output_tokens": 8, "temperature": 0}));
    assert_eq!(items["output"][0]["type"], "reasoning");
}
