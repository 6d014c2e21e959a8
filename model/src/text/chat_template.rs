//! Chat templates.

use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::tokenizer::SpecialText;
use crate::{Error, Result};

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what the template knows.
    pub role: String,
    /// What is said: a text, or what the template knows (a list of parts, null beside tool calls).
    pub content: Value,
    /// Further fields of the message, such as `tool_calls` or `reasoning_content`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message with a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Value::String(content.into()), extra: Map::new() }
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

    /// Whether a text anywhere in the message contains `part`.
    pub(super) fn contains_text(&self, part: &str) -> bool {
        self.role.contains(part)
            || value_contains(&self.content, part)
            || self.extra.iter().any(|(k, v)| k.contains(part) || value_contains(v, part))
    }

    /// Changes every text of the content and of the further fields, keys excepted.
    pub(super) fn map_text(&mut self, map: &dyn Fn(&str) -> String) {
        map_value(&mut self.content, map);
        self.extra.values_mut().for_each(|v| map_value(v, map));
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
        environment().template_from_named_str(&template.name, &template.source).map_err(|e| explain(&e))?;
        Ok(template)
    }

    /// `default`, or the name in `tokenizer_config.json`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Renders a chat. `special` are the names and texts of the special tokens.
    ///
    /// # Errors
    /// [`Error::Template`] with the line.
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
        context.insert("tools".to_owned(), Value::Null);
        context.insert("documents".to_owned(), Value::Null);
        context.extend(options.variables.clone());
        context.insert("messages".to_owned(), serde_json::to_value(messages).unwrap_or_default());
        context.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());
        environment()
            .template_from_named_str(&self.name, &self.source)
            .and_then(|t| t.render(to_minijinja(&Value::Object(context))))
            .map_err(|e| explain(&e))
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> std::result::Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    if let Ok(syntax) = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment
}

fn explain(error: &minijinja::Error) -> Error {
    Error::Template(error.to_string())
}

fn to_minijinja(json: &Value) -> minijinja::Value {
    match json {
        Value::Null => minijinja::Value::from(()),
        Value::Bool(b) => (*b).into(),
        Value::Number(n) => n
            .as_i64()
            .map(Into::into)
            .or_else(|| n.as_u64().map(Into::into))
            .or_else(|| n.as_f64().map(Into::into))
            .unwrap_or_default(),
        Value::String(s) => s.as_str().into(),
        Value::Array(items) => items.iter().map(to_minijinja).collect(),
        Value::Object(map) => minijinja::Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), to_minijinja(v)))),
    }
}
