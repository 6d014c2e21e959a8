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

/// The form is that of the whole answer, with the text that a client begins it with.
#[test]
fn an_answer_that_has_begun_goes_on_in_its_form() {
    let server = Server::start(&[]);
    let schema = json!({"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"], "additionalProperties": false});
    let chat = |begun: &str| {
        let messages = json!([{"role": "user", "content": "a fox"}, {"role": "assistant", "content": begun}]);
        let format = json!({"type": "json_schema", "json_schema": {"schema": schema}});
        body(
            json!({"messages": messages, "response_format": format, "continue_final_message": true, "enable_thinking": false}),
        )
    };
    for begun in ["{", "{\"sure\":", "{\"su", "{\"sure\": tr"] {
        let answer = server.ok("/v1/chat/completions", &chat(begun));
        let whole = format!("{begun}{}", answer["choices"][0]["message"]["content"].as_str().unwrap());
        let told: Value = serde_json::from_str(&whole).unwrap_or_else(|e| panic!("{e}: {whole}"));
        assert!(told["sure"].is_boolean(), "{whole}");
    }
    let refused = server.post("/v1/chat/completions", &chat("Surely"));
    assert!(refused.status == 400 && refused.message().contains("has begun does not fit"), "{}", refused.body);
    let message = json!({
        "messages": [{"role": "user", "content": "a fox"}, {"role": "assistant", "content": "{\"sure\":"}],
        "output_config": {"format": {"type": "json_schema", "schema": schema}}, "max_tokens": 200, "temperature": 0,
    });
    let answer = server.ok("/v1/messages", &message);
    let whole = format!("{{\"sure\":{}", answer["content"][0]["text"].as_str().unwrap());
    assert!(serde_json::from_str::<Value>(&whole).is_ok_and(|told| told["sure"].is_boolean()), "{whole}");
}

