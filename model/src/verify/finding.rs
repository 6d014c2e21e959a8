//! What is wrong with a checkpoint, as data.

use std::path::Path;

use crate::Error;
use crate::checkpoint::names::{shown, shown_within};

/// How much a [`Finding`] matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing: a default that is assumed, a check that could not be made.
    Note,
    /// Unlike what trained models have, or in contradiction to another file; the model may still be what its author meant.
    Warning,
    /// Damage: the files are not what their author wrote, or do not fit each other.
    Error,
}

impl Severity {
    /// One word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Check {
    /// Whether a file is there and is what its name says.
    File,
    /// Contents against the hash that the hub gave.
    Hash,
    /// Header and ranges of a safetensors file.
    Container,
    /// `model.safetensors.index.json` against the files it names.
    Index,
    /// Values of `config.json` and its side files.
    Config,
    /// Keys of `config.json` that are not computed.
    Key,
    /// Names, shapes and types of the tensors against the config.
    Tensors,
    /// Every number of a tensor.
    Numbers,
    /// Code books and scales of quantised tensors.
    Scales,
    /// Codes of quantised tensors.
    Codes,
    /// Layers beside each other.
    Layers,
    /// The tokenizer, and against the embedding.
    Tokenizer,
    /// The chat template.
    Template,
    /// `generation_config.json`.
    Generation,
}

impl Check {
    /// One word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Hash => "hash",
            Self::Container => "container",
            Self::Index => "index",
            Self::Config => "config",
            Self::Key => "key",
            Self::Tensors => "tensors",
            Self::Numbers => "numbers",
            Self::Scales => "scales",
            Self::Codes => "codes",
            Self::Layers => "layers",
            Self::Tokenizer => "tokenizer",
            Self::Template => "template",
            Self::Generation => "generation",
        }
    }
}

/// One thing that is wrong, or that is worth knowing. Texts out of files are escaped and of bounded length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What was looked at.
    pub check: Check,
    /// The file, relative to the model directory.
    pub file: Option<String>,
    /// The tensor, as the file has it, or the key of a config.
    pub place: Option<String>,
    /// What was expected; empty where that goes without saying.
    pub expected: String,
    /// What was found.
    pub found: String,
    /// What to do.
    pub advice: String,
}

/// Longest text of one field, in bytes.
const LONGEST: usize = 600;

impl Finding {
    fn new(severity: Severity, check: Check, found: impl AsRef<str>) -> Self {
        let found = shown_within(found.as_ref(), LONGEST);
        let (expected, advice) = (String::new(), String::new());
        Self { severity, check, file: None, place: None, expected, found, advice }
    }

    pub(super) fn error(check: Check, found: impl AsRef<str>) -> Self {
        Self::new(Severity::Error, check, found)
    }

    pub(super) fn warning(check: Check, found: impl AsRef<str>) -> Self {
        Self::new(Severity::Warning, check, found)
    }

    pub(super) fn note(check: Check, found: impl AsRef<str>) -> Self {
        Self::new(Severity::Note, check, found)
    }

    pub(super) fn file(mut self, file: &str) -> Self {
        self.file = Some(shown(file));
        self
    }

    pub(super) fn place(mut self, place: &str) -> Self {
        self.place = Some(shown(place));
        self
    }

    pub(super) fn expected(mut self, expected: impl AsRef<str>) -> Self {
        self.expected = shown_within(expected.as_ref(), LONGEST);
        self
    }

    pub(super) fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }

    /// An error of reading, where `dir` is the model directory.
    pub(super) fn of(check: Check, error: &Error, dir: &Path) -> Self {
        let inside = |path: &Path| {
            let path = path.strip_prefix(dir).unwrap_or(path);
            path.to_string_lossy().into_owned()
        };
        match error {
            Error::Io { path, error } => Self::error(check, error.to_string()).file(&inside(path)),
            Error::Source { path, message } => {
                let finding = Self::error(check, message);
                if inside(path).is_empty() { finding } else { finding.file(&inside(path)) }
            }
            Error::Config { path, field, message, .. } => {
                let finding = Self::error(check, message).file(&inside(path));
                if field.is_empty() { finding } else { finding.place(field) }
            }
            Error::Container(error) | Error::Tensor(error) | Error::Discovery(error) => {
                let finding = Self::error(check, &error.message);
                let finding = match error.file.as_deref().map(inside).filter(|file| !file.is_empty()) {
                    Some(file) => finding.file(&file),
                    None => finding,
                };
                match &error.tensor {
                    Some(tensor) => finding.place(tensor),
                    None => finding,
                }
            }
            Error::Option { option, message } => Self::error(check, message).place(option),
            other => Self::error(check, other.to_string()),
        }
    }
}
