//! The files of a model directory that concern text, read with limits.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

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
        let Some(tokenizer_json) = read_optional(directory, "tokenizer.json", TOKENIZER_LIMIT)? else {
            return Err(Error::Source {
                path: directory.join("tokenizer.json"),
                message: "no such file; a model directory needs its tokenizer.json (other tokenizer formats are not supported)".to_owned(),
            });
        };
        Ok(Self {
            directory: directory.to_path_buf(),
            tokenizer_json,
            tokenizer_config: read_optional(directory, "tokenizer_config.json", CONFIG_LIMIT)?,
            chat_template_jinja: read_optional(directory, "chat_template.jinja", CONFIG_LIMIT)?,
            chat_template_json: read_optional(directory, "chat_template.json", CONFIG_LIMIT)?,
        })
    }
}

/// The bytes of `directory/name`, or `None` when there is no such file.
fn read_optional(directory: &Path, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    let path = directory.join(name);
    let io = |source| Error::Io { path: path.clone(), source };
    let refused = |message: String| Error::Source { path: path.clone(), message };
    let real = match fs::canonicalize(&path) {
        Ok(real) => real,
        // A dangling link is a damaged download, not an absent file.
        Err(e) if e.kind() == ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() => {
            return Ok(None);
        }
        Err(e) => return Err(io(e)),
    };
    if !is_inside(directory, &real) {
        return Err(refused(format!(
            "is a link to {}, outside the model directory; copy the file instead",
            real.display()
        )));
    }
    // Opening a FIFO would block, so look before opening.
    let metadata = fs::metadata(&real).map_err(io)?;
    if !metadata.is_file() {
        return Err(refused("is not a regular file".to_owned()));
    }
    let too_large = || refused(format!("is larger than the limit of {limit} bytes"));
    if metadata.len() > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let file = File::open(&real).map_err(io)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(Some(bytes))
}

/// Whether `real` lies in the directory, or in the blob store of the hub cache that the directory is a snapshot of.
fn is_inside(directory: &Path, real: &Path) -> bool {
    let Ok(root) = fs::canonicalize(directory) else {
        return false;
    };
    if real.starts_with(&root) {
        return true;
    }
    // models--owner--name/snapshots/<revision>[/subfolder] links to models--owner--name/blobs.
    root.ancestors()
        .find(|a| a.parent().and_then(Path::file_name) == Some("snapshots".as_ref()))
        .and_then(|revision| revision.parent()?.parent())
        .is_some_and(|repository| real.starts_with(repository.join("blobs")))
}
