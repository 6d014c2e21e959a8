//! What is to be built: a config with everything decided that it left open.

use crate::cache::{KvShape, LayerCacheShape};
use crate::config::{CrestOptions, KvCompression, KvTarget, LayerType, ModelConfig};

/// A model's sizes and options, with those resolved that only the tensors tell.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// The validated config.
    pub config: ModelConfig,
    /// Adaptive depth (CREST).
    pub crest: Option<CrestOptions>,
    /// Cache compression (LeanLlama).
    pub kv_compression: Option<KvCompression>,
    /// The head is the embedding.
    pub tied_head: bool,
}

impl Architecture {
    /// What every layer keeps in a cache; the same as [`CausalLm::cache_shapes`](crate::CausalLm::cache_shapes), without a model.
    pub fn cache_shapes(&self) -> Vec<LayerCacheShape> {
        (0..).zip(&self.config.layer_types).map(|(layer, &kind)| self.cache_shape(layer, kind)).collect()
    }

    fn cache_shape(&self, layer: usize, kind: LayerType) -> LayerCacheShape {
        let config = &self.config;
        if let (LayerType::LinearAttention, Some(dims)) = (kind, &config.linear_attention) {
            return LayerCacheShape::DeltaNet {
                conv_tail: dims.conv_kernel_dim - 1,
                conv_channels: 2 * dims.key_width() + dims.value_width(),
                state: [dims.num_value_heads, dims.key_head_dim, dims.value_head_dim],
            };
        }
        let stored = |target| match self.kv_compression.as_ref().and_then(|c| c.codec(layer, target)) {
            Some(codec) => KvShape::Codes { count: config.kv_dim() / codec.width, width: codec.code_dim },
            None => KvShape::Heads { heads: config.num_key_value_heads, width: config.head_dim },
        };
        LayerCacheShape::Attention { k: stored(KvTarget::Key), v: stored(KvTarget::Value) }
    }
}
