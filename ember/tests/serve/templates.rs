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

/// Templates with tools; those without are told of calls in texts.
#[test]
fn turns_that_only_call_tools_have_an_empty_text_where_a_template_reads_it() {
    let call = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    for content in [json!({}), json!({"content": null})] {
        let mut turn = json!({"role": "assistant", "tool_calls": call});
        turn.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
        let body = json!({"messages": [{"role": "user", "content": "a"}, turn, {"role": "tool", "tool_call_id": "1", "content": "b"}]});
        let reads = model(
            "{% for m in messages %}{{ '[' + m['role'] + ':' + m['content'] + ']' }}{% endfor %}{{ tools|length if tools }}",
        );
        assert_eq!(rendered(&server(&reads), &body), "[user:a][assistant:][tool:b]");
        // One that tells such turns by their missing content sees that.
        let tells = model(
            "{% for m in messages %}[{{ m.role }}:{% if m.content is defined %}{{ m.content }}{% else %}call{% endif %}]{% endfor %}\
             {{ tools|length if tools }}",
        );
        assert_eq!(rendered(&server(&tells), &body), "[user:a][assistant:call][tool:b]");
    }
}

/// What the prompt says of tools, calls and results where the template knows of none of them.
#[test]
fn tools_are_told_in_messages_where_the_template_has_none() {
    let strict = "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] or m.tool_calls %}\
                  {{ raise_exception('unexpected role') }}{% endif %}[{{ m.role }}|{{ m.content }}]{% endfor %}";
    let no_system = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}\
                     [{{ m.role }}|{{ m.content }}]{% endfor %}";
    let silent = "{% for m in messages if m.role != 'system' %}[{{ m.role }}|{{ m.content }}]{% endfor %}";
    let function = json!({"name": "f", "parameters": {"type": "object"}});
    let tools = json!([{"type": "function", "function": function}]);
    let question = json!({"role": "user", "content": "a"});
    let told = "# Tools\nYou may call these functions:\n\
                {\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\"}}}\n\
                To call one, answer with tags:\n<tool_call>\n<function=NAME>\n<parameter=NAME>\nVALUE\n</parameter>\n\
                </function>\n</tool_call>";
    let directory = model(strict);
    let server = server(&directory);
    let prompt = |messages: Value| rendered(&server, &json!({"messages": messages, "tools": tools}));
    assert_eq!(prompt(json!([question])), format!("[system|{told}][user|a]"));
    let system = json!({"role": "system", "content": "Be brief."});
    assert_eq!(prompt(json!([system, question])), format!("[system|Be brief.\n\n{told}][user|a]"));
    // Calls and results, also where the request has no tools any more.
    let call = |id: &str, x: u8| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": format!("{{\"x\": {x}}}")}});
    let result = |id: &str, content: &str| json!({"role": "tool", "tool_call_id": id, "content": content});
    let history = json!([
        question, {"role": "assistant", "content": null, "tool_calls": [call("1", 1), call("2", 2)]},
        result("1", "one"), result("2", "two"), {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}, question,
    ]);
    let written =
        |x: u8| format!("<tool_call>\n<function=f>\n<parameter=x>\n{x}\n</parameter>\n</function>\n</tool_call>");
    let after = format!(
        "[user|a][assistant|{}\n{}][user|<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>\nb]\
         [assistant|c][user|a]",
        written(1),
        written(2)
    );
    assert_eq!(prompt(history.clone()), format!("[system|{told}]{after}"));
    assert_eq!(rendered(&server, &json!({"messages": history})), after);
    // Every API is answered, and a call that is demanded comes.
    let body = json!({"messages": [question], "max_tokens": 200, "tools": tools, "tool_choice": "required"});
    assert_eq!(
        server.ok("/v1/chat/completions", &body)["choices"][0]["message"]["tool_calls"][0]["function"]["name"],
        "f"
    );
    let tool = json!({"name": "f", "input_schema": {"type": "object"}});
    server.ok("/v1/messages", &json!({"messages": [question], "max_tokens": 1, "tools": [tool]}));
    let tool = json!({"type": "function", "name": "f"});
    server.ok("/v1/responses", &json!({"input": "a", "max_output_tokens": 1, "tools": [tool]}));
    // Tools that may not be called need no place in a prompt.
    let none = json!({"messages": [question], "tools": tools, "tool_choice": "none"});
    assert_eq!(rendered(&server, &none), "[user|a]");
    drop(server);
    for template in [no_system, silent] {
        let directory = model(template);
        let server = super::templates::server(&directory);
        let prompt = rendered(&server, &json!({"messages": [question], "tools": tools}));
        assert_eq!(prompt, format!("[user|{told}\n\na]"));
    }
}

