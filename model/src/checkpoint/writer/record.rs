//! A record of burn-store (Burnpack) that is written while its tensors are made: see [`crate::checkpoint::record`] for the format.
//!
//! All sizes are known before, so the header is written first; a file that is not complete is shorter than its header says, which no
//! reader accepts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::stored::{Slot, StoredTensor};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::header::MAX_HEADER;
use crate::checkpoint::record::{ALIGNMENT, FIXED, MAGIC, VERSION, data_start};
use crate::{Error, Result};

/// Bytes that are written at once.
const PIECE: usize = 16 << 20;

/// What burn-store writes.
#[derive(Serialize)]
struct Metadata<'a> {
    tensors: BTreeMap<&'a str, Descriptor<'a>>,
    metadata: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct Descriptor<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: (u64, u64),
}

/// A record that is being written.
pub(crate) struct RecordFile {
    path: PathBuf,
    file: File,
    /// Bytes of data so far.
    at: u64,
    /// Where the next tensors begin, in order.
    starts: std::vec::IntoIter<(String, u64)>,
}

/// Bytes of the record before the data.
pub(crate) fn record_header_bytes<'a>(slots: impl Iterator<Item = &'a Slot>) -> usize {
    let slots: Vec<&Slot> = slots.collect();
    map(&slots).map_or(0, |(map, _)| data_start(map.len()))
}

/// Where tensors begin, by name, in order.
type Starts = Vec<(String, u64)>;

/// The CBOR map, and where each tensor begins.
fn map(slots: &[&Slot]) -> std::result::Result<(Vec<u8>, Starts), String> {
    let (mut tensors, mut starts, mut end) = (BTreeMap::new(), Vec::new(), 0u64);
    for slot in slots {
        let start = end.checked_next_multiple_of(ALIGNMENT).ok_or("would be too large")?;
        end = start.checked_add(slot.bytes() as u64).ok_or("would be too large")?;
        let descriptor = Descriptor { dtype: slot.dtype.as_str(), shape: &slot.shape, data_offsets: (start, end) };
        tensors.insert(slot.name.as_str(), descriptor);
        starts.push((slot.name.clone(), start));
    }
    let metadata = [("format", "burnpack"), ("producer", "emberlm"), ("version", env!("CARGO_PKG_VERSION"))].into();
    let mut out = Vec::new();
    ciborium::into_writer(&Metadata { tensors, metadata }, &mut out).map_err(|error| error.to_string())?;
    Ok((out, starts))
}

impl RecordFile {
    /// Creates the file for these tensors, which follow in this order.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written; [`Error::Container`] when its header would be longer than what readers accept.
    pub(crate) fn create<'a>(path: &Path, slots: impl Iterator<Item = &'a Slot>) -> Result<Self> {
        let io = |error| Error::Io { path: path.into(), error };
        let container = |message: String| Error::container(CheckpointError::of_file(path, message));
        let slots: Vec<&Slot> = slots.collect();
        let (map, starts) = map(&slots).map_err(container)?;
        let length = u32::try_from(map.len()).ok().filter(|&length| u64::from(length) <= MAX_HEADER);
        let length = length.ok_or_else(|| container(format!("would have a map of {} bytes", map.len())))?;
        let mut file = File::create(path).map_err(io)?;
        let mut head = Vec::with_capacity(data_start(map.len()));
        head.extend(MAGIC);
        head.extend(VERSION.to_le_bytes());
        head.extend(length.to_le_bytes());
        debug_assert_eq!(head.len(), FIXED);
        head.extend(&map);
        head.resize(data_start(map.len()), 0);
        file.write_all(&head).map_err(io)?;
        Ok(Self { path: path.into(), file, at: 0, starts: starts.into_iter() })
    }

    /// Appends the next tensor. `written` is told the bytes of its data from the first on as they go out.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk is full or fails; [`Error::Tensor`] when it is not the tensor that was announced.
    pub(crate) fn push(
        &mut self,
        tensor: &StoredTensor,
        written: &mut dyn FnMut(&StoredTensor, usize, usize),
    ) -> Result<()> {
        let io = |error| Error::Io { path: self.path.clone(), error };
        let start = match self.starts.next() {
            Some((name, start)) if name == tensor.name => start,
            _ => return Err(CheckpointError::of_tensor(&tensor.name, "is not the next tensor of the record").into()),
        };
        let padding = usize::try_from(start.saturating_sub(self.at)).unwrap_or(0).min(ALIGNMENT as usize);
        self.file.write_all([0; ALIGNMENT as usize].get(..padding).unwrap_or_default()).map_err(io)?;
        let mut done = 0usize;
        for piece in tensor.data.chunks(PIECE) {
            self.file.write_all(piece).map_err(io)?;
            written(tensor, done, piece.len());
            done = done.saturating_add(piece.len());
        }
        self.at = start.saturating_add(done as u64);
        Ok(())
    }

    /// Waits until the disk has all of it.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub(crate) fn finish(mut self) -> Result<()> {
        if let Some((name, _)) = self.starts.next() {
            return Err(CheckpointError::of_tensor(&name, "is missing in the record").into());
        }
        self.file.sync_all().map_err(|error| Error::Io { path: self.path.clone(), error })
    }
}
