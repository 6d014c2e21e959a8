//! Weights on a device: packed words and side data, as a burn module.
//!
//! Bytes are packed into U32 words, little-endian, because that is the one integer width every backend has (WGSL has no
//! 8-bit integers). Nothing is dequantised: an operation of [`CompactBackend`](crate::CompactBackend) reads the words.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{AllocationProperty, DType, Int, Tensor, TensorData};
use bytes::Bytes;
use rayon::prelude::*;

use crate::error::Result;
use crate::format;
use crate::host::{FloatType, HostCodeBook4, HostRows, HostScales, HostStorage, HostWeight, WeightBuffer, on_threads};

/// A matrix `[n, k]` (outputs, inputs) in one of the supported storages: those of [`emberlm_backends::types::Matrix`], as parameters
/// of a module, which burn can move and train.
///
/// Burn's records (`into_record`, burn-store) have whole matrices in the storage `Float` alone. Of the others they have the parameters, but
/// not what stands beside them (types, the offset of double quantisation, which rows are wide), and recorders that change the type of
/// integers break codes: a record fits a weight that was made from the same numbers, and another becomes wrong without an error. A model
/// in any storage is saved by `CausalLm::save`.
#[derive(Module, Debug)]
pub enum PackedWeight<B: Backend> {
    /// A plain float tensor `[n, k]`: the only storage that can be trained.
    Float(Param<Tensor<B, 2>>),
    /// BF16 or F16, two per word.
    Half(HalfWeight<B>),
    /// 4-bit codes into a code book, with block scales.
    CodeBook4(CodeBook4Weight<B>),
    /// Signed bytes, with block scales.
    Int8(Int8Weight<B>),
    /// Integer rows with one scale each.
    Rows(RowsWeight<B>),
    /// Parts of whole rows, in order, where the matrix is larger than the device's buffers.
    Split(SplitWeight<B>),
}

/// A matrix in parts of whole rows, in order.
#[derive(Module, Debug)]
pub struct SplitWeight<B: Backend> {
    /// At least two.
    pub parts: Vec<WeightPart<B>>,
    /// Outputs of all parts.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

/// A part of a [`SplitWeight`]: a [`PackedWeight`] that is not split itself, in the same storages. It is an enum of its own because the
/// records that burn derives for a module cannot contain themselves.
#[derive(Module, Debug)]
pub enum WeightPart<B: Backend> {
    /// See [`PackedWeight::Float`].
    Float(Param<Tensor<B, 2>>),
    /// See [`PackedWeight::Half`].
    Half(HalfWeight<B>),
    /// See [`PackedWeight::CodeBook4`].
    CodeBook4(CodeBook4Weight<B>),
    /// See [`PackedWeight::Int8`].
    Int8(Int8Weight<B>),
    /// See [`PackedWeight::Rows`].
    Rows(RowsWeight<B>),
}

impl<B: Backend> WeightPart<B> {
    /// The part as a weight of its own, on the same buffers.
    pub fn weight(&self) -> PackedWeight<B> {
        match self.clone() {
            Self::Float(w) => PackedWeight::Float(w),
            Self::Half(w) => PackedWeight::Half(w),
            Self::CodeBook4(w) => PackedWeight::CodeBook4(w),
            Self::Int8(w) => PackedWeight::Int8(w),
            Self::Rows(w) => PackedWeight::Rows(w),
        }
    }
}

/// Half-precision numbers, two per U32 word, row-major, the first in the low half.
#[derive(Module, Debug)]
pub struct HalfWeight<B: Backend> {
    /// `[ceil(n * k / 2)]` U32.
    pub words: Param<Tensor<B, 1, Int>>,
    /// F16 or Bf16.
    #[module(skip)]
    pub float: FloatType,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

/// 4-bit codes; blocks run over the flattened matrix.
#[derive(Module, Debug)]
pub struct CodeBook4Weight<B: Backend> {
    /// `[ceil(n * k / 8)]` U32; within a byte, the earlier element is in the high nibble.
    pub codes: Param<Tensor<B, 1, Int>>,
    /// `[16]`.
    pub code_book: Param<Tensor<B, 1>>,
    /// One scale per block.
    pub scales: BlockScales<B>,
    /// Elements per block.
    pub block: usize,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

/// Scales of the blocks of a [`CodeBook4Weight`].
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // a few hundred per model
pub enum BlockScales<B: Backend> {
    /// `[blocks]`.
    Single(Param<Tensor<B, 1>>),
    /// Quantised scales.
    Double(DoubleScales<B>),
}

/// Block scales that are quantised themselves: `map[code] * absmax[i / block] + offset`.
#[derive(Module, Debug)]
pub struct DoubleScales<B: Backend> {
    /// `[ceil(blocks / 4)]` U32, one byte per block.
    pub codes: Param<Tensor<B, 1, Int>>,
    /// `[256]`.
    pub map: Param<Tensor<B, 1>>,
    /// `[ceil(blocks / block)]`.
    pub absmax: Param<Tensor<B, 1>>,
    /// Scales per nested scale.
    pub block: usize,
    /// Added to every scale.
    pub offset: f32,
}

/// Signed bytes with a scale per block of 64 elements; every row begins a block.
#[derive(Module, Debug)]
pub struct Int8Weight<B: Backend> {
    /// `[ceil(n * k / 4)]` U32 of i8 codes.
    pub codes: Param<Tensor<B, 1, Int>>,
    /// `[ceil(n * ceil(k / 64) / 2)]` U32 of two F16 scales each, the earlier in the low half.
    pub scales: Param<Tensor<B, 1, Int>>,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

/// Integer rows: `wide_rows` of 8 bits, the others of `narrow_bits`; each row starts at a byte.
#[derive(Module, Debug)]
pub struct RowsWeight<B: Backend> {
    /// `[ceil(wide_rows * k / 4)]` U32 of i8 codes; absent when every row is narrow.
    pub wide: Option<Param<Tensor<B, 1, Int>>>,
    /// `[ceil(narrow_rows * narrow_stride / 4)]` U32; absent when every row is wide.
    pub narrow: Option<Param<Tensor<B, 1, Int>>>,
    /// `[n]`, per stored row.
    pub scales: Param<Tensor<B, 1>>,
    /// `[n]` U32: the stored row of each output; absent when they are in order.
    pub slots: Option<Param<Tensor<B, 1, Int>>>,
    /// Rows of 8 bits.
    pub wide_rows: usize,
    /// Bits of the other rows, 2 or 4.
    pub narrow_bits: usize,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

impl<B: Backend> RowsWeight<B> {
    /// Bytes of a narrow row.
    pub fn narrow_stride(&self) -> usize {
        (self.k * self.narrow_bits).div_ceil(8)
    }
}

impl<B: Backend> PackedWeight<B> {
    /// Puts a host weight on a device. Buffers that already have the device's layout are shared, not copied.
    ///
    /// # Panics
    /// May panic, at once or in an operation, when [`format::check`] finds a fault with the weight.
    pub fn from_host(weight: HostWeight, device: &B::Device) -> Self {
        let HostWeight { n, k, storage } = weight;
        match storage {
            HostStorage::Dense(FloatType::F32, data) => Self::Float(float_param(data, [n, k], device)),
            HostStorage::Dense(float, data) => Self::Half(HalfWeight { words: words(data, device), float, n, k }),
            HostStorage::CodeBook4(w) => Self::CodeBook4(CodeBook4Weight::from_host(w, n, k, device)),
            HostStorage::Int8(w) => {
                let (codes, scales) = (words(w.codes, device), words(w.scales, device));
                Self::Int8(Int8Weight { codes, scales, n, k })
            }
            HostStorage::Rows(w) => Self::Rows(RowsWeight::from_host(w, n, k, device)),
        }
    }

