//! Linear and embedding layers over packed weights: how they are applied.

use burn::module::Param;
use burn::tensor::{Int, Tensor};

pub use crate::init::{EmbeddingConfig, LinearConfig, SwiGluConfig};
pub use crate::layers::{Embedding, Linear, SwiGlu};
use crate::ops::CompactBackend;
use crate::packed::PackedWeight;

impl<B: CompactBackend> Linear<B> {
    /// Applies the layer to the last dimension.
    ///
    /// # Shapes
    /// `[.., in] -> [.., out]`
    ///
    /// # Panics
    /// When the last dimension of `x` is another.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        along_last(x, &self.weight, |x, w| B::packed_linear(x, w, self.bias.as_ref().map(Param::val)))
    }

    /// Applies the layer as a head: logits of `x`.
    ///
    /// # Shapes
    /// `[.., in] -> [.., out]`
    ///
    /// # Panics
    /// When the last dimension of `x` is another.
    pub fn logits<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        along_last(x, &self.weight, |x, w| B::packed_head(x, w, self.bias.as_ref().map(Param::val)))
    }
}

/// A product with the last dimension of `x`.
fn along_last<B: CompactBackend, const D: usize>(
    x: Tensor<B, D>,
    w: &PackedWeight<B>,
    product: impl FnOnce(Tensor<B, 2>, &PackedWeight<B>) -> Tensor<B, 2>,
) -> Tensor<B, D> {
    let mut dims = x.dims();
    let [n, k] = w.shape();
    assert_eq!(dims[D - 1], k, "the last dimension of x {dims:?} is not that of the weight [{n}, {k}]");
    let m = dims[..D - 1].iter().product();
    let y = product(B::reshape(x, [m, k]), w);
    dims[D - 1] = n;
    B::reshape(y, dims)
}

/// Applies several layers to the last dimension of the same `x`.
///
/// # Shapes
/// `[.., in] -> [.., out]`, one per layer
pub fn forward_all<B: CompactBackend, const D: usize, const N: usize>(
    layers: [&Linear<B>; N],
    x: Tensor<B, D>,
) -> [Tensor<B, D>; N] {
    let mut dims = x.dims();
    let k = dims[D - 1];
    let m = dims[..D - 1].iter().product();
    B::packed_linears(B::reshape(x, [m, k]), layers).map(|y| {
        dims[D - 1] = y.dims()[1];
        B::reshape(y, dims)
    })
}

impl<B: CompactBackend> Embedding<B> {
    /// Looks up rows.
    ///
    /// # Shapes
    /// `[b, s] -> [b, s, width]`
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [b, s] = ids.dims();
        let [_, width] = self.weight.shape();
        B::reshape(B::packed_embed(ids.reshape([b * s]), &self.weight), [b, s, width])
    }

    /// The tied head: logits of `x` against every row.
    ///
    /// # Shapes
    /// `[.., width] -> [.., vocabulary]`
    pub fn logits<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        along_last(x, &self.weight, |x, w| B::packed_head(x, w, None))
    }
}

impl<B: CompactBackend> SwiGlu<B> {
    /// Applies the block to every row.
    ///
    /// # Shapes
    /// `[m, hidden] -> [m, hidden]`
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        B::swiglu_mlp(x, self, None)
    }
}
