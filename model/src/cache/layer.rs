//! What one layer keeps for the next tokens.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use emberlm_quant::CompactBackend;
use emberlm_quant::kv::{KvFormat, KvParts, KvStore};
use emberlm_quant::ops::{DeltaRule, NewTokens};

use super::shape::LayerCacheShape;
use crate::error::{Error, Result};

/// Keys and values of one attention layer.
#[derive(Clone, Debug)]
pub struct AttentionCache<B: Backend> {
    /// Keys and values of the first tokens, in whole parts that other caches may hold too.
    shared: [Vec<KvStore<B>>; 2],
    /// The tokens after them. Absent while an append owns the store, and after one that panicked.
    k: Option<KvStore<B>>,
    /// As `k`.
    v: Option<KvStore<B>>,
    /// Of the model, for messages.
    layer: usize,
}

/// A pass over the cache panicked between taking a tensor out and putting it back.
fn broken() -> Error {
    let message = "lost a tensor in a pass that failed; call `reset`, or make another one".into();
    Error::Option { option: "cache".into(), message }
}

impl<B: CompactBackend> AttentionCache<B> {
    /// Appends keys and values `[1, n, heads, width]` of the new tokens of several sequences, which follow one another: those of each
    /// from slot `at` on. Where one has lost its tensors, nothing is changed.
    pub(crate) fn append(caches: &mut [&mut Self], new: [Tensor<B, 4>; 2], spans: &[NewTokens]) -> Result<()> {
        let mut formats = Vec::with_capacity(caches.len());
        let mut slots = Vec::with_capacity(caches.len());
        for (cache, &NewTokens { tokens, at }) in caches.iter().zip(spans) {
            let [shared, _] = &cache.shared;
            let at = at.checked_sub(shared.iter().map(KvStore::capacity).sum()).ok_or_else(foreign)?;
            slots.push(NewTokens { tokens, at });
            formats.push([cache.k()?, cache.v()?].map(|parts| parts.own.format()));
        }
        // The stores are moved out, so that the operation owns them and can write in place.
        let stores = caches.iter_mut().filter_map(|cache| Some([cache.k.take()?, cache.v.take()?])).collect();
        let stored = B::store_kv_spans(stores, new, &slots);
        for ((cache, [k, v]), [k_format, v_format]) in caches.iter_mut().zip(stored).zip(formats) {
            cache.warn_of_overflow("keys", k_format, &k);
            cache.warn_of_overflow("values", v_format, &v);
            (cache.k, cache.v) = (Some(k), Some(v));
        }
        Ok(())
    }

    fn warn_of_overflow(&self, what: &str, before: KvFormat, store: &KvStore<B>) {
        if before == KvFormat::F16 && store.format() == KvFormat::F32 {
            tracing::warn!(
                "layer {}: {what} are beyond 65504, where the F16 of the cache ends, and are kept in F32 from here on; \
                 a cache of F32 (--cache-type f32) is exact from the first token",
                self.layer
            );
        }
    }

    /// Stored keys or their codes, parts of `[1, heads, tokens, width]`.
    ///
    /// # Errors
    /// [`Error::Option`] when a pass that failed has lost them.
    pub fn k(&self) -> Result<KvParts<'_, B>> {
        let [shared, _] = &self.shared;
        Ok(KvParts { shared, own: self.k.as_ref().ok_or_else(broken)? })
    }

    /// Stored values or their codes, parts of `[1, heads, tokens, width]`.
    ///
    /// # Errors
    /// As [`k`](Self::k).
    pub fn v(&self) -> Result<KvParts<'_, B>> {
        let [_, shared] = &self.shared;
        Ok(KvParts { shared, own: self.v.as_ref().ok_or_else(broken)? })
    }

    /// Keys and values of the first tokens in `shared` parts, those after them in what `own` makes of its own part.
    pub(super) fn set(
        &mut self,
        shared: &[&[KvStore<B>; 2]],
        own: impl FnOnce([KvStore<B>; 2]) -> Result<[KvStore<B>; 2]>,
    ) -> Result<()> {
        let stores = [self.k.take().ok_or_else(broken)?, self.v.take().ok_or_else(broken)?];
        let [k, v] = own(stores)?;
        (self.k, self.v) = (Some(k), Some(v));
        self.shared = [0, 1].map(|side| shared.iter().map(|stores| stores[side].clone()).collect());
        Ok(())
    }

    /// Makes room for so many tokens in its own part.
    pub(super) fn grow(&mut self, capacity: usize) {
        self.k = self.k.take().map(|store| store.with_capacity(capacity));
        self.v = self.v.take().map(|store| store.with_capacity(capacity));
    }

    /// Leaves its own part alone.
    pub(super) fn clear_shared(&mut self) {
        self.shared = [Vec::new(), Vec::new()];
    }

    /// Whether nothing was lost.
    pub(super) fn is_whole(&self) -> bool {
        self.k.is_some() && self.v.is_some()
    }

    /// Of its own part.
    pub(super) fn bytes(&self) -> usize {
        [&self.k, &self.v].into_iter().flatten().map(KvStore::bytes).sum()
    }
}

