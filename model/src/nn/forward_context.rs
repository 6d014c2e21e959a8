//! What the layers need to know about the tokens of one forward pass.

use std::cell::OnceCell;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor};
use emberlm_quant::CompactBackend;
use emberlm_quant::kv::Rotary;

use super::rope::RotaryEmbedding;
use crate::cache::Cache;

/// Positions, padding and number format of one forward pass.
pub(crate) struct ForwardContext<B: Backend> {
    /// Slots before the new ones.
    pub past: usize,
    /// Of the new positions.
    pub rotary: Rotary<B>,
    /// `[b]`, where rows are padded.
    pub left_pad: Option<Tensor<B, 1, Int>>,
    /// `[b, s, 1]`: 0 in the padding; absent when no new slot is padding.
    pub token_mask: Option<Tensor<B, 3>>,
    /// The type of the residual stream and of all that is made from it.
    pub activations: DType,
    new: usize,
    /// Length of the sequence, in tokens, by which rotary frequencies are chosen (`dynamic`, `longrope`).
    length: usize,
    embedding: RotaryEmbedding,
    device: B::Device,
    from_start: OnceCell<Rotary<B>>,
}

impl<B: CompactBackend> ForwardContext<B> {
    /// Of a pass over `new` tokens per row that follow those of the cache.
    pub fn new(
        cache: &Cache<B>,
        new: usize,
        embedding: &RotaryEmbedding,
        activations: DType,
        device: B::Device,
    ) -> Self {
        let past = cache.len();
        let length = (past + new).max(cache.expected());
        Self {
            past,
            rotary: embedding.at(past, new, length, &device),
            left_pad: cache.left_pad(),
            token_mask: cache.token_mask(new),
            activations,
            new,
            length,
            embedding: embedding.clone(),
            device,
            from_start: OnceCell::new(),
        }
    }

    /// Of every position up to the last new one.
    pub fn rotary_from_start(&self) -> Rotary<B> {
        self.from_start.get_or_init(|| self.embedding.at(0, self.past + self.new, self.length, &self.device)).clone()
    }
}
