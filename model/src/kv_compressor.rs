//! Learned compression of cached keys or values (LeanLlama).
//!
//! The vector of a token, all key-value heads together, is encoded to a few numbers; the cache stores those, and attention
//! reads what the decoder makes of them - for new tokens too, so that prefill and decode agree.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use emberlm_quant::CompactBackend;
use emberlm_quant::kv::CodeDecoder;
use emberlm_quant::modules::Linear;

use crate::config::ModelConfig;
use crate::error::Result;
use crate::loader::{Bias, Loader};

/// Encoder and decoder of the keys or the values of one layer.
#[derive(Module, Debug)]
pub struct KvCompressor<B: Backend> {
    /// `kv_heads * head_dim -> r`.
    pub encoder: Linear<B>,
    /// `r -> kv_heads * head_dim`.
    pub decoder: CodeDecoder<B>,
}

impl<B: CompactBackend> KvCompressor<B> {
    /// The compressor at this place of the checkpoint, if there is one. Its sizes are those of its tensors.
    pub(crate) fn load(loader: &Loader<'_, B>, config: &ModelConfig) -> Result<Option<Self>> {
        let Some(code_dim) = loader.rows_of("encoder") else { return Ok(None) };
        let kv_dim = config.num_key_value_heads * config.head_dim;
        let hidden = match loader.rows_of("decoder.0") {
            Some(width) => Some(loader.linear_as_stored("decoder.0", width, code_dim, Bias::IfPresent)?),
            None => None,
        };
        let output = match &hidden {
            Some(hidden) => {
                let [width, _] = hidden.weight.shape();
                loader.linear_as_stored("decoder.2", kv_dim, width, Bias::IfPresent)?
            }
            None => loader.linear_as_stored("decoder", kv_dim, code_dim, Bias::IfPresent)?,
        };
        Ok(Some(Self {
            encoder: loader.linear_as_stored("encoder", code_dim, kv_dim, Bias::IfPresent)?,
            decoder: CodeDecoder { hidden, activation: config.code_activation(), output },
        }))
    }

    /// Numbers per code.
    pub fn code_dim(&self) -> usize {
        self.encoder.weight.shape()[0]
    }

    /// Codes of new keys or values.
    ///
    /// # Shapes
    /// `[b, s, kv_heads, head_dim] -> [b, s, 1, r]`
    pub(crate) fn encode(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [b, s, heads, head_dim] = x.dims();
        self.encoder.forward(x.reshape([b, s, 1, heads * head_dim]))
    }
}
