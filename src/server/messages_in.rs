//! Messages of a chat as OpenAI's API has them, checked and made into those that templates read.

use emberlm::model::text::Message;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{Fields, found};
use super::limits;

/// What clients of Anthropic put before their system prompt; it differs at each call, and no prefix would ever be found again.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

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
    Ok(system_first(all))
}

fn message(value: &Value, i: usize) -> Result<Message, ApiError> {
    let path = format!("messages[{i}]");
    let Some(map) = value.as_object() else {
        return Err(ApiError::field(&path, format!("expected an object, found {}", found(value))));
    };
    let fields = Fields::at(map, &path);
    let role = match fields.text("role")? {
        Some("developer" | "system") => "system",
        Some(role @ ("user" | "assistant" | "tool")) => role,
        Some(other) => {
            let message = format!("{other:.40?} is none of system, developer, user, assistant and tool");
            return Err(fields.wrong("role", message));
        }
        None => return Err(fields.wrong("role", "is missing")),
    };
    let content = content(fields)?;
    let mut message = Message::new(role, content.unwrap_or_default());
    for name in ["name", "tool_call_id", "reasoning_content", "reasoning"] {
        if let Some(text) = fields.text(name)? {
            message = message.with(name, text);
        }
    }
    if let Some(calls) = fields.list("tool_calls")? {
        let calls: Vec<Value> = calls
            .iter()
            .enumerate()
            .map(|(call, value)| tool_call(value, &format!("{path}.tool_calls[{call}]")))
            .collect::<Result<_, _>>()?;
        if !calls.is_empty() {
            message = message.with("tool_calls", calls);
        }
    }
    Ok(message)
}

/// The text of a message: as it is, or the texts of its parts one after the other.
fn content(fields: Fields<'_>) -> Result<Option<String>, ApiError> {
    match fields.get("content") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(parts)) => {
            let mut all = String::new();
            for (i, part) in parts.iter().enumerate() {
                let place = fields.place(&format!("content[{i}]"));
                all.push_str(&part_text(part, &place)?);
            }
            Ok(Some(all))
        }
        Some(other) => {
            Err(fields.wrong("content", format!("expected a text or a list of parts, found {}", found(other))))
        }
    }
}

fn part_text(part: &Value, place: &str) -> Result<String, ApiError> {
    if let Value::String(text) = part {
        return Ok(text.clone());
    }
    let Some(map) = part.as_object() else {
        return Err(ApiError::field(place, format!("expected an object, found {}", found(part))));
    };
    let fields = Fields::at(map, place);
    match fields.text("type")? {
        Some("text" | "input_text" | "output_text") | None => match fields.text("text")? {
            Some(text) => Ok(text.to_owned()),
            None => Err(fields.wrong("text", "is missing")),
        },
        Some("refusal") => Ok(fields.text("refusal")?.unwrap_or_default().to_owned()),
        Some(other) => Err(fields.wrong("type", format!("{other:.40?} is not supported; this model reads texts"))),
    }
}

/// A call in the history, with its arguments as a map: clients send them as a text, and templates go through their entries.
fn tool_call(value: &Value, path: &str) -> Result<Value, ApiError> {
    let Some(map) = value.as_object() else {
        return Err(ApiError::field(path, format!("expected an object, found {}", found(value))));
    };
    let fields = Fields::at(map, path);
    let Some(function) = fields.object("function")? else {
        return Err(fields.wrong("function", "is missing"));
    };
    let inner = format!("{path}.function");
    let inner = Fields::at(function, &inner);
    let Some(name) = inner.text("name")? else { return Err(inner.wrong("name", "is missing")) };
    let arguments = match inner.get("arguments") {
        None => Value::Object(Map::new()),
        Some(Value::String(text)) if text.trim().is_empty() => Value::Object(Map::new()),
        // What is no map, because a model wrote it, goes to the template as it is.
        Some(Value::String(text)) => {
            let parsed = serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
            parsed.unwrap_or_else(|| Value::String(text.clone()))
        }
        Some(arguments @ Value::Object(_)) => arguments.clone(),
        Some(other) => {
            return Err(inner.wrong("arguments", format!("expected a text with JSON, found {}", found(other))));
        }
    };
    let mut called = Map::new();
    if let Some(id) = fields.text("id")? {
        called.insert("id".to_owned(), id.into());
    }
    called.insert("type".to_owned(), "function".into());
    let mut function = Map::new();
    function.insert("name".to_owned(), name.into());
    function.insert("arguments".to_owned(), arguments);
    called.insert("function".to_owned(), Value::Object(function));
    Ok(Value::Object(called))
}

/// All system messages as one, in front: templates take one, and there. A block that only bills is left out.
fn system_first(messages: Vec<Message>) -> Vec<Message> {
    let (system, rest): (Vec<Message>, Vec<Message>) = messages.into_iter().partition(|m| m.role() == "system");
    let texts: Vec<&str> = system
        .iter()
        .filter_map(Message::text)
        .filter(|text| !text.starts_with(BILLING_HEADER))
        .filter(|text| !text.is_empty())
        .collect();
    let merged = (!texts.is_empty()).then(|| Message::system(texts.join("\n\n")));
    merged.into_iter().chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(list: Value) -> Result<Vec<(String, String)>, String> {
        let list = list.as_array().unwrap().clone();
        let messages = messages(&list).map_err(|error| error.message)?;
        Ok(messages.iter().map(|m| (m.role().to_owned(), m.text().unwrap_or("?").to_owned())).collect())
    }

    fn pair(role: &str, text: &str) -> (String, String) {
        (role.to_owned(), text.to_owned())
    }

    #[test]
    fn system_messages_are_merged_to_the_front() {
        let got = parsed(json!([
            {"role": "user", "content": "hi"},
            {"role": "developer", "content": "One."},
            {"role": "system", "content": [{"type": "text", "text": "T"}, {"type": "text", "text": "wo."}]},
            {"role": "assistant", "content": null},
        ]));
        assert_eq!(got, Ok(vec![pair("system", "One.\n\nTwo."), pair("user", "hi"), pair("assistant", "")]));
    }

    #[test]
    fn a_billing_header_never_reaches_the_prompt() {
        let got = parsed(json!([
            {"role": "system", "content": "x-anthropic-billing-header: cc_version=1; cch=ab12;"},
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
        ]));
        assert_eq!(got, Ok(vec![pair("system", "Be brief."), pair("user", "hi")]));
    }

    #[test]
    fn arguments_of_calls_are_maps() {
        let list = json!([
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
                {"id": "c", "type": "function", "function": {"name": "h", "arguments": "{broken"}},
            ]},
        ]);
        let messages = messages(list.as_array().unwrap()).unwrap();
        let calls = messages[0].fields().get("tool_calls").unwrap();
        let arguments: Vec<&Value> = (0..3).map(|i| &calls[i]["function"]["arguments"]).collect();
        assert_eq!(arguments, [&json!({"x": 1}), &json!({}), &json!("{broken")]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (list, part) in [
            (json!([]), "messages: there is none"),
            (json!([1]), "messages[0]: expected an object, found 1"),
            (json!([{"role": "user", "content": "a"}, {"content": "b"}]), "messages[1].role: is missing"),
            (json!([{"role": "robot"}]), "messages[0].role: \"robot\""),
            (json!([{"role": "user", "content": 7}]), "messages[0].content: expected a text or a list"),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]),
                "messages[0].content[0].type: \"image_url\" is not supported",
            ),
            (json!([{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls[0].function: is missing"),
        ] {
            let message = parsed(list).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }
}
