//! What a chat template is told besides the messages.

use chrono::NaiveDateTime;
use serde_json::{Map, Value};

use super::clock;
use crate::{Error, Result};

/// How the text of special tokens inside messages is encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SpecialText {
    /// As the special token, like transformers.
    #[default]
    Parse,
    /// As ordinary text in messages of the roles `user` and `tool`, in tools and in calls of them; elsewhere as the special token.
    Literal,
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

    /// The time that `strftime_now` tells.
    pub(in crate::text) fn time(&self) -> NaiveDateTime {
        self.now.unwrap_or_else(clock::now)
    }

    pub(in crate::text) fn has_tools(&self) -> bool {
        self.variables.get("tools").is_some_and(|t| !t.is_null())
    }
}
