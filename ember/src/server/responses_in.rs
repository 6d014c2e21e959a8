//! `/v1/responses`: its body as that of a chat.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, found};
use super::limits;
use super::places::Places;

/// Fields that mean the same in both.
const SAME: [&str; 15] = [
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "parallel_tool_calls",
    "logit_bias",
    "stop",
    "depth",
    "chat_template_kwargs",
    "enable_thinking",
];

/// The body of a chat that asks for the same, and where its parts stood.
///
/// # Errors
/// 400 when a field cannot be used.
pub fn to_chat(map: &Map<String, Value>) -> Result<(Map<String, Value>, Places), ApiError> {
    let fields = Fields::root(map);
    // What a server of OpenAI keeps would be missing from the prompt.
    for (name, message) in [
        ("previous_response_id", "this server keeps no answers; send the whole conversation as input"),
        ("conversation", "this server keeps no conversations; send the whole of it as input"),
        ("prompt", "this server keeps no prompts; send its text as instructions and input"),
    ] {
        if fields.get(name).is_some() {
            return Err(fields.wrong(name, message));
        }
    }
    if fields.bool("background")?.unwrap_or(false) {
        return Err(fields.wrong("background", "answers are given while the client waits; leave it out, or stream"));
    }
    refuse_what_is_not_told(fields)?;
    let (mut chat, mut places) = (Map::new(), Places::default());
    for name in SAME {
        if let Some(value) = fields.get(name) {
            chat.insert(name.into(), value.clone());
        }
    }
    if let Some(most) = fields.get("max_output_tokens") {
        chat.insert("max_completion_tokens".into(), most.clone());
        places.note("max_completion_tokens", "max_output_tokens");
    }
    if let Some(reasoning) = fields.object("reasoning")?
        && let Some(effort) = Fields::at(reasoning, "reasoning").text("effort")?
    {
        chat.insert("reasoning_effort".into(), effort.into());
        places.note("reasoning_effort", "reasoning.effort");
    }
    if let Some(text) = fields.object("text")?
        && let Some(format) = Fields::at(text, "text").object("format")?
    {
        chat.insert("response_format".into(), response_format(format));
        places.note("response_format", "text.format");
        places.note("response_format.json_schema", "text.format");
    }
    if let Some(list) = fields.list("tools")? {
        say_once_what_is_left_out(list);
        let known: Vec<(usize, Value)> = list.iter().map(tool).enumerate().filter_map(|(i, t)| Some((i, t?))).collect();
        for (k, (i, _)) in known.iter().enumerate() {
            places.note(format!("tools[{k}]"), format!("tools[{i}]"));
            if list.get(*i).is_some_and(|tool| tool.get("function").is_none()) {
                places.note(format!("tools[{k}].function"), format!("tools[{i}]"));
            }
        }
        chat.insert("tools".into(), known.into_iter().map(|(_, tool)| tool).collect());
    }
    if let Some(choice) = fields.get("tool_choice") {
        chat.insert("tool_choice".into(), tool_choice(choice, &mut places));
    }
    let mut messages = Vec::new();
    if let Some(instructions) = fields.text("instructions")? {
        messages.push(json!({"role": "system", "content": instructions}));
        places.note("messages[0]", "instructions");
    }
    places.note("messages", "input");
    match fields.get("input") {
        None => return Err(fields.wrong("input", "is missing")),
        Some(Value::String(text)) => {
            places.note(format!("messages[{}]", messages.len()), "input");
            messages.push(json!({"role": "user", "content": text}));
        }
        Some(Value::Array(items)) => {
            if items.len() > limits::MESSAGES {
                let message = format!("{} items, but at most {} are taken", items.len(), limits::MESSAGES);
                return Err(fields.wrong("input", message));
            }
            for (i, value) in items.iter().enumerate() {
                item(value, &format!("input[{i}]"), &mut messages, &mut places)?;
            }
        }
        Some(other) => {
            return Err(fields.wrong("input", format!("expected a text or a list of items, found {}", found(other))));
        }
    }
    chat.insert("messages".into(), messages.into());
    Ok((chat, places))
}

