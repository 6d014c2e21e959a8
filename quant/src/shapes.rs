//! The shapes of operations as kernels take them, out of their tensors.

use burn::tensor::backend::Backend;
use emberlm_backends::types::{ConvShape, DeltaRuleShape, RmsNorm};

use crate::ops::{CausalConv, DeltaRule, Norm};

impl<B: Backend> Norm<B> {
    /// Of `m` rows of `h` numbers.
    pub(crate) fn shape(&self, [m, h]: [usize; 2]) -> RmsNorm {
        RmsNorm { m, h, eps: self.eps as f32, unit_offset: self.unit_offset }
    }
}

impl<B: Backend> CausalConv<B> {
    pub(crate) fn shape(&self) -> ConvShape {
        let [batch, seq, channels] = self.u.dims();
        let [_, _, width] = self.weight.dims();
        ConvShape { batch, seq, channels, width }
    }
}

impl<B: Backend> DeltaRule<B> {
    pub(crate) fn shape(&self) -> DeltaRuleShape {
        let [batch, seq, key_heads, key_dim] = self.q.dims();
        let [_, _, value_heads, value_dim] = self.v.dims();
        DeltaRuleShape { batch, seq, key_heads, value_heads, key_dim, value_dim }
    }
}
