//! What one call of flash attention reads.

use crate::cpu::attention::byte_sums::{ByteQueries, ByteSums};
use crate::cpu::attention::hidden::HiddenLayer;
use crate::cpu::attention::parts::Parts;
use crate::cpu::attention::types::Attention;
use crate::cpu::cache::CacheSlice;

/// Queries of all kv heads up to which a task has all of them where heads share keys or values: hidden values are then read, or computed from
/// codes, once for every pass over the cache, while they are in the L1 cache. More queries make several passes, and hidden values of
/// codes are computed before.
pub(super) const MAX_SHARED_ROWS: usize = 256;

/// What stands for the keys or values of a position.
pub(super) enum Source<'a> {
    /// Keys or values of each head.
    Heads(Parts<CacheSlice<'a>>),
    /// One vector of `width` for all heads: codes of a linear decoder, or hidden values.
    Tokens { parts: Parts<CacheSlice<'a>>, width: usize },
    /// Codes, whose hidden values are computed tile by tile.
    Codes { parts: Parts<&'a [f32]>, layer: &'a HiddenLayer },
}

impl Source<'_> {
    /// Whether a part of it is in 8 bits.
    pub(super) fn has_8_bits(&self) -> bool {
        match self {
            Source::Heads(parts) | Source::Tokens { parts, .. } => {
                parts.any(|part| matches!(part, CacheSlice::Q8 { .. }))
            }
            Source::Codes { .. } => false,
        }
    }

    /// Floats of one head and position.
    pub(super) fn width(&self, p: &Attention) -> usize {
        match self {
            Source::Heads(_) => p.head_dim,
            Source::Tokens { width, .. } => *width,
            Source::Codes { layer, .. } => layer.h,
        }
    }
}

/// The queries of an attention.
#[derive(Clone, Copy)]
pub(super) enum Queries<'a> {
    /// `[b, kv_heads, rows, width of the keys]`, already scaled: the queries of a group (token, head) together, since they read the same keys.
    Grouped(&'a [f32]),
    /// `[b, s, heads, head_dim]`, not scaled.
    Tokens(&'a [f32]),
}

impl<'a> Queries<'a> {
    /// Query `row` of a kv head, `width` floats.
    pub(super) fn row(&self, a: &FlashAttention, b: usize, head: usize, row: usize) -> &'a [f32] {
        let (p, group) = (&a.p, a.group());
        match *self {
            Queries::Grouped(q) => {
                let width = a.keys.width(p);
                &q[((b * p.kv_heads + head) * a.rows + row) * width..][..width]
            }
            Queries::Tokens(q) => {
                let at = (b * p.seq + row / group) * p.heads + head * group + row % group;
                &q[at * p.head_dim..][..p.head_dim]
            }
        }
    }

    /// What they are yet to be multiplied by.
    pub(super) fn scale(&self, p: &Attention) -> f32 {
        match self {
            Queries::Grouped(_) => 1.0,
            Queries::Tokens(_) => p.scale,
        }
    }
}

/// One attention.
pub(super) struct FlashAttention<'a> {
    pub(super) q: Queries<'a>,
    /// Added to the scores of each query.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) keys: Source<'a>,
    pub(super) values: Source<'a>,
    pub(super) p: Attention,
    /// Queries per kv head: tokens times heads of the group.
    pub(super) rows: usize,
    /// The queries as whole numbers, where scores are sums of those.
    pub(super) byte_queries: Option<&'a ByteQueries>,
    /// How weighted sums of values are, where they are such sums.
    pub(super) byte_sums: Option<ByteSums>,
    /// Whether those of hidden values are in BF16.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) bf16_sums: bool,
    /// Whether queries are the lanes of vectors.
    pub(super) prompt: bool,
}

impl FlashAttention<'_> {
    /// Query heads per kv head.
    pub(super) fn group(&self) -> usize {
        self.rows / self.p.seq.max(1)
    }
}
