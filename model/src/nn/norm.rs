//! Root-mean-square norm.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use emberlm_quant::CompactBackend;
use emberlm_quant::ops::Norm;

/// `x * rsqrt(mean(x^2) + eps) * w`, in f32 whatever the activations are.
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[width]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Added to the mean of squares.
    pub eps: f64,
    /// Multiply by `1 + w` (zero-centred weights, Qwen3.5) instead of `w`.
    pub unit_offset: bool,
}

/// How a [`RmsNorm`] begins: as `x` over its root mean square.
#[derive(Config, Debug)]
pub struct RmsNormConfig {
    /// Numbers that are normed together.
    pub width: usize,
    /// Added to the mean of squares.
    #[config(default = 1e-6)]
    pub eps: f64,
    /// See [`RmsNorm::unit_offset`].
    #[config(default = false)]
    pub unit_offset: bool,
}

impl RmsNormConfig {
    /// The norm with a factor of 1 for every number.
    pub fn init<B: Backend>(&self, device: &B::Device) -> RmsNorm<B> {
        let initializer = if self.unit_offset { Initializer::Zeros } else { Initializer::Ones };
        let weight = initializer.init([self.width], device);
        RmsNorm { weight, eps: self.eps, unit_offset: self.unit_offset }
    }
}

impl<B: CompactBackend> RmsNorm<B> {
    /// Normalises the last dimension.
    ///
    /// # Shapes
    /// `[.., width] -> [.., width]`
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let dims = x.dims();
        let width = dims[D - 1];
        let m = dims[..D - 1].iter().product();
        let x = B::reshape(x, [m, width]);
        B::reshape(B::rms_norm(x, self.as_norm()), dims)
    }

    /// The sum of both, and the norm of its last dimension.
    ///
    /// # Shapes
    /// `[.., width], [.., width] -> ([.., width], [.., width])`
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn forward_sum<const D: usize>(&self, x: Tensor<B, D>, y: Tensor<B, D>) -> (Tensor<B, D>, Tensor<B, D>) {
        let dims = x.dims();
        assert_eq!(dims, y.dims(), "both have one shape");
        let width = dims[D - 1];
        let m = dims[..D - 1].iter().product();
        let [x, y] = [x, y].map(|t| B::reshape(t, [m, width]));
        let (sum, normed) = B::add_rms_norm(x, y, self.as_norm());
        (B::reshape(sum, dims), B::reshape(normed, dims))
    }

    /// As the operations take it.
    pub(crate) fn as_norm(&self) -> Norm<B> {
        Norm { weight: self.weight.val(), eps: self.eps, unit_offset: self.unit_offset }
    }
}
