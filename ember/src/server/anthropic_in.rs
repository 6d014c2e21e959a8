//! `/v1/messages`: its body as that of a chat of OpenAI's API.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, found};
use super::limits;
use super::places::Places;

/// Fields that mean the same in both.
const SAME: [&str; 9] =
    ["model", "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "depth", "chat_template_kwargs"];

/// The body of a chat that asks for the same, and where its parts stood.
///
/// # Errors
/// 400 when a field cannot be used.
pub fn to_chat(map: &Map<String, Value>) -> Result<(Map<String, Value>, Places), ApiError> {
    let fields = Fields::root(map);
    let (mut chat, mut places) = (Map::new(), Places::default());
    let renamed = [("max_tokens", "max_completion_tokens"), ("stop_sequences", "stop")];
    for (from, to) in SAME.map(|name| (name, name)).into_iter().chain(renamed) {
        if let Some(value) = fields.get(from) {
            chat.insert(to.into(), value.clone());
            places.note(to, from);
        }
    }
    if let Some(thinking) = fields.object("thinking")? {
        let on = Fields::at(thinking, "thinking").text("type")? != Some("disabled");
        chat.insert("enable_thinking".into(), on.into());
    }
    format(fields, &mut chat, &mut places)?;
    if let Some(list) = fields.list("tools")? {
        let known: Vec<(usize, Value)> = list.iter().map(tool).enumerate().filter_map(|(i, t)| Some((i, t?))).collect();
        for (k, (i, _)) in known.iter().enumerate() {
            places.note(format!("tools[{k}]"), format!("tools[{i}]"));
            places.note(format!("tools[{k}].function"), format!("tools[{i}]"));
            places.note(format!("tools[{k}].function.parameters"), format!("tools[{i}].input_schema"));
        }
        chat.insert("tools".into(), known.into_iter().map(|(_, tool)| tool).collect());
    }
    if let Some(choice) = fields.object("tool_choice")? {
        let inner = Fields::at(choice, "tool_choice");
        let choice = match inner.text("type")? {
            Some("auto") | None => json!("auto"),
            Some("none") => json!("none"),
            Some("any") => json!("required"),
            Some("tool") => json!({"type": "function", "function": {"name": inner.text("name")?}}),
            Some(other) => return Err(inner.wrong("type", format!("{other:.40?} is none of auto, any, tool and none"))),
        };
        chat.insert("tool_choice".into(), choice);
        places.note("tool_choice.function", "tool_choice");
        if inner.bool("disable_parallel_tool_use")? == Some(true) {
            chat.insert("parallel_tool_calls".into(), false.into());
        }
    }
    let mut messages = Vec::new();
    match fields.get("system") {
        None => {}
        Some(Value::String(text)) => {
            messages.push(json!({"role": "system", "content": text}));
            places.note("messages[0]", "system");
        }
        Some(Value::Array(blocks)) => {
            for (i, block) in blocks.iter().enumerate() {
                messages.push(json!({"role": "system", "content": [block]}));
                places.note(format!("messages[{i}]"), format!("system[{i}]"));
                places.note(format!("messages[{i}].content[0]"), format!("system[{i}]"));
            }
        }
        Some(other) => return Err(fields.wrong("system", format!("expected a text or blocks, found {}", found(other)))),
    }
    let Some(list) = fields.list("messages")? else { return Err(fields.wrong("messages", "is missing")) };
    if list.len() > limits::MESSAGES {
        let message = format!("{} messages, but at most {} are taken", list.len(), limits::MESSAGES);
        return Err(fields.wrong("messages", message));
    }
    for (i, value) in list.iter().enumerate() {
        message(value, &format!("messages[{i}]"), &mut messages, &mut places)?;
    }
    if let Some(text) = prefill(messages.last()) {
        if text.ends_with(char::is_whitespace) {
            return Err(
                fields.wrong("messages", "the text of the last message, which is continued, ends with white space")
            );
        }
        chat.insert("continue_final_message".into(), true.into());
        places.note("continue_final_message", "messages");
        // What has begun is no thought, unless the client says so.
        chat.entry("enable_thinking").or_insert(false.into());
    }
    chat.insert("messages".into(), messages.into());
    Ok((chat, places))
}

/// The form of the answer, under its name and the former one.
fn format(fields: Fields<'_>, chat: &mut Map<String, Value>, places: &mut Places) -> Result<(), ApiError> {
    let config = fields.object("output_config")?;
    let config = config.map(|config| Fields::at(config, "output_config"));
    let (format, place) = match config.map(|config| config.object("format")).transpose()?.flatten() {
        Some(format) => (format, "output_config.format"),
        None => match fields.object("output_format")? {
            Some(format) => (format, "output_format"),
            None => return Ok(()),
        },
    };
    let inner = Fields::at(format, place);
    match inner.text("type")? {
        Some("json_schema") => {}
        Some(other) => return Err(inner.wrong("type", format!("{other:.40?} is not supported; use json_schema"))),
        None => return Err(inner.wrong("type", "is missing")),
    }
    let schema = json!({"schema": inner.object("schema")?});
    chat.insert("response_format".into(), json!({"type": "json_schema", "json_schema": schema}));
    places.note("response_format", place);
    places.note("response_format.json_schema", place);
    Ok(())
}

/// The text of a last message of the assistant, which is continued. Calls are not.
fn prefill(last: Option<&Value>) -> Option<&str> {
    let last = last.filter(|last| last.get("role").is_some_and(|role| role == "assistant"))?;
    if last.get("tool_calls").is_some() {
        return None;
    }
    match last.get("content")? {
        Value::Array(parts) => parts.last()?.get("text")?.as_str(),
        content => content.as_str(),
    }
}

/// A tool of the client; those that Anthropic's servers run themselves have no schema.
fn tool(value: &Value) -> Option<Value> {
    let map = value.as_object()?;
    let schema = map.get("input_schema")?;
    let mut function = Map::new();
    function.insert("name".into(), map.get("name").cloned().unwrap_or_default());
    if let Some(description) = map.get("description") {
        function.insert("description".into(), description.clone());
    }
    function.insert("parameters".into(), schema.clone());
    Some(json!({"type": "function", "function": function}))
}

fn message(value: &Value, path: &str, messages: &mut Vec<Value>, places: &mut Places) -> Result<(), ApiError> {
    let Some(map) = value.as_object() else {
        return Err(ApiError::field(path, format!("expected an object, found {}", found(value))));
    };
    let fields = Fields::at(map, path);
    let Some(role) = fields.text("role")? else { return Err(fields.wrong("role", "is missing")) };
    let blocks = match fields.get("content") {
        Some(Value::Array(blocks)) => blocks.as_slice(),
        other => {
            places.note(format!("messages[{}]", messages.len()), path);
            messages.push(json!({"role": role, "content": other}));
            return Ok(());
        }
    };
    let mut turn = Turn::default();
    for (i, block) in blocks.iter().enumerate() {
        turn.add(block, format!("{path}.content[{i}]"))?;
    }
    // The results of calls come before what the user says to them.
    for (own, result) in turn.results {
        let place = format!("messages[{}]", messages.len());
        places.note(format!("{place}.tool_call_id"), format!("{own}.tool_use_id"));
        places.note(place, own);
        messages.push(result);
    }
    let place = format!("messages[{}]", messages.len());
    let (texts_at, texts): (Vec<_>, Vec<_>) = turn.texts.into_iter().unzip();
    let mut message = json!({"role": role, "content": texts});
    if role == "assistant" {
        if let Some(message) = message.as_object_mut() {
            if !turn.thoughts.is_empty() {
                message.insert("reasoning_content".into(), turn.thoughts.into());
            }
            if !turn.calls.is_empty() {
                let (calls_at, calls): (Vec<_>, Vec<Value>) = turn.calls.into_iter().unzip();
                for (c, own) in calls_at.into_iter().enumerate() {
                    places.note(format!("{place}.tool_calls[{c}].function.arguments"), format!("{own}.input"));
                    places.note(format!("{place}.tool_calls[{c}].function"), own.clone());
                    places.note(format!("{place}.tool_calls[{c}]"), own);
                }
                message.insert("tool_calls".into(), calls.into());
            }
        }
    } else if texts_at.is_empty() && !blocks.is_empty() {
        return Ok(());
    }
    for (t, own) in texts_at.into_iter().enumerate() {
        places.note(format!("{place}.content[{t}]"), own);
    }
    places.note(place, path);
    messages.push(message);
    Ok(())
}

/// The blocks of a message with their places, by what becomes of them.
#[derive(Default)]
struct Turn {
    texts: Vec<(String, Value)>,
    thoughts: String,
    calls: Vec<(String, Value)>,
    results: Vec<(String, Value)>,
}

impl Turn {
    fn add(&mut self, block: &Value, path: String) -> Result<(), ApiError> {
        let Some(map) = block.as_object() else {
            return Err(ApiError::field(&path, format!("expected an object, found {}", found(block))));
        };
        let fields = Fields::at(map, &path);
        match fields.text("type")? {
            Some("text") => {
                let text = json!({"type": "text", "text": fields.text("text")?.unwrap_or_default()});
                self.texts.push((path, text));
            }
            Some("thinking") => self.thoughts.push_str(fields.text("thinking")?.unwrap_or_default()),
            // Encrypted by a server that is not this one.
            Some("redacted_thinking") => {}
            Some("tool_use") => {
                let input = fields.object("input")?.cloned().unwrap_or_default();
                let function = json!({"name": fields.text("name")?, "arguments": input});
                let call = json!({"id": fields.text("id")?, "type": "function", "function": function});
                self.calls.push((path, call));
            }
            Some("tool_result") => {
                let content = fields.get("content").cloned().unwrap_or_default();
                let is_error = fields.bool("is_error")?.unwrap_or(false);
                let content = if is_error { as_error(content) } else { content };
                let id = fields.text("tool_use_id")?;
                let result = json!({"role": "tool", "tool_call_id": id, "content": content});
                self.results.push((path, result));
            }
            Some(other) => {
                return Err(fields.wrong("type", format!("{other:.40?} is not supported; this model reads texts")));
            }
            None => return Err(fields.wrong("type", "is missing")),
        }
        Ok(())
    }
}

/// The result of a call that failed: templates have no place for that, so its text says so, unless it does already.
fn as_error(mut content: Value) -> Value {
    let said = |text: &str| text.trim_start().get(..5).is_some_and(|start| start.eq_ignore_ascii_case("error"));
    let text = match &mut content {
        Value::Array(parts) => parts.first_mut().and_then(|part| part.get_mut("text")),
        other => Some(other),
    };
    match text {
        Some(Value::String(text)) if said(text) => {}
        Some(Value::String(text)) => text.insert_str(0, "Error: "),
        Some(nothing @ Value::Null) => *nothing = "Error".into(),
        _ => {}
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_the_turns_of_a_chat() {
        let body = json!({
            "max_tokens": 9, "stop_sequences": ["x"], "thinking": {"type": "disabled"}, "tool_choice": {"type": "any"},
            "system": [{"type": "text", "text": "A"}, {"type": "text", "text": "B", "cache_control": {"type": "ephemeral"}}],
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}, {"type": "bash_1", "name": "bash"}],
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "wait"},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "done"}]},
                    {"type": "text", "text": "go on"},
                ]},
            ],
        });
        let got = Value::Object(to_chat(body.as_object().unwrap()).unwrap().0);
        assert_eq!(
            got,
            json!({
                "max_completion_tokens": 9, "stop": ["x"], "enable_thinking": false, "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
                "messages": [
                    {"role": "system", "content": [{"type": "text", "text": "A"}]},
                    {"role": "system", "content": [{"type": "text", "text": "B", "cache_control": {"type": "ephemeral"}}]},
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": [{"type": "text", "text": "wait"}], "reasoning_content": "hm",
                     "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
                    {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "done"}]},
                    {"role": "user", "content": [{"type": "text", "text": "go on"}]},
                ],
            })
        );
    }

    #[test]
    fn a_call_that_failed_is_told_to_have() {
        for (content, told) in [
            (json!("no file"), json!("Error: no file")),
            (json!("ERROR 2: no file"), json!("ERROR 2: no file")),
            (json!([{"type": "text", "text": "no file"}]), json!([{"type": "text", "text": "Error: no file"}])),
            (Value::Null, json!("Error")),
            (json!([]), json!([])),
        ] {
            let result = json!({"type": "tool_result", "tool_use_id": "1", "content": content, "is_error": true});
            let body = json!({"messages": [{"role": "user", "content": [result]}]});
            let (chat, _) = to_chat(body.as_object().unwrap()).unwrap();
            assert_eq!(chat["messages"][0]["content"], told);
        }
    }
}
