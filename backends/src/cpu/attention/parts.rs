//! A cache in parts, and which of them holds a position.

use crate::cpu::attention::types::Attention;
use crate::cpu::cache::CacheSlice;

/// One part of a cache: `slots` consecutive positions from `first` on, for each head (or row of the batch) one after the other.
#[derive(Clone, Copy)]
pub(super) struct Part<S> {
    pub(super) data: S,
    pub(super) first: usize,
    pub(super) slots: usize,
}

/// The parts of a cache in order, at least one. They meet at multiples of [`KV_TILE`](crate::types::KV_TILE).
pub(super) struct Parts<S>(Vec<Part<S>>);

impl<S> Part<S> {
    /// The row of position `at` of head (or row of the batch) `group`.
    #[inline(always)]
    pub(super) fn row(&self, group: usize, at: usize) -> usize {
        group * self.slots + at - self.first
    }
}

impl<S: Copy> Parts<S> {
    /// From what is stored and how many positions that is.
    fn new(parts: impl Iterator<Item = (S, usize)>) -> Self {
        let mut end = 0;
        let part = |(data, slots)| {
            let first = end;
            end += slots;
            Part { data, first, slots }
        };
        Self(parts.map(part).collect())
    }

    /// Whether this is so of one of them.
    pub(super) fn any(&self, f: impl Fn(S) -> bool) -> bool {
        self.0.iter().any(|part| f(part.data))
    }

    /// The part that holds the tile at `position`.
    #[inline(always)]
    pub(super) fn at(&self, position: usize) -> Part<S> {
        match &self.0[..] {
            [whole] => *whole,
            parts => parts[parts.partition_point(|part| part.first <= position) - 1],
        }
    }
}

impl<'a> Parts<CacheSlice<'a>> {
    /// Keys or values of each head.
    pub(super) fn of_heads(parts: &[CacheSlice<'a>], p: &Attention) -> Self {
        let token = p.batch * p.kv_heads * p.head_dim;
        Self::new(parts.iter().map(|&part| (part, part.len().checked_div(token).unwrap_or_default())))
    }

    /// A vector of `width` numbers for each token.
    pub(super) fn of_tokens(parts: &[CacheSlice<'a>], width: usize, p: &Attention) -> Self {
        let token = p.batch * width;
        Self::new(parts.iter().map(|&part| (part, part.len().checked_div(token).unwrap_or_default())))
    }
}

impl<'a> Parts<&'a [f32]> {
    /// A code of `width` floats for each token.
    pub(super) fn of_codes(parts: &[&'a [f32]], width: usize, p: &Attention) -> Self {
        let token = p.batch * width;
        Self::new(parts.iter().map(|&part| (part, part.len().checked_div(token).unwrap_or_default())))
    }
}
