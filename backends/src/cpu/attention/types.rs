//! The shape of an attention call, and where it finds keys and values.

use crate::check::elements;
use crate::cpu::cache::CacheSlice;
use crate::cpu::matmul::weight::Weight;
use crate::types::{CodeActivation, KV_TILE};

/// The shape of one attention call.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Rows of the batch.
    pub batch: usize,
    /// New tokens, whose keys and values are already in the cache.
    pub seq: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; query head `h` reads head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Tokens before the new ones.
    pub past: usize,
    /// Tokens per head that keys and values each have room for at least, all their parts together.
    pub capacity: usize,
    /// Multiplies every score.
    pub scale: f32,
}

/// One sequence of a call over several.
#[derive(Debug)]
pub struct AttentionSpan<'a> {
    /// `[b, s, heads, head_dim]`.
    pub q: &'a [f32],
    /// What the keys are read from.
    pub k: KeyValue<'a>,
    /// What the values are read from.
    pub v: KeyValue<'a>,
    /// The shape of this sequence.
    pub shape: Attention,
    /// As `q`, written.
    pub out: &'a mut [f32],
}

/// Where keys or values come from: a cache in one or more parts, in the order of their tokens.
///
/// All parts but the last are full, and hold a multiple of [`KV_TILE`] tokens each; they may be of different formats. The result is
/// that of a cache in one part to the last bit.
#[derive(Clone, Copy, Debug)]
pub enum KeyValue<'a> {
    /// Parts `[b, kv_heads, tokens of the part, head_dim]`.
    Plain(&'a [CacheSlice<'a>]),
    /// Codes and what turns one into all heads of a token.
    Compressed {
        /// Parts `[b, tokens of the part, r]`, one code per token.
        codes: &'a [&'a [f32]],
        /// Code to keys or values.
        decoder: &'a CodeDecoder<'a>,
    },
    /// Hidden values of the decoder of codes, and its last layer.
    Hidden {
        /// Parts `[b, tokens of the part, h]`, one vector per token.
        values: &'a [CacheSlice<'a>],
        /// Hidden values to keys or values, `[kv_heads * head_dim, h]`.
        output: &'a Layer<'a>,
    },
}

/// A linear layer with an optional bias.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// The matrix.
    pub weight: Weight<'a>,
    /// One float per output.
    pub bias: Option<&'a [f32]>,
}

/// Turns a code into the keys or values of a token: `W₂ act(W₁ c + b₁) + b₂`, or `W₂ c + b₂`.
#[derive(Clone, Copy, Debug)]
pub struct CodeDecoder<'a> {
    /// The first layer `[h, r]` and its activation.
    pub hidden: Option<(Layer<'a>, CodeActivation)>,
    /// The last layer, `[kv_heads * head_dim, h]` (or `r` inputs without a hidden layer).
    pub output: Layer<'a>,
}

impl CodeDecoder<'_> {
    /// Floats per code.
    pub fn code_dim(&self) -> usize {
        self.hidden.as_ref().map_or(self.output.weight.k, |(layer, _)| layer.weight.k)
    }

    pub(super) fn check(&self, width: usize) {
        self.output.check_last(width);
        if let Some((layer, _)) = &self.hidden {
            layer.check();
            let (h, k) = (layer.weight.n, self.output.weight.k);
            assert!(h == k, "the decoder's layers do not meet: {h} outputs, {k} inputs");
        }
        assert!(self.code_dim() > 0, "the decoder has no inputs");
    }
}

impl Layer<'_> {
    /// As the last one of a decoder that gives `width` values.
    fn check_last(&self, width: usize) {
        assert!(self.weight.n == width, "the decoder gives {} values, not {width}", self.weight.n);
        assert!(self.weight.k > 0, "the decoder has no inputs");
        self.check();
    }

    pub(super) fn check(&self) {
        self.weight.check();
        let n = self.weight.n;
        assert!(self.bias.is_none_or(|bias| bias.len() == n), "a bias of the decoder does not have {n} values");
    }
}

impl KeyValue<'_> {
    pub(super) fn check(&self, p: &Attention) {
        match self {
            KeyValue::Plain(parts) => {
                parts.iter().for_each(|part| part.check_scales(p.head_dim));
                check_parts(
                    "the cache",
                    parts.iter().map(CacheSlice::len),
                    p.capacity,
                    &[p.batch, p.kv_heads, p.head_dim],
                );
            }
            KeyValue::Compressed { codes, decoder } => {
                decoder.check(elements("the keys or values of a token", &[p.kv_heads, p.head_dim]));
                let lens = codes.iter().map(|codes| codes.len());
                check_parts("the code cache", lens, p.capacity, &[p.batch, decoder.code_dim()]);
            }
            KeyValue::Hidden { values, output } => {
                output.check_last(elements("the keys or values of a token", &[p.kv_heads, p.head_dim]));
                let h = output.weight.k;
                values.iter().for_each(|part| part.check_scales(h));
                let lens = values.iter().map(CacheSlice::len);
                check_parts("the cache of hidden values", lens, p.capacity, &[p.batch, h]);
            }
        }
    }

    /// The layer that turns what is stored, or its hidden values, into keys or values.
    pub(super) fn output(&self) -> Option<&'_ Layer<'_>> {
        match self {
            KeyValue::Plain(_) => None,
            KeyValue::Compressed { decoder, .. } => Some(&decoder.output),
            KeyValue::Hidden { output, .. } => Some(output),
        }
    }
}

/// Checks that parts of so many elements hold whole tokens of the batch, of `sizes` each, and at least `capacity` together, and that they meet
/// between two tiles.
fn check_parts(what: &str, lens: impl Iterator<Item = usize> + Clone, capacity: usize, sizes: &[usize]) {
    let (parts, token) = (lens.clone().count(), elements(what, sizes));
    let mut held = 0usize;
    for (i, len) in lens.enumerate() {
        let tokens = len.checked_div(token).unwrap_or_default();
        let of = if i + 1 < parts { KV_TILE } else { 1 };
        assert!(
            tokens * token == len && tokens.is_multiple_of(of) && (tokens > 0 || of == 1),
            "a part of {what} has {len} elements, not {token} for each of a multiple of {of} tokens"
        );
        held = held.saturating_add(tokens);
    }
    assert!(parts > 0 && held >= capacity, "{what} holds {held} tokens, not {capacity}");
}