/// What a request asks for that no answer would have.
fn refuse_what_is_not_told(fields: Fields<'_>) -> Result<(), ApiError> {
    const LOGPROBS: &str = "are told by /v1/chat/completions (logprobs, top_logprobs), not here";
    if fields.integer("top_logprobs", 0..=limits::TOP_LOGPROBS as u64)?.is_some_and(|top| top > 0) {
        return Err(fields.wrong("top_logprobs", format!("log probabilities {LOGPROBS}")));
    }
    if fields.list("include")?.unwrap_or_default().iter().any(|name| name == "message.output_text.logprobs") {
        return Err(fields.wrong("include", format!("message.output_text.logprobs: log probabilities {LOGPROBS}")));
    }
    match fields.text("truncation")? {
        // Of an input that fits nothing is left out either way; the error of a longer one says what to do.
        None | Some("disabled" | "auto") => Ok(()),
        Some(other) => Err(fields.wrong("truncation", format!("{other:.40?} is none of auto and disabled"))),
    }
}

/// As chats have it: names lie flat here, and under `function` there.
fn tool_choice(choice: &Value, places: &mut Places) -> Value {
    let Some(map) = choice.as_object() else { return choice.clone() };
    match map.get("type").and_then(Value::as_str) {
        Some("function") | None if !map.contains_key("function") => {
            places.note("tool_choice.function", "tool_choice");
            json!({"type": "function", "function": {"name": map.get("name")}})
        }
        Some("allowed_tools") if !map.contains_key("allowed_tools") => {
            let list = map.get("tools").and_then(Value::as_array);
            let known = |(i, value): (usize, &Value)| Some((i, tool(value)?));
            let known: Vec<(usize, Value)> = list.into_iter().flatten().enumerate().filter_map(known).collect();
            places.note("tool_choice.allowed_tools", "tool_choice");
            for (k, (i, _)) in known.iter().enumerate() {
                let (place, own) = (format!("tool_choice.allowed_tools.tools[{k}]"), format!("tool_choice.tools[{i}]"));
                places.note(format!("{place}.function"), own.clone());
                places.note(place, own);
            }
            let tools = list.map(|_| known.into_iter().map(|(_, tool)| tool).collect::<Value>());
            json!({"type": "allowed_tools", "allowed_tools": {"mode": map.get("mode"), "tools": tools}})
        }
        _ => choice.clone(),
    }
}

/// A schema lies flat here, and under its own name in a chat.
fn response_format(format: &Map<String, Value>) -> Value {
    match format.get("type").and_then(Value::as_str) {
        Some("json_schema") => {
            let mut inner = format.clone();
            inner.remove("type");
            json!({"type": "json_schema", "json_schema": inner})
        }
        _ => Value::Object(format.clone()),
    }
}

/// Logs the first tools that are left out: clients send the same ones with every request.
fn say_once_what_is_left_out(tools: &[Value]) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let kinds = tools.iter().filter(|tool| !is_function(tool)).filter_map(|tool| tool.get("type")?.as_str());
    let kinds: Vec<String> = kinds.take(8).map(|kind| format!("{kind:.40?}")).collect();
    if !kinds.is_empty() && !SAID.swap(true, Ordering::Relaxed) {
        let kinds = kinds.join(", ");
        tracing::info!(target: "ember::serve", "tools that OpenAI's servers run are left out: {kinds}; this is said once");
    }
}

fn is_function(tool: &Value) -> bool {
    tool.get("type").and_then(Value::as_str) == Some("function")
}

/// A function; tools that OpenAI's servers run themselves are none that a model here can call.
fn tool(value: &Value) -> Option<Value> {
    let map = value.as_object().filter(|_| is_function(value))?;
    if map.contains_key("function") {
        return Some(value.clone());
    }
    let kept = ["name", "description", "parameters", "strict"];
    let function: Map<String, Value> =
        kept.into_iter().filter_map(|name| Some((name.to_owned(), map.get(name)?.clone()))).collect();
    Some(json!({"type": "function", "function": function}))
}

