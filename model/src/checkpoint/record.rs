//! The header of a record of burn-store (Burnpack): 4 bytes of a magic number, 2 of a version, 4 of a length, a CBOR map, then the data, each
//! tensor from a multiple of 256 bytes on.
//!
//! Format: the documentation of `burn-store` 0.21, `burnpack`. That crate's own reader copies every tensor and cannot be shared between
//! threads; here tensors are views of the mapped file, under the checks that safetensors files get.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::header::{Flaw, FlawKind, MAX_HEADER, Placed, RawHeader, RawTensor, TensorInfo, check_places};
use super::names::shown;
use super::problem::CheckpointError;
use super::record_names::Fields;

/// "BURN", little-endian.
pub(super) const MAGIC: [u8; 4] = *b"NRUB";
pub(super) const VERSION: u16 = 1;
/// Bytes before the map.
pub(super) const FIXED: usize = 10;
/// Where data begin and tensors follow each other, in bytes.
pub(super) const ALIGNMENT: u64 = 256;
/// Deepest nesting of the map: one of tensors in it has two levels, an element type of burn's own quantisation some more.
const DEPTH: usize = 32;

#[derive(Deserialize)]
struct RawRecord {
    tensors: RawHeader<RecordTensor>,
    /// Who wrote it.
    #[serde(default, rename = "metadata")]
    _metadata: IgnoredAny,
}

#[derive(Deserialize)]
struct RecordTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
    /// For the state of optimisers.
    #[serde(default, rename = "param_id")]
    _param_id: IgnoredAny,
}

/// Whether a file is a record by its first bytes.
pub(super) fn is_record(file: &[u8]) -> bool {
    file.starts_with(&MAGIC)
}

/// The tensors of a record under the names of checkpoints, and everything that is wrong with it.
pub(super) fn survey(file: &[u8], path: &Arc<Path>, shard: usize) -> (BTreeMap<String, TensorInfo>, Vec<Flaw>) {
    let flaw = |kind, error: CheckpointError| Flaw { kind, error: Box::new(error.in_file(Some(path.as_ref()))) };
    let of_file = |message: String| CheckpointError::of_file(path.as_ref(), message);
    let (map, start) = match split(file) {
        Ok(parts) => parts,
        Err(message) => return (BTreeMap::new(), vec![flaw(FlawKind::Header, of_file(message))]),
    };
    let raw: RawRecord = match ciborium::de::from_reader_with_recursion_limit(map, DEPTH) {
        Ok(raw) => raw,
        Err(error) => {
            let message = format!("the map of tensors cannot be read ({})", shown(&error.to_string()));
            return (BTreeMap::new(), vec![flaw(FlawKind::Header, of_file(message))]);
        }
    };
    // The data begin after padding, of which a record without tensors need not have all.
    let data = file.get(start..).unwrap_or_default();
    let RawHeader(raw) = raw.tensors;
    let fields = Fields::of(raw.keys().map(String::as_str));
    let (mut tensors, mut flaws, mut ranges) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (path_of_field, RecordTensor { dtype, shape, data_offsets, .. }) in raw {
        if data_offsets.0 <= data_offsets.1 {
            ranges.push((data_offsets, path_of_field.clone()));
        }
        let name = match fields.checkpoint_name(&path_of_field) {
            Ok(name) => name,
            Err(message) => {
                flaws.push(flaw(FlawKind::Type, CheckpointError::of_tensor(&path_of_field, message)));
                continue;
            }
        };
        match (RawTensor { dtype, shape, data_offsets }).place(&path_of_field, data.len()) {
            Ok(Placed { dtype, shape, offset, bytes }) => {
                let offset = start.saturating_add(offset);
                let info = TensorInfo { dtype, shape, bytes, file: path.clone(), offset, shard };
                if tensors.insert(name, info).is_some() {
                    let message = "is the same parameter as another tensor of this record";
                    flaws.push(flaw(FlawKind::Type, CheckpointError::of_tensor(&path_of_field, message)));
                }
            }
            Err(wrong) => flaws.push(flaw(wrong.0, wrong.1)),
        }
    }
    flaws.extend(check_places(ranges, data.len(), ALIGNMENT, path));
    (tensors, flaws)
}

/// The bytes of the map, and where the data begin.
fn split(file: &[u8]) -> Result<(&[u8], usize), String> {
    let fixed = file.strip_prefix(&MAGIC).and_then(|rest| {
        let (version, rest) = rest.split_first_chunk::<2>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        Some((u16::from_le_bytes(*version), u32::from_le_bytes(*length), rest))
    });
    let Some((version, length, rest)) = fixed else {
        return Err(format!("has {} bytes, a record of burn-store has more: cut off", file.len()));
    };
    if version != VERSION {
        return Err(format!("is a record of version {version}, {VERSION} is read: write it with burn-store 0.21"));
    }
    if u64::from(length) > MAX_HEADER {
        return Err(format!("claims a map of {length} bytes, at most {MAX_HEADER} are accepted: damaged"));
    }
    let map = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let map = map.ok_or_else(|| format!("claims a map of {length} bytes, but only {} follow: cut off", rest.len()))?;
    Ok((map, data_start(map.len())))
}

/// Where the data begin after a map of this length.
pub(super) fn data_start(map: usize) -> usize {
    FIXED.saturating_add(map).next_multiple_of(ALIGNMENT as usize)
}
