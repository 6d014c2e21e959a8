//! Chat templates: messages to one prompt text, as jinja2 in transformers renders them.
//!
//! Templates are run by an interpreter of this crate with the values and the arithmetic of Python, because published templates lean
//! on both, and because it can bound the memory of every operation.
//!
//! Differences that remain: there is nothing that `include`, `import` and `extends` could load (transformers gives templates no files
//! either), `{% generation %}` marks nothing, integers end at 128 bits, and `random`, `lipsum`, `urlize` and `wordwrap`, which no
//! chat template uses, are errors.

mod arguments;
mod ast;
mod budget;
mod clock;
mod compare;
mod environment;
mod evaluate;
mod expressions;
mod filters;
mod format;
mod interpreter;
mod json;
mod lexer;
mod lookup;
mod methods;
mod numbers;
mod operators;
mod parser;
mod predicates;
mod python;
mod sequences;
mod strings;
mod value;

use chrono::NaiveDateTime;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::tokenizer::SpecialText;
use crate::{Error, Result};

/// One message of a chat: `role`, `content` and what else the template knows (`tool_calls`, `reasoning_content`, `name`).
///
/// The fields keep their order. A template does not see fields that are null, such as the `content` of a turn that only calls tools;
/// what the model thought (`reasoning_content`, `thinking` or `reasoning`) it sees as `reasoning_content` and as `thinking`.
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

    /// The fields as transformers hands them to a template: those that are null are dropped, and what the model thought is there
    /// under both names that templates read.
    fn as_templates_see_it(&self) -> Map<String, Value> {
        let present = self.fields.iter().filter(|(_, value)| !value.is_null());
        let present = present.map(|(name, value)| (name.clone(), value.clone()));
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
    pub(super) fn contains_text(&self, part: &str) -> bool {
        self.fields.iter().any(|(k, v)| k.contains(part) || value_contains(v, part))
    }

    /// Changes every text of the fields other than the role.
    pub(super) fn map_text(&mut self, map: &dyn Fn(&str) -> String) {
        let fields = self.fields.iter_mut().filter(|(name, _)| *name != "role");
        fields.for_each(|(_, value)| map_value(value, map));
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

fn value_contains(value: &Value, part: &str) -> bool {
    match value {
        Value::String(text) => text.contains(part),
        Value::Array(items) => items.iter().any(|v| value_contains(v, part)),
        Value::Object(map) => map.iter().any(|(k, v)| k.contains(part) || value_contains(v, part)),
        _ => false,
    }
}

fn map_value(value: &mut Value, map: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = map(text),
        Value::Array(items) => items.iter_mut().for_each(|v| map_value(v, map)),
        Value::Object(object) => object.values_mut().for_each(|v| map_value(v, map)),
        _ => {}
    }
}

/// What a template is told besides the messages.
#[derive(Debug, Clone, Default)]
pub struct ChatOptions {
    /// Ends the prompt where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// How special-token text inside messages is encoded; rendering alone does not look at it.
    pub special_text: SpecialText,
    /// The name of the template, where a model has several; `None` chooses as transformers does.
    pub template: Option<String>,
    /// The time that `strftime_now` tells; `None` is the local time of the clock. See [`Self::at`].
    pub now: Option<NaiveDateTime>,
    /// Further variables: `tools` (a list of JSON schemas), `documents`, `enable_thinking`, `date_string` and so on.
    pub variables: Map<String, Value>,
}

impl ChatOptions {
    /// The options of a prompt that the model shall answer.
    pub fn prompt() -> Self {
        Self { add_generation_prompt: true, ..Self::default() }
    }

    /// Adds one variable.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Sets the time that `strftime_now` tells: `2026-01-31`, `2026-01-31 09:30` or `2026-01-31 09:30:15`.
    ///
    /// # Errors
    /// [`Error::Option`] when that is no date.
    pub fn at(mut self, date: &str) -> Result<Self> {
        let now = clock::parse(date);
        self.now = Some(now.ok_or_else(|| Error::Option {
            option: "date".to_owned(),
            message: format!("{date:?} is no date; write 2026-01-31, or with a time 2026-01-31 09:30"),
        })?);
        Ok(self)
    }

    pub(super) fn has_tools(&self) -> bool {
        self.variables.get("tools").is_some_and(|t| !t.is_null())
    }
}

/// One template of a model.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    name: String,
    source: String,
}

impl ChatTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// [`Error::Template`] with the line of a syntax error.
    pub fn new(name: impl Into<String>, source: impl Into<String>) -> Result<Self> {
        let template = Self { name: name.into(), source: source.into() };
        environment::check(&template.name, &template.source)?;
        Ok(template)
    }

    /// `default`, or the name in `tokenizer_config.json`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Renders a chat. `special` are the names and texts of the special tokens, such as `bos_token`.
    ///
    /// # Errors
    /// [`Error::Template`] with the line when the template fails, refuses the chat or uses too much; [`Error::Option`] when a
    /// variable has a name that the template is given otherwise.
    pub fn render<'a>(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        special: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<String> {
        let mut context = Map::new();
        for (name, text) in special {
            context.insert(name.to_owned(), text.into());
        }
        // transformers passes these always, as None when there are none.
        for name in ["tools", "documents"] {
            context.insert(name.to_owned(), Value::Null);
        }
        for (name, value) in &options.variables {
            if name == "messages" || name == "add_generation_prompt" {
                return Err(Error::Option {
                    option: name.clone(),
                    message: "is no variable of its own; the messages and the options of the chat set it".to_owned(),
                });
            }
            context.insert(name.clone(), value.clone());
        }
        let list = messages.iter().map(|m| Value::Object(m.as_templates_see_it())).collect();
        context.insert("messages".to_owned(), Value::Array(list));
        let prompt = options.add_generation_prompt.into();
        context.insert("add_generation_prompt".to_owned(), prompt);
        environment::render(&self.name, &self.source, context, messages.len(), options.now)
    }
}