#[test]
fn every_api_keeps_to_the_form_that_is_asked_for() {
    let server = Server::start(&[]);
    let schema = json!({"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}}, "required": ["kind"],
        "additionalProperties": false});
    let fits = |text: &Value| {
        let pet: Value = serde_json::from_str(text.as_str().unwrap()).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(["cat", "dog"].contains(&pet["kind"].as_str().unwrap()), "{pet}");
    };
    // The third is llama.cpp's.
    let formats = [
        json!({"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}}),
        json!({"type": "json_object"}),
        json!({"type": "json_object", "schema": schema}),
    ];
    for format in &formats {
        let answer = server.ok("/v1/chat/completions", &body(json!({ "response_format": format })));
        let completion =
            json!({"prompt": ["a fox", "a boat"], "temperature": 0, "max_tokens": 900, "response_format": format});
        let texts = server.ok("/v1/completions", &completion);
        for text in
            [&answer["choices"][0]["message"]["content"], &texts["choices"][0]["text"], &texts["choices"][1]["text"]]
        {
            match format.to_string().contains("schema") {
                true => fits(text),
                // It ends where an object does, or not at all.
                false => assert!(text.as_str().unwrap().trim_start().starts_with('{'), "{text}"),
            }
        }
    }
    let message = json!({"messages": [{"role": "user", "content": "a fox"}], "temperature": 0, "max_tokens": 900});
    let format = json!({"type": "json_schema", "schema": schema});
    for more in [json!({"output_config": {"effort": "low", "format": format}}), json!({"output_format": format})] {
        let mut asked = message.clone();
        asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fits(&server.ok("/v1/messages", &asked)["content"][0]["text"]);
    }
    let wrong = json!({"type": "json_object", "schema": {"type": "object", "if": {}}});
    for (path, asked) in [("/v1/chat/completions", body(json!({}))), ("/v1/completions", json!({"prompt": "a"}))] {
        let mut asked = asked;
        asked["response_format"] = wrong.clone();
        let refused = server.post(path, &asked);
        assert!(refused.status == 400 && refused.message().starts_with("response_format.schema"), "{}", refused.body);
    }
}

#[test]
fn a_form_beside_tools_is_that_of_answers_that_call_none() {
    let schema = json!({"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}}, "required": ["kind"],
        "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}});
    for template in [
        "{{ '<tool_call>\n<function=' and '' }}{{ 'tools ' if tools }}{{ messages[-1].content }}",
        "{{ '<tool_call>' and '' }}{{ 'tools ' if tools }}{{ messages[-1].content }}",
    ] {
        let directory = templates::model(template);
        let server = templates::server(&directory);
        let asked = |first: &str, more: Value| {
            let id =
                server.ok("/tokenize", &json!({"prompt": first, "add_special_tokens": false}))["tokens"][0].to_string();
            let mut asked = body(json!({"tools": tools(), "response_format": format, "parallel_tool_calls": false}));
            asked["logit_bias"] = json!({ id: 100 });
            asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            server.ok("/v1/chat/completions", &asked)["choices"][0].clone()
        };
        // The model begins as it is made to, and goes on as the form says.
        let call = asked("<", json!({}));
        assert_eq!(call["finish_reason"], "tool_calls", "{template}: {call}");
        let arguments = call["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
        assert!(serde_json::from_str::<Value>(arguments).unwrap()["word"].is_string(), "{arguments}");
        for more in [json!({}), json!({"tool_choice": "none"})] {
            let answer = asked("{", more);
            assert_eq!(answer["finish_reason"], "stop", "{template}: {answer}");
            let pet: Value = serde_json::from_str(answer["message"]["content"].as_str().unwrap()).unwrap();
            assert!(pet["kind"].is_string() && answer["message"].get("tool_calls").is_none(), "{answer}");
        }
        assert_eq!(asked("{", json!({"tool_choice": "required"}))["finish_reason"], "tool_calls");
        // Which of them is at fault is told.
        let mut wrong = body(json!({"tools": tools(), "response_format": format}));
        wrong["response_format"]["json_schema"]["schema"]["if"] = json!({});
        let refused = server.post("/v1/chat/completions", &wrong);
        let place = "response_format.json_schema.schema";
        assert!(refused.status == 400 && refused.message().starts_with(place), "{}", refused.body);
    }
    // Where calls are bare JSON, an answer could be either.
    let directory = templates::model("{{ 'ipython' and '' }}{{ 'tools ' if tools }}{{ messages[-1].content }}");
    let refused = templates::server(&directory)
        .post("/v1/chat/completions", &body(json!({"tools": tools(), "response_format": format})));
    assert!(refused.status == 400 && refused.message().contains("leave the tools out"), "{}", refused.body);
}

#[test]
fn tools_that_are_not_allowed_are_neither_told_nor_called() {
    let template = "{{ '<tool_call>' and '' }}{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{{ messages[-1].content }}";
    let directory = templates::model(template);
    let server = templates::server(&directory);
    let function = |name: &str| json!({"type": "function", "function": {"name": name}});
    let choice = |mode: &str, names: &[&str]| {
        let tools: Vec<Value> = names.iter().copied().map(function).collect();
        json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}})
    };
    let asked = |choice: &Value| body(json!({"tools": tools(), "tool_choice": choice, "parallel_tool_calls": false}));
    for mode in ["auto", "required"] {
        for (names, told) in [(&["spell"][..], "[spell]a fox"), (&["spell", "look_up"], "[look_up][spell]a fox")] {
            let tokens = server.ok("/tokenize", &asked(&choice(mode, names)))["tokens"].clone();
            assert_eq!(server.ok("/detokenize", &json!({ "tokens": tokens }))["content"], told, "{mode}");
        }
    }
    let answer = server.ok("/v1/chat/completions", &asked(&choice("required", &["spell"])));
    assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "spell", "{answer}");
    // As `responses` has it, where tools that are run elsewhere are left out.
    let flat: Vec<Value> = ["look_up", "spell"]
        .iter()
        .map(|name| json!({"type": "function", "name": name, "parameters": tools()[0]["function"]["parameters"]}))
        .collect();
    let chosen = |name: &str| json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}, {"type": "function", "name": name}]});
    let mut response = json!({"input": "a fox", "tools": flat, "tool_choice": chosen("spell"), "temperature": 0,
        "max_output_tokens": 900, "parallel_tool_calls": false});
    let answer = server.ok("/v1/responses", &response);
    assert_eq!((&answer["output"][0]["name"], &answer["tool_choice"]), (&json!("spell"), &chosen("spell")), "{answer}");
    response["tool_choice"] = chosen("f");
    let refused = server.post("/v1/responses", &response);
    let part = "tool_choice.tools[1].name: there is no tool \"f\"";
    assert!(refused.status == 400 && refused.message().contains(part), "{}", refused.body);
    for (choice, part) in [
        (choice("always", &["spell"]), "tool_choice.allowed_tools.mode: \"always\""),
        (choice("auto", &["f"]), "tool_choice.allowed_tools.tools[0].function.name: there is no tool \"f\""),
        (choice("required", &[]), "tool_choice: a call is required, but there are no tools"),
        (json!({"type": "allowed_tools"}), "tool_choice.allowed_tools: is missing"),
        (json!({"type": "web_search"}), "tool_choice.type: \"web_search\""),
        (json!({"type": "function"}), "tool_choice.function.name: is missing"),
    ] {
        let refused = server.post("/v1/chat/completions", &asked(&choice));
        assert!(refused.status == 400 && refused.message().starts_with(part), "{}", refused.body);
    }
    // What is wrong with a tool is told at its own place.
    let mut wrong = tools();
    wrong[1]["function"]["parameters"]["multipleOf"] = json!(0.123_456_789);
    for choice in [choice("required", &["spell"]), function("spell")] {
        let mut asked = asked(&choice);
        asked["tools"] = wrong.clone();
        let refused = server.post("/v1/chat/completions", &asked);
        assert!(
            refused.status == 400 && refused.message().starts_with("tools[1].function.parameters.multipleOf"),
            "{}",
            refused.body
        );
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
