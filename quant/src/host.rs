//! Weights as bytes in host memory, on their way from a checkpoint to a device.
//!
//! A [`HostWeight`] is what the checkpoint loader hands over and what the quantisers of [`crate::format`] produce. Its
//! buffers are [`bytes::Bytes`], so that a tensor may be a view of a mapped file: nothing is copied until the device needs it.

use std::fmt;

use burn::tensor::DType;
use bytes::Bytes;
pub use emberlm_backends::cpu::{WeightBuffer, run as on_threads};
use rayon::prelude::*;

/// A floating point type: of what a checkpoint stores, or of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE single precision, 4 bytes.
    #[default]
    F32,
    /// IEEE half precision, 2 bytes.
    F16,
    /// bfloat16, 2 bytes.
    Bf16,
}

impl FloatType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The largest relative error of rounding a number to it (below its range F16 has none, above it infinity).
    pub const fn rounding(self) -> f32 {
        match self {
            Self::F32 => f32::EPSILON / 2.0,
            Self::F16 => 1.0 / 2048.0,
            Self::Bf16 => 1.0 / 256.0,
        }
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl From<FloatType> for DType {
    fn from(float: FloatType) -> Self {
        match float {
            FloatType::F32 => Self::F32,
            FloatType::F16 => Self::F16,
            FloatType::Bf16 => Self::BF16,
        }
    }
}

/// A matrix `[n, k]` (outputs, inputs), row-major, in one of the supported storages.
#[derive(Clone, Debug)]
pub struct HostWeight {
    /// Rows: outputs of a linear, entries of an embedding.
    pub n: usize,
    /// Columns: inputs of a linear, width of an embedding.
    pub k: usize,
    /// The numbers.
    pub storage: HostStorage,
}

/// How the numbers of a [`HostWeight`] are stored.
#[derive(Clone, Debug)]
pub enum HostStorage {
    /// `n * k` little-endian numbers.
    Dense(FloatType, Bytes),
    /// 4-bit codes into a code book with block scales (bitsandbytes NF4 and FP4).
    CodeBook4(HostCodeBook4),
    /// Signed bytes with a scale per block of 64 elements of a row.
    Int8(HostInt8),
    /// Integer rows with one scale each (Nano compact).
    Rows(HostRows),
}

/// bitsandbytes' 4-bit storage: blocks run over the flattened matrix and may cross rows; the last may be short.
#[derive(Clone, Debug)]
pub struct HostCodeBook4 {
    /// `ceil(n * k / 2)` bytes, element 0 in the high nibble.
    pub codes: Bytes,
    /// The value of each code.
    pub code_book: [f32; 16],
    /// Elements per scale.
    pub block: usize,
    /// `ceil(n * k / block)` scales.
    pub scales: HostScales,
    /// The type the weight had before it was quantised (`dtype` of the quant state).
    pub stored: FloatType,
}

/// Block scales of [`HostCodeBook4`].
#[derive(Clone, Debug)]
pub enum HostScales {
    /// One f32 per block (little-endian bytes).
    Single(Bytes),
    /// Scales that are quantised themselves: `map[code] * absmax[i / block] + offset`.
    Double {
        /// One byte per block.
        codes: Bytes,
        /// Value of each code, 256 entries.
        map: Vec<f32>,
        /// One per `block` scales.
        absmax: Vec<f32>,
        /// Scales per nested scale.
        block: usize,
        /// Added to every scale.
        offset: f32,
    },
}

/// Signed bytes with block scales; value = code * scale.
///
/// Every row begins a block; the last block of a row is short where `k` is not a multiple of
/// [`INT8_BLOCK`](crate::format::INT8_BLOCK), 64.
#[derive(Clone, Debug)]
pub struct HostInt8 {
    /// `n * k` codes, i8.
    pub codes: Bytes,
    /// `n * ceil(k / 64)` scales, F16, little-endian.
    pub scales: Bytes,
}

/// Rows of integers with one scale per row: `wide` rows of 8 bits first, then `narrow` rows of `narrow_bits`.
///
/// Value = code * scale. Stored row `slots[j]` holds output row `j`; without `slots` they are in order.
#[derive(Clone, Debug)]
pub struct HostRows {
    /// `wide_rows * k` codes, i8.
    pub wide: Bytes,
    /// How many rows have 8 bits.
    pub wide_rows: usize,
    /// `n - wide_rows` rows of `ceil(k * narrow_bits / 8)` bytes, least significant element first; 2-bit codes are stored
    /// `q + 1`, 4-bit codes `q + 7`.
    pub narrow: Bytes,
    /// 2 or 4.
    pub narrow_bits: u32,
    /// One per stored row: the wide rows, then the narrow ones. f16 in the files, exact here.
    pub scales: Vec<f32>,
    /// Which stored row holds output row `j`; `None`: row `j`.
    pub slots: Option<Vec<u32>>,
}

impl HostWeight {
    /// The same weight, its large buffers copied into memory of its own: nothing of a mapped file is read any more.
    #[must_use]
    pub fn copied(mut self) -> Self {
        let copy = |data: &mut Bytes| *data = Bytes::from_owner(copy_of(data, data.len()));
        match &mut self.storage {
            HostStorage::Dense(_, data) => copy(data),
            HostStorage::CodeBook4(w) => {
                copy(&mut w.codes);
                match &mut w.scales {
                    HostScales::Single(data) | HostScales::Double { codes: data, .. } => copy(data),
                }
            }
            HostStorage::Int8(w) => [&mut w.codes, &mut w.scales].into_iter().for_each(copy),
            HostStorage::Rows(w) => [&mut w.wide, &mut w.narrow].into_iter().for_each(copy),
        }
        self
    }

    /// Bytes that the weight takes in memory, side data included.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            HostStorage::Dense(_, data) => data.len(),
            HostStorage::CodeBook4(w) => {
                let scales = match &w.scales {
                    HostScales::Single(data) => data.len(),
                    HostScales::Double { codes, map, absmax, .. } => codes.len() + 4 * (map.len() + absmax.len()),
                };
                w.codes.len() + 4 * w.code_book.len() + scales
            }
            HostStorage::Int8(w) => w.codes.len() + w.scales.len(),
            HostStorage::Rows(w) => {
                let slots = w.slots.as_ref().map_or(0, |s| 4 * s.len());
                w.wide.len() + w.narrow.len() + 4 * w.scales.len() + slots
            }
        }
    }
}

/// Bytes that one thread copies at a time.
const PIECE: usize = 1 << 18;

/// A copy of `len` bytes, zeros at the end, made by all threads.
pub(crate) fn copy_of(data: &[u8], len: usize) -> WeightBuffer {
    let mut copy = WeightBuffer::new(len);
    on_threads(|| {
        let parts = copy.par_chunks_mut(PIECE).zip(data.par_chunks(PIECE));
        parts.for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
    });
    copy
}
