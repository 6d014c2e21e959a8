//! A cache in parts, so that sequences can share what they have in common.

use burn::tensor::backend::Backend;

use super::KvStore;

/// What is stored of a sequence, in parts one after the other.
#[derive(Debug)]
pub struct KvParts<'a, B: Backend> {
    /// The first ones: full, a multiple of [`KV_TILE`](super::KV_TILE) tokens each, and never written to.
    pub shared: &'a [KvStore<B>],
    /// The tokens after theirs, and free slots.
    pub own: &'a KvStore<B>,
}

// Not derived: that would ask for `B: Copy`.
impl<B: Backend> Clone for KvParts<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for KvParts<'_, B> {}

/// All in one part.
impl<'a, B: Backend> From<&'a KvStore<B>> for KvParts<'a, B> {
    fn from(own: &'a KvStore<B>) -> Self {
        Self { shared: &[], own }
    }
}

impl<'a, B: Backend> KvParts<'a, B> {
    /// All parts in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a KvStore<B>> + use<'a, B> {
        self.shared.iter().chain([self.own])
    }

    /// Tokens that fit into all parts.
    pub fn capacity(&self) -> usize {
        self.iter().map(KvStore::capacity).sum()
    }
}
