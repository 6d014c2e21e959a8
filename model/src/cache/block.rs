//! Keys and values that caches and kept prefixes share.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::backend::Backend;
use emberlm_quant::kv::{KV_TILE, KvStore};

use super::layer::foreign;
use crate::error::Result;

/// Keys and values of up to [`KV_TILE`] consecutive tokens in every attention layer. They are never written to, so that whoever needs
/// them holds the same ones.
#[derive(Debug)]
pub(crate) struct KvBlock<B: Backend> {
    /// Of each attention layer in order; without free slots.
    layers: Vec<[KvStore<B>; 2]>,
    tokens: usize,
    bytes: usize,
    /// How many kept prefixes hold it.
    kept: AtomicUsize,
}

impl<B: Backend> KvBlock<B> {
    pub fn new(layers: Vec<[KvStore<B>; 2]>, tokens: usize) -> Self {
        let bytes = layers.iter().flatten().map(KvStore::bytes).sum();
        Self { layers, tokens, bytes, kept: AtomicUsize::new(0) }
    }

    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a kept prefix holds it.
    pub fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed) > 0
    }

    pub fn layers(&self) -> &[[KvStore<B>; 2]] {
        &self.layers
    }

    /// Some of its tokens as a block of their own.
    pub fn copied(&self, tokens: Range<usize>) -> Self {
        let count = tokens.len();
        let copy = |store: &KvStore<B>| store.copied(tokens.clone(), count);
        Self::new(self.layers.iter().map(|stores| stores.each_ref().map(copy)).collect(), count)
    }
}

/// A block that a kept prefix holds, which it says of itself.
#[derive(Debug)]
pub(super) struct KeptBlock<B: Backend>(Arc<KvBlock<B>>);

impl<B: Backend> KeptBlock<B> {
    pub fn new(block: Arc<KvBlock<B>>) -> Self {
        block.kept.fetch_add(1, Ordering::Relaxed);
        Self(block)
    }

    pub fn block(&self) -> &Arc<KvBlock<B>> {
        &self.0
    }
}

impl<B: Backend> Drop for KeptBlock<B> {
    fn drop(&mut self) {
        self.0.kept.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The first `count` tokens of a block.
pub(super) type Piece<'a, B> = (&'a Arc<KvBlock<B>>, usize);

/// A tile of a cache that is made from kept blocks.
pub(super) enum Tile<'a, B: Backend> {
    /// One block is all of it.
    Whole(&'a Arc<KvBlock<B>>),
    /// Several are, or its last tokens are still to come.
    Pieces(Vec<Piece<'a, B>>),
}

/// The tiles that pieces of consecutive tokens make up, from the beginning of a text on.
///
/// # Errors
/// Where a piece reaches into the next tile.
pub(super) fn tiles<'a, B: Backend>(pieces: impl Iterator<Item = Piece<'a, B>>) -> Result<Vec<Tile<'a, B>>> {
    let (mut tiles, mut open, mut filled) = (Vec::new(), Vec::new(), 0);
    for (block, count) in pieces {
        open.push((block, count));
        filled += count;
        if filled > KV_TILE || count > block.tokens() {
            return Err(foreign());
        }
        if filled == KV_TILE {
            filled = 0;
            tiles.push(match *open {
                [(block, KV_TILE)] if block.tokens() == KV_TILE => Tile::Whole(block),
                _ => Tile::Pieces(std::mem::take(&mut open)),
            });
            open.clear();
        }
    }
    if !open.is_empty() {
        tiles.push(Tile::Pieces(open));
    }
    Ok(tiles)
}
