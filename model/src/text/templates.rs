//! The chat templates of a model: where they are kept, and which one a chat gets.

use serde_json::{Map, Value};

use super::chat::{ChatOptions, ChatTemplate};
use super::files::{TextFiles, parse_object};
use crate::{Error, Result};

/// A template, or why it does not parse: a model with a broken template still completes plain prompts.
#[derive(Debug)]
struct NamedTemplate {
    name: String,
    parsed: std::result::Result<ChatTemplate, String>,
}

/// The templates of one model.
#[derive(Debug, Default)]
pub(super) struct Templates {
    templates: Vec<NamedTemplate>,
}

/// A name and a source, or why there is none.
type NamedSource = (String, std::result::Result<String, String>);

impl Templates {
    /// The templates of a model directory, from where transformers takes them: the files `chat_template.jinja` and
    /// `additional_chat_templates/*.jinja`, else `tokenizer_config.json`; where that has none, `chat_template.json`, which
    /// transformers keeps for models with pictures.
    pub(super) fn new(files: &TextFiles, config: &Map<String, Value>) -> Self {
        let default = files.chat_template_jinja.iter().map(|bytes| ("default".to_owned(), bytes));
        let named = files.named_templates.iter().map(|(name, bytes)| (name.clone(), bytes));
        let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).map_err(|e| format!("is not UTF-8: {e}"));
        let file =
            |name: &str| if name == "default" { "chat_template.jinja".to_owned() } else { format!("{name}.jinja") };
        let mut sources: Vec<NamedSource> = default
            .chain(named)
            .map(|(name, bytes)| {
                let source = text(bytes).map_err(|e| format!("{}: {e}", files.directory.join(file(&name)).display()));
                (name, source)
            })
            .collect();
        if sources.is_empty() {
            let path = files.directory.join("tokenizer_config.json");
            sources = in_json(config, &path.display().to_string());
        }
        if sources.is_empty()
            && let Some(bytes) = &files.chat_template_json
        {
            let path = files.directory.join("chat_template.json");
            sources = match parse_object(bytes, &path) {
                Ok(json) => in_json(&json, &path.display().to_string()),
                Err(e) => vec![("default".to_owned(), Err(e.to_string()))],
            };
        }
        let parse = |(name, source): NamedSource| {
            let template = source.and_then(|source| {
                ChatTemplate::new(name.clone(), source).map_err(|e| match e {
                    Error::Template(message) => message,
                    other => other.to_string(),
                })
            });
            if let Err(message) = &template {
                tracing::warn!("chat template {name:?}: {message}");
            }
            NamedTemplate { name, parsed: template }
        };
        Self { templates: sources.into_iter().map(parse).collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.templates.is_empty()
    }

    /// The template that the options ask for: by name, or `tool_use` when there are tools and the model has one, or the default.
    pub(super) fn choose(&self, options: &ChatOptions) -> Result<&ChatTemplate> {
        let find = |name: &str| self.templates.iter().find(|t| t.name == name);
        let known = || {
            let names: Vec<&str> = self.templates.iter().map(|t| t.name.as_str()).collect();
            names.join(", ")
        };
        let found = match &options.template {
            Some(name) => find(name).ok_or_else(|| format!("none is called {name:?}")),
            None => {
                let for_tools = options.has_tools().then(|| find("tool_use")).flatten();
                let found = for_tools.or_else(|| find("default"));
                found.ok_or_else(|| "none is called \"default\"; name one".to_owned())
            }
        };
        match found {
            Ok(template) => template.parsed.as_ref().map_err(|e| Error::Template(e.clone())),
            Err(_) if self.templates.is_empty() => Err(Error::Template(
                "this model has none (no chat_template.jinja and no chat_template in tokenizer_config.json); give it a plain prompt instead".to_owned(),
            )),
            Err(message) => Err(Error::Template(format!("{message}; there are: {}", known()))),
        }
    }
}

/// `chat_template`: one source, a list of `{name, template}`, or an object of names and sources.
fn in_json(json: &Map<String, Value>, path: &str) -> Vec<NamedSource> {
    let wrong = |what: &str| Err(format!("{path}: chat_template: {what}"));
    let text = |value: Option<&Value>| match value.and_then(Value::as_str) {
        Some(source) => Ok(source.to_owned()),
        None => wrong("each template must be a text"),
    };
    match json.get("chat_template") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(source)) => vec![("default".to_owned(), Ok(source.clone()))],
        Some(Value::Object(named)) => named.iter().map(|(name, source)| (name.clone(), text(Some(source)))).collect(),
        Some(Value::Array(entries)) => {
            let named = |entry: &Value| match entry.get("name").and_then(Value::as_str) {
                Some(name) => (name.to_owned(), text(entry.get("template"))),
                None => ("default".to_owned(), wrong("each entry of the list needs the texts `name` and `template`")),
            };
            entries.iter().map(named).collect()
        }
        Some(_) => {
            vec![(
                "default".to_owned(),
                wrong("must be a text, a list of {name, template}, or an object of names and texts"),
            )]
        }
    }
}
