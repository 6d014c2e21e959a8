//! Messages of a chat.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lexer::{Token, tokenize};

/// One message of a chat: `role`, `content` and what else the template knows (`tool_calls`, `reasoning_content`, `name`).
///
/// The fields keep their order. A template does not see fields that are null, such as the `content` of a turn that only calls tools, as in
/// transformers 5. Where it then fails and asks whether such a field is none, as DeepSeek's do (`message['content'] is none`), the field is
/// none, also where it is missing. What the model thought (`reasoning_content`, `thinking` or `reasoning`) it sees as `reasoning_content`
/// and as `thinking`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct Message {
    fields: Map<String, Value>,
}

impl Message {
    /// A message with a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let mut fields = Map::new();
        fields.insert("role".to_owned(), Value::String(role.into()));
        fields.insert("content".to_owned(), Value::String(content.into()));
        Self { fields }
    }

    /// A message of the role `system`.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// A message of the role `user`.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// A message of the role `assistant`.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// Sets a field, such as `tool_calls`.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what the template knows.
    pub fn role(&self) -> &str {
        self.fields.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// What is said, if it is a text.
    pub fn text(&self) -> Option<&str> {
        self.fields.get("content")?.as_str()
    }

    /// All fields.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The fields as `apply_chat_template` of transformers 5 hands them to a template: those that are null are dropped, but for those that
    /// are named, and what the model thought is there under both names that templates read. A `content` that is named is null where it is
    /// missing.
    pub(super) fn as_templates_see_it(&self, none: &BTreeSet<String>) -> Map<String, Value> {
        let kept = |name: &String, value: &Value| !value.is_null() || none.contains(name);
        let present = self.fields.iter().filter(|(name, value)| kept(name, value));
        let absent = Some("content").filter(|name| none.contains(*name) && !self.fields.contains_key(*name));
        let absent = absent.map(|name| (name.to_owned(), Value::Null));
        let present = present.map(|(name, value)| (name.clone(), value.clone())).chain(absent);
        let thought = ["reasoning_content", "thinking", "reasoning"]
            .into_iter()
            .find_map(|name| self.fields.get(name).filter(|v| !v.is_null()));
        let Some(thought) = thought.cloned() else { return present.collect() };
        let mut fields = Map::new();
        fields.insert("thinking".to_owned(), thought.clone());
        fields.extend(present);
        fields.insert("reasoning_content".to_owned(), thought);
        fields
    }

    /// Whether a text anywhere in the message contains `part`.
    pub(in crate::text) fn contains_text(&self, part: &str) -> bool {
        self.fields.iter().any(|(k, v)| k.contains(part) || value_contains(v, part))
    }

    /// Changes every text of the fields other than the role.
    pub(in crate::text) fn map_text(&mut self, map: &dyn Fn(&str) -> String) {
        let fields = self.fields.iter_mut().filter(|(name, _)| *name != "role");
        fields.for_each(|(_, value)| map_value(value, map));
    }

    /// Changes every text of one field.
    pub(in crate::text) fn map_text_of(&mut self, name: &str, map: &dyn Fn(&str) -> String) {
        if let Some(value) = self.fields.get_mut(name) {
            map_value(value, map);
        }
    }
}

impl TryFrom<Map<String, Value>> for Message {
    type Error = &'static str;

    fn try_from(fields: Map<String, Value>) -> std::result::Result<Self, Self::Error> {
        match fields.get("role") {
            Some(Value::String(_)) => Ok(Self { fields }),
            _ => Err("a message needs a text `role`"),
        }
    }
}

impl From<Message> for Map<String, Value> {
    fn from(message: Message) -> Self {
        message.fields
    }
}

/// Fields that a template asks whether they are none: `message['content'] is none`, `message.content != none`.
pub(super) fn asked_for_none(template: &str) -> BTreeSet<String> {
    let is_none = |token: Option<&(Token, u32)>| matches!(token, Some((Token::Name(name), _)) if matches!(&**name, "none" | "None"));
    let asks = |after: &[(Token, u32)]| match after {
        [(Token::Name(is), _), (Token::Name(not), _), after @ ..] if &**is == "is" && &**not == "not" => {
            is_none(after.first())
        }
        [(Token::Name(is), _), after @ ..] if &**is == "is" => is_none(after.first()),
        [(Token::Operator("==" | "!="), _), after @ ..] => is_none(after.first()),
        _ => false,
    };
    // What is no template is an error when it is parsed.
    let tokens = tokenize(template).unwrap_or_default();
    let fields = (0..tokens.len()).filter_map(|at| match tokens.get(at..)? {
        [(Token::Operator("."), _), (Token::Name(field), _), after @ ..]
        | [(Token::Operator("["), _), (Token::Str(field), _), (Token::Operator("]"), _), after @ ..]
            if asks(after) =>
        {
            Some(field.to_string())
        }
        _ => None,
    });
    fields.collect()
}

/// Whether a text anywhere in a value contains `part`.
pub(in crate::text) fn value_contains(value: &Value, part: &str) -> bool {
    match value {
        Value::String(text) => text.contains(part),
        Value::Array(items) => items.iter().any(|v| value_contains(v, part)),
        Value::Object(map) => map.iter().any(|(k, v)| k.contains(part) || value_contains(v, part)),
        _ => false,
    }
}

/// Changes every text of a value, names too.
pub(in crate::text) fn map_value(value: &mut Value, map: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = map(text),
        Value::Array(items) => items.iter_mut().for_each(|v| map_value(v, map)),
        Value::Object(object) => {
            let mapped = |(name, mut value): (String, Value)| {
                map_value(&mut value, map);
                (map(&name), value)
            };
            *object = std::mem::take(object).into_iter().map(mapped).collect();
        }
        _ => {}
    }
}
