//! The decoder of compressed keys or values.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, gelu_approximate, relu, silu};
use burn::tensor::backend::Backend;

pub use emberlm_backends::types::CodeActivation;

use crate::layers::Linear;

/// Turns a code back into the vector it stands for: `output(gelu(hidden(c)))`, or `output(c)`.
#[derive(Module, Debug)]
pub struct CodeDecoder<B: Backend> {
    /// `r -> h`; absent when the decoder is linear.
    pub hidden: Option<Linear<B>>,
    /// Between the two.
    #[module(skip)]
    pub activation: CodeActivation,
    /// `h -> kv_heads * head_dim`, or `head_dim`.
    pub output: Linear<B>,
}

/// The activation of a hidden layer, number by number.
pub fn activate<B: Backend, const D: usize>(x: Tensor<B, D>, activation: CodeActivation) -> Tensor<B, D> {
    match activation {
        CodeActivation::Gelu => gelu(x),
        CodeActivation::GeluTanh => gelu_approximate(x),
        CodeActivation::Silu => silu(x),
        CodeActivation::Relu => relu(x),
    }
}
