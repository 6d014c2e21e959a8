//! What answers of `/v1/responses` say again of their requests.

use serde_json::{Map, Value, json};

use crate::client::Server;

/// The responses that a request is answered with: the whole one, and those in the events of a stream.
fn responses(server: &Server, body: &Value) -> Vec<(String, Value)> {
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let mut told = vec![("whole".to_owned(), server.ok("/v1/responses", body))];
    for (name, data) in server.stream("/v1/responses", &streamed) {
        let event: Value = serde_json::from_str(&data).unwrap();
        told.extend(event.get("response").map(|response| (name, response.clone())));
    }
    let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..3], ["whole", "response.created", "response.in_progress"]);
    assert!(["response.completed", "response.incomplete"].contains(&names[3]) && names.len() == 4, "{names:?}");
    told
}

fn agrees(server: &Server, body: &Value, expected: &Value) {
    let expected: &Map<String, Value> = expected.as_object().unwrap();
    for (name, response) in responses(server, body) {
        for (field, value) in expected {
            assert_eq!(response.get(field), Some(value), "{field} of {name}: {response}");
        }
    }
}

#[test]
fn every_response_says_what_its_request_said() {
    let server = Server::start(&["--temp", "0.3", "--top-p", "0.9"]);
    let parameters = json!({"type": "object", "properties": {"word": {"type": "string"}}});
    let function =
        json!({"type": "function", "name": "f", "description": "d", "parameters": parameters, "strict": true});
    let said = json!({
        "instructions": "Be brief.", "max_output_tokens": 3, "temperature": 0, "top_p": 0.5, "metadata": {"of": "a test"},
        "tools": [function, {"type": "web_search"}], "tool_choice": "none", "parallel_tool_calls": false, "max_tool_calls": 4,
        "text": {"format": {"type": "text"}, "verbosity": "low"}, "reasoning": {"effort": "low", "summary": "auto"},
        "truncation": "auto", "top_logprobs": 0, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k",
    });
    let mut body = said.clone();
    body["input"] = "tell me a story".into();
    agrees(&server, &body, &said);
    // Where the request says nothing: what the server was told, and OpenAI's values for the rest.
    let held = json!({
        "instructions": null, "max_output_tokens": 3, "temperature": 0.3, "top_p": 0.9, "metadata": {}, "tools": [],
        "tool_choice": "auto", "parallel_tool_calls": true, "max_tool_calls": null,
        "text": {"format": {"type": "text"}, "verbosity": "medium"}, "reasoning": {"effort": null, "summary": null},
        "truncation": "disabled", "top_logprobs": 0, "user": null, "safety_identifier": null, "prompt_cache_key": null,
        "store": false, "background": false, "previous_response_id": null, "service_tier": "default",
    });
    agrees(&server, &json!({"input": "tell me a story", "max_output_tokens": 3}), &held);
    let wrong = json!({"input": "a", "max_output_tokens": 1, "metadata": {"a": 1}});
    let refused = server.post("/v1/responses", &wrong);
    assert!(refused.status == 400 && refused.message().contains("metadata: \"a\""), "{}", refused.body);
}

/// A tool that has to be called is one of those that the answer tells, in the form that the request chose it.
#[cfg(feature = "grammar")]
#[test]
fn a_tool_that_is_demanded_is_told() {
    let server = Server::start(&[]);
    let parameters = json!({"type": "object", "properties": {"word": {"enum": ["fox"]}}, "required": ["word"],
        "additionalProperties": false});
    let function = json!({"type": "function", "name": "f", "parameters": parameters});
    let choice = json!({"type": "function", "name": "f"});
    let body =
        json!({"input": "a", "tools": [function], "tool_choice": choice, "temperature": 0, "max_output_tokens": 400});
    let told = json!({"type": "function", "name": "f", "description": null, "parameters": parameters, "strict": false});
    agrees(&server, &body, &json!({"tools": [told], "tool_choice": choice}));
}
