//! Everything that can go wrong between a checkpoint and a piece of text.

use std::path::PathBuf;

use crate::checkpoint::{CheckpointError, TensorDifferences};

/// The result of a fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error: a part of the text, so that it is none of the causes that a chain of errors adds.
        error: std::io::Error,
    },
    /// A disk has too little room for what is to be written.
    #[error("{}: {needed} bytes are needed, but {available} are free: make room, or name a directory on another disk", path.display())]
    Space {
        /// The directory that was to be written.
        path: PathBuf,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that may be written.
        available: u64,
    },
    /// A model directory lacks what is needed, or holds something that is not supported.
    #[error("{}: {message}", path.display())]
    Source {
        /// The file or directory.
        path: PathBuf,
        /// What is missing or unsupported, and what to do.
        message: String,
    },
    /// A safetensors file or index is damaged.
    #[error("{0}")]
    Container(Box<CheckpointError>),
    /// A value of `config.json` (or of a side file) cannot be used.
    #[error("{}: {}{message}", path.display(), if field.is_empty() { String::new() } else { format!("{field}: ") })]
    Config {
        /// The file.
        path: PathBuf,
        /// The key, with its parents; empty where the file as a whole cannot be used.
        field: String,
        /// What values are allowed, where the value is of a wrong type or out of range.
        expected: Option<Box<str>>,
        /// The value, or what kind of value it is where it is long.
        found: Option<Box<str>>,
        /// What was found and what is allowed.
        message: String,
    },
    /// A tensor does not hold what its name and side data promise, is not in the checkpoint, or is there twice.
    #[error("{0}")]
    Tensor(Box<CheckpointError>),
    /// A weight by itself, beside any checkpoint, cannot be used: what [`emberlm_quant::format`] says of one.
    #[error(transparent)]
    Weight(#[from] emberlm_quant::Error),
    /// The tensors of the checkpoint are not those of the model: every difference at once.
    #[error("{0}")]
    Differences(Box<TensorDifferences>),
    /// Tensors whose names are not published could not be recognised by their shapes. Its `tensor` is the layer.
    #[error("{}", .0.message)]
    Discovery(Box<CheckpointError>),
    /// `tokenizer.json` cannot be used, or a text cannot be encoded.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template failed.
    #[error("chat template: {0}")]
    Template(String),
    /// A model could not be had from a hub.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
    /// A text cannot be what a grammar asks for.
    #[error("grammar: {0}")]
    Grammar(String),
    /// An option of the caller is out of range.
    #[error("{option}: {message}")]
    Option {
        /// Name of the option.
        option: String,
        /// What was given and what is allowed.
        message: String,
    },
    /// The prompt does not fit.
    #[error("prompt: {0}")]
    Prompt(String),
    /// A tensor of the cache would be larger than the device's buffers.
    #[error(
        "the {tensor} of {slots} tokens would take {bytes} bytes, but buffers of this device end at {limit}; use a shorter \
             text, fewer sequences at once, a cache in half precision, or another device"
    )]
    Buffer {
        /// Which tensor.
        tensor: String,
        /// Tokens in the cache.
        slots: usize,
        /// Bytes that it would have.
        bytes: usize,
        /// Bytes of the largest buffer.
        limit: usize,
    },
    /// A size of the model is beyond what the kernels of the device take.
    #[error("{size} is {found}, but {limit}; use another device: the processor takes it")]
    Limit {
        /// The key of the config.
        size: &'static str,
        /// Its value.
        found: usize,
        /// What the device takes.
        limit: String,
    },
    /// What a pass keeps is more than the memory of the device.
    #[error(
        "{what} would take {bytes} bytes, but there are {limit} of memory; use a shorter text, fewer tokens at once, a cache in half \
             precision, or a larger machine"
    )]
    Memory {
        /// What is kept.
        what: String,
        /// Bytes that it would have.
        bytes: usize,
        /// Bytes of memory.
        limit: usize,
    },
    /// A device stopped working, or gave no numbers.
    #[error("{0}; try a smaller model, a shorter text, or another device")]
    Device(String),
    /// The thread of an engine has ended and takes what it had with it.
    #[error("the engine has stopped: {0}; load the model again")]
    Stopped(String),
    /// The model produced logits that are not numbers.
    #[error("logits of generated token {step} are not finite: {message}")]
    NonFinite {
        /// 0 is the first generated token.
        step: usize,
        /// What was found.
        message: String,
    },
}

impl Error {
    /// # Errors
    /// [`Error::Differences`] when there are any.
    pub(crate) fn unless_same(differences: TensorDifferences) -> Result<()> {
        if differences.is_empty() { Ok(()) } else { Err(Self::Differences(Box::new(differences))) }
    }

    /// What makes a file unreadable.
    pub(crate) fn container(error: CheckpointError) -> Self {
        Self::Container(Box::new(error))
    }

    /// What discovery could not recognise.
    pub(crate) fn discovery(error: CheckpointError) -> Self {
        Self::Discovery(Box::new(error))
    }

    /// A value of a config that cannot be used, whatever it should have been.
    pub(crate) fn config(path: impl Into<PathBuf>, field: impl Into<String>, message: impl Into<String>) -> Self {
        let (path, field, message) = (path.into(), field.into(), message.into());
        Self::Config { path, field, expected: None, found: None, message }
    }
}

impl From<CheckpointError> for Error {
    /// As an error about a tensor.
    fn from(error: CheckpointError) -> Self {
        Self::Tensor(Box::new(error))
    }
}
