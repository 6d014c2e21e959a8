//! The key-value store and attention.

use burn::tensor::activation::{gelu, gelu_approximate, relu, silu};
use burn::tensor::backend::DeviceOps;
use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use emberlm_backends::cube::{self, HeadProjection, KvRows};
use emberlm_backends::types::StoreKv;

use super::tensor::{Cube, buffer, float_tensor, floats, int_tensor, ints, own, unset};
use crate::kv::{CodeActivation, CodeDecoder, KeyValue, KvStore};
use crate::ops::{AttentionShape, CompactBackend};
use crate::packed::PackedWeight;
use crate::reference::{self, gathered};

pub(super) fn store_kv<R: CubeRuntime>(store: KvStore<Cube<R>>, new: Tensor<Cube<R>, 4>, at: usize) -> KvStore<Cube<R>>
where
    R::Device: DeviceOps,
{
    let [batch, heads, capacity, width] = store.dims();
    let seq = new.dims()[1];
    if matches!(store, KvStore::Q8 { .. }) {
        // No kernel writes 8 bits: by way of the host.
        return reference::store_kv(store, new, at);
    }
    let halves = matches!(store, KvStore::F16(_));
    let shape = StoreKv { batch, seq, heads, capacity, width, at };
    let new = floats(new);
    let append = |to| {
        let to = own(to);
        cube::store_kv(&new.client, &buffer(&new), &buffer(&to), shape, halves);
        to
    };
    match store {
        KvStore::F32(t) => KvStore::F32(float_tensor(append(floats(t)))),
        KvStore::F16(t) => KvStore::F16(int_tensor(append(ints(t)))),
        KvStore::Q8 { .. } => unreachable!("stored above"),
    }
}

pub(super) fn cached_attention<R: CubeRuntime>(
    q: Tensor<Cube<R>, 4>,
    k: KeyValue<'_, Cube<R>>,
    v: KeyValue<'_, Cube<R>>,
    shape: AttentionShape,
) -> Tensor<Cube<R>, 4>
where
    R::Device: DeviceOps,
{
    let [batch, seq, heads, head_dim] = q.dims();
    let AttentionShape { past, kv_heads, scale } = shape;
    // A decoder's last layer runs on the queries when they are fewer than the tokens.
    let moves_decoder = seq * heads < past + seq;
    let [k, v] = [k, v].map(|kv| Side::new(kv, past + seq, kv_heads, head_dim, moves_decoder));
    let q = floats(q);
    let client = q.client.clone();
    let projection = |inner| HeadProjection { rows: batch * seq, heads, kv_heads, head_dim, inner };

    let queries = match &k.last {
        None => q.clone(),
        Some(last) => {
            let queries = unset(&q, [batch, seq, heads, k.width], DType::F32);
            let p = projection(k.width);
            cube::project_queries(&client, &buffer(&q), &buffer(&last.weight), &buffer(&queries), p);
            queries
        }
    };
    let dtype = if v.last.is_some() { DType::F32 } else { q.dtype };
    let out = unset(&q, [batch, seq, heads, v.width], dtype);
    let (key_dim, value_dim) = (k.width, v.width);
    let p = cube::Attention { batch, seq, heads, kv_heads, key_dim, value_dim, past, scale: scale as f32 };
    cube::attention(&client, &buffer(&queries), &k.rows, &v.rows, &buffer(&out), p);
    let Some(last) = &v.last else { return float_tensor(out) };
    let values = unset(&q, [batch, seq, heads, head_dim], q.dtype);
    let bias = last.bias.as_ref().map(buffer);
    let p = projection(v.width);
    cube::project_values(&client, &buffer(&out), &buffer(&last.weight), bias.as_ref(), &buffer(&values), p);
    float_tensor(values)
}

/// Keys or values as attention reads them.
struct Side<R: CubeRuntime> {
    rows: KvRows,
    width: usize,
    /// The last layer of the decoder, when the rows are what it takes.
    last: Option<LastLayer<R>>,
}

