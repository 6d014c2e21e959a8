//! The decoder of compressed keys or values.

use burn::module::Module;
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
