//! Parts of a cache that are kept by themselves: keys and values of consecutive tokens, and the state after one.
//!
//! Neither has free slots, and neither is ever written to: a cache is made from copies of them.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use emberlm_quant::CompactBackend;
use emberlm_quant::kv::KvStore;

use super::layer::{DeltaNetCache, LayerCache, foreign};
use super::shape::LayerCacheShape;
use super::{Cache, refused};
use crate::error::Result;

/// Keys and values of consecutive tokens in every attention layer, in order.
#[derive(Clone, Debug)]
pub(crate) struct KvSegment<B: Backend>(Vec<[KvStore<B>; 2]>);

/// What the linear-attention layers keep after some token, in order.
#[derive(Clone, Debug)]
pub(crate) struct RecurrentState<B: Backend>(Vec<DeltaNetCache<B>>);

impl<B: CompactBackend> KvSegment<B> {
    pub fn bytes(&self) -> usize {
        self.0.iter().flatten().map(KvStore::bytes).sum()
    }

    /// The first `at` tokens and the others.
    pub fn split(&self, at: usize) -> (Self, Self) {
        let part = |range: fn(usize, usize) -> Range<usize>| {
            let layers = self.0.iter();
            Self(layers.map(|stores| stores.each_ref().map(|s| s.tokens(range(at, s.capacity())))).collect())
        };
        (part(|at, _| 0..at), part(|at, end| at..end))
    }
}

impl<B: CompactBackend> RecurrentState<B> {
    pub fn bytes(&self) -> usize {
        self.0.iter().map(DeltaNetCache::bytes).sum()
    }
}

impl<B: CompactBackend> Cache<B> {
    /// Whether a part of it is a state, which cannot be [cut](Self::truncate).
    pub fn is_recurrent(&self) -> bool {
        self.shapes.iter().any(|shape| matches!(shape, LayerCacheShape::DeltaNet { .. }))
    }

    /// A copy of the keys and values of these tokens; none where a layer keeps them in another format than it began with.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) when a pass that failed has lost a tensor.
    pub(crate) fn segment(&self, tokens: Range<usize>) -> Result<Option<KvSegment<B>>> {
        let mut layers = Vec::new();
        for (layer, shape) in self.layers.iter().zip(&self.shapes) {
            let (LayerCache::Attention(kv), &LayerCacheShape::Attention { k, v }) = (layer, shape) else { continue };
            let stores = [kv.k()?, kv.v()?];
            if stores.map(KvStore::format) != [k, v].map(|shape| shape.format(self.format)) {
                return Ok(None);
            }
            layers.push(stores.map(|store| store.tokens(tokens.clone())));
        }
        Ok(Some(KvSegment(layers)))
    }

    /// The state after its last token; none where no layer has one. It shares memory with the cache until that goes on.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) when a pass that failed has lost a tensor.
    pub(crate) fn recurrent_state(&self) -> Result<Option<RecurrentState<B>>> {
        let mut layers = Vec::new();
        for layer in &self.layers {
            if let LayerCache::DeltaNet(delta) = layer {
                // Nothing of it is lost.
                delta.conv()?;
                delta.state()?;
                layers.push(delta.clone());
            }
        }
        Ok((!layers.is_empty()).then_some(RecurrentState(layers)))
    }

    /// Fills an empty cache: the first tokens of each segment, one after the other, and the state after the last of them.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) when it is not empty, or the parts are not of a cache like this one. It has to be
    /// thrown away then.
    ///
    /// # Panics
    /// As [`reserve`](Self::reserve).
    pub(crate) fn restore<'a>(
        &mut self,
        segments: impl Iterator<Item = (&'a KvSegment<B>, usize)> + Clone,
        state: Option<&RecurrentState<B>>,
    ) -> Result<()>
    where
        B: 'a,
    {
        let tokens = segments.clone().map(|(_, tokens)| tokens).sum();
        if !self.is_empty() || self.is_recurrent() != state.is_some() {
            return Err(foreign());
        }
        self.reserve(tokens);
        let mut states = state.into_iter().flat_map(|state| &state.0);
        let mut attention = 0;
        for layer in &mut self.layers {
            match layer {
                LayerCache::Attention(kv) => {
                    let mut at = 0;
                    for (segment, tokens) in segments.clone() {
                        let parts = segment.0.get(attention).ok_or_else(foreign)?;
                        kv.update(|stores| written(stores, parts, at, tokens))?;
                        at += tokens;
                    }
                    attention += 1;
                }
                LayerCache::DeltaNet(delta) => *delta = states.next().ok_or_else(foreign)?.clone(),
            }
        }
        self.len = tokens;
        Ok(())
    }

    /// Forgets the tokens from `len` on. Their memory is kept.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) when it holds fewer tokens, or a layer keeps a state, which cannot be rolled back: a
    /// clone made at that token goes on from there.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len {
            return Err(refused(format!("holds {} tokens and cannot be cut after {len}", self.len)));
        }
        if len < self.len && self.is_recurrent() {
            let message =
                "keeps the state of linear attention, which cannot be rolled back; clone it where you may return";
            return Err(refused(message.into()));
        }
        (self.len, self.expected) = (len, self.expected.min(len));
        Ok(())
    }
}

/// The stores with the first `tokens` tokens of the parts at slot `at`.
fn written<B: Backend>(
    stores: [KvStore<B>; 2],
    parts: &[KvStore<B>; 2],
    at: usize,
    tokens: usize,
) -> Result<[KvStore<B>; 2]> {
    let [k, v] = stores;
    let [new_k, new_v] = parts;
    if [&k, &v].map(KvStore::format) != [new_k, new_v].map(KvStore::format) {
        return Err(foreign());
    }
    Ok([k.with_tokens(at, new_k, 0..tokens), v.with_tokens(at, new_v, 0..tokens)])
}
