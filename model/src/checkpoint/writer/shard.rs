//! A safetensors file that is written while its tensors are made.
//!
//! The header comes first in the file and last in time: its room is reserved for the longest that it can be, and what is left is
//! filled with spaces, as the format allows. Until then the file begins with a length of 0, which no reader accepts.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::stored::{Slot, StoredTensor};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::dtype::Dtype;
use crate::checkpoint::header::MAX_HEADER;
use crate::{Error, Result};

/// Where data begin and tensors follow each other: readers that map the file want them aligned, readers of PyTorch by the size of an
/// element.
const ALIGNMENT: usize = 64;
/// Bytes that are written at once.
const PIECE: usize = 16 << 20;

/// A file that is being written.
pub(crate) struct ShardFile {
    path: PathBuf,
    file: File,
    /// Bytes of the header, of which the length is none.
    header: usize,
    /// Where the next tensor begins, from the first byte of data on.
    at: usize,
    entries: Map<String, Value>,
    /// What would leave the next tensor unaligned: written last, by descending size of elements.
    uneven: Vec<StoredTensor>,
}

/// Bytes of a header for these tensors, length and room to the next aligned byte included.
pub(crate) fn header_bytes<'a>(slots: impl Iterator<Item = &'a Slot>) -> usize {
    let mut entries = metadata();
    for slot in slots {
        // The longest offsets that there are.
        entries.insert(slot.name.clone(), entry(slot.dtype, &slot.shape, [usize::MAX; 2]));
    }
    let text = Value::Object(entries).to_string();
    text.len().saturating_add(8).next_multiple_of(ALIGNMENT)
}

impl ShardFile {
    /// Creates the file for these tensors.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written; [`Error::Container`] when its header would be longer than what readers accept.
    pub(crate) fn create<'a>(path: &Path, slots: impl Iterator<Item = &'a Slot>) -> Result<Self> {
        let io = |error| Error::Io { path: path.into(), error };
        let reserved = header_bytes(slots);
        let header = reserved.saturating_sub(8);
        if header as u64 > MAX_HEADER {
            let message = format!("would have a header of {header} bytes, {MAX_HEADER} at most: use smaller shards");
            return Err(Error::container(CheckpointError::of_file(path, message)));
        }
        let mut file = File::create(path).map_err(io)?;
        file.seek(SeekFrom::Start(reserved as u64)).map_err(io)?;
        Ok(Self { path: path.into(), file, header, at: 0, entries: metadata(), uneven: Vec::new() })
    }

    /// Appends a tensor. `written` is told the bytes of its data from the first on as they go out.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk is full or fails.
    pub(crate) fn push(
        &mut self,
        tensor: StoredTensor,
        written: &mut dyn FnMut(&StoredTensor, usize, usize),
    ) -> Result<()> {
        if tensor.data.len().is_multiple_of(ALIGNMENT) {
            self.write(&tensor, written)
        } else {
            self.uneven.push(tensor);
            Ok(())
        }
    }

    /// Writes what is left and the header, and waits until the disk has all of it.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub(crate) fn finish(mut self, written: &mut dyn FnMut(&StoredTensor, usize, usize)) -> Result<()> {
        let mut uneven = std::mem::take(&mut self.uneven);
        uneven.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.size()));
        for tensor in &uneven {
            self.write(tensor, written)?;
        }
        let mut header = Value::Object(std::mem::take(&mut self.entries)).to_string();
        let Some(room) = self.header.checked_sub(header.len()) else {
            let message = "has more in its header than was reserved";
            return Err(Error::container(CheckpointError::of_file(&self.path, message)));
        };
        header.extend(std::iter::repeat_n(' ', room));
        let mut write = || {
            self.file.seek(SeekFrom::Start(8))?;
            self.file.write_all(header.as_bytes())?;
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(&(header.len() as u64).to_le_bytes())?;
            self.file.sync_all()
        };
        write().map_err(|error| Error::Io { path: self.path.clone(), error })
    }

    fn write(&mut self, tensor: &StoredTensor, written: &mut dyn FnMut(&StoredTensor, usize, usize)) -> Result<()> {
        let end = self.at.saturating_add(tensor.data.len());
        self.entries.insert(tensor.name.clone(), entry(tensor.dtype, &tensor.shape, [self.at, end]));
        self.at = end;
        let mut start = 0usize;
        for piece in tensor.data.chunks(PIECE) {
            self.file.write_all(piece).map_err(|error| Error::Io { path: self.path.clone(), error })?;
            written(tensor, start, piece.len());
            start = start.saturating_add(piece.len());
        }
        Ok(())
    }
}

fn metadata() -> Map<String, Value> {
    // What transformers asks for.
    Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))])
}

fn entry(dtype: Dtype, shape: &[usize], range: [usize; 2]) -> Value {
    json!({ "dtype": dtype.as_str(), "shape": shape, "data_offsets": range })
}