/// State of one Gated DeltaNet layer. It cannot be rolled back, but for the drafts of its last pass; it can be copied.
#[derive(Clone, Debug)]
pub struct DeltaNetCache<B: Backend> {
    /// Absent while an operation owns the tensor, and after one that panicked.
    conv: Option<Tensor<B, 3>>,
    /// As `conv`.
    state: Option<Tensor<B, 4>>,
    /// Of a pass with drafts, until it is known which of them stay.
    replay: Option<Box<Replay<B>>>,
}

/// What a layer was before a pass over drafts, and what the pass gave it: enough to compute the layer anew after any of its tokens, without
/// the weights.
#[derive(Clone, Debug)]
struct Replay<B: Backend> {
    conv: Tensor<B, 3>,
    state: Tensor<B, 4>,
    /// `[1, n, channels]`, before the convolution.
    inputs: Tensor<B, 3>,
    /// None while the pass has not come to it.
    rule: Option<DeltaRule<B>>,
}

impl<B: CompactBackend> DeltaNetCache<B> {
    /// Notes what the layer is before a pass over drafts, whose inputs of the convolution `[1, n, channels]` these are.
    pub(crate) fn begin_replay(&mut self, inputs: Tensor<B, 3>) -> Result<()> {
        let (conv, state) = (self.conv()?.clone(), self.state()?.clone());
        self.replay = Some(Box::new(Replay { conv, state, inputs, rule: None }));
        Ok(())
    }

    /// Notes the inputs of the delta rule in that pass.
    pub(crate) fn note_rule(&mut self, rule: DeltaRule<B>) {
        if let Some(replay) = &mut self.replay {
            replay.rule = Some(rule);
        }
    }

    /// Forgets what was noted.
    pub(super) fn drop_replay(&mut self) {
        self.replay = None;
    }

    /// Makes the layer what it was after the first `tokens` of the pass that was noted. The numbers are those of a pass over them alone:
    /// the rule goes from token to token.
    pub(super) fn replay(&mut self, tokens: usize) -> Result<()> {
        let Some(replay) = self.replay.take() else { return Err(not_noted()) };
        let Replay { conv, state, inputs, rule: Some(rule) } = *replay else { return Err(not_noted()) };
        let [_, n, _] = inputs.dims();
        let [_, tail, _] = conv.dims();
        if tokens > n {
            return Err(not_noted());
        }
        // The last inputs before and in the pass, the oldest first.
        let inputs = Tensor::cat(vec![conv, inputs.slice_dim(1, 0..tokens)], 1).slice_dim(1, tokens..tokens + tail);
        let [q, k, v] = [rule.q, rule.k, rule.v].map(|t| t.slice_dim(1, 0..tokens));
        let [g, beta] = [rule.g, rule.beta].map(|t| t.slice_dim(1, 0..tokens));
        let (_, mut states) = B::gated_delta_rule_spans(DeltaRule { q, k, v, g, beta }, &[tokens], vec![state]);
        (self.conv, self.state) = (Some(inputs), states.pop());
        Ok(())
    }
}

fn not_noted() -> Error {
    let message = "does not know what its linear attention was at that token of the last pass".into();
    Error::Option { option: "cache".into(), message }
}

impl<B: Backend> DeltaNetCache<B> {
    /// The last inputs of the convolution, oldest first: `[1, width - 1, channels]`.
    ///
    /// # Errors
    /// [`Error::Option`] when a pass that failed has lost them.
    pub fn conv(&self) -> Result<&Tensor<B, 3>> {
        self.conv.as_ref().ok_or_else(broken)
    }

    /// `[1, value_heads, key_dim, value_dim]`.
    ///
    /// # Errors
    /// As [`conv`](Self::conv).
    pub fn state(&self) -> Result<&Tensor<B, 4>> {
        self.state.as_ref().ok_or_else(broken)
    }

    /// As a pass that panicked may leave it.
    #[cfg(test)]
    pub(crate) fn lose(&mut self) {
        self.state = None;
    }

