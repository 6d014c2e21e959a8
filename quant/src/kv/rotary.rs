//! Tables of rotary positions.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// Cosines and sines of rotary positions, each `[positions, rotary_dim / 2]`.
#[derive(Clone, Debug)]
pub struct Rotary<B: Backend> {
    /// Cosines.
    pub cos: Tensor<B, 2>,
    /// Sines.
    pub sin: Tensor<B, 2>,
}
