//! A model directory that is being written: everything goes into `DIR.partial` beside it, which gets its name when it is complete.
//!
//! A run that was cut off (an interrupt, a full disk, a crash) leaves `DIR.partial` behind with a note of what it was to become.
//! The same work goes on with the files that are complete; other work is refused. Nothing is ever overwritten.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::checkpoint::names::shown;
use crate::config::json as strict_json;
use crate::{Error, Result};

/// What the directory is to become.
const JOB: &str = ".ember-unfinished.json";
/// Longest such note, in bytes.
const LONGEST_JOB: u64 = 1 << 20;
/// What is appended to the name of a file that is not complete.
const PART: &str = ".part";

/// The work that a directory is the result of.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// For people: the source and the options.
    pub(crate) about: String,
    /// The same for the same source and options.
    pub(crate) fingerprint: String,
}

/// A directory that is being written.
#[derive(Debug)]
pub(crate) struct OutputDir {
    target: PathBuf,
    partial: PathBuf,
    /// Held while this process writes.
    lock: File,
}

impl OutputDir {
    /// Creates `DIR.partial`, or goes on with the one that the same work has left.
    ///
    /// # Errors
    /// [`Error::Source`] when `target` exists and is not an empty directory, the partial directory is of other work, or another
    /// process is writing it; [`Error::Io`] when it cannot be made.
    pub(crate) fn open(target: &Path, job: &Job) -> Result<Self> {
        let refuse = |path: &Path, message: String| Err(Error::Source { path: path.into(), message });
        check_target(target)?;
        let partial = partial_path(target)?;
        if let Some(parent) = partial.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(|source| Error::Io { path: parent.into(), source })?;
        }
        let io = |source| Error::Io { path: partial.clone(), source };
        match fs::create_dir(&partial) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists && is_directory(&partial) => {}
            Err(error) => return Err(io(error)),
        }
        let note = partial.join(JOB);
        if fs::symlink_metadata(&note).is_err() {
            let leftover = format!("{JOB}{PART}");
            let mut entries = fs::read_dir(&partial).map_err(io)?;
            if entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != *leftover)) {
                let message =
                    "holds files that are not the unfinished output of this command: move or delete it".into();
                return refuse(&partial, message);
            }
            let text = json!({
                "unfinished": "this directory is not complete: the same command goes on with it",
                "about": job.about, "fingerprint": job.fingerprint,
            });
            write_complete(&note, format!("{text:#}\n").as_bytes())?;
        }
        let at_note = |source| Error::Io { path: note.clone(), source };
        let lock = OpenOptions::new().read(true).write(true).open(&note).map_err(at_note)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return refuse(&partial, "is being written by another process: wait for it, or stop it".into());
            }
            // Some network file systems have no locks.
            Err(TryLockError::Error(_)) => {}
        }
        let found = read_job(&note, &lock)?;
        if found.fingerprint != job.fingerprint {
            let message = format!(
                "is the unfinished output of other work ({}): finish it with the same command, or delete it",
                shown(&found.about)
            );
            return refuse(&partial, message);
        }
        Ok(Self { target: target.into(), partial, lock })
    }

    /// Whether a run before has begun with it, and was cut off.
    pub(crate) fn is_begun(target: &Path) -> bool {
        partial_path(target).is_ok_and(|partial| partial.exists())
    }

    /// Whether a file is complete, from this run or one before.
    pub(crate) fn has(&self, name: &str) -> bool {
        fs::symlink_metadata(self.partial.join(name)).is_ok_and(|file| file.is_file())
    }

    /// The path at which a file is written.
    pub(crate) fn part(&self, name: &str) -> PathBuf {
        part_of(&self.partial.join(name))
    }

    /// Gives a file that was written at [`part`](Self::part), and is on the disk, its name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn complete(&self, name: &str) -> Result<()> {
        rename(&self.part(name), &self.partial.join(name))
    }

    /// Writes a small file; folders in its name are made.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.partial.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|source| Error::Io { path: parent.into(), source })?;
        }
        write_complete(&path, bytes)
    }

    /// Gives the directory its name.
    ///
    /// # Errors
    /// [`Error::Source`] when something took the name meanwhile; [`Error::Io`].
    pub(crate) fn commit(self) -> Result<()> {
        check_target(&self.target)?;
        sync_directory(&self.partial);
        if is_directory(&self.target) {
            // Empty, as was just seen; not every system renames over it.
            fs::remove_dir(&self.target).map_err(|source| Error::Io { path: self.target.clone(), source })?;
        }
        rename(&self.partial, &self.target)?;
        // Not before: without it a crash here would leave a directory that no run goes on with.
        drop(self.lock);
        let note = self.target.join(JOB);
        fs::remove_file(&note).map_err(|source| Error::Io { path: note, source })?;
        sync_directory(&self.target);
        Ok(())
    }
}

/// `DIR.partial`.
fn partial_path(target: &Path) -> Result<PathBuf> {
    let Some(name) = target.file_name() else {
        return Err(Error::Source { path: target.into(), message: "is not the name of a new directory".into() });
    };
    let mut name = name.to_owned();
    name.push(".partial");
    Ok(target.with_file_name(name))
}

fn part_of(path: &Path) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(PART);
    part.into()
}

/// Whether a directory can be made at this path.
///
/// # Errors
/// [`Error::Source`] when there is something that is not an empty directory.
pub(crate) fn check_target(target: &Path) -> Result<()> {
    partial_path(target)?;
    let Ok(found) = fs::symlink_metadata(target) else { return Ok(()) };
    let empty = found.is_dir() && fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none());
    if empty {
        return Ok(());
    }
    let message = if found.is_dir() { "exists and is not empty" } else { "exists and is not a directory" };
    Err(Error::Source {
        path: target.into(),
        message: format!("{message}: nothing is overwritten, name a new directory"),
    })
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

fn read_job(path: &Path, file: &File) -> Result<Job> {
    let mut bytes = Vec::new();
    file.take(LONGEST_JOB).read_to_end(&mut bytes).map_err(|source| Error::Io { path: path.into(), source })?;
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let job = strict_json::parse(&bytes)
        .ok()
        .and_then(|value| Some(Job { about: text(&value, "about")?, fingerprint: text(&value, "fingerprint")? }));
    job.ok_or_else(|| Error::Source {
        path: path.into(),
        message: "is not the note of an unfinished output: delete the directory that it is in".into(),
    })
}

/// Writes a file so that under its name there is all of it or nothing.
fn write_complete(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = part_of(path);
    let write = || {
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| Error::Io { path: part.clone(), source })?;
    rename(&part, path)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|source| Error::Io { path: to.into(), source })?;
    if let Some(parent) = to.parent() {
        sync_directory(parent);
    }
    Ok(())
}

/// That names are on the disk, too. Not every system lets a directory be opened, and it does not matter for what the files hold.
fn sync_directory(path: &Path) {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    if let Ok(directory) = File::open(path) {
        let _ = directory.sync_all();
    }
}
