//! What a download tells while it runs.

use std::time::Duration;

/// What happens during [`Hub::pull`](super::Hub::pull); called from several threads.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PullEvent<'a> {
    /// What is there and what is to be downloaded; comes once, before the first large file.
    Plan(PullPlan),
    /// A file begins. Of its `length` bytes, `kept` are there from an attempt before.
    File {
        /// Path in the repository.
        name: &'a str,
        /// Its length.
        length: u64,
        /// Bytes that need no download.
        kept: u64,
    },
    /// This many more bytes of the file have come.
    Bytes(u64),
    /// So many bytes must be downloaded again, because the server has other ones now.
    Lost(u64),
    /// This many bytes of the file were read to compute its hash.
    Hashed(u64),
    /// The file is complete and its hash is right.
    Done {
        /// Path in the repository.
        name: &'a str,
    },
    /// Another process downloads the file; this one waits.
    Waiting {
        /// Path in the repository.
        name: &'a str,
    },
    /// A request failed and is made again.
    Retry {
        /// What failed, without secrets.
        reason: &'a str,
        /// Wait before the next attempt.
        wait: Duration,
    },
}

/// What a pull is going to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullPlan {
    /// The model, as it was named.
    pub model: String,
    /// The commit that its revision stands for.
    pub commit: String,
    /// Files of the model.
    pub files: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Files that are not in the cache.
    pub missing_files: usize,
    /// Bytes of those that are not on the disk.
    pub missing_bytes: u64,
    /// Bytes that are free on the disk of the cache.
    pub free_bytes: u64,
}

/// Hears of a pull.
pub type OnPull<'a> = &'a (dyn Fn(PullEvent<'_>) + Sync);
