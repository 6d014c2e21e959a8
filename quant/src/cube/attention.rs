//! The key-value store and attention.

use burn::tensor::activation::{gelu, gelu_approximate, relu, silu};
use burn::tensor::backend::DeviceOps;
use burn::tensor::{Int, Tensor, TensorMetadata};
use burn_cubecl::CubeRuntime;
use emberlm_backends::cube::{self, KvRows};

use super::tensor::{Cube, buffer, float_tensor, floats, int_tensor, ints, own, unset};
use crate::kv::{CodeActivation, CodeDecoder, KeyValue, KvStore};
use crate::ops::{AttentionShape, CompactBackend};

pub(super) fn store_kv<R: CubeRuntime>(store: KvStore<Cube<R>>, new: Tensor<Cube<R>, 4>, at: usize) -> KvStore<Cube<R>>
where
    R::Device: DeviceOps,
{
    let [batch, heads, capacity, width] = store.dims();
    let seq = new.dims()[1];
    let halves = matches!(store, KvStore::F16(_));
    let shape = cube::StoreKv { batch, seq, heads, capacity, width, at, halves };
    let new = floats(new);
    let append = |to| {
        let to = own(to);
        cube::store_kv(&new.client, &buffer(&new), &buffer(&to), shape);
        to
    };
    match store {
        KvStore::F32(t) => KvStore::F32(float_tensor(append(floats(t)))),
        KvStore::F16(t) => KvStore::F16(int_tensor(append(ints(t)))),
    }
}

pub(super) fn cached_attention<R: CubeRuntime>(
    q: Tensor<Cube<R>, 4>,
    k: KeyValue<'_, Cube<R>>,
    v: KeyValue<'_, Cube<R>>,
    left_pad: Option<Tensor<Cube<R>, 1, Int>>,
    shape: AttentionShape,
) -> Tensor<Cube<R>, 4>
where
    R::Device: DeviceOps,
{
    let [batch, seq, heads, head_dim] = q.dims();
    let AttentionShape { past, kv_heads, scale } = shape;
    let [k, v] = [k, v].map(|kv| rows(kv, past + seq, kv_heads, head_dim));
    let (q, left_pad) = (floats(q), left_pad.map(ints));
    let out = unset(&q, [batch, seq, heads, head_dim], q.dtype);
    let p = cube::Attention {
        batch,
        seq,
        heads,
        kv_heads,
        key_dim: head_dim,
        value_dim: head_dim,
        past,
        scale: scale as f32,
    };
    cube::attention(&q.client, &buffer(&q), &k, &v, left_pad.as_ref().map(buffer).as_ref(), &buffer(&out), p);
    float_tensor(out)
}

/// The first `t` tokens as attention reads them; codes are decoded first.
fn rows<R: CubeRuntime>(kv: KeyValue<'_, Cube<R>>, t: usize, kv_heads: usize, head_dim: usize) -> KvRows
where
    R::Device: DeviceOps,
{
    match kv {
        KeyValue::Plain(store) => {
            let [_, heads, capacity, width] = store.dims();
            match store {
                KvStore::F32(data) => {
                    KvRows::of_store(buffer(&floats(data.clone())), false, heads, capacity, width)
                }
                KvStore::F16(words) => KvRows::of_store(buffer(&ints(words.clone())), true, heads, capacity, width),
            }
        }
        KeyValue::Compressed { codes, decoder, rotary } => {
            let KvStore::F32(codes) = codes else { unreachable!("codes are stored as F32") };
            let codes = codes.clone().slice_dim(2, 0..t).swap_dims(1, 2); // [b, t, 1 or kv_heads, r]
            let [b, _, count, r] = codes.dims();
            let decoded = decode(codes.reshape([b * t * count, r]), decoder).reshape([b, t, kv_heads, head_dim]);
            let decoded = match rotary {
                Some(rotary) => Cube::<R>::rotary(decoded, rotary),
                None => decoded,
            };
            KvRows::of_tokens(buffer(&floats(decoded)), t, kv_heads, head_dim)
        }
    }
}

fn decode<R: CubeRuntime>(codes: Tensor<Cube<R>, 2>, decoder: &CodeDecoder<Cube<R>>) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    let Some(hidden) = &decoder.hidden else { return decoder.output.forward(codes) };
    let x = hidden.forward(codes);
    decoder.output.forward(match decoder.activation {
        CodeActivation::Gelu => gelu(x),
        CodeActivation::GeluTanh => gelu_approximate(x),
        CodeActivation::Silu => silu(x),
        CodeActivation::Relu => relu(x),
    })
}
