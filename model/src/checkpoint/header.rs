//! The header of a safetensors file: 8 bytes of length, a JSON object, then the data.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. The checks are stricter than the format where no writer
//! needs the freedom: ranges must follow each other without gaps from the first data byte to the end of the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use emberlm_quant::host::FloatType;
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

    /// The spelling in headers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::I16 => "I16",
            Self::U16 => "U16",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::F32 => "F32",
            Self::I64 => "I64",
            Self::U64 => "U64",
            Self::F64 => "F64",
        }
    }

    /// The type of this name in a header.
    fn named(name: &str) -> Option<Self> {
        use Dtype::{Bf16, Bool, F8E4M3, F8E5M2, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
        let all = [Bool, U8, I8, F8E4M3, F8E5M2, I16, U16, F16, Bf16, I32, U32, F32, I64, U64, F64];
        all.into_iter().find(|dtype| dtype.as_str() == name)
    }
}

impl From<FloatType> for Dtype {
    fn from(float: FloatType) -> Self {
        match float {
            FloatType::F32 => Self::F32,
            FloatType::F16 => Self::F16,
            FloatType::Bf16 => Self::Bf16,
        }
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

/// Parses and checks the header at the start of `file`, the whole content of a shard.
pub(super) fn parse(file: &[u8], path: &Arc<Path>, shard: usize) -> Result<BTreeMap<String, TensorInfo>> {
    let broken = |message: String| Error::Container { path: path.as_ref().into(), message };
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(broken(format!("is {} bytes long: not a safetensors file, or cut off", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    let available = rest.len() as u64;
    if length > MAX_HEADER {
        return Err(broken(format!(
            "claims a header of {length} bytes, at most {MAX_HEADER} are accepted: not a safetensors file, or damaged"
        )));
    }
    let (Ok(at), true) = (usize::try_from(length), length <= available) else {
        return Err(broken(format!(
            "claims a header of {length} bytes, but only {available} follow: cut off, download it again"
        )));
    };
    let (header, data) = rest.split_at(at);
    let RawHeader(raw) = json::from_slice(header).map_err(|e| broken(format!("the header {e}")))?;

    let start = header.len().saturating_add(8);
    let mut tensors = BTreeMap::new();
    for (name, tensor) in raw {
        let bad = |message: String| broken(format!("tensor {}: {message}", shown(&name)));
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
        let dtype = Dtype::named(&tensor.dtype)
            .ok_or_else(|| bad(format!("element type {} is unknown", shown(&tensor.dtype))))?;
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
            return Err(bad(format!("{dtype:?} {shape:?} takes {bytes} bytes, but its range has {range}")));
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
            return Err(broken(format!("tensor {}: its range {begin} to {end} {what}", shown(name))));
        }
        cursor = *end;
    }
    if cursor != data.len() {
        let rest = data.len().saturating_sub(cursor);
        return Err(broken(format!("{rest} bytes after the last tensor belong to none")));
    }
    Ok(tensors)
}

/// Bytes of a dense tensor; `None` on overflow.
fn byte_size(shape: &[usize], dtype: Dtype) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |bytes, &dim| bytes.checked_mul(dim))
}
