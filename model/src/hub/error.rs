//! Why a model could not be had from a hub.

use std::path::PathBuf;

/// What went wrong and what to do. No message holds the access token or the query of an address, which may be a signature.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A text is not the name of a model.
    #[error("\"{name}\" is not the name of a model on a hub: {message}")]
    Name {
        /// The text, shortened and safe to print.
        name: String,
        /// What is wrong with it.
        message: String,
    },
    /// A variable of the environment cannot be used.
    #[error("{variable}: {message}")]
    Setting {
        /// Its name.
        variable: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// There is no such repository, revision or file.
    #[error("{model}: {message}")]
    NotFound {
        /// The model.
        model: String,
        /// What is not there, and what to do.
        message: String,
    },
    /// The repository is gated or private, or the token is not accepted.
    #[error("{model}: {message}")]
    Denied {
        /// The model.
        model: String,
        /// What to do.
        message: String,
    },
    /// The repository holds no model that can be loaded.
    #[error("{model}: {message}")]
    NoModel {
        /// The model.
        model: String,
        /// What it holds instead.
        message: String,
    },
    /// Downloads are off and the cache lacks the model.
    #[error("{model} is not in the cache ({}) and downloads are off (--offline, HF_HUB_OFFLINE){lacks}", cache.display())]
    Offline {
        /// The model.
        model: String,
        /// The cache.
        cache: PathBuf,
        /// What of it is missing, or nothing.
        lacks: String,
    },
    /// The server cannot be reached, stopped answering, or fails.
    #[error("{url}: {message}")]
    Network {
        /// The address without its query.
        url: String,
        /// What happened, how often.
        message: String,
    },
    /// Too many requests.
    #[error("{url}: {message}")]
    RateLimited {
        /// The address without its query.
        url: String,
        /// How long the server asks to wait.
        message: String,
    },
    /// A redirect leads where it must not.
    #[error("{url}: {message}")]
    Redirect {
        /// The address without its query.
        url: String,
        /// Where it leads.
        message: String,
    },
    /// The server answered something else than what was asked for.
    #[error("{url}: {message}")]
    Answer {
        /// The address without its query.
        url: String,
        /// What it is.
        message: String,
    },
    /// A file is not the one that the hub lists: its length or hash differs.
    #[error("{file}: {message}")]
    Integrity {
        /// The file in its repository.
        file: String,
        /// What differs.
        message: String,
    },
    /// It was [cancelled](super::Hub::cancel_handle).
    #[error("the download was cancelled; what came of it is kept")]
    Cancelled,
    /// The disk is too small.
    #[error("{}: {needed} bytes are needed, {free} are free: free some, or keep the cache on another disk (HF_HOME)", path.display())]
    Disk {
        /// The cache.
        path: PathBuf,
        /// Bytes that are to be downloaded.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A file of the cache cannot be read or written.
    #[error("{}: {error}{advice}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error: a part of the text, so that it is none of the causes that a chain of errors adds.
        error: std::io::Error,
        /// What to do, or nothing.
        advice: &'static str,
    },
}

/// The result of an operation on a hub or its cache.
pub type HubResult<T> = std::result::Result<T, HubError>;

impl HubError {
    /// An error of the file system.
    pub(super) fn io(path: impl Into<PathBuf>, error: std::io::Error) -> Self {
        let advice = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                "; what is downloaded stays: free some space and run this again"
            }
            std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied => {
                "; keep the cache in a directory that can be written (HF_HOME)"
            }
            _ => "",
        };
        Self::Io { path: path.into(), error, advice }
    }
}
