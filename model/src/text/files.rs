//! The files of a model directory that concern text, read with limits.

use std::path::{Path, PathBuf};

use crate::checkpoint::ModelDir;
use crate::{Error, Result};

/// The largest published `tokenizer.json` files are near 35 MB.
const TOKENIZER_LIMIT: u64 = 128 << 20;
const CONFIG_LIMIT: u64 = 16 << 20;

/// The contents of the text files of a model, before they are parsed.
#[derive(Debug, Clone, Default)]
pub struct TextFiles {
    /// Where the files are from; used in messages only.
    pub directory: PathBuf,
    /// `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    /// `tokenizer_config.json`, where there is one.
    pub tokenizer_config: Option<Vec<u8>>,
    /// `chat_template.jinja`, where there is one.
    pub chat_template_jinja: Option<Vec<u8>>,
    /// `chat_template.json`, where there is one.
    pub chat_template_json: Option<Vec<u8>>,
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
        Ok(Self {
            directory: directory.to_path_buf(),
            tokenizer_json,
            tokenizer_config: dir.read("tokenizer_config.json", CONFIG_LIMIT)?,
            chat_template_jinja: dir.read("chat_template.jinja", CONFIG_LIMIT)?,
            chat_template_json: dir.read("chat_template.json", CONFIG_LIMIT)?,
        })
    }
}
