//! Tables of rotary positions.

use std::ops::Range;

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

impl<B: Backend> Rotary<B> {
    /// Those of the positions of these tokens, where the first row is that of token 0.
    pub(crate) fn tokens(&self, tokens: Range<usize>) -> Self {
        let [cos, sin] = [&self.cos, &self.sin].map(|table| table.clone().slice_dim(0, tokens.clone()));
        Self { cos, sin }
    }
}
