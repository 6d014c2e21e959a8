//! Softmax attention over a cache that holds keys and values, or their compressed codes.

mod flash;
mod latent;
mod types;

use crate::check::check_len;
use crate::cpu::level;
use flash::{FlashAttention, Source};
pub use types::{Attention, CodeDecoder, KeyValue, Layer};

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
    let queries = [p.batch, p.seq, p.heads, p.head_dim];
    check_len("q", q.len(), &queries);
    check_len("out", out.len(), &queries);
    assert!(p.kv_heads > 0 && p.heads.is_multiple_of(p.kv_heads), "kv_heads must divide heads");
    let end = p.past.checked_add(p.seq).expect("past + s overflows");
    assert!(end <= p.capacity, "{end} tokens exceed the capacity {}", p.capacity);
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
    let flash = FlashAttention { q: &queries, bias: bias.as_deref(), keys, values, p, rows };
    let mut results = flash.run(level);
    if let KeyValue::Compressed { decoder, .. } = v {
        results = latent::project_values(&results, rows, decoder, p);
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
