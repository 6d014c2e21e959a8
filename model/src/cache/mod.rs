//! What a sequence leaves behind for its next tokens.
//!
//! Full attention keeps keys and values (or the codes they were compressed to, or hidden values of these), linear attention the last inputs of its
//! convolution and its state.
//!
//! Keys and values are in parts: blocks that several caches and kept prefixes may hold, and one part of its own that grows.

#![allow(clippy::indexing_slicing, clippy::panic, reason = "layers are those of the model, and documented panics")]

mod block;
mod layer;
mod rollback;
mod segment;
mod shape;

use std::collections::HashSet;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Tensor};
use emberlm_quant::CompactBackend;
use emberlm_quant::kv::{KV_TILE, KvFormat, KvParts, KvStore};
use emberlm_quant::ops::NewTokens;

pub(crate) use block::KvBlock;
pub use layer::{AttentionCache, DeltaNetCache, LayerCache};
use layer::{foreign, new_layer};
pub(crate) use rollback::Mark;
pub(crate) use segment::{KvSegment, RecurrentState, shared_blocks};
use shape::bytes_of;
pub use shape::{KvShape, LayerCacheShape};

use crate::error::{Error, Result};
use crate::limits::buffer_limit;

/// Slots are added in multiples of this: tokens that a cache has room for at least.
pub const GROWTH: usize = 256;

/// Of the numbers that stand in for tokens.
const NOISE: Distribution = Distribution::Uniform(-1.0, 1.0);

/// Everything one sequence keeps between calls.
///
/// Cloning forks the sequence: tensors are shared until one side appends, which copies its own part whole. After a
/// [`fork`](Self::fork) that part is small.
#[derive(Clone, Debug)]
pub struct Cache<B: Backend> {
    pub(crate) layers: Vec<LayerCache<B>>,
    /// Keys and values of the first tokens; each is a whole tile.
    blocks: Vec<Arc<KvBlock<B>>>,
    shapes: Vec<LayerCacheShape>,
    format: KvFormat,
    capacity: usize,
    len: usize,
    expected: usize,
    first_position: usize,
    /// Whether a pass has begun that did not come to its end: some layers may be a pass further than others.
    in_pass: bool,
    /// Bytes of the largest buffer.
    limit: Option<usize>,
    /// Bytes of all memory.
    memory: Option<usize>,
    device: B::Device,
}

impl<B: CompactBackend> Cache<B> {
    /// An empty cache, which takes no memory before it is used. Where gradients are recorded the format is
    /// [always F32](KvStore::format_on).
    pub fn new(shapes: Vec<LayerCacheShape>, format: KvFormat, device: &B::Device) -> Self {
        let (device, format) = (device.clone(), KvStore::<B>::format_on(format, device));
        let (limit, memory) = (buffer_limit::<B>(&device), B::memory(&device));
        let (layers, blocks) = (Vec::new(), Vec::new());
        let (capacity, len, expected, first_position) = (0, 0, 0, 0);
        let in_pass = false;
        Self { layers, blocks, shapes, format, capacity, len, expected, first_position, in_pass, limit, memory, device }
    }

    /// What layer `i` keeps.
    ///
    /// # Panics
    /// When the model has no such layer, or the cache was never used.
    pub fn layer(&self, i: usize) -> &LayerCache<B> {
        &self.layers[i]
    }

    /// Tokens that it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was fed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Counts the positions of the sequence from `position` on instead of from 0, until [`reset`](Self::reset). Attention does not
    /// mind where a sequence begins, but keys that are compressed after their rotation do.
    ///
    /// # Errors
    /// [`Error::Option`] when it holds tokens.
    pub fn begin_at(&mut self, position: usize) -> Result<()> {
        if !self.is_empty() {
            return Err(refused(format!("holds {} tokens; only an empty one begins elsewhere", self.len)));
        }
        if u32::try_from(position).is_err() {
            return Err(refused(format!("cannot begin at position {position}, beyond every context")));
        }
        self.first_position = position;
        Ok(())
    }

    /// The position of the first token.
    pub(crate) fn first_position(&self) -> usize {
        self.first_position
    }

    /// Says that a prompt that comes in several passes will fill the cache up to `slots`. Rotary embeddings whose frequencies depend
    /// on the length of the sequence (`dynamic`, `longrope`) then rotate every pass of it for that length, so that a prompt in
    /// chunks is the prompt at once. [`CausalLm::prefill`](crate::CausalLm::prefill) says it by itself.
    pub fn expect(&mut self, slots: usize) {
        self.expected = self.expected.max(slots);
    }

    /// Slots that are known to be filled.
    pub(crate) fn expected(&self) -> usize {
        self.expected
    }

    /// Bytes held on the device, free slots and what it shares with others included.
    pub fn bytes(&self) -> usize {
        self.own_bytes() + self.blocks.iter().map(|block| block.bytes()).sum::<usize>()
    }

