//! The files of a model directory that concern text, read with limits.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::{ModelDir, recognise};
use crate::{Error, Result};

/// The largest published `tokenizer.json` files are near 35 MB.
const TOKENIZER_LIMIT: u64 = 128 << 20;
const CONFIG_LIMIT: u64 = 16 << 20;
/// Where templates with names of their own are kept.
const TEMPLATES: &str = "additional_chat_templates";
/// More named templates than any model has.
const MOST_TEMPLATES: usize = 64;

/// The contents of the text files of a model, before they are parsed.
#[derive(Debug, Clone, Default)]
pub struct TextFiles {
    /// Where the files are from; used in messages only.
    pub directory: PathBuf,
    /// `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    /// `tokenizer_config.json`, where there is one.
    pub tokenizer_config: Option<Vec<u8>>,
    /// `special_tokens_map.json`, where there is one.
    pub special_tokens_map: Option<Vec<u8>>,
    /// `added_tokens.json`, where there is one.
    pub added_tokens: Option<Vec<u8>>,
    /// `chat_template.jinja`, where there is one.
    pub chat_template_jinja: Option<Vec<u8>>,
    /// `chat_template.json`, where there is one.
    pub chat_template_json: Option<Vec<u8>>,
    /// Names and contents of `additional_chat_templates/NAME.jinja`.
    pub named_templates: Vec<(String, Vec<u8>)>,
}

impl TextFiles {
    /// Reads the files of a model directory. Only `tokenizer.json` is required.
    ///
    /// # Errors
    /// [`Error::Source`] when `tokenizer.json` is missing or when a file is too large, no regular file or a link out of the
    /// directory (a hub snapshot's links to its own blobs are fine); [`Error::Io`] when reading fails.
    pub fn read(directory: &Path) -> Result<Self> {
        Self::from_dir(&ModelDir::open(directory)?)
    }

    /// As [`Self::read`], of a directory that is already open.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn from_dir(dir: &ModelDir) -> Result<Self> {
        let directory = dir.path();
        let Some(tokenizer_json) = dir.read("tokenizer.json", TOKENIZER_LIMIT)? else {
            return Err(Error::Source {
                path: directory.join("tokenizer.json"),
                message: "no such file; a model directory needs its tokenizer.json (other tokenizer formats are not supported)".to_owned(),
            });
        };
        let mut named_templates = Vec::new();
        if directory.join(TEMPLATES).is_dir() && dir.contains(TEMPLATES) {
            let templates = dir.subfolder(TEMPLATES)?;
            for file in templates.entries()?.iter().take(MOST_TEMPLATES) {
                if let (Some(name), Some(bytes)) = (file.strip_suffix(".jinja"), templates.read(file, CONFIG_LIMIT)?) {
                    named_templates.push((name.to_owned(), bytes));
                }
            }
        }
        Ok(Self {
            directory: directory.to_path_buf(),
            tokenizer_json,
            tokenizer_config: dir.read("tokenizer_config.json", CONFIG_LIMIT)?,
            special_tokens_map: dir.read("special_tokens_map.json", CONFIG_LIMIT)?,
            added_tokens: dir.read("added_tokens.json", CONFIG_LIMIT)?,
            chat_template_jinja: dir.read("chat_template.jinja", CONFIG_LIMIT)?,
            chat_template_json: dir.read("chat_template.json", CONFIG_LIMIT)?,
            named_templates,
        })
    }
}

/// Refuses contents that are no JSON for a reason that can be told.
///
/// # Errors
/// [`Error::Source`] for an empty file, a git-lfs pointer, a web page and the like.
pub(super) fn check_json(bytes: &[u8], path: &Path) -> Result<()> {
    let message = if bytes.trim_ascii().is_empty() {
        "is empty: the file was not written or not downloaded to its end; get it again"
    } else if let Some(advice) = recognise(bytes) {
        advice
    } else {
        return Ok(());
    };
    Err(Error::Source { path: path.to_path_buf(), message: message.to_owned() })
}

/// Parses a JSON object.
pub(super) fn parse_object(bytes: &[u8], path: &Path) -> Result<Map<String, Value>> {
    check_json(bytes, path)?;
    serde_json::from_slice(bytes)
        .map_err(|e| Error::Source { path: path.to_path_buf(), message: format!("is not a JSON object: {e}") })
}