    /// Replaces the convolution's inputs by what `f` makes of them; it owns them and can write in place.
    pub(crate) fn update_conv<T>(&mut self, f: impl FnOnce(Tensor<B, 3>) -> (T, Tensor<B, 3>)) -> Result<T> {
        let (out, conv) = f(self.conv.take().ok_or_else(broken)?);
        self.conv = Some(conv);
        Ok(out)
    }

    /// Replaces the state by what `f` makes of it; it owns it and can write in place.
    pub(crate) fn update_state<T>(&mut self, f: impl FnOnce(Tensor<B, 4>) -> (T, Tensor<B, 4>)) -> Result<T> {
        let (out, state) = f(self.state.take().ok_or_else(broken)?);
        self.state = Some(state);
        Ok(out)
    }

    /// [`update_conv`](Self::update_conv) of several sequences at once; where one has lost its tensor, nothing is changed.
    pub(crate) fn update_convs<T>(
        caches: &mut [&mut Self],
        f: impl FnOnce(Vec<Tensor<B, 3>>) -> (T, Vec<Tensor<B, 3>>),
    ) -> Result<T> {
        caches.iter().try_for_each(|cache| cache.conv().map(|_| ()))?;
        let (out, convs) = f(caches.iter_mut().filter_map(|cache| cache.conv.take()).collect());
        caches.iter_mut().zip(convs).for_each(|(cache, conv)| cache.conv = Some(conv));
        Ok(out)
    }

    /// [`update_state`](Self::update_state) of several sequences at once; where one has lost its tensor, nothing is changed.
    pub(crate) fn update_states<T>(
        caches: &mut [&mut Self],
        f: impl FnOnce(Vec<Tensor<B, 4>>) -> (T, Vec<Tensor<B, 4>>),
    ) -> Result<T> {
        caches.iter().try_for_each(|cache| cache.state().map(|_| ()))?;
        let (out, states) = f(caches.iter_mut().filter_map(|cache| cache.state.take()).collect());
        caches.iter_mut().zip(states).for_each(|(cache, state)| cache.state = Some(state));
        Ok(out)
    }

    pub(super) fn bytes(&self) -> usize {
        let conv = self.conv.as_ref().map_or(0, |conv| conv.shape().num_elements());
        let state = self.state.as_ref().map_or(0, |state| state.shape().num_elements());
        4 * (conv + state)
    }
}

/// What one layer keeps.
#[derive(Clone, Debug)]
pub enum LayerCache<B: Backend> {
    /// Full attention.
    Attention(AttentionCache<B>),
    /// Linear attention.
    DeltaNet(DeltaNetCache<B>),
}

impl<B: Backend> LayerCache<B> {
    /// The cache of a full-attention layer.
    pub(crate) fn attention_mut(&mut self) -> Result<&mut AttentionCache<B>> {
        match self {
            Self::Attention(cache) => Ok(cache),
            Self::DeltaNet(_) => Err(foreign()),
        }
    }

    /// The cache of a linear-attention layer.
    pub(crate) fn delta_net_mut(&mut self) -> Result<&mut DeltaNetCache<B>> {
        match self {
            Self::DeltaNet(cache) => Ok(cache),
            Self::Attention(_) => Err(foreign()),
        }
    }
}

impl<B: CompactBackend> LayerCache<B> {
    /// Checks that no tensor was lost.
    pub(super) fn check_whole(&self) -> Result<()> {
        match self {
            Self::Attention(cache) => cache.is_whole().then_some(()).ok_or_else(broken),
            Self::DeltaNet(cache) => cache.conv().and(cache.state().map(|_| ())),
        }
    }
}

pub(super) fn foreign() -> Error {
    Error::Option { option: "cache".into(), message: "is not of this model; make one with `new_cache`".into() }
}

pub(super) fn new_layer<B: Backend>(
    layer: usize,
    shape: LayerCacheShape,
    format: KvFormat,
    capacity: usize,
    device: &B::Device,
) -> LayerCache<B> {
    match shape {
        LayerCacheShape::Attention { k, v } => LayerCache::Attention(AttentionCache {
            shared: [Vec::new(), Vec::new()],
            k: Some(k.store(format, capacity, device)),
            v: Some(v.store(format, capacity, device)),
            layer,
        }),
        LayerCacheShape::DeltaNet { conv_tail, conv_channels, state: [heads, dk, dv] } => {
            LayerCache::DeltaNet(DeltaNetCache {
                conv: Some(Tensor::zeros([1, conv_tail, conv_channels], (device, DType::F32))),
                state: Some(Tensor::zeros([1, heads, dk, dv], (device, DType::F32))),
                replay: None,
            })
        }
    }
}
