//! The key-value store and grouped-query attention.

use std::ops::Range;

use burn::module::Param;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};

use super::{linear, rotary, unpack_f16, unpack_i8};
use crate::kv::{CodeDecoder, KeyValue, KvParts, KvStore, Rotary, activate};
use crate::modules::Linear;
use crate::ops::{AttentionShape, CachedKv};
use emberlm_backends::types::KV_BLOCK;

/// A score that softmax turns into exactly 0 beside any real one.
const MASKED: f32 = -1e30;

/// See [`CompactBackend::store_kv`](crate::CompactBackend::store_kv).
pub fn store_kv<B: Backend>(store: KvStore<B>, new: Tensor<B, 4>, at: usize) -> KvStore<B> {
    let [b, s, heads, width] = new.dims();
    let new = new.swap_dims(1, 2); // [b, heads, s, width]
    match store {
        KvStore::F32(t) => KvStore::F32(t.slice_assign([0..b, 0..heads, at..at + s, 0..width], new)),
        KvStore::F16(t) => {
            // `KvStore::new` makes none there.
            assert!(!B::ad_enabled(&t.device()), "a store of halves loses the gradients of keys and values; use F32");
            match pack_f16(new.clone()) {
                Some(words) => KvStore::F16(t.slice_assign([0..b, 0..heads, at..at + s, 0..width / 2], words)),
                None => {
                    let wide = numbers_of(t);
                    KvStore::F32(wide.slice_assign([0..b, 0..heads, at..at + s, 0..width], new))
                }
            }
        }
        store @ KvStore::Q8 { .. } => {
            assert!(!B::ad_enabled(&new.device()), "a store of 8 bits loses the gradients of keys and values; use F32");
            store.with_tokens(at, &pack_q8(new), s).expect("two stores of 8 bits")
        }
    }
}

/// The numbers of words of two halves, `[b, heads, t, width / 2] -> [b, heads, t, width]`.
fn numbers_of<B: Backend>(words: Tensor<B, 4, Int>) -> Tensor<B, 4> {
    let [b, heads, t, w] = words.dims();
    unpack_f16(words.reshape([b * heads * t * w])).reshape([b, heads, t, 2 * w])
}

/// Rounds to F16 on the host: plain burn operations have no bit casts. None where a finite number is too large for it.
fn pack_f16<B: Backend>(t: Tensor<B, 4>) -> Option<Tensor<B, 4, Int>> {
    let [b, heads, s, width] = t.dims();
    let device = t.device();
    let data = t.into_data().convert::<f32>();
    let numbers: &[f32] = data.as_slice().unwrap_or(&[]);
    if numbers.iter().any(|&x| x.is_finite() && half::f16::from_f32(x).is_infinite()) {
        return None;
    }
    let bits = |x: f32| u32::from(half::f16::from_f32(x).to_bits());
    let words: Vec<u32> = numbers.chunks_exact(2).map(|pair| bits(pair[0]) | bits(pair[1]) << 16).collect();
    Some(Tensor::from_data(TensorData::new(words, [b, heads, s, width / 2]), (&device, DType::U32)))
}

/// Rounds to 8 bits on the host: the largest number of every block of a head becomes 127 steps. A block with a number that is not finite
/// becomes NaN.
fn pack_q8<B: Backend>(t: Tensor<B, 4>) -> KvStore<B> {
    let [b, heads, s, width] = t.dims();
    let device = t.device();
    let data = t.into_data().convert::<f32>();
    let numbers: &[f32] = data.as_slice().unwrap_or(&[]);
    let (mut codes, mut scales) = (Vec::with_capacity(numbers.len()), Vec::new());
    for block in numbers.chunks_exact(width.max(1)).flat_map(|head| head.chunks(KV_BLOCK)) {
        let largest = block.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let scale = if block.iter().all(|x| x.is_finite()) { largest / 127.0 } else { f32::NAN };
        scales.push(scale);
        codes.extend(block.iter().map(|x| (x / scale).clamp(-127.0, 127.0).round_ties_even() as i8 as u8));
    }
    let words: Vec<u32> = codes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
    let blocks = width.div_ceil(KV_BLOCK);
    KvStore::Q8 {
        codes: Tensor::from_data(TensorData::new(words, [b, heads, s, width / 4]), (&device, DType::U32)),
        scales: Tensor::from_data(TensorData::new(scales, [b, heads, s, blocks]), (&device, DType::F32)),
    }
}

/// See [`CompactBackend::cached_attention`](crate::CompactBackend::cached_attention).
pub fn attention<B: Backend>(q: Tensor<B, 4>, kv: CachedKv<'_, B>) -> Tensor<B, 4> {
    let CachedKv { k, v, shape } = kv;
    let [b, s, heads, _] = q.dims();
    let AttentionShape { past, kv_heads, scale } = shape;
    let t = past + s;
    let q = q.swap_dims(1, 2); // [b, heads, s, head_dim]
    let [k, v] = [k, v].map(|kv| repeat_heads(rows(kv, t, kv_heads), heads / kv_heads)); // [b, heads, t, head_dim]

    let future = future(s, past, &q.device()).reshape([1, 1, s, t]).expand([b, heads, s, t]);
    let scores = (q.matmul(k.transpose()) * scale).mask_fill(future, MASKED);
    softmax(scores, 3).matmul(v).swap_dims(1, 2)
}

