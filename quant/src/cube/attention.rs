//! The key-value store and attention.

use burn::tensor::backend::DeviceOps;
use burn::tensor::{DType, Int, Tensor, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use emberlm_backends::cube::{self, CacheBuffer, HeadProjection, KvRows, KvSide};
use emberlm_backends::types::StoreKv;

use super::tensor::{Cube, buffer, first, float_tensor, floats, int_tensor, ints, own, unset};
use crate::kv::{CodeDecoder, KeyValue, KvFormat, KvStore};
use crate::layers::Linear;
use crate::ops::{
    AttentionShape, AttentionSpan, CachedKv, CompactBackend, NewTokens, cached_attention_one_by_one,
    store_kv_one_by_one,
};
use crate::packed::PackedWeight;
use crate::reference::{gathered, read_store};

pub(super) fn store_kv<R: CubeRuntime>(store: KvStore<Cube<R>>, new: Tensor<Cube<R>, 4>, at: usize) -> KvStore<Cube<R>>
where
    R::Device: DeviceOps,
{
    let tokens = new.dims()[1];
    let mut append = Append::new(vec![store], new, &[NewTokens { tokens, at }]);
    Append::run(&[&append]);
    append.stores.remove(0)
}

pub(super) fn store_kv_spans<R: CubeRuntime>(
    stores: Vec<[KvStore<Cube<R>>; 2]>,
    new: [Tensor<Cube<R>, 4>; 2],
    spans: &[NewTokens],
) -> Vec<[KvStore<Cube<R>>; 2]>
where
    R::Device: DeviceOps,
{
    let formats: Vec<[KvFormat; 2]> = stores.iter().map(|stores| stores.each_ref().map(KvStore::format)).collect();
    if formats.iter().any(|of_one| of_one != &formats[0]) {
        return store_kv_one_by_one(stores, new, spans);
    }
    let (k_stores, v_stores) = stores.into_iter().map(|[k, v]| (k, v)).unzip();
    let [k_new, v_new] = new;
    let (k, v) = (Append::new(k_stores, k_new, spans), Append::new(v_stores, v_new, spans));
    if (k.format(), k.new.dtype, &k.shapes) == (v.format(), v.new.dtype, &v.shapes) {
        Append::run(&[&k, &v]);
    } else {
        Append::run(&[&k]);
        Append::run(&[&v]);
    }
    k.stores.into_iter().zip(v.stores).map(|(k, v)| [k, v]).collect()
}

/// New keys or values of sequences, and the stores that they go to, all of one format.
struct Append<R: CubeRuntime> {
    new: CubeTensor<R>,
    stores: Vec<KvStore<Cube<R>>>,
    shapes: Vec<StoreKv>,
}

impl<R: CubeRuntime> Append<R>
where
    R::Device: DeviceOps,
{
    fn new(stores: Vec<KvStore<Cube<R>>>, new: Tensor<Cube<R>, 4>, spans: &[NewTokens]) -> Self {
        let shapes = stores.iter().zip(spans).map(|(store, &NewTokens { tokens, at })| {
            let [batch, heads, capacity, width] = store.dims();
            StoreKv { batch, seq: tokens, heads, capacity, width, at }
        });
        let (shapes, new) = (shapes.collect(), floats(new));
        let own_floats = |t| float_tensor(own(floats(t)));
        let own_words = |t| int_tensor(own(ints(t)));
        let stores = stores.into_iter().map(|store| match store {
            KvStore::F32(t) => KvStore::F32(own_floats(t)),
            KvStore::F16(t) => KvStore::F16(own_words(t)),
            KvStore::Q8 { codes, scales } => KvStore::Q8 { codes: own_words(codes), scales: own_floats(scales) },
        });
        Self { new, stores: stores.collect(), shapes }
    }

    fn format(&self) -> Option<KvFormat> {
        self.stores.first().map(KvStore::format)
    }

    /// Keys, values, or both where they differ in nothing but their numbers.
    fn run(sides: &[&Self]) {
        let Some(Self { new, shapes, .. }) = sides.first() else { return };
        let buffers = sides.iter().map(|side| (buffer(&side.new), side.stores.iter().map(data).collect::<Vec<_>>()));
        let buffers: Vec<_> = buffers.collect();
        let sides = buffers.iter().map(|(new, stores)| KvSide { new, stores });
        cube::store_kv_spans(&new.client, &sides.collect::<Vec<_>>(), shapes);
    }
}

/// A store as kernels take it.
fn data<R: CubeRuntime>(store: &KvStore<Cube<R>>) -> CacheBuffer
where
    R::Device: DeviceOps,
{
    match store {
        KvStore::F32(t) => CacheBuffer::F32(buffer(&floats(t.clone()))),
        KvStore::F16(t) => CacheBuffer::F16(buffer(&ints(t.clone()))),
        KvStore::Q8 { codes, scales } => {
            CacheBuffer::Q8 { codes: buffer(&ints(codes.clone())), scales: buffer(&floats(scales.clone())) }
        }
    }
}

pub(super) fn cached_attention<R: CubeRuntime>(q: Tensor<Cube<R>, 4>, kv: CachedKv<'_, Cube<R>>) -> Tensor<Cube<R>, 4>
where
    R::Device: DeviceOps,
{
    let tokens = q.dims()[1];
    attend(q, &[AttentionSpan { tokens, kv }])
}

pub(super) fn cached_attention_spans<R: CubeRuntime>(
    q: Tensor<Cube<R>, 4>,
    spans: &[AttentionSpan<'_, Cube<R>>],
) -> Tensor<Cube<R>, 4>
where
    R::Device: DeviceOps,
{
    let heads = q.dims()[2];
    let is_plain = |span: &AttentionSpan<'_, Cube<R>>| {
        matches!((&span.kv.k, &span.kv.v), (KeyValue::Plain(_), KeyValue::Plain(_)))
    };
    let moves = |span: &AttentionSpan<'_, Cube<R>>| moves_decoder(span, heads);
    let alike = spans.iter().all(is_plain) || spans.iter().all(moves) || !spans.iter().any(moves);
    if alike && !spans.is_empty() { attend(q, spans) } else { cached_attention_one_by_one(q, spans) }
}

/// Whether a decoder's last layer runs on the queries: when they are fewer than the tokens.
fn moves_decoder<R: CubeRuntime>(span: &AttentionSpan<'_, Cube<R>>, heads: usize) -> bool {
    span.tokens * heads < span.kv.shape.past + span.tokens
}

/// Attention of sequences with a batch of 1 that all move the decoder or none, or of one with any batch.
fn attend<R: CubeRuntime>(q: Tensor<Cube<R>, 4>, spans: &[AttentionSpan<'_, Cube<R>>]) -> Tensor<Cube<R>, 4>
where
    R::Device: DeviceOps,
{
    let [batch, seq, heads, head_dim] = q.dims();
    let AttentionShape { kv_heads, scale, .. } = spans[0].kv.shape;
    // Units share keys and values in pieces of as many numbers as fill a word.
    let stores = spans.iter().flat_map(|span| [span.kv.k, span.kv.v]).flat_map(|kv| kv.parts().iter());
    let piece = stores.map(|store| store.format().per_word()).fold(2, usize::max);
    let sides = spans.iter().map(|span| {
        let (tokens, moves_decoder) = (span.kv.shape.past + span.tokens, moves_decoder(span, heads));
        [span.kv.k, span.kv.v].map(|kv| Side::new(kv, tokens, kv_heads, head_dim, moves_decoder.then_some(piece)))
    });
    let sides: Vec<[Side<'_, R>; 2]> = sides.collect();
    let [k, v] = &sides[0];
    let q = floats(q);
    let client = q.client.clone();
    let projection = |inner| HeadProjection { rows: batch * seq, heads, kv_heads, head_dim, inner };

    let queries = match k.last {
        None => q.clone(),
        Some(last) => {
            let queries = unset(&q, [batch, seq, heads, k.width], DType::F32);
            let p = projection(k.width);
            cube::project_queries(&client, &buffer(&q), &buffer(&dense(&last.weight)), &buffer(&queries), p);
            queries
        }
    };
    let dtype = if v.last.is_some() { DType::F32 } else { q.dtype };
    let out = unset(&q, [batch, seq, heads, v.width], dtype);
    let calls = spans.iter().zip(&sides).map(|(span, [k, v])| {
        let (key_dim, value_dim, past) = (k.width, v.width, span.kv.shape.past);
        let scale = scale as f32;
        let shape = cube::Attention { batch, seq: span.tokens, heads, kv_heads, key_dim, value_dim, past, scale };
        cube::AttentionSpan { k: &k.rows, v: &v.rows, shape }
    });
    cube::attention_spans(&client, &buffer(&queries), &calls.collect::<Vec<_>>(), &buffer(&out));
    let Some(last) = v.last else { return float_tensor(out) };
    let values = unset(&q, [batch, seq, heads, head_dim], q.dtype);
    let bias = last.bias.as_ref().map(|bias| buffer(&floats(bias.val().cast(DType::F32))));
    let p = projection(v.width);
    cube::project_values(&client, &buffer(&out), &buffer(&dense(&last.weight)), bias.as_ref(), &buffer(&values), p);
    float_tensor(values)
}

/// Keys or values as attention reads them.
struct Side<'a, R: CubeRuntime> {
    rows: KvRows,
    width: usize,
    /// The last layer of the decoder, when the rows are what it takes.
    last: Option<&'a Linear<Cube<R>>>,
}

impl<'a, R: CubeRuntime> Side<'a, R>
where
    R::Device: DeviceOps,
{
    /// The first `t` tokens. Codes are decoded up to the last layer if all heads share a code and there is a `piece`, in multiples of which units
    /// can share rows, else wholly; stored hidden values are then read as they are.
    fn new(kv: KeyValue<'a, Cube<R>>, t: usize, kv_heads: usize, head_dim: usize, piece: Option<usize>) -> Self {
        let Some((output, rotary)) = kv.output() else { return Self::plain(&gathered(kv.parts())) };
        let stored = gathered(kv.parts());
        let [b, count, capacity, _] = stored.dims();
        let width = output.weight.shape()[1];
        // What the kernel takes beside keys or values of such widths, with a piece for each of its units.
        let whole = |piece| [width, head_dim].iter().all(|width| width.is_multiple_of(piece) && width / piece <= 256);
        let moves = piece.is_some_and(whole) && count == 1 && rotary.is_none();
        if moves && let KeyValue::Hidden { .. } = kv {
            let rows = KvRows::of_store(data(&stored), count, capacity, width);
            return Self { rows: KvRows { head_stride: 0, ..rows }, width, last: Some(output) };
        }
        let numbers = match stored {
            KvStore::F32(numbers) => first(numbers, 2, t),
            words => read_store(&words, 0..t),
        };
        let numbers = numbers.swap_dims(1, 2); // [b, t, 1 or kv_heads, r or h]
        let stored_width = numbers.dims()[3];
        let numbers = Cube::<R>::reshape(numbers, [b * t * count, stored_width]);
        let inner = match kv {
            KeyValue::Compressed { decoder, .. } => hidden(numbers, decoder),
            KeyValue::Plain(_) | KeyValue::Hidden { .. } => numbers,
        };
        if moves {
            let data = CacheBuffer::F32(buffer(&floats(inner)));
            let (batch_stride, token_stride) = (t * width, width);
            let rows = KvRows { data, batch_stride, head_stride: 0, token_stride };
            return Self { rows, width, last: Some(output) };
        }
        let decoded = Cube::<R>::reshape(output.forward(inner), [b, t, kv_heads, head_dim]);
        let decoded = match rotary {
            Some(rotary) => Cube::<R>::rotary(decoded, rotary),
            None => decoded,
        };
        let rows = KvRows::of_tokens(buffer(&floats(decoded)), t, kv_heads, head_dim);
        Self { rows, width: head_dim, last: None }
    }

    fn plain(store: &KvStore<Cube<R>>) -> Self {
        let [_, heads, capacity, width] = store.dims();
        Self { rows: KvRows::of_store(data(store), heads, capacity, width), width, last: None }
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
    let x = floats(x);
    let y = unset(&x, x.shape(), x.dtype);
    cube::activate(&x.client, &buffer(&x), decoder.activation, &buffer(&y));
    float_tensor(y)
}