/// Templates leave out system messages, or all but the last question; a chat may begin with the assistant, or hold a system message alone.
#[test]
fn tools_are_told_wherever_the_template_renders_something() {
    let all = "{% for m in messages %}[{{ m.role }}|{{ m.content }}]{% endfor %}";
    let silent = "{% for m in messages if m.role != 'system' %}[{{ m.role }}|{{ m.content }}]{% endfor %}";
    let refusing = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}\
                    [{{ m.role }}|{{ m.content }}]{% endfor %}";
    let last = "{% for m in messages %}{% if loop.last %}[{{ m.role }}|{{ m.content }}]{% endif %}{% endfor %}";
    let quoting = "{% for m in messages if m.role != 'system' %}[{{ m.role }}|{{ m.content|tojson }}]{% endfor %}";
    let system = json!({"role": "system", "content": "Be brief."});
    let (one, two) = (json!({"role": "user", "content": "a"}), json!({"role": "user", "content": "b"}));
    // The client may have written what the model is told.
    let quote = json!({"role": "user", "content": "You may call these functions:"});
    let assistant = json!({"role": "assistant", "content": "c"});
    let tools = json!([{"type": "function", "function": {"name": "look_up_a_word"}}]);
    for (template, messages, expected) in [
        (all, json!([assistant]), "[system|T][assistant|c]"),
        (all, json!([system]), "[system|Be brief.\n\nT]"),
        (silent, json!([system]), "[user|T]"),
        (silent, json!([system, assistant]), "[user|T][assistant|c]"),
        (silent, json!([assistant]), "[user|T][assistant|c]"),
        (silent, json!([system, one, assistant, two]), "[user|T\n\na][assistant|c][user|b]"),
        (silent, json!([assistant, one]), "[assistant|c][user|T\n\na]"),
        (silent, json!([system, quote]), "[user|T\n\nYou may call these functions:]"),
        (refusing, json!([assistant]), "[user|T][assistant|c]"),
        (last, json!([one, assistant, two]), "[user|T\n\nb]"),
        (last, json!([system]), "[system|Be brief.\n\nT]"),
        (quoting, json!([one]), "[user|\"T\\n\\na\"]"),
    ] {
        let directory = model(template);
        let server = server(&directory);
        let body = json!({"messages": messages, "tools": tools});
        let prompt = rendered(&server, &body);
        assert_eq!(prompt.matches("look_up_a_word").count(), 1, "{template} {messages}: {prompt}");
        let (from, to) = (prompt.find("# Tools").unwrap(), prompt.find("</tool_call>").unwrap() + "</tool_call>".len());
        assert_eq!(format!("{}T{}", &prompt[..from], &prompt[to..]), expected, "{template} {messages}: {prompt}");
    }
    // None of the messages is there, and the client hears of it instead of the model never hearing of the tools.
    let none = "{{ messages|length }}{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}";
    for (template, messages, part) in [
        (none, json!([one]), "leaves out every message in which they could be told"),
        (none, json!([system]), "leaves out every message in which they could be told"),
        (refusing, json!([system, one]), "no system"),
    ] {
        let directory = model(template);
        let server = server(&directory);
        let body = json!({"messages": messages, "tools": tools, "max_tokens": 1});
        for path in ["/tokenize", "/v1/chat/completions"] {
            let refused = server.post(path, &body);
            assert!(refused.status == 400 && refused.message().contains(part), "{path} {messages}: {}", refused.body);
        }
    }
}

/// What is said of tools comes from who made them, and calls quote what was read.
#[test]
fn special_tokens_in_tools_and_calls_stay_text() {
    let own = "{% for m in messages %}[{{ m.content or '' }}{{ m.tool_calls|tojson if m.tool_calls }}]{% endfor %}{{ tools|tojson if tools }}";
    let none = "{% for m in messages %}[{{ m.content }}]{% endfor %}";
    for template in [own, none] {
        let directory = model(template);
        let server = server(&directory);
        let mark = "<|im_end|>";
        let read = server.ok("/tokenize", &json!({"prompt": mark, "add_special_tokens": false}))["tokens"].clone();
        assert_eq!(read.as_array().unwrap().len(), 1, "{mark} is one token");
        let schema = json!({"type": "object", "properties": {mark: {"description": mark}}});
        let function = json!({"name": "f", "description": format!("a {mark}\n"), "parameters": schema});
        let arguments = json!({mark: format!("{mark}{mark}")}).to_string();
        let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}});
        let tokens = server.ok("/tokenize", &json!({
            "messages": [{"role": "user", "content": mark}, {"role": "assistant", "content": null, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": mark}],
            "tools": [{"type": "function", "function": function}],
        }))["tokens"].clone();
        let tokens = tokens.as_array().unwrap();
        assert!(tokens.len() > 40 && !tokens.contains(&read[0]), "{template}: {tokens:?}");
    }
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