    /// Of them those that it shares with nobody: what a clone takes when it goes on.
    pub(crate) fn own_bytes(&self) -> usize {
        let layers = self.layers.iter().map(|layer| match layer {
            LayerCache::Attention(kv) => kv.bytes(),
            LayerCache::DeltaNet(delta) => delta.bytes(),
        });
        layers.sum()
    }

    /// Bytes that a pass over `tokens` with drafts among them takes beside it: see [`LayerCacheShape::replay_bytes`].
    pub(crate) fn replay_bytes(&self, tokens: usize) -> usize {
        self.shapes.iter().map(|shape| shape.replay_bytes(tokens)).fold(0, usize::saturating_add)
    }

    /// What it may share with others.
    pub(crate) fn blocks(&self) -> &[Arc<KvBlock<B>>] {
        &self.blocks
    }

    /// Tokens of the blocks.
    fn shared_tokens(&self) -> usize {
        self.blocks.len() * KV_TILE
    }

    /// Tokens that fit without growth.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that it would take with room for `slots` tokens, at least what it takes now.
    pub fn bytes_with_room(&self, slots: usize) -> usize {
        let capacity = self.roomy(slots);
        if capacity <= self.capacity { self.bytes() } else { self.bytes_of_slots(capacity).max(self.bytes()) }
    }

    /// Makes room for `slots` in all, so that later appends do not grow.
    ///
    /// # Panics
    /// When that is more than [`check_room`](Self::check_room) allows.
    pub fn reserve(&mut self, slots: usize) {
        if slots <= self.capacity {
            return;
        }
        self.check_room(slots).unwrap_or_else(|error| panic!("{error}"));
        self.capacity = self.roomy(slots);
        if self.layers.is_empty() {
            let layer = |(i, &shape)| new_layer(i, shape, self.format, self.capacity, &self.device);
            self.layers = self.shapes.iter().enumerate().map(layer).collect();
            return;
        }
        let own = self.capacity - self.shared_tokens();
        for layer in &mut self.layers {
            if let LayerCache::Attention(kv) = layer {
                kv.grow(own);
            }
        }
    }

    /// The capacity that is made for `slots`: room to spare only where a buffer has it.
    fn roomy(&self, slots: usize) -> usize {
        let spare = slots.checked_next_multiple_of(GROWTH).unwrap_or(slots);
        if self.refusal(spare).is_some() { slots } else { spare }
    }

    /// Checks that every tensor of `slots` slots fits a buffer of the device, and all of them its memory.
    ///
    /// # Errors
    /// [`Error::Buffer`] with the first that does not, [`Error::Memory`].
    pub fn check_room(&self, slots: usize) -> Result<()> {
        self.refusal(slots.max(self.capacity)).map_or(Ok(()), Err)
    }

    /// Why the device cannot hold `slots` slots.
    fn refusal(&self, slots: usize) -> Option<Error> {
        if let Some((tensor, bytes, limit)) = self.beyond_buffers(slots) {
            return Some(Error::Buffer { tensor, slots, bytes, limit });
        }
        let bytes = self.bytes_of_slots(slots);
        let limit = self.memory.filter(|&limit| bytes > limit)?;
        let what = format!("the cache of {slots} tokens in {} layers", self.shapes.len());
        Some(Error::Memory { what, bytes, limit })
    }

    /// Of all tensors with `slots` slots.
    fn bytes_of_slots(&self, slots: usize) -> usize {
        let layer = |shape: &LayerCacheShape| {
            shape.bytes_per_token(self.format).saturating_mul(slots).saturating_add(shape.fixed_bytes())
        };
        self.shapes.iter().map(layer).fold(0, usize::saturating_add)
    }

    /// The first tensor that is too large with `slots` slots, its bytes, and the limit.
    fn beyond_buffers(&self, slots: usize) -> Option<(String, usize, usize)> {
        let limit = self.limit?;
        let tensors = self.shapes.iter().enumerate().flat_map(|(i, shape)| match *shape {
            LayerCacheShape::Attention { k, v } => [("keys", k), ("values", v)]
                .map(|(what, shape)| (what, i, shape.bytes_per_token(self.format).saturating_mul(slots))),
            LayerCacheShape::DeltaNet { conv_tail, conv_channels, state } => {
                [("inputs", i, bytes_of(&[conv_tail, conv_channels])), ("state", i, bytes_of(&state))]
            }
        });
        tensors
            .into_iter()
            .find_map(|(what, i, bytes)| (bytes > limit).then(|| (format!("cached {what} of layer {i}"), bytes, limit)))
    }

    /// Lowers the memory that the cache may take, to try out what happens there.
    pub fn limit_memory(&mut self, bytes: usize) {
        self.memory = Some(self.memory.map_or(bytes, |limit| limit.min(bytes)));
    }

    /// Lowers the limit of the device's buffers, to try out what happens there.
    pub fn limit_buffers(&mut self, bytes: usize) {
        self.limit = Some(self.limit.map_or(bytes, |limit| limit.min(bytes)));
    }

