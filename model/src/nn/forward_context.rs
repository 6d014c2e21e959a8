//! The tokens of one pass and the sequences that they belong to.

use std::cell::OnceCell;
use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use emberlm_quant::CompactBackend;
use emberlm_quant::kv::Rotary;

use super::depth::{DepthOptions, PassDepth};
use super::rope::{Positions, RotaryEmbedding};
use crate::cache::{Cache, LayerCache};

/// Consecutive tokens of one pass that belong to one sequence, after what its cache holds.
#[derive(Debug)]
pub struct Span<'a, B: Backend> {
    /// How many tokens of the pass.
    pub tokens: usize,
    /// Of the sequence.
    pub cache: &'a mut Cache<B>,
    /// How deep they go (CREST): the same in every pass over the sequence.
    pub depth: DepthOptions,
    /// So many at their end are drafts: guesses about the text, which may have to be taken back. With
    /// [`LogitsFor::Last`](crate::LogitsFor::Last) each of them has logits, as the token before them. [`Cache::truncate`] takes them back where no
    /// layer keeps a state; of those that do, an [engine](crate::engine) alone can.
    pub drafted: usize,
}

impl<'a, B: Backend> Span<'a, B> {
    /// Tokens that go as deep as the model's own options say.
    pub fn new(tokens: usize, cache: &'a mut Cache<B>) -> Self {
        Self { tokens, cache, depth: DepthOptions::default(), drafted: 0 }
    }
}

/// What the layers need to know about the tokens of one pass, `[1, s, ..]`: those of all its spans, one after the other. A pass
/// without caches has `[b, s, ..]`, rows of one length that begin a sequence each.
pub(crate) struct ForwardContext<B: Backend> {
    /// Of the position of every token, `[s, ..]`.
    pub rotary: Rotary<B>,
    /// The type of the residual stream and of all that is made from it.
    pub activations: DType,
    /// How deep tokens go.
    pub depth: PassDepth<B>,
    /// In order; one over all tokens in a pass without caches.
    pub spans: Vec<SpanContext<B>>,
}

/// The part of one span in a [`ForwardContext`].
pub(crate) struct SpanContext<B: Backend> {
    /// Of the pass.
    pub tokens: Range<usize>,
    /// Tokens of the sequence before them.
    pub past: usize,
    /// Of them at their end those that may be taken back.
    pub drafted: usize,
    position: SpanPosition,
    embedding: RotaryEmbedding,
    device: B::Device,
    from_start: OnceCell<Rotary<B>>,
}

/// Positions of the new tokens of a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpanPosition {
    /// The position of the sequence's first token.
    pub first: usize,
    /// Tokens in the cache.
    pub past: usize,
    /// New tokens.
    pub new: usize,
    /// Tokens that the sequence is known to get in all: frequencies may depend on them.
    pub expected: usize,
    /// Of the new tokens at their end those that may be taken back.
    pub drafted: usize,
}

impl SpanPosition {
    /// Those of the new tokens.
    fn positions(&self) -> Positions {
        let tokens = self.past + self.new;
        Positions {
            start: self.first + self.past,
            count: self.new,
            length: self.first.saturating_add(tokens.max(self.expected)),
        }
    }
}

impl<B: Backend> SpanContext<B> {
    /// Of every position of the sequence up to the last new one.
    pub fn rotary_from_start(&self) -> Rotary<B> {
        let SpanPosition { first, past, new, expected, .. } = self.position;
        let tokens = past + new;
        let rotary =
            || self.embedding.at_again(first, tokens, first.saturating_add(tokens.max(expected)), &self.device);
        self.from_start.get_or_init(rotary).clone()
    }
}

impl<B: Backend> ForwardContext<B> {
    pub fn new(
        positions: &[SpanPosition],
        depth: PassDepth<B>,
        embedding: &RotaryEmbedding,
        activations: DType,
        device: &B::Device,
    ) -> Self {
        let mut end = 0;
        let spans = positions.iter().map(|&position| {
            let tokens = end..end + position.new;
            end = tokens.end;
            let (embedding, device, from_start) = (embedding.clone(), device.clone(), OnceCell::new());
            let SpanPosition { past, drafted, .. } = position;
            SpanContext { tokens, past, drafted, position, embedding, device, from_start }
        });
        let spans = spans.collect();
        let rotary = embedding.at_each(positions.iter().map(SpanPosition::positions), device);
        Self { rotary, activations, depth, spans }
    }

    /// Of rows `[b, s, ..]` that begin a sequence each and leave nothing behind, with the type of `x` for activations.
    pub fn uncached(x: &Tensor<B, 3>, embedding: &RotaryEmbedding) -> Self {
        let [b, s, _] = x.dims();
        Self::of_rows([b, s], embedding, x.dtype(), &x.device())
    }

    /// Of `b` rows of `s` tokens without caches.
    pub fn of_rows([b, s]: [usize; 2], embedding: &RotaryEmbedding, activations: DType, device: &B::Device) -> Self {
        let position = SpanPosition { first: 0, past: 0, new: s, expected: 0, drafted: 0 };
        let depth = PassDepth::new([(b * s, DepthOptions::default())]);
        Self::new(&[position], depth, embedding, activations, device)
    }

    /// Of `[b, s, h]`, whose dimension 1 are the tokens, those that have logits: of each span the drafts and the one before them.
    pub fn last(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let last = |span: &SpanContext<B>| span.tokens.len().min(1 + span.drafted);
        if self.spans.iter().all(|span| last(span) == span.tokens.len()) {
            return x;
        }
        let part = |span: &SpanContext<B>| x.clone().slice_dim(1, span.tokens.end - last(span)..span.tokens.end);
        let mut parts: Vec<_> = self.spans.iter().map(part).collect();
        match parts.len() {
            1 => parts.remove(0),
            _ => Tensor::cat(parts, 1),
        }
    }
}

/// The caches of one layer, one per span; none in a pass without caches.
pub(crate) type LayerCaches<'a, B> = Option<Vec<&'a mut LayerCache<B>>>;

/// The caches of layer `i`.
pub(crate) fn layer_caches<'a, B: CompactBackend>(
    spans: &'a mut Option<&mut [Span<'_, B>]>,
    i: usize,
) -> LayerCaches<'a, B> {
    spans.as_mut().map(|spans| spans.iter_mut().filter_map(|span| span.cache.layers.get_mut(i)).collect())
}