/// `[kv_heads * head_dim, inner]` and `[kv_heads * head_dim]`, in F32.
struct LastLayer<R: CubeRuntime> {
    weight: CubeTensor<R>,
    bias: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Side<R>
where
    R::Device: DeviceOps,
{
    /// The first `t` tokens. Codes are decoded up to the last layer if all heads share a code and `moves_decoder`, else
    /// wholly.
    fn new(kv: KeyValue<'_, Cube<R>>, t: usize, kv_heads: usize, head_dim: usize, moves_decoder: bool) -> Self {
        let (decoder, rotary) = match kv {
            KeyValue::Plain(parts) => return Self::plain(&gathered(parts)),
            KeyValue::Compressed { decoder, rotary, .. } => (decoder, rotary),
        };
        let KvStore::F32(codes) = gathered(kv.parts()) else { unreachable!("codes are stored as F32") };
        let codes = codes.slice_dim(2, 0..t).swap_dims(1, 2); // [b, t, 1 or kv_heads, r]
        let [b, _, count, r] = codes.dims();
        let inner = hidden(codes.reshape([b * t * count, r]), decoder);
        let width = inner.dims()[1];
        // What the kernel takes beside keys or values of any even width; units then share both in pieces of two.
        let fits = width.is_multiple_of(2) && head_dim.is_multiple_of(2) && width.max(head_dim) <= 512;
        if moves_decoder && count == 1 && rotary.is_none() && fits {
            let buffer = buffer(&floats(inner));
            let (batch_stride, token_stride) = (t * width, width);
            let rows = KvRows { buffer, halves: false, batch_stride, head_stride: 0, token_stride };
            let bias = decoder.output.bias.as_ref().map(|bias| floats(bias.val().cast(DType::F32)));
            return Self { rows, width, last: Some(LastLayer { weight: dense(&decoder.output.weight), bias }) };
        }
        let decoded = decoder.output.forward(inner).reshape([b, t, kv_heads, head_dim]);
        let decoded = match rotary {
            Some(rotary) => Cube::<R>::rotary(decoded, rotary),
            None => decoded,
        };
        let rows = KvRows::of_tokens(buffer(&floats(decoded)), t, kv_heads, head_dim);
        Self { rows, width: head_dim, last: None }
    }

    fn plain(store: &KvStore<Cube<R>>) -> Self {
        if matches!(store, KvStore::Q8 { .. }) {
            // No kernel reads 8 bits: as floats.
            return Self::plain(&KvStore::F32(reference::read_store(store, store.capacity())));
        }
        let [_, heads, capacity, width] = store.dims();
        let (buffer, halves) = match store {
            KvStore::F32(data) => (buffer(&floats(data.clone())), false),
            KvStore::F16(words) => (buffer(&ints(words.clone())), true),
            KvStore::Q8 { .. } => unreachable!("floats by now"),
        };
        Self { rows: KvRows::of_store(buffer, halves, heads, capacity, width), width, last: None }
    }
}

/// The numbers of a weight.
fn dense<R: CubeRuntime>(w: &PackedWeight<Cube<R>>) -> CubeTensor<R>
where
    R::Device: DeviceOps,
{
    if let PackedWeight::Float(w) = w {
        return floats(w.val());
    }
    let rows = Tensor::<Cube<R>, 1, Int>::arange(0..w.shape()[0] as i64, &w.device());
    floats(Cube::<R>::packed_embed(rows, w))
}

/// A code up to the last layer of its decoder: `[m, r] -> [m, inner]`.
fn hidden<R: CubeRuntime>(codes: Tensor<Cube<R>, 2>, decoder: &CodeDecoder<Cube<R>>) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    let Some(hidden) = &decoder.hidden else { return codes };
    let x = hidden.forward(codes);
    match decoder.activation {
        CodeActivation::Gelu => gelu(x),
        CodeActivation::GeluTanh => gelu_approximate(x),
        CodeActivation::Silu => silu(x),
        CodeActivation::Relu => relu(x),
    }
}
