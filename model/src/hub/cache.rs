//! The cache on disk, laid out as `huggingface_hub` lays it out, so that each finds what the other downloaded:
//!
//! ```text
//! models--org--name/
//!     blobs/HASH                    the files, named by their ETag
//!     snapshots/COMMIT/config.json  links to them
//!     refs/main                     the commit of a branch or tag
//!     .no_exist/COMMIT/crest.json   files that are known not to be in the repository
//! .locks/models--org--name/HASH.lock
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{HubError, HubResult};
use super::name::is_commit;
use super::select::{CONFIG, SMALL_FILES};
use crate::checkpoint::{INDEX, MAX_INDEX_BYTES, SINGLE, parse_index};
use crate::file_hash::FileHash;

/// One repository in the cache.
#[derive(Clone, Debug)]
pub(super) struct Repository {
    root: PathBuf,
    locks: PathBuf,
}

/// How much of a model a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Held {
    /// Not even its config and weights.
    Nothing,
    /// Enough to load it; of small files it is not known whether the repository has them.
    Weights,
    /// All that the repository has of it.
    All,
}

impl Repository {
    /// `name` is `org/name`, already checked.
    pub fn new(cache: &Path, name: &str) -> Self {
        let folder = format!("models--{}", name.replace('/', "--"));
        Self { root: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub fn blob(&self, hash: &FileHash) -> PathBuf {
        self.blobs().join(hash.hex())
    }

    pub fn lock_path(&self, hash: &FileHash) -> PathBuf {
        self.locks.join(format!("{}.lock", hash.hex()))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit that a revision stood for when it was last asked for.
    pub fn commit_of(&self, revision: &str) -> HubResult<Option<String>> {
        if is_commit(revision) {
            return Ok(Some(revision.to_owned()));
        }
        let path = self.root.join("refs").join(revision);
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(256).read_to_string(&mut text)) {
            Ok(_) => Ok(Some(text.trim().to_owned()).filter(|commit| is_commit(commit))),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
            Err(source) => Err(HubError::io(path, source)),
        }
    }

    /// Notes which commit a revision stands for.
    pub fn write_ref(&self, revision: &str, commit: &str) -> HubResult<()> {
        if is_commit(revision) || self.commit_of(revision)?.as_deref() == Some(commit) {
            return Ok(());
        }
        write_atomically(&self.root.join("refs").join(revision), commit.as_bytes())
    }

    /// Notes which of the small files are not in the repository at a commit.
    pub fn note_absent(&self, commit: &str, folder: &str) -> HubResult<()> {
        for name in SMALL_FILES {
            let file = format!("{folder}{name}");
            let path = self.absent(commit, &file);
            if !self.snapshot(commit).join(&file).exists() && !path.exists() {
                write_atomically(&path, b"")?;
            }
        }
        Ok(())
    }

    fn absent(&self, commit: &str, file: &str) -> PathBuf {
        self.root.join(".no_exist").join(commit).join(file)
    }

    /// Puts a blob into a snapshot under its name: a relative link, or where the file system has none, the file itself.
    pub fn link(&self, commit: &str, file: &str, hash: &FileHash) -> HubResult<()> {
        let (blob, path) = (self.blob(hash), self.snapshot(commit).join(file));
        if is_same_file(&path, &blob) {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(&self.root);
        make_dir(parent)?;
        // From snapshots/COMMIT/a/b up to the repository: two folders, and those of the file.
        let up = "../".repeat(file.matches('/').count().saturating_add(2));
        let target = PathBuf::from(format!("{up}blobs/{}", hash.hex()));
        let temporary = temporary_beside(&path);
        let made = symlink(&target, &temporary)
            .or_else(|_| fs::hard_link(&blob, &temporary))
            .or_else(|_| fs::copy(&blob, &temporary).map(drop));
        made.and_then(|()| fs::rename(&temporary, &path)).map_err(|source| {
            let _ = fs::remove_file(&temporary);
            HubError::io(&path, source)
        })
    }

    /// Where a snapshot holds a model, and how much of it. Without a `subfolder` it may be in the only folder with weights.
    pub fn find(&self, commit: &str, subfolder: Option<&str>) -> (PathBuf, Held) {
        let snapshot = self.snapshot(commit);
        let folder = match subfolder {
            Some(folder) => format!("{folder}/"),
            None => only_folder_with_weights(&snapshot),
        };
        let path = if folder.is_empty() { snapshot.clone() } else { snapshot.join(&folder) };
        let held = if !path.join(CONFIG).is_file() || !has_weights(&path) {
            Held::Nothing
        } else if SMALL_FILES
            .iter()
            .all(|name| path.join(name).is_file() || self.absent(commit, &format!("{folder}{name}")).is_file())
        {
            Held::All
        } else {
            Held::Weights
        };
        (path, held)
    }
}

/// Whether a folder has the weights of a model, all of them.
pub(super) fn has_weights(folder: &Path) -> bool {
    if folder.join(SINGLE).is_file() {
        return true;
    }
    let index = folder.join(INDEX);
    let mut bytes = Vec::new();
    let read = File::open(&index).and_then(|file| file.take(MAX_INDEX_BYTES).read_to_end(&mut bytes));
    let shards = read.ok().and_then(|_| parse_index(&index, &bytes).ok());
    shards.is_some_and(|shards| shards.keys().all(|shard| folder.join(shard).is_file()))
}

/// Empty, or the only folder below with weights, with a `/` at its end.
pub(super) fn only_folder_with_weights(snapshot: &Path) -> String {
    let is_model = |path: &Path| path.join(SINGLE).is_file() || path.join(INDEX).is_file();
    if is_model(snapshot) {
        return String::new();
    }
    let entries = fs::read_dir(snapshot).into_iter().flatten().flatten();
    let mut folders =
        entries.filter(|entry| is_model(&entry.path())).filter_map(|entry| entry.file_name().into_string().ok());
    match (folders.next(), folders.next()) {
        (Some(folder), None) => folder + "/",
        _ => String::new(),
    }
}

fn is_same_file(path: &Path, blob: &Path) -> bool {
    match (path.canonicalize(), blob.canonicalize()) {
        (Ok(path), Ok(blob)) => path == blob,
        _ => false,
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Links need a right that most users of Windows lack.
#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes a directory and those above it.
pub(super) fn make_dir(path: &Path) -> HubResult<()> {
    fs::create_dir_all(path).map_err(|source| HubError::io(path, source))
}

/// A name in the same directory that no other thread or process uses.
pub(super) fn temporary_beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.{count}.tmp", std::process::id()))
}

/// Writes a small file whole or not at all.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> HubResult<()> {
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    let temporary = temporary_beside(path);
    let written = File::create(&temporary).and_then(|mut file| file.write_all(bytes));
    written.and_then(|()| fs::rename(&temporary, path)).map_err(|source| {
        let _ = fs::remove_file(&temporary);
        HubError::io(path, source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn snapshots_link_to_blobs() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::new(dir.path(), "org/name");
        assert_eq!(repository.find(COMMIT, None).1, Held::Nothing);
        let hash = FileHash::from_hex(COMMIT).unwrap();
        make_dir(&repository.blobs()).unwrap();
        fs::write(repository.blob(&hash), "{}").unwrap();
        for file in ["config.json", "model.safetensors", "a/b/c.json"] {
            repository.link(COMMIT, file, &hash).unwrap();
            repository.link(COMMIT, file, &hash).unwrap();
            assert_eq!(fs::read(repository.snapshot(COMMIT).join(file)).unwrap(), b"{}");
        }
        assert_eq!(repository.find(COMMIT, None), (repository.snapshot(COMMIT), Held::Weights));
        repository.note_absent(COMMIT, "").unwrap();
        assert_eq!(repository.find(COMMIT, None).1, Held::All);
        assert_eq!(repository.find(COMMIT, Some("a")).1, Held::Nothing);
        // A link to a blob that is gone is no file.
        fs::remove_file(repository.blob(&hash)).unwrap();
        assert_eq!(repository.find(COMMIT, None).1, Held::Nothing);
        #[cfg(unix)]
        assert_eq!(
            fs::read_link(repository.snapshot(COMMIT).join("a/b/c.json")).unwrap(),
            Path::new("../../../../blobs").join(COMMIT)
        );
    }

    #[test]
    fn refs_are_commits() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::new(dir.path(), "org/name");
        assert_eq!(repository.commit_of("main").unwrap(), None);
        assert_eq!(repository.commit_of(COMMIT).unwrap().as_deref(), Some(COMMIT));
        repository.write_ref("refs/pr/1", COMMIT).unwrap();
        assert_eq!(repository.commit_of("refs/pr/1").unwrap().as_deref(), Some(COMMIT));
        assert_eq!(repository.commit_of("refs/pr").unwrap(), None);
        fs::write(dir.path().join("models--org--name/refs/main"), "../../../../etc").unwrap();
        assert_eq!(repository.commit_of("main").unwrap(), None);
    }
}
