//! The shapes of what a layer keeps, and the bytes they take.

use burn::tensor::backend::Backend;
use emberlm_quant::kv::{KvFormat, KvStore};

/// What one layer keeps per token or per sequence; the shapes of a [`Cache`](super::Cache).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerCacheShape {
    /// `heads` vectors of `width` numbers per token for keys and for values.
    Attention {
        /// Of the keys.
        k: KvShape,
        /// Of the values.
        v: KvShape,
    },
    /// A fixed size per sequence.
    DeltaNet {
        /// Inputs of the convolution kept, its width less one.
        conv_tail: usize,
        /// Channels of the convolution.
        conv_channels: usize,
        /// `[heads, key_dim, value_dim]` of the state.
        state: [usize; 3],
    },
}

/// What is stored per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvShape {
    /// One vector of `width` for each of `heads`, in the cache's format: keys and values, or hidden values of their codes.
    Heads {
        /// Key-value heads; one where all of them share hidden values.
        heads: usize,
        /// Head size, or hidden values.
        width: usize,
    },
    /// `count` codes of `width` numbers, always F32: they are a few bytes and stand for whole vectors.
    Codes {
        /// One for all heads, or one for each.
        count: usize,
        /// Numbers per code.
        width: usize,
    },
}

impl KvShape {
    pub(super) fn store<B: Backend>(self, format: KvFormat, capacity: usize, device: &B::Device) -> KvStore<B> {
        match self {
            Self::Heads { heads, width } => KvStore::new(format, [1, heads, capacity, width], device),
            Self::Codes { count, width } => KvStore::new(KvFormat::F32, [1, count, capacity, width], device),
        }
    }

    /// The format that a store of this shape begins with in a cache of `format`.
    pub(super) fn format(self, format: KvFormat) -> KvFormat {
        match self {
            Self::Heads { width, .. } => format.of_width(width),
            Self::Codes { .. } => KvFormat::F32,
        }
    }

    pub(super) fn bytes_per_token(self, format: KvFormat) -> usize {
        match self {
            Self::Heads { heads, width } => heads.saturating_mul(format.bytes(width)),
            Self::Codes { count, width } => bytes_of(&[count, width]),
        }
    }
}

/// Of F32 numbers.
pub(super) fn bytes_of(shape: &[usize]) -> usize {
    shape.iter().fold(4usize, |bytes, &side| bytes.saturating_mul(side))
}

impl LayerCacheShape {
    /// Bytes that grow with every token.
    pub fn bytes_per_token(&self, format: KvFormat) -> usize {
        match self {
            Self::Attention { k, v } => k.bytes_per_token(format) + v.bytes_per_token(format),
            Self::DeltaNet { .. } => 0,
        }
    }

    /// Bytes per sequence, whatever its length.
    pub fn fixed_bytes(&self) -> usize {
        match self {
            Self::Attention { .. } => 0,
            Self::DeltaNet { conv_tail, conv_channels, state } => {
                bytes_of(&[*conv_tail, *conv_channels]).saturating_add(bytes_of(state))
            }
        }
    }

    /// Bytes per sequence that a pass over `tokens` with drafts among them takes beside the cache, until it is known which of them stay: what
    /// the layer was before, and the inputs of its recurrent operations.
    pub fn replay_bytes(&self, tokens: usize) -> usize {
        match self {
            Self::Attention { .. } => 0,
            Self::DeltaNet { conv_channels, state: [heads, ..], .. } => {
                let inputs = conv_channels.saturating_add(*heads).saturating_mul(2);
                self.fixed_bytes().saturating_add(bytes_of(&[tokens, inputs]))
            }
        }
    }
}
