//! A file that is not complete yet: which parts of it are on the disk, whatever ended the process before.
//!
//! The bytes are in `HASH.ember.incomplete`, in their places; what is there of each part stands in `HASH.ember.json` beside it, which is
//! written after the bytes that it tells of. A record that does not fit the file is as good as none: the file begins anew. A crash of the
//! machine may lose bytes that the record tells of; the hash of the whole file, which decides in the end, then makes it begin anew.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::cache::{make_dir, write_atomically};
use super::error::{HubError, HubResult};
use super::listing::Expected;
use crate::file_hash::FileHash;

/// Bytes after which the record is written again.
const SAVE_EVERY: u64 = 4 << 20;
/// Parts of a file at most; longer files have larger parts.
const MOST_PARTS: u64 = 10_000;
/// Longest record, in bytes.
const MAX_RECORD: u64 = 1 << 20;

/// A file on its way.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    record_path: PathBuf,
    length: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    record: Record,
    /// Bytes that the record on the disk does not tell of.
    unsaved: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    etag: String,
    length: u64,
    part_bytes: u64,
    /// The ETag of who sends the bytes, which on a hub is another server than the one that names the file.
    sender_etag: Option<String>,
    /// Bytes at the beginning of each part that are there.
    written: Vec<u64>,
}

impl Record {
    fn new(expected: &Expected, part_bytes: u64) -> Self {
        let least = expected.length.div_ceil(MOST_PARTS);
        let part_bytes = part_bytes.max(least).max(1);
        let parts = usize::try_from(expected.length.div_ceil(part_bytes)).unwrap_or(0);
        let etag = expected.hash.hex().to_owned();
        Self { etag, length: expected.length, part_bytes, sender_etag: None, written: vec![0; parts] }
    }

    /// Whether it can be of this file.
    fn fits(&self, expected: &Expected) -> bool {
        let parts = self.length.div_ceil(self.part_bytes.max(1));
        self.etag == expected.hash.hex()
            && self.length == expected.length
            && self.part_bytes > 0
            && parts <= MOST_PARTS
            && self.written.len() as u64 == parts
            && self.written.iter().enumerate().all(|(part, &written)| written <= self.part_length(part))
    }

    fn part_start(&self, part: usize) -> u64 {
        self.part_bytes.saturating_mul(part as u64).min(self.length)
    }

    fn part_length(&self, part: usize) -> u64 {
        self.part_start(part.saturating_add(1)).saturating_sub(self.part_start(part))
    }
}

fn paths(blobs: &Path, hash: &FileHash) -> (PathBuf, PathBuf) {
    (blobs.join(format!("{}.ember.incomplete", hash.hex())), blobs.join(format!("{}.ember.json", hash.hex())))
}

/// What an attempt before left, where its file is there too.
fn read_record(blobs: &Path, expected: &Expected) -> Option<Record> {
    let (path, record) = paths(blobs, &expected.hash);
    fs::metadata(path).ok().filter(|file| file.is_file() && file.len() == expected.length)?;
    let mut bytes = Vec::new();
    File::open(record).ok()?.take(MAX_RECORD).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice::<Record>(&bytes).ok().filter(|record| record.fits(expected))
}

impl Partial {
    /// Bytes of a file that an attempt before left.
    pub fn kept(blobs: &Path, expected: &Expected) -> u64 {
        read_record(blobs, expected).map_or(0, |record| record.written.iter().sum())
    }

    /// Goes on with what an attempt before left, or begins. The caller holds the lock of the file.
    pub fn open(blobs: &Path, expected: &Expected, part_bytes: u64) -> HubResult<Self> {
        make_dir(blobs)?;
        let (path, record_path) = paths(blobs, &expected.hash);
        let kept = read_record(blobs, expected);
        let io = |source| HubError::io(&path, source);
        if kept.is_none() {
            // Before the bytes that it tells of.
            let _ = fs::remove_file(&record_path);
        }
        let file = OpenOptions::new().create(true).write(true).truncate(kept.is_none()).open(&path).map_err(io)?;
        // Missing bytes read as zeros.
        file.set_len(expected.length).map_err(io)?;
        let record = kept.unwrap_or_else(|| Record::new(expected, part_bytes));
        Ok(Self { path, record_path, length: expected.length, state: Mutex::new(State { record, unsaved: 0 }) })
    }

    pub fn parts(&self) -> usize {
        self.state().record.written.len()
    }

    /// First byte of a part, its length, and how many of its bytes are there.
    pub fn part(&self, part: usize) -> (u64, u64, u64) {
        let record = &self.state().record;
        (record.part_start(part), record.part_length(part), record.written.get(part).copied().unwrap_or(0))
    }

    pub fn written(&self) -> u64 {
        self.state().record.written.iter().sum()
    }

    pub fn sender_etag(&self) -> Option<String> {
        self.state().record.sender_etag.clone()
    }

    pub fn set_sender_etag(&self, etag: Option<String>) {
        self.state().record.sender_etag = etag;
    }

