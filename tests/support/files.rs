//! Directories as tests compare them.

use std::fs;
use std::path::Path;

/// Names and contents of all files of a directory.
pub fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry"));
    let mut out: Vec<_> = entries
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a file")))
        .collect();
    out.sort();
    out
}
