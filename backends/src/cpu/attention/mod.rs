//! Softmax attention over a cache that holds keys and values, or their compressed codes.

mod flash;
mod latent;

use crate::check::{check_len, elements};
use crate::cpu::{CacheSlice, Weight, level};
use flash::{Attend, Source};

/// The shape of one attention call.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
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
    /// Tokens that the cache holds per head.
    pub capacity: usize,
    /// Multiplies every score.
    pub scale: f32,
    /// Positions below this are masked, per row of the batch.
    pub left_pad: Option<&'a [usize]>,
}

/// Where keys or values come from.
#[derive(Clone, Copy, Debug)]
pub enum KeyValue<'a> {
    /// A cache `[b, kv_heads, capacity, head_dim]`.
    Plain(CacheSlice<'a>),
    /// Codes `[b, capacity, r]` and what turns one into all heads of a token.
    Compressed {
        /// One code per token.
        codes: &'a [f32],
        /// Code to keys or values.
        decoder: &'a CodeDecoder<'a>,
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

/// The activation between the layers of a [`CodeDecoder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x Φ(x)`, by the error function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

/// Turns a code into the keys or values of a token: `W₂ act(W₁ c + b₁) + b₂`, or `W₂ c + b₂`.
#[derive(Clone, Copy, Debug)]
pub struct CodeDecoder<'a> {
    /// The first layer `[h, r]` and its activation.
    pub hidden: Option<(Layer<'a>, Activation)>,
    /// The last layer, `[kv_heads * head_dim, h]` (or `r` inputs without a hidden layer).
    pub output: Layer<'a>,
}

impl CodeDecoder<'_> {
    /// Floats per code.
    pub fn code_dim(&self) -> usize {
        self.hidden.as_ref().map_or(self.output.weight.k, |(layer, _)| layer.weight.k)
    }

    fn check(&self, width: usize) {
        assert!(self.output.weight.n == width, "the decoder gives {} values, not {width}", self.output.weight.n);
        self.output.check();
        if let Some((layer, _)) = &self.hidden {
            layer.check();
            let (h, k) = (layer.weight.n, self.output.weight.k);
            assert!(h == k, "the decoder's layers do not meet: {h} outputs, {k} inputs");
        }
        assert!(self.code_dim() > 0 && self.output.weight.k > 0, "the decoder has no inputs");
    }
}

impl Layer<'_> {
    fn check(&self) {
        self.weight.check();
        let n = self.weight.n;
        assert!(self.bias.is_none_or(|bias| bias.len() == n), "a bias of the decoder does not have {n} values");
    }
}

impl KeyValue<'_> {
    fn check(&self, p: &Attention) {
        match self {
            KeyValue::Plain(cache) => {
                check_len("the cache", cache.len(), &[p.batch, p.kv_heads, p.capacity, p.head_dim]);
            }
            KeyValue::Compressed { codes, decoder } => {
                decoder.check(elements("the keys or values of a token", &[p.kv_heads, p.head_dim]));
                check_len("the code cache", codes.len(), &[p.batch, p.capacity, decoder.code_dim()]);
            }
        }
    }
}

/// Causal attention of `s` new queries over `past + s` cached tokens.
///
/// Query `i` sees positions up to `past + i`; a query whose every position is masked gives 0. Softmax is f32. A compressed
/// side is never expanded to `[t, kv_heads * head_dim]`: its last layer is linear, so it moves to the other side of the sum.
///
/// # Shapes
/// `q`, `out`: `[b, s, heads, head_dim]`.
///
/// # Panics
/// If a slice does not have its shape, `kv_heads` does not divide `heads`, or `past + s` exceeds the capacity.
pub fn attention(q: &[f32], k: &KeyValue, v: &KeyValue, p: &Attention, out: &mut [f32]) {
    let queries = [p.batch, p.seq, p.heads, p.head_dim];
    check_len("q", q.len(), &queries);
    check_len("out", out.len(), &queries);
    assert!(p.kv_heads > 0 && p.heads.is_multiple_of(p.kv_heads), "kv_heads must divide heads");
    let end = p.past.checked_add(p.seq).expect("past + s overflows");
    assert!(end <= p.capacity, "{end} tokens exceed the capacity {}", p.capacity);
    if let Some(pad) = p.left_pad {
        check_len("left_pad", pad.len(), &[p.batch]);
    }
    k.check(p);
    v.check(p);
    if q.is_empty() {
        return;
    }
    let level = level();
    // [b, kv_heads, rows, head_dim] with the rows of a group (token, head) together, since they read the same keys.
    let rows = p.seq * (p.heads / p.kv_heads);
    let mut grouped = vec![0.0; q.len()];
    each_row(p, |row, at| {
        for (to, q) in grouped[row * p.head_dim..][..p.head_dim].iter_mut().zip(&q[at..]) {
            *to = q * p.scale;
        }
    });
    let (key_codes, value_codes);
    let (mut queries, mut bias) = (grouped, None);
    let keys = match k {
        KeyValue::Plain(cache) => Source::of_heads(*cache, p),
        KeyValue::Compressed { codes, decoder } => {
            key_codes = latent::hidden(level, codes, decoder, p);
            (queries, bias) = latent::project_queries(&queries, rows, decoder, p);
            Source::of_tokens(&key_codes, decoder.output.weight.k, p)
        }
    };
    let values = match v {
        KeyValue::Plain(cache) => Source::of_heads(*cache, p),
        KeyValue::Compressed { codes, decoder } => {
            value_codes = latent::hidden(level, codes, decoder, p);
            Source::of_tokens(&value_codes, decoder.output.weight.k, p)
        }
    };
    let attend = Attend { q: &queries, bias: bias.as_deref(), keys, values, p, rows };
    let (mut results, seen) = attend.run(level);
    if let KeyValue::Compressed { decoder, .. } = v {
        results = latent::project_values(&results, &seen, rows, decoder, p);
    }
    each_row(p, |row, at| {
        out[at..at + p.head_dim].copy_from_slice(&results[row * p.head_dim..][..p.head_dim]);
    });
}

/// Calls `f(row, at)` for every query: its row in the grouped order and where it starts in `[b, s, heads, head_dim]`.
fn each_row(p: &Attention, mut f: impl FnMut(usize, usize)) {
    let group = p.heads / p.kv_heads;
    for b in 0..p.batch {
        for s in 0..p.seq {
            for head in 0..p.heads {
                let row = ((b * p.kv_heads + head / group) * p.seq + s) * group + head % group;
                f(row, ((b * p.seq + s) * p.heads + head) * p.head_dim);
            }
        }
    }
}