    /// As [`from_host`](Self::from_host), in parts when a buffer would be beyond `limit`.
    ///
    /// # Errors
    /// When not even a few rows fit.
    pub fn from_host_within(
        weight: HostWeight,
        limit: impl Into<format::BufferLimit>,
        device: &B::Device,
    ) -> Result<Self> {
        let limit = limit.into();
        if limit.holds(&weight) {
            return Ok(Self::from_host(weight, device));
        }
        let (n, k) = (weight.n, weight.k);
        let parts =
            format::split_rows(weight, limit)?.into_iter().flat_map(|part| match Self::from_host(part, device) {
                Self::Float(w) => vec![WeightPart::Float(w)],
                Self::Half(w) => vec![WeightPart::Half(w)],
                Self::CodeBook4(w) => vec![WeightPart::CodeBook4(w)],
                Self::Int8(w) => vec![WeightPart::Int8(w)],
                Self::Rows(w) => vec![WeightPart::Rows(w)],
                Self::Split(w) => w.parts,
            });
        Ok(Self::Split(SplitWeight { parts: parts.collect(), n, k }))
    }

    /// A trainable weight from numbers, row-major.
    ///
    /// # Panics
    /// When `values.len() != n * k`.
    pub fn from_floats(values: Vec<f32>, n: usize, k: usize, device: &B::Device) -> Self {
        Self::Float(Param::from_tensor(Tensor::from_data(TensorData::new(values, [n, k]), (device, DType::F32))))
    }

    /// `[outputs, inputs]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Float(w) => w.val().dims(),
            Self::Half(w) => [w.n, w.k],
            Self::CodeBook4(w) => [w.n, w.k],
            Self::Int8(w) => [w.n, w.k],
            Self::Rows(w) => [w.n, w.k],
            Self::Split(w) => [w.n, w.k],
        }
    }

