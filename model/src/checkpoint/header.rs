//! The header of a safetensors file: 8 bytes of length, a JSON object, then the data.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. The checks are stricter than the format where no writer
//! needs the freedom: ranges must follow each other without gaps from the first data byte to the end of the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::names::shown;
use crate::config::json;
use crate::{Error, Result};

/// Longest header, in bytes.
pub(super) const MAX_HEADER: u64 = 16 << 20;
/// Most tensors in one file: eight times as many as the largest supported model has.
pub(super) const MAX_TENSORS: usize = 1 << 15;
/// Longest tensor name, in bytes.
const MAX_NAME: usize = 1024;
const MAX_RANK: usize = 8;

/// An element type of safetensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the variants are the names in the files")]
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E4M3,
    F8E5M2,
    I16,
    U16,
    F16,
    Bf16,
    I32,
    U32,
    F32,
    I64,
    U64,
    F64,
}

impl Dtype {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// The type of this name in a header.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "BOOL" => Self::Bool,
            "U8" => Self::U8,
            "I8" => Self::I8,
            "F8_E4M3" => Self::F8E4M3,
            "F8_E5M2" => Self::F8E5M2,
            "I16" => Self::I16,
            "U16" => Self::U16,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "I32" => Self::I32,
            "U32" => Self::U32,
            "F32" => Self::F32,
            "I64" => Self::I64,
            "U64" => Self::U64,
            "F64" => Self::F64,
            _ => return None,
        })
    }
}

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

/// What is wrong with a safetensors file, or with a tensor of it.
#[derive(Clone, Debug)]
pub(crate) struct Flaw {
    /// Which kind of thing.
    pub kind: FlawKind,
    /// As the file has it; none where it is the file as a whole.
    pub tensor: Option<String>,
    /// A sentence without file and tensor.
    pub message: String,
}

/// Kinds of [`Flaw`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlawKind {
    /// There is no header that can be read.
    Header,
    /// A range is not inside the file.
    Range,
    /// An element type or a shape cannot be used.
    Type,
    /// A range has another length than the shape takes.
    Size,
    /// A range overlaps another, or leaves a gap.
    Place,
    /// Bytes at the end that belong to nothing.
    Trailing,
}

impl Flaw {
    fn error(self, path: &Path) -> Error {
        let message = match self.tensor {
            Some(name) => format!("tensor {}: {}", shown(&name), self.message),
            None => self.message,
        };
        Error::Container { path: path.into(), message }
    }
}

/// Parses and checks the header at the start of `file`, the whole content of a shard.
pub(super) fn parse(file: &[u8], path: &Arc<Path>, shard: usize) -> Result<BTreeMap<String, TensorInfo>> {
    let (tensors, flaws) = survey(file, path, shard);
    match flaws.into_iter().next() {
        Some(flaw) => Err(flaw.error(path)),
        None => Ok(tensors),
    }
}

/// As [`parse`], with everything that is wrong, and the tensors whose data are in the file all the same.
pub(super) fn survey(file: &[u8], path: &Arc<Path>, shard: usize) -> (BTreeMap<String, TensorInfo>, Vec<Flaw>) {
    let whole = |kind, message: String| Flaw { kind, tensor: None, message };
    let (header, data) = match split(file) {
        Ok(parts) => parts,
        Err(message) => return (BTreeMap::new(), vec![whole(FlawKind::Header, message)]),
    };
    let raw = match json::from_slice(header) {
        Ok(RawHeader(raw)) => raw,
        Err(e) => return (BTreeMap::new(), vec![whole(FlawKind::Header, format!("the header {e}"))]),
    };
    let start = header.len().saturating_add(8);
    let (mut tensors, mut flaws, mut ranges) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (name, tensor) in raw {
        let (begin, end) = tensor.data_offsets;
        if begin <= end {
            ranges.push((begin, end, name.clone()));
        }
        match tensor.place(data.len()) {
            Ok(Placed { dtype, shape, offset, bytes }) => {
                let offset = start.saturating_add(offset);
                tensors.insert(name, TensorInfo { dtype, shape, bytes, file: path.clone(), offset, shard });
            }
            Err((kind, message)) => flaws.push(Flaw { kind, tensor: Some(name), message }),
        }
    }
    ranges.sort_unstable();
    let mut cursor = 0;
    for (begin, end, name) in ranges {
        if begin != cursor {
            let what = if begin < cursor { "overlaps the tensor before it" } else { "leaves a gap before it" };
            let message = format!("its range {begin} to {end} {what}");
            flaws.push(Flaw { kind: FlawKind::Place, tensor: Some(name), message });
        }
        cursor = cursor.max(end);
    }
    let rest = (data.len() as u64).saturating_sub(cursor);
    if rest > 0 {
        flaws.push(whole(FlawKind::Trailing, format!("{rest} bytes after the last tensor belong to none")));
    }
    (tensors, flaws)
}

/// The bytes of the header and those of the data; the error is a sentence without the path.
fn split(file: &[u8]) -> std::result::Result<(&[u8], &[u8]), String> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("is {} bytes long: not a safetensors file, or cut off", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    let available = rest.len() as u64;
    if length > MAX_HEADER {
        return Err(format!(
            "claims a header of {length} bytes, at most {MAX_HEADER} are accepted: not a safetensors file, or damaged"
        ));
    }
    match usize::try_from(length) {
        Ok(at) if length <= available => Ok(rest.split_at(at)),
        _ => Err(format!("claims a header of {length} bytes, but only {available} follow: cut off, download it again")),
    }
}

/// A tensor whose bytes are in the file.
struct Placed {
    dtype: Dtype,
    shape: Vec<usize>,
    /// First byte, counted from the first of the data.
    offset: usize,
    bytes: usize,
}

impl RawTensor {
    /// Where the tensor is in the `data` bytes of the file.
    fn place(&self, data: usize) -> std::result::Result<Placed, (FlawKind, String)> {
        let (begin, end) = self.data_offsets;
        if begin > end || end > data as u64 {
            let message = format!(
                "bytes {begin} to {end} are not in the {data} bytes of data: damaged or cut off, download it again"
            );
            return Err((FlawKind::Range, message));
        }
        // In range of the data, hence of usize.
        let (begin, end) = (begin as usize, end as usize);
        let dtype = Dtype::named(&self.dtype)
            .ok_or_else(|| (FlawKind::Type, format!("element type {} is unknown", shown(&self.dtype))))?;
        if self.shape.len() > MAX_RANK {
            let message = format!("has {} dimensions, at most {MAX_RANK} are accepted", self.shape.len());
            return Err((FlawKind::Type, message));
        }
        let dims: Option<Vec<usize>> = self.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let bytes = dims.as_ref().and_then(|dims| byte_size(dims, dtype));
        let (Some(shape), Some(bytes)) = (dims, bytes) else {
            return Err((FlawKind::Type, format!("the shape {:?} is too large", self.shape)));
        };
        let range = end.saturating_sub(begin);
        if bytes != range {
            let message = format!("{dtype:?} {shape:?} takes {bytes} bytes, but its range has {range}");
            return Err((FlawKind::Size, message));
        }
        Ok(Placed { dtype, shape, offset: begin, bytes })
    }
}

/// Bytes of a dense tensor; `None` on overflow.
fn byte_size(shape: &[usize], dtype: Dtype) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |bytes, &dim| bytes.checked_mul(dim))
}
