//! Softmax attention over a cache that holds keys and values, or their compressed codes.

mod ahead;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod byte_sums;
mod flash;
mod hidden;
mod latent;
mod parts;
mod products;
mod prompt;
mod q8;
mod softmax;
mod source;
mod tile;
mod tokens;
mod types;
#[cfg(target_arch = "x86_64")]
mod vnni;
#[cfg(target_arch = "x86_64")]
mod words;

use crate::check::{check_len, elements};
use crate::cpu::cache::CacheSlice;
use crate::cpu::pool::Output;
use crate::cpu::{Level, level};
use crate::types::CodeActivation;
use byte_sums::{ByteQueries, ByteSums};
use hidden::HiddenLayer;
use parts::Parts;
use source::{FlashAttention, MAX_SHARED_ROWS, Queries, Source};
pub use types::{Attention, AttentionSpan, CodeDecoder, KeyValue, Layer};

/// Causal attention of `s` new queries over `past + s` cached tokens.
///
/// Query `i` sees positions up to `past + i`. Softmax is f32. A compressed side is never expanded
/// to `[t, kv_heads * head_dim]`: its last layer is linear, so it moves to the other side of the sum.
///
/// # Shapes
/// `q`, `out`: `[b, s, heads, head_dim]`.
///
/// # Panics
/// If a slice does not have its shape, `kv_heads` does not divide `heads`, or `past + s` exceeds the capacity.
pub fn attention(q: &[f32], k: &KeyValue, v: &KeyValue, p: &Attention, out: &mut [f32]) {
    attention_spans(&mut [AttentionSpan { q, k: *k, v: *v, shape: *p, out }]);
}

/// [`attention`] of several sequences at once, each with a shape and a cache of its own.
///
/// # Panics
/// As [`attention`] for any of them.
pub fn attention_spans(spans: &mut [AttentionSpan]) {
    spans.iter().for_each(check);
    let level = level();
    let prepared: Vec<Prepared> = spans.iter().map(|span| Prepared::new(level, span)).collect();
    // Apart from what is read, while tasks write to them.
    let mut outs: Vec<&mut [f32]> = spans.iter_mut().map(|span| std::mem::take(&mut span.out)).collect();
    let calls: Vec<FlashAttention> =
        spans.iter().zip(&prepared).map(|(span, prepared)| prepared.flash(level, span)).collect();
    let rows = outs.iter_mut().zip(&calls).map(|(out, call)| Output::new(out, call.p.heads * call.p.head_dim));
    let results = flash::run(&calls, &rows.collect::<Vec<_>>(), level);
    drop(calls);
    for (((span, out), Prepared { rows, .. }), results) in spans.iter_mut().zip(outs).zip(&prepared).zip(results) {
        span.out = out;
        let Some(mut results) = results else { continue };
        let p = &span.shape;
        if let Some(output) = span.v.output() {
            results = latent::project_values(level, &results, *rows, output, p);
        }
        each_row(p, |row, at| {
            span.out[at..at + p.head_dim].copy_from_slice(&results[row * p.head_dim..][..p.head_dim]);
        });
    }
}

/// Hidden values of codes, as a decoder computes them: `act(W₁ c + b₁)` in f32.
///
/// # Shapes
/// `codes [tokens, r] -> out [tokens, h]`
///
/// # Panics
/// If a slice does not have its shape.
pub fn hidden_values(codes: &[f32], layer: &Layer, activation: CodeActivation, out: &mut [f32]) {
    layer.check();
    let (h, r) = (layer.weight.n, layer.weight.k);
    assert!(r > 0, "the decoder has no inputs");
    let tokens = out.len().checked_div(h).unwrap_or_default();
    check_len("hidden values", out.len(), &[tokens, h]);
    check_len("codes", codes.len(), &[tokens, r]);
    HiddenLayer::new(&(*layer, activation)).rows(level(), codes, out);
}

fn check(AttentionSpan { q, k, v, shape: p, out }: &AttentionSpan) {
    let queries = [p.batch, p.seq, p.heads, p.head_dim];
    check_len("q", q.len(), &queries);
    check_len("out", out.len(), &queries);
    assert!(p.kv_heads > 0 && p.heads.is_multiple_of(p.kv_heads), "kv_heads must divide heads");
    let end = p.past.checked_add(p.seq).expect("past + s overflows");
    assert!(end <= p.capacity, "{end} tokens exceed the capacity {}", p.capacity);
    k.check(p);
    v.check(p);
}

/// What flash attention reads of a sequence.
#[derive(Default)]
struct Prepared {
    /// Queries per kv head; none where there is nothing to compute.
    rows: usize,
    /// Whether queries are the lanes of vectors.
    prompt: bool,
    /// Scaled, in the order of their groups; none where they are read as they are.
    queries: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    keys: Codes,
    values: Codes,
    /// The queries as whole numbers, for keys in 8 bits.
    byte_queries: Option<ByteQueries>,
    /// How values in 8 bits are summed.
    byte_sums: Option<ByteSums>,
}

