//! The header of a safetensors file: 8 bytes of length, a JSON object, then the data.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. The checks are stricter than the format where no writer
//! needs the freedom: ranges must follow each other without gaps from the first data byte to the end of the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::dtype::Dtype;
use super::names::shown;
use super::problem::{CheckpointError, TensorProperty};
use crate::config::json;
use crate::{Error, Result};

/// Longest header, in bytes.
pub(super) const MAX_HEADER: u64 = 16 << 20;
/// Most tensors in one file: eight times as many as the largest supported model has.
pub(super) const MAX_TENSORS: usize = 1 << 15;
/// Longest tensor name, in bytes.
const MAX_NAME: usize = 1024;
const MAX_RANK: usize = 8;

/// Where a tensor lies and what it is.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Shape, row-major; empty for a scalar.
    pub shape: Vec<usize>,
    /// Length of the data, in bytes.
    pub bytes: usize,
    /// The file it is in.
    pub file: Arc<Path>,
    /// First byte, counted from the start of the file.
    pub(super) offset: usize,
    /// Index of the file in the checkpoint.
    pub(super) shard: usize,
}

impl TensorInfo {
    /// Type and shape, for messages.
    pub(super) fn property(&self) -> TensorProperty {
        TensorProperty::Typed { types: vec![self.dtype], shape: self.shape.clone() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's object; keys are checked for duplicates and length.
struct RawHeader(BTreeMap<String, RawTensor>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<RawHeader, A::Error> {
                let mut out = BTreeMap::new();
                let mut metadata = false;
                while let Some(name) = entries.next_key::<String>()? {
                    let bad = |what: &str| A::Error::custom(format!("tensor name {} {what}", shown(&name)));
                    let twice = if name == "__metadata__" { metadata } else { out.contains_key(&name) };
                    if twice {
                        return Err(bad("is there twice"));
                    }
                    if name == "__metadata__" {
                        metadata = true;
                        entries.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if name.is_empty() || name.len() > MAX_NAME {
                        return Err(bad(&format!("must have 1 to {MAX_NAME} bytes")));
                    }
                    if name.chars().any(char::is_control) {
                        return Err(bad("contains control characters"));
                    }
                    if out.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    let tensor = entries.next_value()?;
                    out.insert(name, tensor);
                }
                Ok(RawHeader(out))
            }
        }
        json.deserialize_map(V)
    }
}

/// Parses and checks the header at the start of `file`, the whole content of a shard.
pub(super) fn parse(file: &[u8], path: &Arc<Path>, shard: usize) -> Result<BTreeMap<String, TensorInfo>> {
    check(file, path, shard).map_err(|error| Error::container(error.in_file(Some(path.as_ref()))))
}

/// The errors are yet without the file.
fn check(
    file: &[u8],
    path: &Arc<Path>,
    shard: usize,
) -> std::result::Result<BTreeMap<String, TensorInfo>, CheckpointError> {
    let broken = |message: String| CheckpointError::of_file(path.as_ref(), message);
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        let found = TensorProperty::Bytes(file.len() as u64);
        let message = format!("is {} long: not a safetensors file, or cut off", found);
        return Err(broken(message).instead(TensorProperty::Bytes(8), found));
    };
    let length = u64::from_le_bytes(*length);
    let available = rest.len() as u64;
    if length > MAX_HEADER {
        return Err(broken(format!(
            "claims a header of {length} bytes, at most {MAX_HEADER} are accepted: not a safetensors file, or damaged"
        )));
    }
    let (Ok(at), true) = (usize::try_from(length), length <= available) else {
        let message =
            format!("claims a header of {length} bytes, but only {available} follow: cut off, download it again");
        return Err(broken(message).instead(TensorProperty::Bytes(length), TensorProperty::Bytes(available)));
    };
    let (header, data) = rest.split_at(at);
    let RawHeader(raw) = json::from_slice(header).map_err(|e| broken(format!("the header {e}")))?;

    let start = header.len().saturating_add(8);
    let mut tensors = BTreeMap::new();
    for (name, tensor) in raw {
        let bad = |message: String| CheckpointError::of_tensor(&name, message);
        let (begin, end) = tensor.data_offsets;
        if begin > end || end > data.len() as u64 {
            let message = format!(
                "bytes {begin} to {end} are not in the {} bytes of data: damaged or cut off, download it again",
                data.len()
            );
            return Err(bad(message));
        }
        // In range of the data, hence of usize.
        let (begin, end) = (begin as usize, end as usize);
        let dtype = Dtype::named(&tensor.dtype).ok_or_else(|| {
            bad(format!("element type {} is unknown", shown(&tensor.dtype)))
                .found(TensorProperty::Value(shown(&tensor.dtype)))
        })?;
        if tensor.shape.len() > MAX_RANK {
            return Err(bad(format!("has {} dimensions, at most {MAX_RANK} are accepted", tensor.shape.len())));
        }
        let dims: Option<Vec<usize>> = tensor.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let bytes = dims.as_ref().and_then(|dims| byte_size(dims, dtype));
        let (Some(shape), Some(bytes)) = (dims, bytes) else {
            return Err(bad(format!("the shape {:?} is too large", tensor.shape)));
        };
        let range = end.saturating_sub(begin);
        if bytes != range {
            let message = format!("{dtype:?} {shape:?} takes {bytes} bytes, but its range has {range}");
            let [expected, found] = [bytes, range].map(|bytes| TensorProperty::Bytes(bytes as u64));
            return Err(bad(message).instead(expected, found));
        }
        let offset = start.saturating_add(begin);
        tensors.insert(name, TensorInfo { dtype, shape, bytes, file: path.clone(), offset, shard });
    }

    let mut ranges: Vec<(usize, usize, &str)> = tensors
        .iter()
        .map(|(name, info)| {
            let begin = info.offset.saturating_sub(start);
            (begin, begin.saturating_add(info.bytes), name.as_str())
        })
        .collect();
    ranges.sort_unstable();
    let mut cursor = 0;
    for (begin, end, name) in &ranges {
        if *begin != cursor {
            let what = if *begin < cursor { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(CheckpointError::of_tensor(name, format!("its range {begin} to {end} {what}")));
        }
        cursor = *end;
    }
    if cursor != data.len() {
        let rest = data.len().saturating_sub(cursor);
        let [expected, found] = [cursor, data.len()].map(|bytes| TensorProperty::Bytes(bytes as u64));
        return Err(broken(format!("{rest} bytes after the last tensor belong to none")).instead(expected, found));
    }
    Ok(tensors)
}

/// Bytes of a dense tensor; `None` on overflow.
fn byte_size(shape: &[usize], dtype: Dtype) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |bytes, &dim| bytes.checked_mul(dim))
}
