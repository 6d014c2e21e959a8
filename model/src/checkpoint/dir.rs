//! A model directory: the only place from which files are read. It may also be part of the program.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::foreign::{LFS_ADVICE, is_lfs_pointer};
use super::names::shown;
use crate::{Error, Result};

/// The weights of a model that are one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Which tensor is in which of several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// A record of burn-store.
pub(crate) const RECORD: &str = "model.bpk";

/// A directory whose regular files may be read. Links may lead to files of the same directory, or from a hub snapshot to the
/// blobs of the same repository; elsewhere only where the caller [allows](Self::allow_links) it.
#[derive(Clone, Debug)]
pub struct ModelDir {
    path: PathBuf,
    files: Files,
}

/// Where the files are.
#[derive(Clone, Debug)]
enum Files {
    OnDisk { real: PathBuf, blobs: Option<PathBuf>, any_links: bool },
    Embedded(&'static [EmbeddedFile]),
}

/// A file that is part of the program: its name and its contents.
pub type EmbeddedFile = (&'static str, &'static [u8]);

/// A file of a model directory.
#[derive(Clone, Debug)]
pub(super) enum FoundFile {
    /// Its real path.
    OnDisk(PathBuf),
    Embedded(&'static [u8]),
}

impl ModelDir {
    /// Opens a directory.
    ///
    /// # Errors
    /// [`Error::Io`] when it does not exist, [`Error::Source`] when it is not a directory, [`Error::Option`] when the path is empty.
    pub fn open(path: &Path) -> Result<Self> {
        if path.as_os_str().is_empty() {
            let message = "is an empty path: name a directory".to_owned();
            return Err(Error::Option { option: "model directory".to_owned(), message });
        }
        let real = path.canonicalize().map_err(|error| Error::Io { path: path.into(), error })?;
        if !real.is_dir() {
            return Err(refuse(path, "is not a directory"));
        }
        let blobs = hub_blobs(&real);
        Ok(Self { path: path.into(), files: Files::OnDisk { real, blobs, any_links: false } })
    }

    /// The same directory with links that may lead anywhere: for one whose links its user made. A directory from a stranger may
    /// hold links to private files of the user, parts of which could then be printed in messages.
    pub fn allow_links(mut self) -> Self {
        if let Files::OnDisk { any_links, .. } = &mut self.files {
            *any_links = true;
        }
        self
    }

    /// A directory without subfolders that is part of the program; `name` is for messages.
    pub fn embedded(name: &str, files: &'static [EmbeddedFile]) -> Self {
        Self { path: name.into(), files: Files::Embedded(files) }
    }

    /// A direct or deeper subdirectory.
    ///
    /// # Errors
    /// As [`Self::open`]; [`Error::Source`] when the name leads out of the directory.
    pub fn subfolder(&self, name: &str) -> Result<Self> {
        let parts = Path::new(name).components();
        let plain = !name.is_empty()
            && parts.clone().all(|part| matches!(part, std::path::Component::Normal(_)))
            && !name.contains(['\\', ':', '\0']);
        let path = self.path.join(name);
        let sub = if plain {
            Self::open(&path)?
        } else {
            return Err(refuse(&path, "is not the name of a subfolder"));
        };
        match (&self.files, &sub.files) {
            (Files::OnDisk { any_links: true, .. }, _) => Ok(sub.allow_links()),
            (Files::OnDisk { real, .. }, Files::OnDisk { real: inner, .. }) if inner.starts_with(real) => Ok(sub),
            _ => Err(refuse(&path, "leads out of the model directory")),
        }
    }

    /// The directory, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a directory entry of this name, of any kind.
    pub fn contains(&self, name: &str) -> bool {
        match self.files {
            Files::OnDisk { .. } => self.path.join(name).symlink_metadata().is_ok(),
            Files::Embedded(files) => files.iter().any(|(known, _)| *known == name),
        }
    }