fn item(value: &Value, path: &str, messages: &mut Vec<Value>, places: &mut Places) -> Result<(), ApiError> {
    let Some(map) = value.as_object() else {
        return Err(ApiError::field(path, format!("expected an object, found {}", found(value))));
    };
    let fields = Fields::at(map, path);
    let next = format!("messages[{}]", messages.len());
    let last = format!("messages[{}]", messages.len().saturating_sub(1));
    match fields.text("type")? {
        Some("message") | None => {
            let role = fields.text("role")?.ok_or_else(|| fields.wrong("role", "is missing"))?;
            let content = fields.get("content").cloned().unwrap_or_default();
            match (role, thinking_turn(messages)) {
                ("assistant", Some(open)) => {
                    places.note(format!("{last}.content"), format!("{path}.content"));
                    open.insert("content".into(), content);
                }
                _ => {
                    places.note(next, path);
                    messages.push(json!({"role": role, "content": content}));
                }
            }
        }
        Some("function_call") => {
            let call = json!({
                "id": fields.text("call_id")?, "type": "function",
                "function": {"name": fields.text("name")?, "arguments": fields.text("arguments")?.unwrap_or_default()},
            });
            let place = match last_assistant(messages) {
                Some(open) => match open.get_mut("tool_calls").and_then(Value::as_array_mut) {
                    Some(calls) => {
                        calls.push(call);
                        format!("{last}.tool_calls[{}]", calls.len().saturating_sub(1))
                    }
                    None => {
                        open.insert("tool_calls".into(), json!([call]));
                        format!("{last}.tool_calls[0]")
                    }
                },
                None => {
                    messages.push(json!({"role": "assistant", "content": null, "tool_calls": [call]}));
                    format!("{next}.tool_calls[0]")
                }
            };
            places.note(format!("{place}.function"), path);
            places.note(place, path);
        }
        Some("function_call_output") => {
            let output = fields.get("output").cloned().unwrap_or_default();
            messages.push(json!({"role": "tool", "tool_call_id": fields.text("call_id")?, "content": output}));
            places.note(format!("{next}.content"), format!("{path}.output"));
            places.note(next, path);
        }
        Some("reasoning") => {
            let texts = fields.list("content")?.unwrap_or_default().iter();
            let thought: String = texts.filter_map(|part| part.get("text")?.as_str()).collect();
            if !thought.is_empty() {
                places.note(next, path);
                messages.push(json!({"role": "assistant", "content": null, "reasoning_content": thought}));
            }
        }
        Some(other) => return Err(fields.wrong("type", format!("{other:.40?} is not supported"))),
    }
    Ok(())
}

fn last_assistant(messages: &mut [Value]) -> Option<&mut Map<String, Value>> {
    let last = messages.last_mut()?.as_object_mut()?;
    (last.get("role").and_then(Value::as_str) == Some("assistant")).then_some(last)
}

/// The turn of an assistant of which only the thought is known so far.
fn thinking_turn(messages: &mut [Value]) -> Option<&mut Map<String, Value>> {
    last_assistant(messages)
        .filter(|open| open.get("content").is_some_and(Value::is_null) && !open.contains_key("tool_calls"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: Value) -> Value {
        Value::Object(to_chat(body.as_object().unwrap()).unwrap().0)
    }

    #[test]
    fn items_become_the_turns_of_a_chat() {
        let got = chat(json!({
            "instructions": "Be brief.", "max_output_tokens": 7, "reasoning": {"effort": "none"},
            "tools": [{"type": "function", "name": "f", "parameters": {}}, {"type": "web_search"}],
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "wait"}]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "done"},
            ],
        }));
        assert_eq!(
            got,
            json!({
                "max_completion_tokens": 7, "reasoning_effort": "none",
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                    {"role": "assistant", "content": [{"type": "output_text", "text": "wait"}], "reasoning_content": "hm",
                     "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                    {"role": "tool", "tool_call_id": "1", "content": "done"},
                ],
            })
        );
    }
}
