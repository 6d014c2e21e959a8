//! A chat as the command line gives it: messages, tools, documents and what else a template is told.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use emberlm::model::text::{ChatOptions, Message, TextProcessor};
use serde_json::{Map, Value};

use super::input::{read, shown};
use super::output;

/// Flags that make a chat.
#[derive(Debug, Args)]
#[command(next_help_heading = "Chat")]
pub struct ChatArgs {
    /// System message before the prompt
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,

    /// The whole chat: a JSON list of messages, or an object with `messages`, `tools` and `documents`; - reads stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["system", "prompt", "file"])]
    messages: Option<PathBuf>,

    /// Tools that the model may call: a JSON list of function schemas
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,

    /// Documents for the answer: a JSON list of objects, usually with `title` and `text`
    #[arg(long, value_name = "FILE")]
    documents: Option<PathBuf>,

    /// Date that the template is told, by strftime_now and as date_string: 2026-01-31, or with a time "2026-01-31 09:30" [default: now, and
    /// the template's own date_string]
    #[arg(long, value_name = "DATE")]
    date: Option<String>,

    /// Further variables of the template, a JSON object
    #[arg(long, value_name = "JSON", visible_alias = "chat-template-kwargs")]
    kwargs: Option<String>,

    /// Tell the template not to think first (enable_thinking false)
    #[arg(long)]
    no_think: bool,

    /// Template to use, where the model has several
    #[arg(long, value_name = "NAME")]
    template: Option<String>,

    /// End after the last message instead of where the answer begins
    #[arg(long)]
    no_generation_prompt: bool,
}

impl ChatArgs {
    /// Whether the messages come from a file.
    pub fn has_messages(&self) -> bool {
        self.messages.is_some()
    }

    /// The first flag given, for a message where no chat was asked for.
    pub fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--system", self.system.is_some()),
            ("--tools", self.tools.is_some()),
            ("--documents", self.documents.is_some()),
            ("--date", self.date.is_some()),
            ("--kwargs", self.kwargs.is_some()),
            ("--no-think", self.no_think),
            ("--template", self.template.is_some()),
            ("--no-generation-prompt", self.no_generation_prompt),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// The messages and the options of the chat; `prompt` gives the text of a user where no file has the messages.
    pub fn chat(&self, prompt: impl FnOnce() -> Result<String>) -> Result<(Vec<Message>, ChatOptions)> {
        let mut options = ChatOptions { add_generation_prompt: !self.no_generation_prompt, ..ChatOptions::default() };
        options.template.clone_from(&self.template);
        if let Some(date) = &self.date {
            options = options.at(date)?;
            let day = options.now.map(|now| now.format("%d %b %Y").to_string());
            options.variables.extend(day.map(|day| (DATE.to_owned(), day.into())));
        }
        if let Some(kwargs) = &self.kwargs {
            let kwargs: Map<String, Value> = serde_json::from_str(kwargs)
                .context("--kwargs is no JSON object, such as '{\"enable_thinking\": false}'")?;
            options.variables.extend(kwargs);
        }
        let messages = match &self.messages {
            Some(path) => messages(path, &mut options)?,
            None => {
                let system = self.system.iter().map(Message::system);
                system.chain([Message::user(prompt()?)]).collect()
            }
        };
        if let Some(path) = &self.tools {
            options = options.with("tools", list(path, "tools")?);
        }
        if let Some(path) = &self.documents {
            options = options.with("documents", list(path, "documents")?);
        }
        if self.no_think {
            options = options.with(ENABLE_THINKING, false);
        }
        Ok((messages, options))
    }
}

/// The variable by which templates are told whether the model thinks first.
pub const ENABLE_THINKING: &str = "enable_thinking";

/// The variable by which templates of Llama 3.1's kind are told the date; without it they have one of their own.
const DATE: &str = "date_string";

/// Says which variables of a chat the model's template leaves out, so that nobody takes them for told.
///
/// # Errors
/// When there is no template.
pub fn note_unread(text: &TextProcessor, messages: &[Message], options: &ChatOptions) -> Result<()> {
    if options.now.is_some() {
        let source = text.chat_template(options)?.source();
        if ![DATE, "strftime_now"].iter().any(|name| source.contains(name)) {
            output::note("note: the model's chat template has no date: nothing changes");
        }
    }
    for name in options.variables.keys().filter(|name| *name != DATE) {
        if text.template_reads(name, messages, options)? {
            continue;
        }
        output::note(&match name.as_str() {
            "tools" | "documents" => format!("note: the model's chat template has no {name}: they are left out"),
            ENABLE_THINKING => format!(
                "note: the model's chat template has no switch for thinking ({ENABLE_THINKING}): nothing changes"
            ),
            name => {
                format!("note: the model's chat template does not read {}: nothing changes", output::printable(name))
            }
        });
    }
    Ok(())
}

/// The tools of a file, for `--tools`.
pub fn tools(path: &Path) -> Result<Value> {
    list(path, "tools")
}

/// The messages of a file; what else is in it is left out, with a note.
pub fn messages_of(path: &Path) -> Result<Vec<Message>> {
    let mut options = ChatOptions::default();
    let messages = messages(path, &mut options)?;
    for name in options.variables.keys() {
        output::note(&format!("note: the {name} of {} are left out", output::printable(&shown(path))));
    }
    Ok(messages)
}

/// Messages of a file; tools and documents beside them go to the options.
fn messages(path: &Path, options: &mut ChatOptions) -> Result<Vec<Message>> {
    let shown = shown(path);
    let messages = match json(path)? {
        Value::Object(mut chat) => {
            for name in ["tools", "documents"] {
                if let Some(value) = chat.remove(name).filter(|value| !value.is_null()) {
                    options.variables.insert(name.to_owned(), objects(value, name, &shown)?);
                }
            }
            chat.remove("messages").with_context(|| format!("{shown} has no `messages`"))?
        }
        list => list,
    };
    let Value::Array(messages) = messages else {
        bail!("{shown}: the messages are no list, such as [{{\"role\": \"user\", \"content\": \"hello\"}}]");
    };
    ensure!(!messages.is_empty(), "{shown} has no messages");
    let parse = |(i, message): (usize, Value)| {
        serde_json::from_value(message).with_context(|| format!("{shown}: message {i} cannot be used"))
    };
    messages.into_iter().enumerate().map(parse).collect()
}

/// A list of objects, alone in a file or under its name.
fn list(path: &Path, name: &str) -> Result<Value> {
    let value = match json(path)? {
        Value::Object(mut outer) if outer.contains_key(name) => outer.remove(name).unwrap_or_default(),
        other => other,
    };
    objects(value, name, &shown(path))
}

fn objects(value: Value, name: &str, shown: &str) -> Result<Value> {
    let right = value.as_array().is_some_and(|items| items.iter().all(Value::is_object));
    ensure!(right, "{shown}: the {name} are no list of JSON objects");
    Ok(value)
}

fn json(path: &Path) -> Result<Value> {
    let text = read(path)?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", shown(path)))
}
