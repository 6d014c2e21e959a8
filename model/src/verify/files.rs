//! Files that are not what their names say, whichever part of a model they are.

use std::path::Path;

use super::Verification;
use super::finding::{Check, Finding};
use crate::checkpoint::{LFS_ADVICE, ModelDir, is_lfs_pointer, recognise};

/// Largest file that is looked into here; weights are looked at elsewhere.
const LIMIT: u64 = 128 << 20;

/// The files of text that a model may have.
const TEXT_FILES: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "crest.json",
    "nano_compact_spec.json",
];

pub(super) fn check(dir: &ModelDir, out: &mut Verification) {
    for name in TEXT_FILES {
        match dir.read(name, LIMIT) {
            Ok(None) => {}
            Ok(Some(bytes)) => contents(name, &bytes, out),
            // The modules that read these files would say the same.
            Err(_) if ["config.json", "tokenizer.json"].contains(&name) => {}
            Err(error) => {
                let finding = Finding::of(Check::File, &error, dir.path());
                out.push(finding.advice("put the file of the author's repository in its place"));
            }
        }
    }
    let Ok(entries) = dir.entries() else { return };
    for name in entries {
        if name.ends_with(".incomplete") || name.ends_with(".part") || name.ends_with(".tmp") {
            let finding =
                Finding::warning(Check::File, "is the beginning of a file whose download was cut off").file(&name);
            out.push(finding.advice("download the model again; it goes on where it was cut off, or begins afresh"));
        }
        let path = dir.path().join(&name);
        if is_dangling(&path) {
            let finding = Finding::error(Check::File, "is a link to a file that does not exist").file(&name);
            out.push(finding.advice("the cache was cleaned up or the download was cut off: download the model again"));
        }
    }
}

fn contents(name: &str, bytes: &[u8], out: &mut Verification) {
    // Those that are read as a whole say it themselves.
    if ["config.json", "tokenizer.json"].contains(&name) && !bytes.contains(&0) {
        return;
    }
    let found = if is_lfs_pointer(bytes) {
        Some(LFS_ADVICE)
    } else if bytes.trim_ascii().is_empty() {
        Some("is empty")
    } else if bytes.iter().all(|&byte| byte == 0) {
        Some("holds zeros alone: space was set aside for it, and it was never written")
    } else if name.ends_with(".json") && bytes.contains(&0) {
        Some("has zero bytes, as a file that was not written to its end")
    } else {
        recognise(bytes)
    };
    if let Some(found) = found {
        out.push(Finding::error(Check::File, found).file(name).advice("download this file again"));
    }
}

fn is_dangling(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|entry| entry.is_symlink()) && !path.exists()
}
