//! What the layers of a model are: their mixers, and the sizes of linear attention.

use super::fields::spelled;

spelled! {
    /// The mixer of a layer.
    LayerType("layer_types") {
        /// Gated DeltaNet.
        LinearAttention = "linear_attention",
        /// Softmax attention.
        FullAttention = "full_attention",
    }
}

/// Sizes of the Gated DeltaNet layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearAttentionConfig {
    /// Query and key heads; divides `num_value_heads`.
    pub num_key_heads: usize,
    /// Value heads.
    pub num_value_heads: usize,
    /// Size of a query or key head.
    pub key_head_dim: usize,
    /// Size of a value head.
    pub value_head_dim: usize,
    /// Taps of the causal convolution.
    pub conv_kernel_dim: usize,
}

impl LinearAttentionConfig {
    /// Numbers of all query heads, or of all key heads.
    pub fn key_width(&self) -> usize {
        self.num_key_heads.saturating_mul(self.key_head_dim)
    }

    /// Numbers of all value heads.
    pub fn value_width(&self) -> usize {
        self.num_value_heads.saturating_mul(self.value_head_dim)
    }
}
