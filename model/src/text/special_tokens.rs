//! `tokenizer_config.json`: the special tokens and the chat templates it names.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// A token with a role, as `tokenizer_config.json` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its text, which templates print.
    pub text: String,
    /// Its id; `None` when the vocabulary does not hold the text.
    pub id: Option<u32>,
}

/// The tokens with a role. A role without a token is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<SpecialToken>,
    /// Ends a text or a turn.
    pub eos: Option<SpecialToken>,
    /// Fills a batch.
    pub pad: Option<SpecialToken>,
    /// Stands for unknown text.
    pub unk: Option<SpecialToken>,
    /// The other named roles (`sep_token`, `cls_token`, `mask_token`), for templates.
    pub(crate) other: Vec<(String, String)>,
}

impl SpecialTokens {
    /// Names and texts as a template sees them: roles without a token are left out.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        let roles =
            [("bos_token", &self.bos), ("eos_token", &self.eos), ("unk_token", &self.unk), ("pad_token", &self.pad)];
        roles
            .into_iter()
            .filter_map(|(name, token)| Some((name, token.as_ref()?.text.as_str())))
            .chain(self.other.iter().map(|(n, t)| (n.as_str(), t.as_str())))
    }
}

/// `tokenizer_config.json` as far as it is used.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenizerConfig {
    pub(crate) special: SpecialTokens,
    /// `chat_template`: name and source; a single template is called `default`.
    pub(crate) templates: Vec<(String, String)>,
    /// Whether an encoded text begins with BOS; `None` leaves that to `tokenizer.json`.
    pub(crate) add_bos_token: Option<bool>,
}

impl TokenizerConfig {
    /// Parses the file; `id` looks a token up in the vocabulary.
    pub(crate) fn parse(bytes: &[u8], path: &Path, id: impl Fn(&str) -> Option<u32>) -> Result<Self> {
        let json = parse_object(bytes, path)?;
        let text = |name: &str| special_text(&json, name, path);
        let token = |name: &str| -> Result<Option<SpecialToken>> {
            let token = text(name)?.map(|text| SpecialToken { id: id(&text), text });
            if let Some(SpecialToken { text, id: None }) = &token {
                tracing::warn!("{}: {name} {text:?} is not in the vocabulary", path.display());
            }
            Ok(token)
        };
        let mut other = Vec::new();
        for name in ["sep_token", "cls_token", "mask_token"] {
            other.extend(text(name)?.map(|t| (name.to_owned(), t)));
        }
        Ok(Self {
            special: SpecialTokens {
                bos: token("bos_token")?,
                eos: token("eos_token")?,
                pad: token("pad_token")?,
                unk: token("unk_token")?,
                other,
            },
            templates: templates(&json, path)?,
            add_bos_token: json.get("add_bos_token").and_then(Value::as_bool),
        })
    }
}

/// Parses a JSON object.
pub(crate) fn parse_object(bytes: &[u8], path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::Source { path: path.to_path_buf(), message: format!("is not a JSON object: {e}") })
}

/// The text of a special token: a string, an object with `content`, or nothing.
fn special_text(json: &Map<String, Value>, name: &str, path: &Path) -> Result<Option<String>> {
    let value = match json.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(token)) => token.get("content"),
        other => other,
    };
    match value {
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
        _ => Err(Error::Config {
            path: path.to_path_buf(),
            field: name.to_owned(),
            message: "must be a text, an object with a text `content`, or null".to_owned(),
        }),
    }
}

/// `chat_template`: one source, or a list of `{name, template}`.
pub(crate) fn templates(json: &Map<String, Value>, path: &Path) -> Result<Vec<(String, String)>> {
    let wrong = |message: &str| Error::Config {
        path: path.to_path_buf(),
        field: "chat_template".to_owned(),
        message: message.to_owned(),
    };
    let text = |entry: &Value, key: &str| {
        let text = entry.get(key).and_then(Value::as_str).map(str::to_owned);
        text.ok_or_else(|| wrong("each entry of the list needs the texts `name` and `template`"))
    };
    match json.get("chat_template") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(source)) => Ok(vec![("default".to_owned(), source.clone())]),
        Some(Value::Array(entries)) => {
            entries.iter().map(|entry| Ok((text(entry, "name")?, text(entry, "template")?))).collect()
        }
        Some(_) => Err(wrong("must be a text or a list of {name, template}")),
    }
}
