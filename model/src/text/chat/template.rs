//! One chat template: parsed, and rendered with the variables that transformers gives it.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::environment;
use super::message::{Message, asked_for_none};
use super::options::ChatOptions;
use crate::{Error, Result};

/// The variable that holds the chat.
const MESSAGES: &str = "messages";

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

    /// The text of the template.
    pub fn source(&self) -> &str {
        &self.source
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
            if name == MESSAGES || name == "add_generation_prompt" {
                return Err(Error::Option {
                    option: name.clone(),
                    message: "is no variable of its own; the messages and the options of the chat set it".to_owned(),
                });
            }
            context.insert(name.clone(), value.clone());
        }
        context.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());
        let seen = |none: &BTreeSet<String>| -> Value {
            messages.iter().map(|m| Value::Object(m.as_templates_see_it(none))).collect()
        };
        let render = |context: &Map<String, Value>| {
            environment::render(&self.name, &self.source, context, messages.len(), options.now)
        };
        context.insert(MESSAGES.to_owned(), seen(&BTreeSet::new()));
        let rendered = render(&context);
        let Err(Error::Template(_)) = rendered else { return rendered };
        // Templates from before transformers dropped nulls fail without a field that they ask for.
        let with_none = seen(&asked_for_none(&self.source));
        if context.get(MESSAGES) == Some(&with_none) {
            return rendered;
        }
        context.insert(MESSAGES.to_owned(), with_none);
        render(&context).or(rendered)
    }
}
