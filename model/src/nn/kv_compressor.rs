//! Learned compression of cached keys or values (LeanLlama).
//!
//! The vector of a token, all key-value heads together, is encoded to a few numbers; the cache stores those, and attention
//! reads what the decoder makes of them - for new tokens too, so that prefill and decode agree.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use emberlm_quant::CompactBackend;
use emberlm_quant::kv::{CodeDecoder, KeyValue, KvParts, Rotary, activate};
use emberlm_quant::modules::{Linear, LinearConfig};

use crate::config::{CodeActivation, KvCodec, KvCompression, KvTarget};
use crate::error::Result;
use crate::loader::Loader;

/// Encoder and decoder of the keys or the values of one layer. Its width is that of all heads together, or of one head:
/// then every head has a code of its own.
#[derive(Module, Debug)]
pub struct KvCompressor<B: Backend> {
    /// `width -> r`.
    pub encoder: Linear<B>,
    /// `r -> width`.
    pub decoder: CodeDecoder<B>,
    width: usize,
    /// Whether the decoder's hidden values are cached in place of codes.
    cache_hidden: bool,
}

impl KvCodec {
    /// The compressor of these sizes with the initial values of [`LinearConfig`].
    pub fn init<B: Backend>(&self, activation: CodeActivation, device: &B::Device) -> KvCompressor<B> {
        let linear = |inputs, outputs, bias| LinearConfig::new(inputs, outputs).with_bias(bias).init(device);
        let (code, width) = (self.code_dim, self.width);
        let hidden = self.hidden_dim.map(|hidden| linear(code, hidden, self.decoder_bias));
        let output = linear(self.hidden_dim.unwrap_or(code), width, self.decoder_bias);
        KvCompressor {
            encoder: linear(width, code, self.encoder_bias),
            decoder: CodeDecoder { hidden, activation, output },
            width,
            cache_hidden: false,
        }
    }
}

impl<B: Backend> KvCompressor<B> {
    /// Changes what is computed and cached; weights stay.
    pub(crate) fn set_options(&mut self, compression: &KvCompression, target: KvTarget) {
        self.decoder.activation = compression.activation;
        let hidden = self.decoder.hidden.as_ref().map(|hidden| hidden.weight.shape()[0]);
        self.cache_hidden = hidden.is_some_and(|hidden| compression.caches_hidden(target, hidden, self.width));
    }
}

impl<B: CompactBackend> KvCompressor<B> {
    pub(crate) fn load(
        loader: &Loader<'_, B>,
        compression: &KvCompression,
        target: KvTarget,
        codec: &KvCodec,
    ) -> Result<Self> {
        let (hidden, output) = match codec.hidden_dim {
            Some(_) => (Some(loader.linear("decoder.0")?), loader.linear("decoder.2")?),
            None => (None, loader.linear("decoder")?),
        };
        let (encoder, width) = (loader.linear("encoder")?, codec.width);
        let decoder = CodeDecoder { hidden, activation: compression.activation, output };
        let cache_hidden = compression.cached_hidden(target, codec).is_some();
        Ok(Self { encoder, decoder, width, cache_hidden })
    }

    /// What is cached of new keys or values: codes, or hidden values.
    ///
    /// # Shapes
    /// `[b, s, kv_heads, head_dim] -> [b, s, codes, r or h]`
    pub(crate) fn encode(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [b, s, heads, head_dim] = x.dims();
        let codes = self.encoder.forward(B::reshape(x, [b, s, heads * head_dim / self.width, self.width]));
        match &self.decoder.hidden {
            Some(hidden) if self.cache_hidden => activate(hidden.forward(codes), self.decoder.activation),
            _ => codes,
        }
    }

    /// What is cached, as attention reads it.
    pub(crate) fn key_value<'a>(&'a self, parts: KvParts<'a, B>, rotary: Option<&'a Rotary<B>>) -> KeyValue<'a, B> {
        let decoder = &self.decoder;
        if self.cache_hidden {
            KeyValue::Hidden { values: parts, output: &decoder.output, rotary }
        } else {
            KeyValue::Compressed { codes: parts, decoder, rotary }
        }
    }
}
