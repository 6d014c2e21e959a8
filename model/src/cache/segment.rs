//! Parts of a cache that are kept by themselves: keys and values of consecutive tokens, and the state after one.
//!
//! None of them is ever written to. Where the backend [reads a cache in parts](CompactBackend::READS_KV_PARTS), whole tiles of keys and
//! values are the same blocks in a cache, in its forks and in what is kept; else a cache is made from copies.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use emberlm_quant::CompactBackend;
use emberlm_quant::kv::{KV_TILE, KvStore};

use super::block::{KeptBlock, KvBlock, Piece, Tile, tiles};
use super::layer::{DeltaNetCache, LayerCache, foreign, new_layer};
use super::shape::LayerCacheShape;
use super::{Cache, refused};
use crate::error::Result;

/// Keys and values of consecutive tokens in every attention layer, in blocks that end where a tile does.
#[derive(Debug)]
pub(crate) struct KvSegment<B: Backend> {
    /// The position of its first token.
    first: usize,
    blocks: Vec<KeptBlock<B>>,
}

/// What the linear-attention layers keep after some token, in order.
#[derive(Clone, Debug)]
pub(crate) struct RecurrentState<B: Backend>(Vec<DeltaNetCache<B>>);

impl<B: CompactBackend> KvSegment<B> {
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|kept| kept.block().bytes()).sum()
    }

    /// The first `at` tokens and the others. Blocks go to the one or the other; the one that holds tokens of both is cut in two.
    pub fn split(&self, at: usize) -> (Self, Self) {
        let (mut left, mut before, mut after) = (at, Vec::new(), Vec::new());
        for block in self.blocks.iter().map(KeptBlock::block) {
            let tokens = block.tokens();
            if left >= tokens {
                before.push(block.clone());
            } else if left == 0 {
                after.push(block.clone());
            } else {
                before.push(Arc::new(block.copied(0..left)));
                after.push(Arc::new(block.copied(left..tokens)));
            }
            left = left.saturating_sub(tokens);
        }
        let segment = |first, blocks: Vec<_>| Self { first, blocks: blocks.into_iter().map(KeptBlock::new).collect() };
        (segment(self.first, before), segment(self.first + at, after))
    }

    /// Its blocks with the tokens to take of each, for the first `tokens` of them.
    fn pieces(&self, tokens: usize) -> impl Iterator<Item = Piece<'_, B>> {
        let taken = self.blocks.iter().scan(tokens, |left, kept| {
            let count = kept.block().tokens().min(*left);
            *left -= count;
            Some((kept.block(), count))
        });
        taken.take_while(|(_, count)| *count > 0)
    }
}

