//! The header of a safetensors file: 8 bytes of length, a JSON object, then the data.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. The checks are stricter than the format where no writer
//! needs the freedom: ranges must follow each other without gaps from the first data byte to the end of the file.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::dtype::Dtype;
use super::names::shown;
use super::problem::{CheckpointError, TensorProperty};
use crate::config::json;

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

/// A tensor as a header states it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTensor {
    pub(super) dtype: String,
    pub(super) shape: Vec<u64>,
    pub(super) data_offsets: (u64, u64),
}

/// A header's object of tensors; keys are checked for duplicates and length.
pub(super) struct RawHeader<T>(pub(super) BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for RawHeader<T> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        struct V<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for V<T> {
            type Value = RawHeader<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<RawHeader<T>, A::Error> {
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
        json.deserialize_map(V(PhantomData))
    }
}

/// What is wrong with a safetensors file, or with a tensor of it.
#[derive(Clone, Debug)]
pub(crate) struct Flaw {
    /// Which kind of thing.
    pub kind: FlawKind,
    /// With the file.
    pub error: Box<CheckpointError>,
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

/// The tensors of a file whose data are in it, and everything that is wrong with it.
pub(super) fn survey(file: &[u8], path: &Arc<Path>, shard: usize) -> (BTreeMap<String, TensorInfo>, Vec<Flaw>) {
    let flaw = |kind, error: CheckpointError| Flaw { kind, error: Box::new(error.in_file(Some(path.as_ref()))) };
    let of_file = |message: String| CheckpointError::of_file(path.as_ref(), message);
    let (header, data) = match split(file, of_file) {
        Ok(parts) => parts,
        Err(error) => return (BTreeMap::new(), vec![flaw(FlawKind::Header, *error)]),
    };
    let raw = match json::from_slice(header) {
        Ok(RawHeader::<RawTensor>(raw)) => raw,
        Err(e) => return (BTreeMap::new(), vec![flaw(FlawKind::Header, of_file(format!("the header {e}")))]),
    };
    let start = header.len().saturating_add(8);
    let (mut tensors, mut flaws, mut ranges) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (name, tensor) in raw {
        let (begin, end) = tensor.data_offsets;
        if begin <= end {
            ranges.push(((begin, end), name.clone()));
        }
        match tensor.place(&name, data.len()) {
            Ok(Placed { dtype, shape, offset, bytes }) => {
                let offset = start.saturating_add(offset);
                tensors.insert(name, TensorInfo { dtype, shape, bytes, file: path.clone(), offset, shard });
            }
            Err(wrong) => flaws.push(flaw(wrong.0, wrong.1)),
        }
    }
    flaws.extend(check_places(ranges, data.len(), 1, path));
    (tensors, flaws)
}

/// What is wrong with the ranges of tensors in the `data` bytes of a file: each begins where the one before ends, but for what fills it up to a
/// multiple of `alignment`, and the last ends with the data.
pub(super) fn check_places(
    mut ranges: Vec<((u64, u64), String)>,
    data: usize,
    alignment: u64,
    path: &Arc<Path>,
) -> Vec<Flaw> {
    let flaw = |kind, error: CheckpointError| Flaw { kind, error: Box::new(error.in_file(Some(path.as_ref()))) };
    let mut flaws = Vec::new();
    ranges.sort_unstable();
    let mut cursor = 0u64;
    for ((begin, end), name) in ranges {
        let gap = begin.checked_sub(cursor);
        if gap.is_none_or(|gap| gap >= alignment) {
            let what = if gap.is_none() { "overlaps the tensor before it" } else { "leaves a gap before it" };
            let message = format!("its range {begin} to {end} {what}");
            flaws.push(flaw(FlawKind::Place, CheckpointError::of_tensor(&name, message)));
        }
        cursor = cursor.max(end);
    }
    let length = data as u64;
    let rest = length.saturating_sub(cursor);
    if rest > 0 {
        let message = format!("{rest} bytes after the last tensor belong to none");
        let error = CheckpointError::of_file(path.as_ref(), message);
        let error = error.instead(TensorProperty::Bytes(cursor), TensorProperty::Bytes(length));
        flaws.push(flaw(FlawKind::Trailing, error));
    }
    flaws
}

/// The bytes of the header and those of the data.
fn split(
    file: &[u8],
    broken: impl Fn(String) -> CheckpointError,
) -> std::result::Result<(&[u8], &[u8]), Box<CheckpointError>> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        let found = TensorProperty::Bytes(file.len() as u64);
        let message = format!("is {found} long: not a safetensors file, or cut off");
        return Err(Box::new(broken(message).instead(TensorProperty::Bytes(8), found)));
    };
    let length = u64::from_le_bytes(*length);
    let available = rest.len() as u64;
    if length > MAX_HEADER {
        return Err(Box::new(broken(format!(
            "claims a header of {length} bytes, at most {MAX_HEADER} are accepted: not a safetensors file, or damaged"
        ))));
    }
    match usize::try_from(length) {
        Ok(at) if length <= available => Ok(rest.split_at(at)),
        _ => {
            let message =
                format!("claims a header of {length} bytes, but only {available} follow: cut off, download it again");
            let error = broken(message).instead(TensorProperty::Bytes(length), TensorProperty::Bytes(available));
            Err(Box::new(error))
        }
    }
}

/// A tensor whose bytes are in the file.
pub(super) struct Placed {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// First byte, counted from the first of the data.
    pub(super) offset: usize,
    pub(super) bytes: usize,
}

impl RawTensor {
    /// Where the tensor is in the `data` bytes of the file.
    pub(super) fn place(
        &self,
        name: &str,
        data: usize,
    ) -> std::result::Result<Placed, Box<(FlawKind, CheckpointError)>> {
        let bad = |kind, message: String| Box::new((kind, CheckpointError::of_tensor(name, message)));
        let (begin, end) = self.data_offsets;
        if begin > end || end > data as u64 {
            let message = format!(
                "bytes {begin} to {end} are not in the {data} bytes of data: damaged or cut off, download it again"
            );
            return Err(bad(FlawKind::Range, message));
        }
        // In range of the data, hence of usize.
        let (begin, end) = (begin as usize, end as usize);
        let dtype = Dtype::named(&self.dtype).ok_or_else(|| {
            let found = shown(&self.dtype);
            let (kind, error) = *bad(FlawKind::Type, format!("element type {found} is unknown"));
            Box::new((kind, error.found(TensorProperty::Value(found))))
        })?;
        if self.shape.len() > MAX_RANK {
            let message = format!("has {} dimensions, at most {MAX_RANK} are accepted", self.shape.len());
            return Err(bad(FlawKind::Type, message));
        }
        let dims: Option<Vec<usize>> = self.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let bytes = dims.as_ref().and_then(|dims| byte_size(dims, dtype));
        let (Some(shape), Some(bytes)) = (dims, bytes) else {
            return Err(bad(FlawKind::Type, format!("the shape {:?} is too large", self.shape)));
        };
        let range = end.saturating_sub(begin);
        if bytes != range {
            let message = format!("{dtype:?} {shape:?} takes {bytes} bytes, but its range has {range}");
            let [expected, found] = [bytes, range].map(|bytes| TensorProperty::Bytes(bytes as u64));
            let (kind, error) = *bad(FlawKind::Size, message);
            return Err(Box::new((kind, error.instead(expected, found))));
        }
        Ok(Placed { dtype, shape, offset: begin, bytes })
    }
}

/// Bytes of a dense tensor; `None` on overflow.
fn byte_size(shape: &[usize], dtype: Dtype) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |bytes, &dim| bytes.checked_mul(dim))
}
