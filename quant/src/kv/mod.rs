//! What attention reads besides the queries: stored keys and values, or the codes they were compressed to.

mod decoder;
mod parts;
mod rotary;
mod store;

use burn::tensor::backend::Backend;

use crate::layers::Linear;

pub use decoder::{CodeActivation, CodeDecoder, activate};
pub use emberlm_backends::types::{KV_TILE, KvFormat};
pub use parts::KvParts;
pub use rotary::Rotary;
pub use store::KvStore;

/// Where attention finds keys or values.
#[derive(Debug)]
pub enum KeyValue<'a, B: Backend> {
    /// Stored as they are: `[b, kv_heads, capacity, head_dim]`.
    Plain(KvParts<'a, B>),
    /// Stored as codes of `r` numbers, one per token for all heads together or one per head.
    Compressed {
        /// `[b, 1 or kv_heads, capacity, r]`, F32.
        codes: KvParts<'a, B>,
        /// Code to all heads or to one: `[.., r] -> [.., kv_heads * head_dim]` or `[.., head_dim]`.
        decoder: &'a CodeDecoder<B>,
        /// Rotation of the decoded keys for positions `0..past + s`, when keys were compressed before it.
        rotary: Option<&'a Rotary<B>>,
    },
    /// Stored as hidden values of such a decoder, `h` of each code.
    Hidden {
        /// `[b, 1 or kv_heads, capacity, h]`.
        values: KvParts<'a, B>,
        /// The last layer of the decoder.
        output: &'a Linear<B>,
        /// As for codes.
        rotary: Option<&'a Rotary<B>>,
    },
}

// Not derived: that would ask for `B: Copy`.
impl<B: Backend> Clone for KeyValue<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for KeyValue<'_, B> {}

impl<'a, B: Backend> KeyValue<'a, B> {
    /// What is stored, be it keys, values, codes or hidden values.
    pub fn parts(&self) -> KvParts<'a, B> {
        match *self {
            Self::Plain(parts) | Self::Compressed { codes: parts, .. } | Self::Hidden { values: parts, .. } => parts,
        }
    }

    /// The layer that turns what is stored, or its hidden values, into keys or values, and their rotation.
    #[cfg(feature = "cube")]
    pub(crate) fn output(&self) -> Option<(&'a Linear<B>, Option<&'a Rotary<B>>)> {
        match *self {
            Self::Plain(_) => None,
            Self::Compressed { decoder, rotary, .. } => Some((&decoder.output, rotary)),
            Self::Hidden { output, rotary, .. } => Some((output, rotary)),
        }
    }
}
