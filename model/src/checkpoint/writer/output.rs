//! A model directory that is being written: everything goes into `DIR.partial` beside it, which gets its name when it is complete.
//!
//! A run that was cut off (an interrupt, a full disk, a crash) leaves `DIR.partial` behind with a note of what it was to become.
//! The same work goes on with the files that are complete; other work is refused. Nothing is ever overwritten. One process writes at a
//! time: whoever has locked the note, which is never replaced.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::checkpoint::container;
use crate::checkpoint::dir::FoundFile;
use crate::checkpoint::names::shown;
use crate::checkpoint::open::Shard;
use crate::config::json as strict_json;
use crate::{Error, Result};

/// What the directory is to become.
const JOB: &str = ".ember-unfinished.json";
/// Longest such note, in bytes.
const LONGEST_JOB: u64 = 1 << 20;
/// What is appended to the name of a file that is not complete.
const PART: &str = ".part";
/// How often a directory is looked for that others give its name or remove meanwhile.
const ATTEMPTS: usize = 16;

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
    /// The note, which is locked while this process writes.
    lock: File,
}

impl OutputDir {
    /// Creates `DIR.partial`, or goes on with the one that the same work has left.
    ///
    /// # Errors
    /// [`Error::Source`] when `target` exists and is not an empty directory, the partial directory is of other work, or another
    /// process is writing it; [`Error::Io`] when it cannot be made.
    pub(crate) fn open(target: &Path, job: &Job) -> Result<Self> {
        let partial = partial_path(target)?;
        if let Some(parent) = partial.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(|error| Error::Io { path: parent.into(), error })?;
        }
        for _ in 0..ATTEMPTS {
            check_target(target)?;
            let Some(lock) = lock(&partial)? else { continue };
            let output = Self { target: target.into(), partial, lock };
            output.claim(job)?;
            return Ok(output);
        }
        Err(busy(&partial))
    }

    /// Says in the note what the directory is to become, or reads that it is to become this. What the note says counts only while it is
    /// locked.
    fn claim(&self, job: &Job) -> Result<()> {
        let refuse = |message: String| Err(Error::Source { path: self.partial.clone(), message });
        let note = self.partial.join(JOB);
        let at_note = |error| Error::Io { path: note.clone(), error };
        let mut found = Vec::new();
        (&self.lock).take(LONGEST_JOB).read_to_end(&mut found).map_err(at_note)?;
        if !found.is_empty() {
            let found = parse_job(&note, &found)?;
            if found.fingerprint != job.fingerprint {
                return refuse(format!(
                    "is the unfinished output of other work ({}): finish it with the same command, or delete it",
                    shown(&found.about)
                ));
            }
            return Ok(());
        }
        // New, or of a run that was cut off before it wrote anything. Whoever wrote before may have finished since the target was seen.
        let refused = check_target(&self.target).err();
        if refused.is_some() || !self.holds_the_note_alone() {
            let _ = fs::remove_file(&note);
            let _ = fs::remove_dir(&self.partial);
            return refused.map_or_else(
                || refuse("holds files that are not the unfinished output of this command: move or delete it".into()),
                Err,
            );
        }
        let text = json!({
            "unfinished": "this directory is not complete: the same command goes on with it",
            "about": job.about, "fingerprint": job.fingerprint,
        });
        // In place: a file that took the name of this one would not be locked.
        (&self.lock).write_all(format!("{text:#}\n").as_bytes()).map_err(at_note)?;
        self.lock.sync_all().map_err(at_note)?;
        sync_directory(&self.partial);
        Ok(())
    }

    fn holds_the_note_alone(&self) -> bool {
        fs::read_dir(&self.partial)
            .is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == *JOB)))
    }

    /// Whether a run before has begun with it, and was cut off.
    pub(crate) fn is_begun(target: &Path) -> bool {
        partial_path(target).is_ok_and(|partial| partial.exists())
    }

    /// The directory that is to be.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Whether a file of weights is complete, from this run or one before. One that was cut off or overwritten since is not: it is written
    /// again.
    pub(crate) fn has(&self, name: &str) -> bool {
        let is_file = fs::symlink_metadata(self.partial.join(name)).is_ok_and(|file| file.is_file());
        is_file && self.tensor_bytes(name).is_ok()
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

    /// Bytes of the tensors of a complete file, as its header has them.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Container`] when it is damaged.
    pub(crate) fn tensor_bytes(&self, name: &str) -> Result<u64> {
        let path: Arc<Path> = self.partial.join(name).into();
        let file = Shard::open(&path, FoundFile::OnDisk(path.to_path_buf()))?;
        let tensors = container::parse(&file.bytes, &path, 0)?;
        Ok(tensors.values().fold(0, |sum, tensor| sum.saturating_add(tensor.bytes as u64)))
    }

    /// Removes what a run before has written of a file that it did not complete: the room that it takes is free again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn remove_part(&self, name: &str) -> Result<()> {
        let part = self.part(name);
        match fs::remove_file(&part) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::Io { path: part, error }),
            _ => Ok(()),
        }
    }

    /// Removes files of these names, complete or not, and the directory if it holds no others: what could never be completed would keep
    /// other work from the name.
    pub(crate) fn discard<'a>(self, names: impl Iterator<Item = &'a str>) {
        for name in names {
            let _ = fs::remove_file(self.partial.join(name));
            let _ = self.remove_part(name);
        }
        if self.holds_the_note_alone() {
            let _ = fs::remove_file(self.partial.join(JOB));
            let _ = fs::remove_dir(&self.partial);
        }
    }

    /// Writes a small file; folders in its name are made.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.partial.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| Error::Io { path: parent.into(), error })?;
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
            fs::remove_dir(&self.target).map_err(|error| Error::Io { path: self.target.clone(), error })?;
        }
        rename(&self.partial, &self.target)?;
        // Not before: without it a crash here would leave a directory that no run goes on with.
        drop(self.lock);
        let note = self.target.join(JOB);
        fs::remove_file(&note).map_err(|error| Error::Io { path: note, error })?;
        sync_directory(&self.target);
        Ok(())
    }
}

