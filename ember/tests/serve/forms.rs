//! Answers that are kept to a form: the model in the program would say anything but this by itself. It takes all the white space
//! that a form allows.

use serde_json::{Value, json};

use crate::client::{Server, chunks};
use crate::templates;

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"word": {"enum": ["fox", "boat"]}}, "required": ["word"], "additionalProperties": false});
    let function = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    json!([function("look_up"), function("spell")])
}

fn body(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "a fox"}], "temperature": 0, "max_tokens": 900});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn an_answer_follows_its_schema() {
    let server = Server::start(&[]);
    let schema = json!({"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "maximum": 30, "minimum": 0}},
        "required": ["kind", "age"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "pet", "schema": schema, "strict": true}});
    for more in [json!({}), json!({"temperature": 1.5, "seed": 3})] {
        let mut asked = body(json!({ "response_format": format }));
        asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.ok("/v1/chat/completions", &asked);
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let pet: Value = serde_json::from_str(content).unwrap_or_else(|e| panic!("{e}: {content}"));
        assert!(pet["kind"].is_string() && pet["age"].as_u64().unwrap() <= 30, "{pet}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    // As `responses` writes it.
    let text = json!({"format": {"type": "json_schema", "name": "pet", "schema": schema}});
    let items = server
        .ok("/v1/responses", &json!({"input": "a fox", "text": text, "temperature": 0, "max_output_tokens": 900}));
    let content = items["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(content).unwrap()["age"].is_u64(), "{content}");
    for (format, part) in [
        (json!({"type": "yaml"}), "yaml"),
        (json!({"type": "json_schema"}), "schema: is missing"),
        (
            json!({"type": "json_schema", "json_schema": {"schema": {"type": "object", "if": {}}}}),
            "response_format.json_schema.schema",
        ),
        // Nothing fits a schema that contains itself without an end.
        (json!({"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}), "no answer fits it"),
        (json!({"type": "json_schema", "json_schema": {"schema": {"allOf": [{"$ref": "#"}]}}}), "no answer fits it"),
    ] {
        let refused = server.post("/v1/chat/completions", &body(json!({ "response_format": format })));
        assert!(refused.status == 400 && refused.message().contains(part), "{format}: {}", refused.body);
    }
}

#[test]
fn a_call_that_is_required_is_one_whole_and_streamed() {
    // The three ways in which models write calls.
    for template in [
        "{{ '<tool_call>\n<function=' and '' }}{{ 'tools ' if tools }}{{ messages[-1].content }}",
        "{{ '<tool_call>' and '' }}{{ 'tools ' if tools }}{{ messages[-1].content }}",
        "{{ 'ipython' and '' }}{{ 'tools ' if tools }}{{ messages[-1].content }}",
    ] {
        let directory = templates::model(template);
        let server = templates::server(&directory);
        let named = json!({"type": "function", "function": {"name": "spell"}});
        for (choice, names) in [(json!("required"), &["look_up", "spell"][..]), (named, &["spell"][..])] {
            let asked = body(json!({"tools": tools(), "tool_choice": choice, "parallel_tool_calls": false}));
            let answer = server.ok("/v1/chat/completions", &asked);
            let one = &answer["choices"][0];
            assert_eq!(one["finish_reason"], "tool_calls", "{template}: {answer}");
            assert_eq!(one["message"]["content"], Value::Null);
            let call = &one["message"]["tool_calls"][0];
            let name = call["function"]["name"].as_str().unwrap();
            assert!(names.contains(&name) && call["type"] == "function", "{call}");
            let arguments = call["function"]["arguments"].as_str().unwrap();
            assert!(serde_json::from_str::<Value>(arguments).unwrap()["word"].is_string(), "{arguments}");
            let mut streamed = asked.clone();
            streamed["stream"] = true.into();
            let parts = chunks(&server.stream("/v1/chat/completions", &streamed));
            let deltas: Vec<&Value> =
                parts.iter().filter_map(|p| p["choices"][0]["delta"]["tool_calls"].get(0)).collect();
            assert_eq!(deltas[0]["function"]["name"], name);
            assert!(deltas[0]["id"].as_str().unwrap().starts_with("call_"));
            assert!(deltas.iter().all(|delta| delta["index"] == 0));
            let joined: String = deltas.iter().map(|delta| delta["function"]["arguments"].as_str().unwrap()).collect();
            assert_eq!(joined, arguments);
            assert_eq!(parts.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
        }
        let blocks = json!({"messages": [{"role": "user", "content": "a fox"}], "max_tokens": 900, "temperature": 0,
            "tools": [{"name": "spell", "input_schema": tools()[1]["function"]["parameters"]}], "tool_choice": {"type": "any", "disable_parallel_tool_use": true}});
        let answer = server.ok("/v1/messages", &blocks);
        assert_eq!((&answer["stop_reason"], &answer["content"][0]["name"]), (&json!("tool_use"), &json!("spell")));
        assert!(answer["content"][0]["input"]["word"].is_string(), "{answer}");
    }
    let server = Server::start(&[]);
    for (more, part) in [
        (json!({"tool_choice": "required"}), "there are no tools"),
        (json!({"tools": tools(), "tool_choice": "always"}), "always"),
        (
            json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "f"}}}),
            "there is no tool \"f\"",
        ),
    ] {
        let refused = server.post("/v1/chat/completions", &body(more));
        assert!(refused.status == 400 && refused.message().contains(part), "{}", refused.body);
    }
}

#[test]
fn thoughts_are_free_before_a_form() {
    // The prompt ends inside of thoughts, which the model in the program never ends: it is told to.
    let directory = templates::model("{{ messages[-1].content }}<think>\n");
    let server = templates::server(&directory);
    let asked = body(json!({"response_format": {"type": "json_object"}, "max_tokens": 12}));
    let message = &server.ok("/v1/chat/completions", &asked)["choices"][0]["message"];
    let free = server.ok("/v1/chat/completions", &body(json!({"max_tokens": 12})));
    assert_eq!(message["reasoning_content"], free["choices"][0]["message"]["reasoning_content"]);
    assert_eq!(message["content"], "");
}