    /// A regular file by its [relative] path; `None` when there is none of this name.
    ///
    /// # Errors
    /// [`Error::Source`] when the path is not one within the directory, leads out of it, or is not a regular file.
    pub(super) fn file(&self, name: &str) -> Result<Option<FoundFile>> {
        let Some(name) = relative(name) else {
            let path = self.path.join("?");
            return Err(refuse(&path, &format!("\"{}\" is not the name of a file in the directory", shown(name))));
        };
        let name = name.as_str();
        if !self.contains(name) {
            return Ok(None);
        }
        let (root, blobs, any_links) = match &self.files {
            Files::OnDisk { real, blobs, any_links } => (real, blobs, *any_links),
            Files::Embedded(files) => {
                let found = files.iter().find(|(known, _)| *known == name);
                return Ok(found.map(|(_, bytes)| FoundFile::Embedded(bytes)));
            }
        };
        let path = self.path.join(name);
        let io = |error| Error::Io { path: path.clone(), error };
        let real = path.canonicalize().map_err(io)?;
        let is_blob = |blobs: &Path| real.parent() == Some(blobs) || is_shared_blob(&real, blobs);
        let inside = real.starts_with(root) || blobs.as_deref().is_some_and(is_blob);
        if !inside && !any_links {
            let message = "is a link that leads out of the model directory: put the file itself there, or allow links (--allow-links) if \
                 you made this one";
            return Err(refuse(&path, message));
        }
        // Checked before opening: opening a FIFO would wait for a writer.
        if !fs::metadata(&real).map_err(io)?.is_file() {
            return Err(refuse(&path, "is not a regular file"));
        }
        Ok(Some(FoundFile::OnDisk(real)))
    }

    /// The contents of a file; `None` when there is none of this name.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::Source`] when it lies outside the directory, is no regular file, is longer
    /// than `limit` bytes (before anything is read), or is a git-lfs pointer to the file that was meant.
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        let real = match self.file(name)? {
            Some(FoundFile::OnDisk(real)) => real,
            Some(FoundFile::Embedded(bytes)) => return Ok(Some(bytes.to_vec())),
            None => return Ok(None),
        };
        let io = |error| Error::Io { path: path.clone(), error };
        let file = File::open(&real).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length > limit {
            return Err(refuse(&path, &format!("is {length} bytes long, at most {limit} are accepted")));
        }
        let mut bytes = Vec::new();
        // One byte more than promised shows that the file grew.
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > limit {
            return Err(refuse(&path, &format!("is longer than the {limit} bytes that are accepted")));
        }
        if is_lfs_pointer(&bytes) {
            return Err(refuse(&path, LFS_ADVICE));
        }
        Ok(Some(bytes))
    }

    /// Names of the directory's entries, sorted (as given for an embedded one); hidden ones and those that are not Unicode left out.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory cannot be listed.
    pub fn entries(&self) -> Result<Vec<String>> {
        const MOST: usize = 10_000;
        let io = |error| Error::Io { path: self.path.clone(), error };
        let mut names = Vec::new();
        let real = match &self.files {
            Files::OnDisk { real, .. } => real,
            Files::Embedded(files) => return Ok(files.iter().map(|(name, _)| (*name).to_owned()).collect()),
        };
        for entry in fs::read_dir(real).map_err(io)?.take(MOST) {
            match entry.map_err(io)?.file_name().into_string() {
                Ok(name) if !name.starts_with('.') => names.push(name),
                _ => {}
            }
        }
        names.sort();
        Ok(names)
    }
}

/// The path of a file in a directory or its subfolders, as `a/b` without `.` parts; `None` when, on any platform, it could
/// mean another place (absolute, `..`, a drive, a share, backslashes).
pub(crate) fn relative(name: &str) -> Option<String> {
    const DEPTH: usize = 16;
    if name.starts_with('/') || name.ends_with('/') || name.len() > 4096 {
        return None;
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let plain = !parts.is_empty() && parts.len() <= DEPTH && parts.iter().all(|part| is_plain(part));
    plain.then(|| parts.join("/"))
}

/// Whether a name, on every platform, can only mean an entry of the directory it is looked up in.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.contains(|c: char| matches!(c, '/' | '\\' | ':') || c.is_control())
}

/// `models--*/blobs` for a directory in `models--*/snapshots/`.
fn hub_blobs(real: &Path) -> Option<PathBuf> {
    let snapshots = real.ancestors().skip(1).find(|dir| dir.file_name().is_some_and(|name| name == "snapshots"))?;
    let repository = snapshots.parent()?;
    let is_model = repository.file_name()?.to_str()?.starts_with("models--");
    is_model.then(|| repository.join("blobs").canonicalize().ok()).flatten()
}

/// Whether a file is in the store that the repositories of a hub's cache share, `blobs/ab/HASH` beside them: `huggingface_hub` 2 makes
/// the blobs of a repository links to it.
fn is_shared_blob(real: &Path, blobs: &Path) -> bool {
    let name = real.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_hash = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let cache = blobs.parent().and_then(Path::parent);
    let store = cache.map(|cache| cache.join("blobs").join(name.get(..2).unwrap_or_default()));
    is_hash && store.is_some_and(|store| real.parent() == Some(&store))
}

fn refuse(path: &Path, message: &str) -> Error {
    Error::Source { path: path.into(), message: message.into() }
}