/// What stands for a side of the cache.
#[derive(Default)]
enum Codes {
    /// What is stored: keys or values, or codes whose decoder is linear.
    #[default]
    Stored,
    /// Hidden values of every position, `[b, past + s, h]`.
    Hidden(Vec<f32>),
    /// Stored codes, and what computes hidden values from them.
    Computed(HiddenLayer),
}

impl Codes {
    fn new(level: Level, kv: &KeyValue, rows: usize, p: &Attention) -> Codes {
        let KeyValue::Compressed { codes, decoder: CodeDecoder { hidden: Some(hidden), .. } } = kv else {
            return Codes::Stored;
        };
        let layer = HiddenLayer::new(hidden);
        if p.kv_heads * rows <= MAX_SHARED_ROWS {
            return Codes::Computed(layer);
        }
        let (t, h) = (p.past + p.seq, layer.h);
        let codes = Parts::of_codes(codes, layer.r, p);
        let mut u = vec![0.0; elements("the hidden codes", &[p.batch, t, h])];
        for (b, u) in u.chunks_exact_mut(t * h).enumerate() {
            layer.all(level, &codes, b, u);
        }
        Codes::Hidden(u)
    }

    fn source<'a>(&'a self, kv: &KeyValue<'a>, p: &Attention) -> Source<'a> {
        match (self, kv) {
            (_, KeyValue::Plain(parts)) => Source::Heads(Parts::of_heads(parts, p)),
            (Codes::Computed(layer), KeyValue::Compressed { codes, .. }) => {
                Source::Codes { parts: Parts::of_codes(codes, layer.r, p), layer }
            }
            (Codes::Hidden(u), KeyValue::Compressed { decoder, .. }) => {
                let width = decoder.output.weight.k;
                Source::Tokens { parts: Parts::of_tokens(&[CacheSlice::F32(u)], width, p), width }
            }
            (Codes::Stored, KeyValue::Compressed { codes, decoder }) => {
                let (width, codes) = (decoder.output.weight.k, codes.iter().map(|codes| CacheSlice::F32(codes)));
                Source::Tokens { parts: Parts::of_tokens(&codes.collect::<Vec<_>>(), width, p), width }
            }
            (_, KeyValue::Hidden { values, output }) => {
                let width = output.weight.k;
                Source::Tokens { parts: Parts::of_tokens(values, width, p), width }
            }
        }
    }
}

impl Prepared {
    fn new(level: Level, AttentionSpan { q, k, v, shape: p, .. }: &AttentionSpan) -> Prepared {
        if q.is_empty() {
            return Prepared::default();
        }
        let rows = p.seq * (p.heads / p.kv_heads);
        let (keys, values) = (Codes::new(level, k, rows, p), Codes::new(level, v, rows, p));
        let computed = [&keys, &values].into_iter().any(|codes| matches!(codes, Codes::Computed(_)));
        let [of_keys, byte_sums] = [k, v].map(|kv| ByteSums::new(level, kv, rows, p));
        let prompt = rows >= prompt::MIN_ROWS && !computed && of_keys.is_none() && byte_sums.is_none();
        let mut prepared = Prepared { rows, prompt, keys, values, byte_sums, ..Prepared::default() };
        if prompt && matches!(k, KeyValue::Plain(_)) {
            return prepared;
        }
        let mut grouped = vec![0.0; q.len()];
        each_row(p, |row, at| {
            for (to, q) in grouped[row * p.head_dim..][..p.head_dim].iter_mut().zip(&q[at..]) {
                *to = q * p.scale;
            }
        });
        if let Some(output) = k.output() {
            (grouped, prepared.bias) = latent::project_queries(level, &grouped, rows, output, p);
        }
        let width = k.output().map_or(p.head_dim, |output| output.weight.k);
        prepared.byte_queries = of_keys.map(|sums| sums.queries(&grouped, width));
        prepared.queries = Some(grouped);
        prepared
    }

    fn flash<'a>(&'a self, level: Level, span: &AttentionSpan<'a>) -> FlashAttention<'a> {
        let p = span.shape;
        let (keys, values) = (self.keys.source(&span.k, &p), self.values.source(&span.v, &p));
        let bf16_sums = keys.has_8_bits() && has_bf16_sums(level, &values);
        FlashAttention {
            q: self.queries.as_deref().map_or(Queries::Tokens(span.q), Queries::Grouped),
            bias: self.bias.as_deref(),
            keys,
            values,
            p,
            rows: self.rows,
            byte_queries: self.byte_queries.as_ref(),
            byte_sums: self.byte_sums,
            bf16_sums,
            prompt: self.prompt,
        }
    }
}

/// Whether sums of hidden values can be in BF16.
fn has_bf16_sums(level: Level, values: &Source) -> bool {
    let Source::Codes { layer, .. } = values else { return false };
    #[cfg(target_arch = "x86_64")]
    return bf16::fits(level, layer.h);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (layer, level);
        false
    }
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
