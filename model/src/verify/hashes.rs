//! Contents against the hashes that the hub gave: SHA-256 for large files, git's SHA-1 for small ones.
//!
//! They are known in two places. In a hub's cache a file of a snapshot is a link to a blob that is named by its hash
//! (`models--ORG--NAME/snapshots/REVISION/FILE -> ../../blobs/HASH`). In a directory that was downloaded to
//! (`hf download --local-dir`), `.cache/huggingface/download/FILE.metadata` has the hash in its second line.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use emberlm_quant::host::on_threads;
use rayon::prelude::*;

use super::finding::{Check, Finding};
use super::{Read, Verification};
use crate::checkpoint::ModelDir;
use crate::file_hash::FileHash;

/// Weights of formats that are never read.
const FOREIGN: [&str; 9] = ["bin", "pt", "pth", "ckpt", "gguf", "onnx", "h5", "msgpack", "tflite"];
/// Folders below the directory that are looked into.
const DEPTH: usize = 4;
/// Most files.
const MOST: usize = 10_000;

/// A file whose hash is known.
#[derive(Debug)]
pub(super) struct Known {
    /// Relative to the directory.
    name: String,
    path: PathBuf,
    pub(super) bytes: usize,
    expected: FileHash,
    /// When it was downloaded, where that is known.
    downloaded: Option<Duration>,
}

/// The files of a directory whose hashes are known, but for weights in formats that are never read.
pub(super) fn expected(dir: &ModelDir, out: &mut Verification) -> Vec<Known> {
    let mut names = Vec::new();
    list(dir.path(), "", DEPTH, &mut names);
    let mut known = Vec::new();
    for name in names {
        let path = dir.path().join(&name);
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if FOREIGN.contains(&extension) {
            continue;
        }
        let Some((expected, downloaded)) = from_link(&path).or_else(|| from_metadata(dir.path(), &name)) else {
            continue;
        };
        match fs::metadata(&path) {
            Ok(entry) if entry.is_file() => {
                let bytes = usize::try_from(entry.len()).unwrap_or(usize::MAX);
                known.push(Known { name, path, bytes, expected, downloaded });
            }
            // A link without a file is reported with the other files.
            Ok(_) | Err(_) => {}
        }
    }
    if let Some(blobs) = blobs(dir.path()) {
        let cut = fs::read_dir(blobs).into_iter().flatten().flatten().take(MOST);
        for entry in cut.filter(|entry| entry.file_name().to_string_lossy().ends_with(".incomplete")) {
            let name = format!("blobs/{}", entry.file_name().to_string_lossy());
            let finding = Finding::note(Check::File, "a download into the cache was cut off").file(&name);
            out.push(finding.advice("if files are missing here, download the model again"));
        }
    }
    known
}

/// Hashes the files, several at once.
pub(super) fn check(known: &[Known], read: &Read<'_>, out: &mut Verification) {
    let results: Vec<Option<Finding>> = on_threads(|| known.par_iter().map(|file| compare(file, read)).collect());
    out.looked_at.hashed = known.len();
    out.findings.extend(results.into_iter().flatten());
}

fn compare(file: &Known, read: &Read<'_>) -> Option<Finding> {
    let hash = |mut content: File| {
        file.expected.of_same_kind(&mut content, file.bytes as u64, |bytes| read.add(bytes as usize))
    };
    let found = match File::open(&file.path).and_then(hash) {
        Ok(found) if found == file.expected => return None,
        Ok(found) => found,
        Err(error) => return Some(Finding::error(Check::File, format!("cannot be read: {error}")).file(&file.name)),
    };
    // A second for file systems that round.
    let changed = modified(&file.path).zip(file.downloaded);
    let changed = changed.is_some_and(|(modified, downloaded)| modified > downloaded + Duration::from_secs(1));
    let (finding, advice) = if changed {
        let found = format!("{found}; it was changed after it was downloaded");
        (Finding::warning(Check::Hash, found), "if you did not change it, download it again")
    } else {
        (
            Finding::error(Check::Hash, found.to_string()),
            "the file is not what the hub has: delete it and download it again",
        )
    };
    Some(finding.file(&file.name).expected(file.expected.to_string()).advice(advice))
}

fn modified(path: &Path) -> Option<Duration> {
    fs::metadata(path).ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()
}

/// Names of the files in a directory and below it, hidden ones left out.
fn list(root: &Path, at: &str, depth: usize, names: &mut Vec<String>) {
    let mut entries: Vec<String> = fs::read_dir(root.join(at))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .take(MOST)
        .collect();
    entries.sort();
    for name in entries {
        let name = if at.is_empty() { name } else { format!("{at}/{name}") };
        // Links to folders are not followed.
        match root.join(&name).symlink_metadata() {
            Ok(entry) if entry.is_dir() && depth > 0 => list(root, &name, depth - 1, names),
            Ok(entry) if !entry.is_dir() && names.len() < MOST => names.push(name),
            _ => {}
        }
    }
}

/// The `blobs` folder of the cache that a snapshot is in.
fn blobs(dir: &Path) -> Option<PathBuf> {
    let dir = dir.canonicalize().ok()?;
    let snapshots = dir.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "snapshots"))?;
    Some(snapshots.parent()?.join("blobs")).filter(|blobs| blobs.is_dir())
}

/// The name of the blob that a file of a snapshot is a link to.
fn from_link(path: &Path) -> Option<(FileHash, Option<Duration>)> {
    if !path.symlink_metadata().ok()?.is_symlink() {
        return None;
    }
    let target = fs::read_link(path).ok()?;
    let in_blobs = target.parent()?.file_name().is_some_and(|name| name == "blobs");
    let hash = in_blobs.then(|| FileHash::from_etag(target.file_name()?.to_str()?)).flatten()?;
    Some((hash, None))
}

/// The second of three lines: revision, hash, time of the download in seconds.
fn from_metadata(dir: &Path, name: &str) -> Option<(FileHash, Option<Duration>)> {
    const LONGEST: u64 = 4096;
    let path = dir.join(".cache/huggingface/download").join(format!("{name}.metadata"));
    let mut text = String::new();
    // A pipe would be waited for.
    if !fs::metadata(&path).ok()?.is_file() {
        return None;
    }
    File::open(path).ok()?.take(LONGEST).read_to_string(&mut text).ok()?;
    let mut lines = text.lines().skip(1);
    let hash = FileHash::from_etag(lines.next()?)?;
    let time = lines.next().and_then(|time| time.trim().parse::<f64>().ok());
    Some((hash, time.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())))
}
