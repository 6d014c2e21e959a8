//! What layers over packed weights hold. The operations take them as arguments, so they lie below the extension trait;
//! [`crate::modules`] applies them.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::packed::PackedWeight;

/// `y = x Wᵀ + b`, whatever the storage of `W`.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: PackedWeight<B>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

/// Rows of a table, selected by id.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// `[vocabulary, width]`.
    pub weight: PackedWeight<B>,
}

/// `down(silu(gate x) * up x)`.
#[derive(Module, Debug)]
pub struct SwiGlu<B: Backend> {
    /// `[ffn, hidden]`.
    pub gate_proj: Linear<B>,
    /// `[ffn, hidden]`.
    pub up_proj: Linear<B>,
    /// `[hidden, ffn]`.
    pub down_proj: Linear<B>,
}
