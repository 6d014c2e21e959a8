//! Tokens of several sequences, those of each one after the other.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::CompactBackend;
use crate::kv::KvStore;
use crate::ops::{AttentionSpan, NewTokens};

/// The tokens of each sequence of `[1, n, ..]`; of one alone whatever there is.
pub(crate) fn split<B: Backend, const D: usize>(x: Tensor<B, D>, tokens: &[usize]) -> Vec<Tensor<B, D>> {
    if tokens.len() == 1 {
        return vec![x];
    }
    let parts = tokens.iter().scan(0, |end, &tokens| {
        let start = *end;
        *end += tokens;
        Some(x.clone().slice_dim(1, start..*end))
    });
    parts.collect()
}

/// What [`split`] took apart.
pub(crate) fn join<B: Backend, const D: usize>(mut parts: Vec<Tensor<B, D>>) -> Tensor<B, D> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 1),
    }
}

/// See [`CompactBackend::store_kv_spans`]: one sequence after the other.
pub(crate) fn store_kv<B: CompactBackend>(
    stores: Vec<[KvStore<B>; 2]>,
    new: [Tensor<B, 4>; 2],
    spans: &[NewTokens],
) -> Vec<[KvStore<B>; 2]> {
    let tokens: Vec<usize> = spans.iter().map(|span| span.tokens).collect();
    let [k, v] = new.map(|new| split(new, &tokens));
    let new = k.into_iter().zip(v).zip(spans);
    let stored = stores.into_iter().zip(new).map(|([k_store, v_store], ((k, v), span))| {
        [B::store_kv(k_store, k, span.at), B::store_kv(v_store, v, span.at)]
    });
    stored.collect()
}

/// See [`CompactBackend::cached_attention_spans`]: one sequence after the other.
pub(crate) fn cached_attention<B: CompactBackend>(q: Tensor<B, 4>, spans: &[AttentionSpan<'_, B>]) -> Tensor<B, 4> {
    let tokens: Vec<usize> = spans.iter().map(|span| span.tokens).collect();
    let queries = split(q, &tokens).into_iter().zip(spans);
    join(queries.map(|(q, span)| B::cached_attention(q, span.k, span.v, span.shape)).collect())
}