/// The blocks that a cache [made of](Cache::restore) the first tokens of these segments holds together with them.
pub(crate) fn shared_blocks<'a, B: CompactBackend>(
    segments: impl Iterator<Item = (&'a KvSegment<B>, usize)>,
) -> Vec<&'a Arc<KvBlock<B>>> {
    if !B::READS_KV_PARTS {
        return Vec::new();
    }
    let whole = |tile| match tile {
        Tile::Whole(block) => Some(block),
        Tile::Pieces(_) => None,
    };
    let tiles = tiles(segments.flat_map(|(segment, tokens)| segment.pieces(tokens)));
    tiles.unwrap_or_default().into_iter().filter_map(whole).collect()
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

    /// A cache that goes on by itself from here. Keys and values of whole tiles are shared, from then on by this one too; the rest and
    /// the states are copied when one of the two goes on.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) when a pass that failed has lost a tensor.
    pub fn fork(&mut self) -> Result<Self> {
        self.make_shareable()?;
        Ok(self.clone())
    }

    /// Moves whole tiles of its own part to blocks that others can hold too, where the backend reads them. It holds as many bytes as
    /// before; for a moment those that move are there twice.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) when a pass that failed has lost a tensor.
    pub(crate) fn make_shareable(&mut self) -> Result<()> {
        let own = self.len - self.shared_tokens();
        let moved = own / KV_TILE * KV_TILE;
        if !B::READS_KV_PARTS || moved == 0 {
            return Ok(());
        }
        for at in (0..moved).step_by(KV_TILE) {
            let layers = self.own_layers(at..at + KV_TILE)?;
            self.blocks.push(Arc::new(KvBlock::new(layers, KV_TILE)));
        }
        let free = self.capacity - self.shared_tokens();
        self.set_attention(|_, stores| Some(stores.map(|store| store.copied(moved..own, free))))
    }

    /// A copy of some tokens of the own part of each attention layer.
    fn own_layers(&self, slots: Range<usize>) -> Result<Vec<[KvStore<B>; 2]>> {
        let mut layers = Vec::new();
        for layer in &self.layers {
            if let LayerCache::Attention(kv) = layer {
                let copy = |store: &KvStore<B>| store.copied(slots.clone(), slots.len());
                layers.push([copy(kv.k()?.own), copy(kv.v()?.own)]);
            }
        }
        Ok(layers)
    }

    /// Gives each attention layer the blocks of the cache, and the own part that `own` makes of its number among them and the one that
    /// it has.
    ///
    /// # Errors
    /// Where there is none; the own part is lost then.
    fn set_attention(&mut self, mut own: impl FnMut(usize, [KvStore<B>; 2]) -> Option<[KvStore<B>; 2]>) -> Result<()> {
        let mut attention = 0;
        for layer in &mut self.layers {
            if let LayerCache::Attention(kv) = layer {
                let shared = self.blocks.iter().map(|block| block.layers().get(attention).ok_or_else(foreign));
                let shared = shared.collect::<Result<Vec<_>>>()?;
                kv.set(&shared, |stores| own(attention, stores).ok_or_else(foreign))?;
                attention += 1;
            }
        }
        Ok(())
    }

    /// The keys and values of these tokens, to be kept: whole tiles that are [shareable](Self::make_shareable) themselves, and copies
    /// of the rest. None where a layer keeps them in another format than it began with.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) when a pass that failed has lost a tensor.
    pub(crate) fn segment(&self, tokens: Range<usize>) -> Result<Option<KvSegment<B>>> {
        let mut blocks = Vec::new();
        let mut at = tokens.start;
        while at < tokens.end {
            let (tile, shared) = (at / KV_TILE, self.shared_tokens());
            let end = tokens.end.min((tile + 1) * KV_TILE);
            let block = match self.blocks.get(tile) {
                Some(block) if end - at == KV_TILE => block.clone(),
                Some(block) => Arc::new(block.copied(at % KV_TILE..at % KV_TILE + (end - at))),
                None => Arc::new(KvBlock::new(self.own_layers(at - shared..end - shared)?, end - at)),
            };
            if !self.is_in_its_formats(&block) {
                return Ok(None);
            }
            blocks.push(KeptBlock::new(block));
            at = end;
        }
        Ok(Some(KvSegment { first: tokens.start, blocks }))
    }

    /// Whether every layer of a block is in the format that an empty cache begins with.
    fn is_in_its_formats(&self, block: &KvBlock<B>) -> bool {
        let begun = self.shapes.iter().filter_map(|shape| match shape {
            LayerCacheShape::Attention { k, v } => Some([k.format(self.format), v.format(self.format)]),
            LayerCacheShape::DeltaNet { .. } => None,
        });
        begun.eq(block.layers().iter().map(|stores| stores.each_ref().map(KvStore::format)))
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
    /// thrown away then. As [`check_room`](Self::check_room).
    pub(crate) fn restore<'a>(
        &mut self,
        segments: impl Iterator<Item = (&'a KvSegment<B>, usize)> + Clone,
        state: Option<&RecurrentState<B>>,
    ) -> Result<()>
    where
        B: 'a,
    {
        let mut tokens = 0;
        for (segment, taken) in segments.clone() {
            if segment.first != tokens {
                return Err(foreign());
            }
            tokens += taken;
        }
        if !self.is_empty() || self.is_recurrent() != state.is_some() {
            return Err(foreign());
        }
        self.check_room(tokens)?;
        let mut rest = Vec::new();
        for tile in tiles(segments.flat_map(|(segment, tokens)| segment.pieces(tokens)))? {
            match tile {
                Tile::Whole(block) if B::READS_KV_PARTS => self.blocks.push(block.clone()),
                Tile::Whole(block) => rest.push((block, KV_TILE)),
                Tile::Pieces(pieces) => {
                    let count = pieces.iter().map(|(_, count)| count).sum::<usize>();
                    if B::READS_KV_PARTS && count == KV_TILE {
                        self.blocks.push(Arc::new(joined(&pieces)?));
                    } else {
                        rest.extend(pieces);
                    }
                }
            }
        }
        self.capacity = self.capacity.max(self.roomy(tokens));
        let free = self.capacity - self.shared_tokens();
        let layer = |(i, &shape)| new_layer(i, shape, self.format, free, &self.device);
        self.layers = self.shapes.iter().enumerate().map(layer).collect();
        self.set_attention(|attention, mut stores| {
            let mut at = 0;
            for (block, count) in &rest {
                stores = written(stores, block.layers().get(attention)?, at, *count)?;
                at += count;
            }
            Some(stores)
        })?;
        let mut states = state.into_iter().flat_map(|state| &state.0);
        for layer in &mut self.layers {
            if let LayerCache::DeltaNet(delta) = layer {
                *delta = states.next().ok_or_else(foreign)?.clone();
            }
        }
        self.len = tokens;
        Ok(())
    }

    /// Forgets the tokens from `len` on. Their memory is kept, but for what is shared with others.
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
        if len < self.shared_tokens() {
            let (whole, rest) = (len / KV_TILE, len % KV_TILE);
            let cut = self.blocks.get(whole).cloned().ok_or_else(foreign)?;
            self.blocks.truncate(whole);
            let free = self.capacity - self.shared_tokens();
            self.set_attention(|attention, _| {
                let stores = cut.layers().get(attention)?.each_ref();
                Some(stores.map(|store| store.copied(0..rest, free)))
            })?;
        }
        (self.len, self.expected) = (len, self.expected.min(len));
        Ok(())
    }
}

/// Pieces of a tile in one block.
fn joined<B: Backend>(pieces: &[Piece<'_, B>]) -> Result<KvBlock<B>> {
    let ((first, count), others) = pieces.split_first().ok_or_else(foreign)?;
    let layer = |(i, stores): (usize, &[KvStore<B>; 2])| {
        let mut stores = stores.each_ref().map(|store| store.copied(0..*count, KV_TILE));
        let mut at = *count;
        for (block, count) in others {
            stores = written(stores, block.layers().get(i)?, at, *count)?;
            at += count;
        }
        Some(stores)
    };
    let layers = first.layers().iter().enumerate().map(layer).collect::<Option<Vec<_>>>();
    Ok(KvBlock::new(layers.ok_or_else(foreign)?, KV_TILE))
}

/// The stores with the first `count` tokens of others from slot `at` on; none where formats differ.
fn written<B: Backend>(
    [k, v]: [KvStore<B>; 2],
    [new_k, new_v]: &[KvStore<B>; 2],
    at: usize,
    count: usize,
) -> Option<[KvStore<B>; 2]> {
    Some([k.with_tokens(at, new_k, count)?, v.with_tokens(at, new_v, count)?])
}