    /// A writer at the bytes of a part that come next.
    pub fn writer(&self, part: usize) -> HubResult<PartWriter<'_>> {
        let (start, length, written) = self.part(part);
        let io = |source| HubError::io(&self.path, source);
        let mut file = OpenOptions::new().write(true).open(&self.path).map_err(io)?;
        file.seek(SeekFrom::Start(start.saturating_add(written))).map_err(io)?;
        Ok(PartWriter { partial: self, file, part, left: length.saturating_sub(written) })
    }

    /// Forgets all bytes; gives their number.
    pub fn reset(&self) -> HubResult<u64> {
        let lost = self.written();
        let mut state = self.state();
        state.record.written.iter_mut().for_each(|written| *written = 0);
        state.record.sender_etag = None;
        self.save(&mut state)?;
        Ok(lost)
    }

    /// Removes what is there.
    pub fn discard(&self) {
        let _ = fs::remove_file(&self.record_path);
        let _ = fs::remove_file(&self.path);
    }

    /// As one part, as which a server without ranges sends it. Nothing may be written yet.
    pub fn as_one_part(&self) {
        let mut state = self.state();
        state.record.part_bytes = self.length.max(1);
        state.record.written = vec![0];
    }

    /// The file, to be read.
    pub fn read(&self) -> HubResult<File> {
        File::open(&self.path).map_err(|source| HubError::io(&self.path, source))
    }

    /// Gives the complete file its name, when all of it is on the disk.
    pub fn finish(self, blob: &Path) -> HubResult<()> {
        let io = |source| HubError::io(&self.path, source);
        File::options().write(true).open(&self.path).and_then(|file| file.sync_all()).map_err(io)?;
        fs::rename(&self.path, blob).map_err(io)?;
        let _ = fs::remove_file(&self.record_path);
        Ok(())
    }

    /// Writes what is there into the record.
    pub fn keep(&self) -> HubResult<()> {
        self.save(&mut self.state())
    }

    fn save(&self, state: &mut State) -> HubResult<()> {
        let json = serde_json::to_vec(&state.record).unwrap_or_default();
        write_atomically(&self.record_path, &json)?;
        state.unsaved = 0;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The record is whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the bytes of one part in their order.
pub(super) struct PartWriter<'a> {
    partial: &'a Partial,
    file: File,
    part: usize,
    left: u64,
}

impl PartWriter<'_> {
    /// Bytes of the part that are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Writes the next bytes, which are no more than are left.
    pub fn write(&mut self, bytes: &[u8]) -> HubResult<()> {
        self.file.write_all(bytes).map_err(|source| HubError::io(&self.partial.path, source))?;
        let count = bytes.len() as u64;
        self.left = self.left.saturating_sub(count);
        let mut state = self.partial.state();
        if let Some(written) = state.record.written.get_mut(self.part) {
            *written = written.saturating_add(count);
        }
        state.unsaved = state.unsaved.saturating_add(count);
        if state.unsaved >= SAVE_EVERY { self.partial.save(&mut state) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(length: u64) -> Expected {
        Expected { length, hash: FileHash::from_hex(&"a".repeat(64)).unwrap() }
    }

    #[test]
    fn what_was_kept_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let partial = Partial::open(dir.path(), &expected(10), 4).unwrap();
        assert_eq!((partial.parts(), partial.part(2)), (3, (8, 2, 0)));
        partial.writer(1).unwrap().write(b"45").unwrap();
        assert_eq!(Partial::kept(dir.path(), &expected(10)), 0);
        partial.keep().unwrap();
        assert_eq!(Partial::kept(dir.path(), &expected(10)), 2);
        drop(partial);
        // The size of parts is that of the file that is there.
        let partial = Partial::open(dir.path(), &expected(10), 5).unwrap();
        assert_eq!((partial.parts(), partial.part(1), partial.written()), (3, (4, 4, 2), 2));
        for (part, bytes) in [(0, "0123"), (1, "67"), (2, "89")] {
            partial.writer(part).unwrap().write(bytes.as_bytes()).unwrap();
        }
        let blob = dir.path().join("blob");
        partial.finish(&blob).unwrap();
        assert_eq!(fs::read(&blob).unwrap(), b"0123456789");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn records_that_do_not_fit_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let partial = Partial::open(dir.path(), &expected(10), 4).unwrap();
        partial.writer(0).unwrap().write(b"0123").unwrap();
        partial.keep().unwrap();
        let record = fs::read_to_string(&partial.record_path).unwrap();
        assert_eq!(Partial::kept(dir.path(), &expected(10)), 4);
        assert_eq!(Partial::kept(dir.path(), &expected(11)), 0);
        for (from, to) in [
            ("[4,0,0]", "[5,0,0]"),
            ("[4,0,0]", "[4,0]"),
            ("\"part_bytes\":4", "\"part_bytes\":0"),
            ("aaaa", "bbbb"),
            ("{", ""),
            ("[4,0,0]", "[-1,0,0]"),
            ("[4,0,0]", "[18446744073709551615,0,0]"),
        ] {
            let damaged = record.replacen(from, to, 1);
            assert_ne!(damaged, record);
            fs::write(&partial.record_path, damaged).unwrap();
            assert_eq!(Partial::kept(dir.path(), &expected(10)), 0, "{to}");
            assert_eq!(Partial::open(dir.path(), &expected(10), 4).unwrap().written(), 0);
        }
    }

    #[test]
    fn a_very_long_file_has_few_parts() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::new(&expected(1 << 50), 1 << 20);
        assert!(record.written.len() as u64 <= MOST_PARTS && record.fits(&expected(1 << 50)));
        drop(dir);
    }
}
