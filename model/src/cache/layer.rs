//! What one layer keeps for the next tokens.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use emberlm_quant::CompactBackend;
use emberlm_quant::kv::{KvFormat, KvStore};

use super::shape::LayerCacheShape;

/// Keys and values of one attention layer.
#[derive(Clone, Debug)]
pub struct AttentionCache<B: Backend> {
    /// `None` only while an append owns the store.
    k: Option<KvStore<B>>,
    v: Option<KvStore<B>>,
    /// Of the model, for messages.
    layer: usize,
}

impl<B: CompactBackend> AttentionCache<B> {
    /// Appends keys and values `[b, s, heads, width]` of new tokens at slot `at`.
    pub(crate) fn append(&mut self, k: Tensor<B, 4>, v: Tensor<B, 4>, at: usize) {
        // The store is moved out, so that the operation owns it and can write in place.
        self.k = self.k.take().map(|store| self.store("keys", store, k, at));
        self.v = self.v.take().map(|store| self.store("values", store, v, at));
    }

    fn store(&self, what: &str, store: KvStore<B>, new: Tensor<B, 4>, at: usize) -> KvStore<B> {
        let halves = matches!(store, KvStore::F16(_));
        let store = B::store_kv(store, new, at);
        if halves && matches!(store, KvStore::F32(_)) {
            tracing::warn!(
                "layer {}: {what} are beyond 65504, where the F16 of the cache ends, and are kept in F32 from here on; \
                 a cache of F32 (--cache-type f32) is exact from the first token",
                self.layer
            );
        }
        store
    }

    /// Stored keys or their codes.
    pub fn k(&self) -> &KvStore<B> {
        self.k.as_ref().expect("a store is only absent inside append")
    }

    /// Stored values or their codes.
    pub fn v(&self) -> &KvStore<B> {
        self.v.as_ref().expect("a store is only absent inside append")
    }

    pub(super) fn grow(&mut self, capacity: usize) {
        self.k = self.k.take().map(|store| store.with_capacity(capacity));
        self.v = self.v.take().map(|store| store.with_capacity(capacity));
    }
}

/// State of one Gated DeltaNet layer. It cannot be rolled back, only copied.
#[derive(Clone, Debug)]
pub struct DeltaNetCache<B: Backend> {
    /// `None` only while an operation owns the tensor.
    pub(crate) conv: Option<Tensor<B, 3>>,
    pub(crate) state: Option<Tensor<B, 4>>,
}

impl<B: Backend> DeltaNetCache<B> {
    /// The last inputs of the convolution, oldest first: `[b, width - 1, channels]`.
    pub fn conv(&self) -> &Tensor<B, 3> {
        self.conv.as_ref().expect("absent only inside a pass")
    }

    /// `[b, value_heads, key_dim, value_dim]`.
    pub fn state(&self) -> &Tensor<B, 4> {
        self.state.as_ref().expect("absent only inside a pass")
    }

    /// Moved out, so that the operation owns it and can write in place.
    pub(crate) fn take_conv(&mut self) -> Tensor<B, 3> {
        self.conv.take().expect("absent only inside a pass")
    }

    pub(crate) fn take_state(&mut self) -> Tensor<B, 4> {
        self.state.take().expect("absent only inside a pass")
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

pub(super) fn new_layer<B: Backend>(
    layer: usize,
    shape: LayerCacheShape,
    format: KvFormat,
    batch: usize,
    capacity: usize,
    device: &B::Device,
) -> LayerCache<B> {
    match shape {
        LayerCacheShape::Attention { k, v } => LayerCache::Attention(AttentionCache {
            k: Some(k.store(format, batch, capacity, device)),
            v: Some(v.store(format, batch, capacity, device)),
            layer,
        }),
        LayerCacheShape::DeltaNet { conv_tail, conv_channels, state: [heads, dk, dv] } => {
            LayerCache::DeltaNet(DeltaNetCache {
                conv: Some(Tensor::zeros([batch, conv_tail, conv_channels], (device, DType::F32))),
                state: Some(Tensor::zeros([batch, heads, dk, dv], (device, DType::F32))),
            })
        }
    }
}