/// Which of the `past + s` tokens come after a query, `[s, past + s]`.
fn future<B: Backend>(s: usize, past: usize, device: &B::Device) -> Tensor<B, 2, Bool> {
    let t = past + s;
    let token = Tensor::<B, 1, Int>::arange(0..t as i64, device).reshape([1, t]).expand([s, t]);
    let query = Tensor::<B, 1, Int>::arange(past as i64..t as i64, device).reshape([s, 1]).expand([s, t]);
    token.greater(query)
}

/// The first `t` tokens as they are attended to: `[b, kv_heads, t, head_dim]`.
pub(crate) fn rows<B: Backend>(kv: KeyValue<'_, B>, t: usize, kv_heads: usize) -> Tensor<B, 4> {
    let stored = read(kv.parts(), 0..t);
    match kv {
        KeyValue::Plain(_) => stored,
        KeyValue::Compressed { decoder, rotary, .. } => {
            expanded(stored, |codes| decode(codes, decoder), kv_heads, rotary)
        }
        KeyValue::Hidden { output, rotary, .. } => expanded(stored, |values| apply(output, values), kv_heads, rotary),
    }
}

/// `[b, kv_heads, t, head_dim]` of what stands for it, `[b, 1 or kv_heads, t, width]`.
fn expanded<B: Backend>(
    stored: Tensor<B, 4>,
    decode: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
    kv_heads: usize,
    positions: Option<&Rotary<B>>,
) -> Tensor<B, 4> {
    let [b, count, t, width] = stored.dims();
    let decoded = decode(stored.swap_dims(1, 2).reshape([b * t * count, width]));
    let head_dim = decoded.dims()[1] * count / kv_heads;
    let decoded = decoded.reshape([b, t, kv_heads, head_dim]);
    let decoded = match positions {
        Some(positions) => rotary(decoded, positions),
        None => decoded,
    };
    decoded.swap_dims(1, 2)
}

/// The numbers of these tokens, `[b, heads, tokens, width]`.
pub(crate) fn read<B: Backend>(parts: KvParts<'_, B>, tokens: Range<usize>) -> Tensor<B, 4> {
    if parts.shared.is_empty() {
        return read_store(parts.own, tokens);
    }
    let mut end = 0;
    let part = |store: &KvStore<B>| {
        let start = end;
        end += store.capacity();
        let held = tokens.start.max(start)..tokens.end.min(end);
        (!held.is_empty()).then(|| read_store(store, held.start - start..held.end - start))
    };
    Tensor::cat(parts.iter().filter_map(part).collect(), 2)
}

/// The numbers of these tokens of one part.
pub(crate) fn read_store<B: Backend>(store: &KvStore<B>, tokens: Range<usize>) -> Tensor<B, 4> {
    let t = tokens.len();
    match store {
        KvStore::F32(data) => data.clone().slice_dim(2, tokens),
        KvStore::F16(words) => numbers_of(words.clone().slice_dim(2, tokens)),
        KvStore::Q8 { codes, scales } => {
            let [b, heads, _, width] = store.dims();
            let codes = codes.clone().slice_dim(2, tokens.clone()).reshape([b * heads * t * width / 4]);
            let codes = unpack_i8(codes, [b * heads * t, width]);
            let blocks = width.div_ceil(KV_BLOCK);
            let scales = scales.clone().slice_dim(2, tokens).reshape([b * heads * t, blocks, 1]);
            let scales = scales.repeat_dim(2, KV_BLOCK).reshape([b * heads * t, blocks * KV_BLOCK]);
            (codes * scales.slice_dim(1, 0..width)).reshape([b, heads, t, width])
        }
    }
}

/// All parts in one store; in F32 where they are of different formats.
#[cfg(feature = "cube")]
pub(crate) fn gathered<B: Backend>(parts: KvParts<'_, B>) -> KvStore<B> {
    if parts.shared.is_empty() {
        return parts.own.clone();
    }
    let halves = |store: &KvStore<B>| if let KvStore::F16(words) = store { Some(words.clone()) } else { None };
    let eight_bits = |store: &KvStore<B>| match store {
        KvStore::Q8 { codes, scales } => Some((codes.clone(), scales.clone())),
        KvStore::F32(_) | KvStore::F16(_) => None,
    };
    if let Some(words) = parts.iter().map(halves).collect::<Option<Vec<_>>>() {
        KvStore::F16(Tensor::cat(words, 2))
    } else if let Some((codes, scales)) = parts.iter().map(eight_bits).collect::<Option<(Vec<_>, Vec<_>)>>() {
        KvStore::Q8 { codes: Tensor::cat(codes, 2), scales: Tensor::cat(scales, 2) }
    } else {
        KvStore::F32(read(parts, 0..parts.capacity()))
    }
}

fn decode<B: Backend>(codes: Tensor<B, 2>, decoder: &CodeDecoder<B>) -> Tensor<B, 2> {
    let hidden = match &decoder.hidden {
        Some(layer) => activate(apply(layer, codes), decoder.activation),
        None => codes,
    };
    apply(&decoder.output, hidden)
}

fn apply<B: Backend>(layer: &Linear<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    linear(x, &layer.weight, layer.bias.as_ref().map(Param::val))
}

/// `[b, kv_heads, t, d] -> [b, kv_heads * times, t, d]`, each head `times` times in a row.
fn repeat_heads<B: Backend>(x: Tensor<B, 4>, times: usize) -> Tensor<B, 4> {
    if times == 1 {
        return x;
    }
    let [b, heads, t, d] = x.dims();
    x.unsqueeze_dim::<5>(2).expand([b, heads, times, t, d]).reshape([b, heads * times, t, d])
}
