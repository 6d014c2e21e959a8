//! Weights on a device: packed words and side data, as a burn module.
//!
//! Bytes are packed into U32 words, little-endian, because that is the one integer width every backend has (WGSL has no
//! 8-bit integers). A backend in host memory reads buffers where they are: those at odd places, or of a length that is no whole number of
//! words, are tensors of U8. Nothing is dequantised: an operation of [`CompactBackend`](crate::CompactBackend) reads the words.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::host::FloatType;

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
