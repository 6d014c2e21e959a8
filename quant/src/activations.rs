//! In which numbers a model computes.

use std::fmt;

use crate::host::FloatType;

/// The arithmetic of a model: the type of its activations, and how products with weights take them.
///
/// Sums, norms, softmax, the states of halting and of linear attention, and logits are F32 in any case.
///
/// Attention adds up in an order that depends on how many tokens share a pass. With F32 that changes the last bits of results, and a text
/// practically never. Rounding makes a whole step of such a bit now and then, so that with any other than F32 a text can change with the
/// tokens per pass, with drafts, with the sequences beside it and with what a prefix cache holds of it, at the same seed too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activations {
    /// F32 throughout, which every backend has.
    #[default]
    F32,
    /// Half precision between operations. It ends at 65504: a model whose residual stream grows beyond gives NaN.
    F16,
    /// As F16 with the range of F32 and 8 bits of it. On the CPU F32 between operations; products with BF16 weights round them to BF16,
    /// with any number of tokens and on any processor, and the others stay exact.
    Bf16,
    /// F32 between operations; products with quantised weights round them to 8 bits with a step for every 64 elements, and outliers to
    /// 15. What the processor has no kernels for stays exact.
    Int8,
    /// As the weights of each product are stored, for the CPU: beside quantised weights as [`Int8`](Self::Int8), beside BF16 matrices of 64 rows
    /// and more (gates stay exact) as [`Bf16`](Self::Bf16) where the processor multiplies BF16 (AVX-512 with BF16). Everything else stays
    /// exact.
    Auto,
}

impl Activations {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Auto];

    /// The type between operations; a backend may [take another](crate::CompactBackend::between_operations).
    pub const fn float(self) -> FloatType {
        match self {
            Self::F32 | Self::Int8 | Self::Auto => FloatType::F32,
            Self::F16 => FloatType::F16,
            Self::Bf16 => FloatType::Bf16,
        }
    }
}

impl From<FloatType> for Activations {
    fn from(float: FloatType) -> Self {
        match float {
            FloatType::F32 => Self::F32,
            FloatType::F16 => Self::F16,
            FloatType::Bf16 => Self::Bf16,
        }
    }
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int8 => f.write_str("int8"),
            Self::Auto => f.write_str("auto"),
            float => float.float().fmt(f),
        }
    }
}