/// Makes the directory and locks its note, which is made where there is none. None when the directory was given its name or removed
/// meanwhile.
///
/// # Errors
/// [`Error::Source`] when another process has it; [`Error::Io`].
fn lock(partial: &Path) -> Result<Option<File>> {
    let io = |error| Error::Io { path: partial.into(), error };
    match fs::create_dir(partial) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => match fs::symlink_metadata(partial) {
            Ok(found) if found.is_dir() => {}
            Err(gone) if gone.kind() == ErrorKind::NotFound => return Ok(None),
            _ => return Err(io(error)),
        },
        Err(error) => return Err(io(error)),
    }
    let note = partial.join(JOB);
    // A link could lead anywhere, and a pipe would be waited for.
    if fs::symlink_metadata(&note).is_ok_and(|found| !found.is_file()) {
        return Err(no_job(&note));
    }
    let file = match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&note) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::Io { path: note, error }),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy(partial)),
        // Some network file systems have no locks.
        Err(TryLockError::Error(_)) => {}
    }
    Ok(is_named(&file, &note).then_some(file))
}

/// Whether this is the file of this name still.
#[cfg(unix)]
fn is_named(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(open), Ok(named)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// Whether this is the file of this name still: other systems do not let one that is open be replaced.
#[cfg(not(unix))]
fn is_named(_: &File, path: &Path) -> bool {
    path.exists()
}

fn busy(partial: &Path) -> Error {
    Error::Source {
        path: partial.into(),
        message: "is being written by another process: wait for it, or stop it".into(),
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

fn parse_job(path: &Path, bytes: &[u8]) -> Result<Job> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let job = strict_json::parse(bytes)
        .ok()
        .and_then(|value| Some(Job { about: text(&value, "about")?, fingerprint: text(&value, "fingerprint")? }));
    job.ok_or_else(|| no_job(path))
}

fn no_job(path: &Path) -> Error {
    let message = "is not the note of an unfinished output: delete the directory that it is in".into();
    Error::Source { path: path.into(), message }
}

/// Writes a file so that under its name there is all of it or nothing.
fn write_complete(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = part_of(path);
    let write = || {
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| Error::Io { path: part.clone(), error })?;
    rename(&part, path)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|error| Error::Io { path: to.into(), error })?;
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
