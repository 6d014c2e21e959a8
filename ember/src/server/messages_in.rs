//! Messages of a chat as OpenAI's API has them, checked and made into those that templates read.

use emberlm::model::text::{Message, normalize_messages};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{Fields, found};
use super::limits;

/// What templates may see of a message.
const KEPT: [&str; 7] = ["role", "content", "name", "tool_call_id", "tool_calls", "reasoning_content", "reasoning"];

/// The messages of a chat.
///
/// # Errors
/// 400 with the message and the field that cannot be used.
pub fn messages(list: &[Value]) -> Result<Vec<Message>, ApiError> {
    if list.is_empty() {
        return Err(ApiError::field("messages", "there is none"));
    }
    if list.len() > limits::MESSAGES {
        let message = format!("{} messages, but at most {} are taken", list.len(), limits::MESSAGES);
        return Err(ApiError::field("messages", message));
    }
    let all: Vec<Message> = list.iter().enumerate().map(|(i, value)| message(value, i)).collect::<Result<_, _>>()?;
    let all = normalize_messages(all)?;
    if all.is_empty() {
        return Err(ApiError::field("messages", "nothing is said in them"));
    }
    Ok(all)
}

fn message(value: &Value, i: usize) -> Result<Message, ApiError> {
    let path = format!("messages[{i}]");
    let Some(map) = value.as_object() else {
        return Err(ApiError::field(&path, format!("expected an object, found {}", found(value))));
    };
    let fields = Fields::at(map, &path);
    match fields.text("role")? {
        Some("developer" | "system" | "user" | "assistant" | "tool") => {}
        Some(other) => {
            let message = format!("{other:.40?} is none of system, developer, user, assistant and tool");
            return Err(fields.wrong("role", message));
        }
        None => return Err(fields.wrong("role", "is missing")),
    }
    for name in ["name", "tool_call_id", "reasoning_content", "reasoning"] {
        fields.text(name)?;
    }
    for (call, value) in fields.list("tool_calls")?.unwrap_or_default().iter().enumerate() {
        let name = value.get("function").and_then(|function| function.get("name"));
        if name.and_then(Value::as_str).is_none() {
            return Err(fields.wrong(&format!("tool_calls[{call}].function.name"), "is missing"));
        }
    }
    let kept: Map<String, Value> =
        KEPT.into_iter().filter_map(|name| Some((name.to_owned(), fields.get(name)?.clone()))).collect();
    Message::try_from(kept).map_err(|message| ApiError::field(&path, message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(list: Value) -> Result<Vec<Message>, String> {
        messages(list.as_array().unwrap()).map_err(|error| error.message)
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (list, part) in [
            (json!([]), "messages: there is none"),
            (json!([1]), "messages[0]: expected an object, found 1"),
            (json!([{"role": "user", "content": "a"}, {"content": "b"}]), "messages[1].role: is missing"),
            (json!([{"role": "robot"}]), "messages[0].role: \"robot\""),
            (json!([{"role": "user", "content": 7}]), "messages[0].content: "),
            (json!([{"role": "user", "content": "a", "name": 7}]), "messages[0].name: expected a text, found 7"),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]),
                "messages[0].content[0]: ",
            ),
            (json!([{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls[0].function.name: is missing"),
        ] {
            let message = parsed(list).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn templates_see_known_fields_alone() {
        let messages =
            parsed(json!([{"role": "user", "content": "hi", "cache_control": {"type": "x"}, "name": null}])).unwrap();
        let names: Vec<&String> = messages[0].fields().keys().collect();
        assert_eq!(names, ["role", "content"]);
    }
}