    /// Forgets every token; the memory is kept, but for what is shared with others.
    pub fn reset(&mut self) {
        (self.len, self.expected, self.first_position, self.in_pass) = (0, 0, 0, false);
        self.capacity -= self.shared_tokens();
        self.blocks.clear();
        for (i, (layer, &shape)) in self.layers.iter_mut().zip(&self.shapes).enumerate() {
            match layer {
                // Slots are written before they are read; a state is read first.
                LayerCache::Attention(kv) if kv.is_whole() => kv.clear_shared(),
                _ => *layer = new_layer(i, shape, self.format, self.capacity, &self.device),
            }
        }
    }

    /// Appends `tokens` tokens that were never computed, to measure speed at a long context: random numbers, the same again after every
    /// 512 tokens.
    ///
    /// # Errors
    /// When there is no [room](Self::check_room).
    pub fn append_random(&mut self, tokens: usize) -> Result<()> {
        const AT_ONCE: usize = 512;
        if tokens == 0 {
            return Ok(());
        }
        let end = self.len.saturating_add(tokens);
        self.check_room(end)?;
        self.reserve(end);
        for layer in &mut self.layers {
            match layer {
                LayerCache::Attention(kv) => {
                    let new = |parts: KvParts<'_, B>| {
                        let [b, heads, _, width] = parts.own.dims();
                        Tensor::<B, 4>::random([b, AT_ONCE.min(tokens), heads, width], NOISE, &self.device)
                    };
                    let (k, v) = (new(kv.k()?), new(kv.v()?));
                    for at in (self.len..end).step_by(AT_ONCE) {
                        let tokens = AT_ONCE.min(end - at);
                        let kv_of = [&k, &v].map(|numbers| numbers.clone().slice_dim(1, 0..tokens));
                        AttentionCache::append(&mut [kv], kv_of, &[NewTokens { tokens, at }])?;
                    }
                }
                LayerCache::DeltaNet(delta) => {
                    delta.update_conv(|conv| ((), conv.random_like(NOISE)))?;
                    delta.update_state(|state| ((), state.random_like(NOISE)))?;
                }
            }
        }
        self.len = end;
        Ok(())
    }

    /// Makes room for `s` tokens more. Growth is by half, so that a long generation copies each slot a few times at most.
    ///
    /// # Errors
    /// As [`check_room`](Self::check_room).
    pub(crate) fn make_room(&mut self, s: usize) -> Result<()> {
        let needed = self.len.saturating_add(s);
        self.check_room(needed)?;
        if needed > self.capacity {
            let roomy = needed.max(self.capacity + self.capacity / 2);
            self.reserve(if self.refusal(roomy).is_some() { needed } else { roomy });
        }
        Ok(())
    }

    /// Checks that it was made for a model with these layers.
    ///
    /// # Errors
    /// [`Error::Option`] with what to do.
    pub(crate) fn check_model(&self, shapes: &[LayerCacheShape]) -> Result<()> {
        if self.shapes == shapes { Ok(()) } else { Err(foreign()) }
    }

    /// Checks that a pass can go on from it: no tensor was lost, and no state was left behind by a pass that failed. Slots of keys and values
    /// are written again.
    ///
    /// # Errors
    /// [`Error::Option`] with what to do.
    pub(crate) fn check_whole(&self) -> Result<()> {
        if self.is_torn() {
            let message = "holds states that a pass which failed left behind; call `reset`, or make another one";
            return Err(refused(message.into()));
        }
        self.layers.iter().try_for_each(LayerCache::check_whole)
    }

    /// Whether a pass that failed may have moved some of its states on and others not.
    pub(crate) fn is_torn(&self) -> bool {
        self.in_pass && self.is_recurrent()
    }

    /// An empty one of its kind, for the same sequence.
    pub(crate) fn emptied(&self) -> Self {
        let mut cache = Self::new(self.shapes.clone(), self.format, &self.device);
        (cache.expected, cache.first_position) = (self.expected, self.first_position);
        (cache.limit, cache.memory) = (self.limit, self.memory);
        cache
    }

    /// Notes that a pass over it begins.
    pub(crate) fn begin_pass(&mut self) {
        self.in_pass = true;
    }

    /// Notes that a pass over `s` tokens has come to its end.
    pub(crate) fn advance(&mut self, s: usize) {
        self.len += s;
        self.in_pass = false;
    }
}

/// Bytes of the blocks of all these caches, each block once, as far as `counts` says.
pub(crate) fn block_bytes<'a, B: CompactBackend>(
    caches: impl Iterator<Item = &'a Cache<B>>,
    counts: impl Fn(&KvBlock<B>) -> bool,
) -> usize {
    let mut seen = HashSet::new();
    let blocks = caches.flat_map(|cache| &cache.blocks).filter(|block| counts(block));
    // One that has one holder need not be looked for.
    let once = |block: &&Arc<KvBlock<B>>| Arc::strong_count(block) == 1 || seen.insert(Arc::as_ptr(block));
    blocks.filter(once).map(|block| block.bytes()).sum()
}

fn refused(message: String) -> Error {
    Error::Option { option: "cache".into(), message }
}
