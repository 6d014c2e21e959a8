//! What one call of flash attention reads.

use crate::cpu::attention::hidden::HiddenLayer;
use crate::cpu::attention::parts::Parts;
use crate::cpu::attention::types::Attention;
#[cfg(target_arch = "x86_64")]
use crate::cpu::attention::vnni::IntQueries;
use crate::cpu::cache::CacheSlice;

/// What stands for the keys or values of a position.
pub(super) enum Source<'a> {
    /// Keys or values of each head.
    Heads(Parts<CacheSlice<'a>>),
    /// One vector for all heads, `width` floats: codes of a linear decoder, or hidden values that were computed before.
    Tokens { parts: Parts<&'a [f32]>, width: usize },
    /// Codes, whose hidden values are computed tile by tile.
    Codes { parts: Parts<&'a [f32]>, layer: &'a HiddenLayer },
}

impl Source<'_> {
    /// Whether a part of it is in 8 bits.
    pub(super) fn has_8_bits(&self) -> bool {
        matches!(self, Source::Heads(parts) if parts.any(|part| matches!(part, CacheSlice::Q8 { .. })))
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

/// One attention over grouped queries `[b, kv_heads, rows, width of the keys]`, already scaled.
pub(super) struct FlashAttention<'a> {
    pub(super) q: &'a [f32],
    /// Added to the scores of each query.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) keys: Source<'a>,
    pub(super) values: Source<'a>,
    pub(super) p: Attention,
    /// Queries per kv head: tokens times heads of the group.
    pub(super) rows: usize,
    /// The queries as whole numbers, where scores are sums of those.
    #[cfg(target_arch = "x86_64")]
    pub(super) ints: Option<&'a IntQueries>,
    /// Whether weighted sums of values are.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) byte_sums: bool,
}

impl FlashAttention<'_> {
    /// Query heads per kv head.
    pub(super) fn group(&self) -> usize {
        self.rows / self.p.seq.max(1)
    }
}
