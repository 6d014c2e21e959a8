//! Messages as clients of chat APIs send them, made into those that chat templates take.

use serde_json::{Map, Value};

use super::chat::Message;
use crate::{Error, Result};

/// What begins a block that one client puts before its system prompt. It changes with every request, so that no two prompts
/// would share a beginning.
const CHANGING_HEADER: &str = "x-anthropic-billing-header";

/// Makes messages of a chat API into those that templates take.
///
/// - `content` is a text, null, or a list of parts: `text`, `input_text`, `output_text` and `refusal`, which are joined by a line
///   end. Null becomes an empty text, but for a message that calls tools, where templates expect none.
/// - `developer` is `system`. Several system messages, or one that is not first, are one at the front, with an empty line between
///   them. A header that changes with every request is dropped.
/// - `arguments` of tool calls that are JSON texts become objects, as in transformers and vLLM; an empty list of calls is dropped.
///
/// # Errors
/// [`Error::Option`] with the place where a part is no text, or arguments are no JSON object.
pub fn normalize_messages(messages: impl IntoIterator<Item = Message>) -> Result<Vec<Message>> {
    let mut system = Vec::new();
    let mut others = Vec::new();
    for (i, message) in messages.into_iter().enumerate() {
        let place = format!("messages[{i}]");
        let mut fields = Map::from(message);
        parse_arguments(&mut fields, &place)?;
        let calls = fields.contains_key("tool_calls");
        let is_system = matches!(fields.get("role").and_then(Value::as_str), Some("system" | "developer"));
        let content = texts(fields.get("content"), &format!("{place}.content"))?;
        if is_system {
            let mut blocks = content.unwrap_or_default();
            if system.is_empty() {
                drop_header(&mut blocks);
            }
            system.push(blocks.join("\n"));
            continue;
        }
        match content {
            None if calls => fields.remove("content"),
            content => fields.insert("content".to_owned(), content.unwrap_or_default().join("\n").into()),
        };
        others.extend(Message::try_from(fields));
    }
    system.retain(|text| !text.is_empty());
    let first = (!system.is_empty()).then(|| Message::system(system.join("\n\n")));
    Ok(first.into_iter().chain(others).collect())
}

/// The texts of a content; none where it is null.
fn texts(content: Option<&Value>, place: &str) -> Result<Option<Vec<String>>> {
    let parts = match content {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(vec![text.clone()])),
        Some(Value::Array(parts)) => parts,
        Some(_) => return Err(wrong(place, "must be a text, a list of parts, or null")),
    };
    let text = |(i, part): (usize, &Value)| {
        let place = format!("{place}[{i}]");
        if let Value::String(text) = part {
            return Ok(text.clone());
        }
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        let field = match kind {
            "text" | "input_text" | "output_text" => "text",
            "refusal" => "refusal",
            "image" | "image_url" | "input_image" | "input_audio" | "audio" | "video" | "video_url" | "file"
            | "input_file" => {
                return Err(wrong(
                    &place,
                    &format!("is of the type {kind:?}, but this model reads text only; leave it out"),
                ));
            }
            _ => return Err(wrong(&place, "must be a part of the type \"text\"")),
        };
        let text = part.get(field).and_then(Value::as_str);
        text.map(str::to_owned).ok_or_else(|| wrong(&format!("{place}.{field}"), "must be a text"))
    };
    parts.iter().enumerate().map(text).collect::<Result<_>>().map(Some)
}

/// Drops the header from the first block, and the block where nothing else is in it.
fn drop_header(blocks: &mut Vec<String>) {
    let Some(first) = blocks.first_mut().filter(|text| text.trim_start().starts_with(CHANGING_HEADER)) else { return };
    match first.trim_start().split_once('\n') {
        Some((_, rest)) => *first = rest.trim_start_matches('\n').to_owned(),
        None => drop(blocks.remove(0)),
    }
}

fn parse_arguments(fields: &mut Map<String, Value>, place: &str) -> Result<()> {
    let calls = match fields.get_mut("tool_calls") {
        None => return Ok(()),
        Some(Value::Array(calls)) if !calls.is_empty() => calls,
        Some(Value::Null | Value::Array(_)) => {
            fields.remove("tool_calls");
            return Ok(());
        }
        Some(_) => return Err(wrong(&format!("{place}.tool_calls"), "must be a list of calls")),
    };
    for (i, call) in calls.iter_mut().enumerate() {
        let place = format!("{place}.tool_calls[{i}]");
        let Value::Object(call) = call else { return Err(wrong(&place, "must be an object")) };
        let (function, place) = match call.get_mut("function") {
            Some(Value::Object(function)) => (function, format!("{place}.function")),
            Some(_) => return Err(wrong(&format!("{place}.function"), "must be an object")),
            None => (call, place),
        };
        let arguments = function.entry("arguments").or_insert(Value::Null);
        let parsed = match arguments.take() {
            Value::String(text) if text.trim().is_empty() => Value::Null,
            Value::String(text) => serde_json::from_str(&text).map_err(|e| {
                wrong(&format!("{place}.arguments"), &format!("must be the JSON text of an object: {e}"))
            })?,
            other => other,
        };
        *arguments = match parsed {
            Value::Null => Value::Object(Map::new()),
            Value::Object(_) => parsed,
            _ => return Err(wrong(&format!("{place}.arguments"), "must be an object, or the JSON text of one")),
        };
    }
    Ok(())
}

fn wrong(place: &str, message: &str) -> Error {
    Error::Option { option: place.to_owned(), message: message.to_owned() }
}