    /// The device of the weight.
    pub fn device(&self) -> B::Device {
        match self {
            Self::Float(w) => w.val().device(),
            Self::Half(w) => w.words.val().device(),
            Self::CodeBook4(w) => w.codes.val().device(),
            Self::Int8(w) => w.codes.val().device(),
            Self::Rows(w) => w.scales.val().device(),
            Self::Split(w) => w.parts.first().map_or_else(B::Device::default, |part| part.weight().device()),
        }
    }
}

impl<B: Backend> CodeBook4Weight<B> {
    fn from_host(w: HostCodeBook4, n: usize, k: usize, device: &B::Device) -> Self {
        let scales = match w.scales {
            HostScales::Single(data) => {
                let blocks = data.len() / 4;
                BlockScales::Single(frozen(float_tensor(data, [blocks], device)))
            }
            HostScales::Double { codes, map, absmax, block, offset } => BlockScales::Double(DoubleScales {
                codes: words(codes, device),
                map: floats(map, device),
                absmax: floats(absmax, device),
                block,
                offset,
            }),
        };
        Self {
            codes: words(w.codes, device),
            code_book: floats(w.code_book.to_vec(), device),
            scales,
            block: w.block,
            n,
            k,
        }
    }
}

impl<B: Backend> RowsWeight<B> {
    fn from_host(w: HostRows, n: usize, k: usize, device: &B::Device) -> Self {
        let narrow_rows = n - w.wide_rows;
        let narrow_bits = w.narrow_bits as usize;
        Self {
            wide: (w.wide_rows > 0).then(|| words(w.wide, device)),
            narrow: (narrow_rows > 0).then(|| words(w.narrow, device)),
            scales: floats(w.scales, device),
            slots: w.slots.map(|s| frozen_int(Tensor::from_data(TensorData::new(s, [n]), (device, DType::U32)))),
            wide_rows: w.wide_rows,
            narrow_bits,
            n,
            k,
        }
    }
}

/// Bytes as U32 words; shared with the source when it is aligned and whole, else copied and padded with zeros.
fn words<B: Backend>(data: Bytes, device: &B::Device) -> Param<Tensor<B, 1, Int>> {
    let count = data.len().div_ceil(4);
    let data = shared(data, count * 4);
    let data = TensorData::from_bytes(data, [count], DType::U32);
    frozen_int(Tensor::from_data(data, (device, DType::U32)))
}

/// Bytes from which on a copy is worth large pages and several threads.
const LARGE: usize = 1 << 20;

/// A buffer of exactly `len` bytes that is aligned to 4: the given one, or a copy padded with zeros. In files of bitsandbytes most codes
/// are at odd places, behind texts of any length.
fn shared(data: Bytes, len: usize) -> burn::tensor::Bytes {
    let is_aligned = |data: &[u8]| (data.as_ptr() as usize).is_multiple_of(4);
    if data.len() == len && is_aligned(&data) {
        return burn::tensor::Bytes::from_shared(data, AllocationProperty::Other);
    }
    if len >= LARGE {
        let mut copy = WeightBuffer::new(len);
        on_threads(|| {
            let parts = copy.par_chunks_mut(LARGE / 4).zip(data.par_chunks(LARGE / 4));
            parts.for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
        });
        return burn::tensor::Bytes::from_shared(Bytes::from_owner(copy), AllocationProperty::Other);
    }
    let mut copy = vec![0u32; len / 4];
    bytemuck::cast_slice_mut::<u32, u8>(&mut copy)[..data.len()].copy_from_slice(&data);
    burn::tensor::Bytes::from_elems(copy)
}

fn float_tensor<B: Backend, const D: usize>(data: Bytes, shape: [usize; D], device: &B::Device) -> Tensor<B, D> {
    let len = data.len();
    Tensor::from_data(TensorData::from_bytes(shared(data, len), shape, DType::F32), (device, DType::F32))
}

fn float_param<B: Backend, const D: usize>(data: Bytes, shape: [usize; D], device: &B::Device) -> Param<Tensor<B, D>> {
    Param::from_tensor(float_tensor(data, shape, device))
}

/// Side data of a quantised weight: a parameter that no optimiser moves.
fn floats<B: Backend>(values: Vec<f32>, device: &B::Device) -> Param<Tensor<B, 1>> {
    let len = values.len();
    frozen(Tensor::from_data(TensorData::new(values, [len]), (device, DType::F32)))
}

fn frozen<B: Backend>(tensor: Tensor<B, 1>) -> Param<Tensor<B, 1>> {
    Param::initialized(ParamId::new(), tensor.set_require_grad(false))
}

fn frozen_int<B: Backend>(tensor: Tensor<B, 1, Int>) -> Param<Tensor<B, 1, Int>> {
    Param::initialized(ParamId::new(), tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small and large ones, of any length.
    #[test]
    fn bytes_at_odd_places_are_copied_whole() {
        for len in [0, 1, 4, 4095, LARGE - 1, LARGE, LARGE + 3, 3 * LARGE + 2] {
            let file: Bytes = (0..len + 8).map(|i| (i * 31 % 251) as u8).collect::<Vec<u8>>().into();
            for start in 0..5 {
                let (data, padded) = (file.slice(start..start + len), len.div_ceil(4) * 4);
                let got = shared(data.clone(), padded);
                assert_eq!((got.len(), &got[..len]), (padded, &data[..]), "{len} bytes from {start}");
                assert!(got[len..].iter().all(|&byte| byte == 0), "{len} bytes from {start}");
                assert!((got.as_ptr() as usize).is_multiple_of(4));
            }
        }
    }
}
