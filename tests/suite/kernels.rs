//! Every operation of a backend against its body in plain burn operations, at awkward sizes.

use burn::module::{Param, ParamId};
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use emberlm::quant::CompactBackend;
use emberlm::quant::format;
use emberlm::quant::halting::{HaltMode, HaltRows, HaltRule, HaltState, HaltStep, HaltWeights};
use emberlm::quant::host::{FloatType, HostStorage, HostWeight};
use emberlm::quant::kv::{CodeActivation, CodeDecoder, KeyValue, KvFormat, KvParts, KvStore, Rotary};
use emberlm::quant::modules::{Linear, SwiGlu};
use emberlm::quant::ops::{AttentionShape, AttentionSpan, CachedKv, CausalConv, DeltaGates, DeltaRule, Norm};
use emberlm::quant::packed::PackedWeight;
use emberlm::quant::reference;
use emberlm::quant::self_test::{Extent, self_test};

use super::random::Random;

/// Relative to the largest value: f32 sums in another order.
const TOLERANCE: f32 = 1e-5;

/// Every operation against burn-ndarray, whose kernels have tests of their own; in every type that the device computes with.
#[allow(dead_code)] // on the processor itself there is nothing to compare
pub fn as_on_the_processor<B: CompactBackend>(device: &B::Device) {
    for float in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
        if !B::computes_with(device, float.into()) {
            println!("{float}: not on this device");
            continue;
        }
        // The storages are unpacked by the same code in every type.
        let extent = if float == FloatType::F32 { Extent::Whole } else { Extent::OneStorage };
        let checks = self_test::<B, burn_ndarray::NdArray<f32>>(device, &Default::default(), float, extent);
        assert!(checks.len() > 80, "{} operations", checks.len());
        println!("{float}: off by {:e} at most", checks.iter().fold(0.0, |a: f32, check| a.max(check.error)));
        for check in checks {
            assert!(check.passed(), "{}: off by {:e}", check.name, check.error);
        }
    }
}

fn close<B: CompactBackend, const D: usize>(what: &str, got: Tensor<B, D>, expected: Tensor<B, D>) {
    assert_eq!(got.dims(), expected.dims(), "{what}: shape");
    let numbers = |t: Tensor<B, D>| t.into_data().convert::<f32>().into_vec::<f32>().expect("floats");
    let (got, expected) = (numbers(got), numbers(expected));
    let scale = expected.iter().fold(1f32, |a, x| a.max(x.abs()));
    for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
        assert!((g - e).abs() <= TOLERANCE * scale, "{what}: element {i} is {g}, expected {e} (scale {scale})");
    }
}

/// The same numbers on the plainest backend.
fn host<B: CompactBackend, const D: usize>(t: &Tensor<B, D>) -> Tensor<burn_ndarray::NdArray, D> {
    Tensor::from_data(t.to_data(), &Default::default())
}

pub(super) fn tensor<B: CompactBackend, const D: usize>(
    random: &mut Random,
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    let values = random.normal(shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

fn dense(random: &mut Random, n: usize, k: usize, float: FloatType) -> HostWeight {
    let values = random.normal(n * k);
    let bytes: Vec<u8> = match float {
        FloatType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        FloatType::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        FloatType::Bf16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
    };
    HostWeight { n, k, storage: HostStorage::Dense(float, bytes.into()) }
}

/// One weight of every storage.
pub(super) fn storages(random: &mut Random, n: usize, k: usize) -> Vec<(&'static str, HostWeight)> {
    let source = dense(random, n, k, FloatType::F32);
    let keep = n / 3;
    vec![
        ("f32", source.clone()),
        ("f16", dense(random, n, k, FloatType::F16)),
        ("bf16", dense(random, n, k, FloatType::Bf16)),
        ("nf4", format::quantize_nf4(&source, false).expect("finite")),
        ("nf4-dq", format::quantize_nf4(&source, true).expect("finite")),
        ("fp4", format::quantize_fp4(&source, false).expect("finite")),
        ("int8", format::quantize_int8(&source).expect("finite")),
        ("rows-8", format::quantize_int8_rows(&source).expect("finite")),
        ("rows-4", format::quantize_truequant(&source, 4, keep).expect("finite")),
        ("rows-2", format::quantize_truequant(&source, 2, keep).expect("finite")),
    ]
}

fn linear<B: CompactBackend>(random: &mut Random, n: usize, k: usize, bias: bool, device: &B::Device) -> Linear<B> {
    let weight = PackedWeight::from_host(dense(random, n, k, FloatType::F16), device);
    let bias = bias.then(|| Param::initialized(ParamId::new(), tensor(random, [n], device)));
    Linear { weight, bias }
}

/// Shapes `[n, k]`: one row, one column, `k` off every block and word, blocks that cross rows, and regular ones.
const SHAPES: [[usize; 2]; 7] = [[1, 64], [5, 1], [7, 9], [33, 50], [16, 100], [40, 128], [96, 192]];

pub fn linears<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(1);
    for [n, k] in SHAPES {
        for (name, host) in storages(&mut random, n, k) {
            let exact = format::dequantize(&host);
            let weight = PackedWeight::<B>::from_host(host, device);
            let plain: Vec<f32> =
                reference::dequantize(&weight).into_data().convert::<f32>().into_vec().expect("floats");
            assert_eq!(plain, exact, "{name} [{n}, {k}]: dequantised");
            for m in [1, 2, 3, 8, 17, 129] {
                let x = tensor(&mut random, [m, k], device);
                let bias = (m % 2 == 1).then(|| tensor(&mut random, [n], device));
                let got = B::packed_linear(x.clone(), &weight, bias.clone());
                close(&format!("linear {name} [{n}, {k}] m={m}"), got, reference::linear(x, &weight, bias));
            }
            let ids: Tensor<B, 1, Int> = Tensor::from_data(TensorData::new(vec![n as i64 - 1, 0], [2]), device);
            let got = B::packed_embed(ids.clone(), &weight);
            close(&format!("embed {name} [{n}, {k}]"), got, reference::embed(ids, &weight));
        }
    }
}

/// Layers of the same input, of one storage and of two, are those of each.
pub fn linears_together<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(21);
    for (k, bias) in [(50, true), (128, false)] {
        let layers = |n, random: &mut Random| -> Vec<(&'static str, Linear<B>)> {
            let storages = storages(random, n, k).into_iter();
            let layer = |(name, host), random: &mut Random| {
                let bias = bias.then(|| Param::initialized(ParamId::new(), tensor(random, [n], device)));
                (name, Linear { weight: PackedWeight::from_host(host, device), bias })
            };
            storages.map(|stored| layer(stored, random)).collect()
        };
        let [q, k_proj, v] = [40, 9, 16].map(|n| layers(n, &mut random));
        for (i, (name, q)) in q.iter().enumerate() {
            let (other, z) = &v[(i + 1) % v.len()];
            for m in [1, 3 + i % 6, 17] {
                let x: Tensor<B, 2> = tensor(&mut random, [m, k], device);
                let of = [q, &k_proj[i].1, &v[i].1, z];
                let got = B::packed_linears(x.clone(), of);
                for (layer, got) in of.into_iter().zip(got) {
                    let bias = layer.bias.as_ref().map(Param::val);
                    let what = format!("{name} and {other} together, k={k} m={m}");
                    close(&what, got, reference::linear(x.clone(), &layer.weight, bias));
                }
            }
        }
    }
}

pub fn swiglu_mlp<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(2);
    for (h, inner, bias) in [(16, 40, false), (50, 33, false), (16, 24, true)] {
        let mlp = SwiGlu::<B> {
            gate_proj: linear(&mut random, inner, h, bias, device),
            up_proj: linear(&mut random, inner, h, bias, device),
            down_proj: linear(&mut random, h, inner, bias, device),
        };
        for m in [1, 3, 17] {
            let x: Tensor<B, 2> = tensor(&mut random, [m, h], device);
            for flags in [None, Some(vec![false; m]), Some((0..m).map(|i| i % 3 != 1).collect())] {
                let active = flags
                    .as_ref()
                    .map(|flags| Tensor::<B, 1, Bool>::from_data(TensorData::from(flags.as_slice()), device));
                let got = B::swiglu_mlp(x.clone(), &mlp, active.clone());
                let expected = reference::swiglu_mlp(x.clone(), &mlp, active);
                close(&format!("swiglu {h}x{inner} m={m} active={flags:?}"), got, expected);
            }
        }
    }
}

pub fn norms<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(3);
    for (m, h) in [(1, 5), (3, 64), (17, 130)] {
        let x: Tensor<B, 2> = tensor(&mut random, [m, h], device);
        let z: Tensor<B, 2> = tensor(&mut random, [m, h], device);
        let w: Tensor<B, 1> = tensor(&mut random, [h], device);
        let norm = |unit_offset| Norm { weight: w.clone(), eps: 1e-6, unit_offset };
        for unit_offset in [false, true] {
            let got = B::rms_norm(x.clone(), norm(unit_offset));
            close("rms_norm", got, reference::rms_norm(x.clone(), norm(unit_offset)));
            let got = B::add_rms_norm(x.clone(), z.clone(), norm(unit_offset));
            let expected = reference::add_rms_norm(x.clone(), z.clone(), norm(unit_offset));
            close("sum", got.0, expected.0);
            close("norm of the sum", got.1, expected.1);
        }
        for (i, got) in B::rms_norm_all([(x.clone(), norm(true)), (z.clone(), norm(true))]).into_iter().enumerate() {
            let expected = reference::rms_norm([&x, &z][i].clone(), norm(true));
            close("norms of two tensors", got, expected);
        }
        let mixed = B::rms_norm_all([(x.clone(), norm(true)), (z.clone(), norm(false))]);
        close("norms of two kinds", mixed[1].clone(), reference::rms_norm(z.clone(), norm(false)));
        let got = B::sigmoid_gate(x.clone(), z.clone());
        close("sigmoid_gate", got, reference::sigmoid_gate(x.clone(), z.clone()));
        let got = B::rms_norm_gated(x.clone(), z.clone(), norm(false));
        close("rms_norm_gated", got, reference::rms_norm_gated(x, z, norm(false)));
    }
}

pub fn reshape<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(9);
    let x: Tensor<B, 3> = tensor(&mut random, [4, 6, 5], device);
    let whole = B::reshape(x.clone(), [8, 15]);
    assert_eq!(whole.dims(), [8, 15]);
    assert_eq!(whole.clone().into_data().to_vec::<f32>().unwrap(), x.to_data().to_vec::<f32>().unwrap());
    // What shares the buffer keeps its shape and its numbers.
    assert_eq!(x.dims(), [4, 6, 5]);
    let changed = B::reshape(whole, [120]) + 1.0;
    assert!(changed.into_data().to_vec::<f32>().unwrap() != x.to_data().to_vec::<f32>().unwrap());
    // Views are not row-major.
    let views = [x.clone().swap_dims(0, 2), x.clone().slice([0..4, 2..6, 1..4]), x.clone().slice([0..4, 0..6, 0..2])];
    for view in views {
        let [a, b, c] = view.dims();
        let count = a * b * c;
        let rows: Tensor<B, 2> = B::reshape(view.clone(), [a * b, c]);
        assert_eq!((rows.clone() + 0.0).into_data(), view.clone().reshape([a * b, c]).into_data());
        let flat: Tensor<B, 1> = B::reshape(view.clone(), [count]);
        assert_eq!(flat.into_data().to_vec::<f32>().unwrap(), view.into_data().to_vec::<f32>().unwrap());
    }
}

pub fn rotary<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(4);
    for (head_dim, r) in [(8, 4), (32, 4), (10, 3)] {
        let x: Tensor<B, 4> = tensor(&mut random, [2, 5, 3, head_dim], device);
        let angles: Tensor<B, 2> = tensor(&mut random, [5, r], device);
        let positions = Rotary { cos: angles.clone().cos(), sin: angles.sin() };
        close("rotary", B::rotary(x.clone(), &positions), reference::rotary(x.clone(), &positions));
        let keys: Tensor<B, 4> = tensor(&mut random, [2, 5, 1, head_dim], device);
        let [got, got_keys] = B::rotary_all([x.clone(), keys.clone()], &positions);
        close("rotary beside keys", got, reference::rotary(x, &positions));
        close("rotary of keys", got_keys, reference::rotary(keys, &positions));
    }
}

pub fn attention<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(5);
    let (kv_heads, hd) = (2, 16);
    for (past, s) in [(0, 1), (0, 70), (5, 1), (69, 3), (3, 33), (300, 1)] {
        for (heads, format) in [(2, KvFormat::F32), (6, KvFormat::F32), (4, KvFormat::F16), (4, KvFormat::Q8)] {
            let (b, t) = (2, past + s);
            let mut store = |width: usize, heads: usize, format| {
                let new: Tensor<B, 4> = tensor(&mut random, [b, t, heads, width], device);
                let (first, second) = (new.clone().slice_dim(1, 0..1), new.clone().slice_dim(1, 1..t.max(2).min(t)));
                let empty = || KvStore::<B>::new(format, [b, heads, t + 3, width], device);
                let mut got = B::store_kv(empty(), first, 0);
                if t > 1 {
                    got = B::store_kv(got, second, 1);
                }
                same_rows(&got, &reference::store_kv(empty(), new, 0));
                got
            };
            let (k, v) = (store(hd, kv_heads, format), store(hd, kv_heads, format));
            let codes = store(4, 1, KvFormat::F32);
            let head_codes = store(4, kv_heads, KvFormat::F32);
            let (inner, inner_heads) = (store(24, 1, format), store(8, kv_heads, format));
            let q: Tensor<B, 4> = tensor(&mut random, [b, s, heads, hd], device);
            let [gelu, flat, per_head] = decoders::<B>(&mut random, kv_heads, hd, device);
            let compressed = |decoder| KeyValue::Compressed { codes: (&codes).into(), decoder, rotary: None };
            let by_head = KeyValue::Compressed { codes: (&head_codes).into(), decoder: &per_head, rotary: None };
            let shape = AttentionShape { past, kv_heads, scale: 0.25 };
            let hidden = KeyValue::Hidden { values: (&inner).into(), output: &gelu.output, rotary: None };
            let hidden_by_head =
                KeyValue::Hidden { values: (&inner_heads).into(), output: &per_head.output, rotary: None };
            for (name, k, v) in [
                ("plain", KeyValue::Plain((&k).into()), KeyValue::Plain((&v).into())),
                ("values compressed", KeyValue::Plain((&k).into()), compressed(&gelu)),
                ("both compressed", compressed(&gelu), compressed(&flat)),
                ("a code per head", by_head, KeyValue::Plain((&v).into())),
                ("hidden values", KeyValue::Plain((&k).into()), hidden),
                ("hidden keys", hidden, KeyValue::Plain((&v).into())),
                ("hidden values of each head", KeyValue::Plain((&k).into()), hidden_by_head),
            ] {
                let kv = CachedKv { k, v, shape };
                let (got, expected) = (B::cached_attention(q.clone(), kv), reference::attention(q.clone(), kv));
                let what = format!("attention {name}, past {past}, s {s}, heads {heads}, {format:?}");
                close(&what, got, expected);
            }
        }
    }
}

/// A cache in one part, in several, and what decodes and rotates it.
type Side<'a, B> =
    (&'a KvStore<B>, &'a (Vec<KvStore<B>>, KvStore<B>), Option<(&'a CodeDecoder<B>, Option<&'a Rotary<B>>)>);

fn key_value<'a, B: CompactBackend>((store, parts, decoder): Side<'a, B>, in_parts: bool) -> KeyValue<'a, B> {
    let parts = if in_parts { KvParts { shared: &parts.0, own: &parts.1 } } else { store.into() };
    match decoder {
        None => KeyValue::Plain(parts),
        Some((decoder, rotary)) => KeyValue::Compressed { codes: parts, decoder, rotary },
    }
}

/// Decoders of codes of 4 numbers: two layers and one for all heads, two for each.
fn decoders<B: CompactBackend>(
    random: &mut Random,
    kv_heads: usize,
    head_dim: usize,
    device: &B::Device,
) -> [CodeDecoder<B>; 3] {
    let mut decoder = |hidden: Option<usize>, width: usize| CodeDecoder::<B> {
        hidden: hidden.map(|h| linear(random, h, 4, true, device)),
        activation: CodeActivation::Gelu,
        output: linear(random, width, hidden.unwrap_or(4), hidden.is_some(), device),
    };
    [decoder(Some(24), kv_heads * head_dim), decoder(None, kv_heads * head_dim), decoder(Some(8), head_dim)]
}

/// Attention over a cache in parts is that over the cache in one: to the last bit where parts are read as they are.
pub fn attention_over_parts<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(18);
    let (heads, kv_heads, hd) = (4, 2, 16);
    for (past, s) in [(64, 1), (150, 1), (191, 2), (100, 70)] {
        let t = past + s;
        let q: Tensor<B, 4> = tensor(&mut random, [1, s, heads, hd], device);
        let mut store = |width: usize, heads: usize, format| {
            let new: Tensor<B, 4> = tensor(&mut random, [1, t, heads, width], device);
            B::store_kv(KvStore::<B>::new(format, [1, heads, t + 5, width], device), new, 0)
        };
        let plain =
            [KvFormat::F32, KvFormat::F16].map(|format| [store(hd, kv_heads, format), store(hd, kv_heads, format)]);
        let (codes, head_codes) = (store(4, 1, KvFormat::F32), store(4, kv_heads, KvFormat::F32));
        // One tile each, and two tiles and what is left.
        for tile in [64, 128] {
            let tile = if tile < t { tile } else { 64 };
            let whole = (t - 1) / tile * tile;
            let split = |store: &KvStore<B>| -> (Vec<KvStore<B>>, KvStore<B>) {
                let shared = (0..whole).step_by(tile).map(|at| store.copied(at..at + tile, tile)).collect();
                (shared, store.copied(whole..t, t + 3 - whole))
            };
            let parts = plain.each_ref().map(|sides| sides.each_ref().map(split));
            let (code_parts, head_code_parts) = (split(&codes), split(&head_codes));
            let [gelu, flat, per_head] = decoders::<B>(&mut random, kv_heads, hd, device);
            let angles: Tensor<B, 2> = tensor(&mut random, [t, hd / 2], device);
            let positions = Rotary { cos: angles.clone().cos(), sin: angles.sin() };
            let [[k, v], [k16, v16]] = &plain;
            let [[k_parts, v_parts], [k16_parts, v16_parts]] = &parts;
            // As after a number that halves cannot hold.
            let mixed = (k16_parts.0.clone(), k_parts.1.clone());
            let mixed_whole = {
                let KvStore::F16(words) = k16.copied(0..whole, whole) else { panic!("halves") };
                let numbers = reference::unpack_f16(words.reshape([kv_heads * whole * hd / 2]));
                let first = KvStore::F32(numbers.reshape([1, kv_heads, whole, hd]));
                k.copied(0..t, t + 5).with_tokens(0, &first, whole).expect("of one format")
            };
            let rotary = Some(&positions);
            let cases: [(&str, Side<'_, B>, Side<'_, B>); 7] = [
                ("F32", (k, k_parts, None), (v, v_parts, None)),
                ("F16", (k16, k16_parts, None), (v16, v16_parts, None)),
                ("F16 and then F32", (&mixed_whole, &mixed, None), (v, v_parts, None)),
                ("values compressed", (k16, k16_parts, None), (&codes, &code_parts, Some((&gelu, None)))),
                ("both", (&codes, &code_parts, Some((&gelu, None))), (&codes, &code_parts, Some((&flat, None)))),
                ("before rotation", (&codes, &code_parts, Some((&gelu, rotary))), (v, v_parts, None)),
                ("a code per head", (&head_codes, &head_code_parts, Some((&per_head, None))), (v, v_parts, None)),
            ];
            let shape = AttentionShape { past, kv_heads, scale: 0.25 };
            for (name, k, v) in cases {
                let kv = |in_parts| CachedKv { k: key_value(k, in_parts), v: key_value(v, in_parts), shape };
                let of = |in_parts| B::cached_attention(q.clone(), kv(in_parts));
                let (got, expected) = (of(true), of(false));
                let what = format!("attention {name}, past {past}, s {s}, parts of {tile}");
                match B::READS_KV_PARTS {
                    true => assert_eq!(got.to_data(), expected.to_data(), "{what}"),
                    false => close(&what, got, expected),
                }
                // Beside another sequence.
                let span = |in_parts| AttentionSpan { tokens: s, kv: kv(in_parts) };
                let both = Tensor::cat(vec![q.clone(), q.clone()], 1);
                let got = B::cached_attention_spans(both.clone(), &[span(true), span(false)]);
                close(&what, got.clone().slice_dim(1, 0..s), got.slice_dim(1, s..2 * s));
            }
        }
    }
}

/// What F16 cannot hold is kept in F32. A GPU, which would have to wait for the numbers to look at them, stores NaN, so that
/// logits are never silently wrong.
pub fn store_beyond_half_precision<B: CompactBackend>(device: &B::Device) {
    let (heads, capacity, width, large) = (2, 3, 4, 5);
    let numbers = |at_large: f32| (0..8).map(|i| if i == large { at_large } else { i as f32 / 3.0 }).collect();
    let append = |at_large: f32| {
        let new = |values: Vec<f32>| {
            Tensor::<B, 4>::from_data(TensorData::new(values, [1, 1, heads, width]), (device, DType::F32))
        };
        let empty = KvStore::<B>::new(KvFormat::F16, [1, heads, capacity, width], device);
        B::store_kv(B::store_kv(empty, new(numbers(1.0)), 0), new(numbers(at_large)), 1)
    };
    let half = half::f16::from_f32;
    for at_large in [65519.0, 65520.0, -7e4, 1e30] {
        let (head, d) = (large / width, large % width);
        match append(at_large) {
            KvStore::F16(words) => {
                let words = words.into_data().convert::<u32>().into_vec::<u32>().expect("words");
                let word = words[(head * capacity + 1) * (width / 2) + d / 2];
                let stored = half::f16::from_bits((word >> (16 * (d % 2))) as u16);
                assert!(if at_large < 65520.0 && at_large > 0.0 { stored == half(at_large) } else { stored.is_nan() });
            }
            KvStore::Q8 { .. } => panic!("a store of halves became one of 8 bits"),
            KvStore::F32(stored) => {
                assert!(half(at_large).is_infinite(), "{at_large} fits");
                let stored = stored.into_data().convert::<f32>().into_vec::<f32>().expect("floats");
                for (i, (first, second)) in
                    Vec::into_iter(numbers(1.0)).zip(Vec::into_iter(numbers(at_large))).enumerate()
                {
                    let at = i / width * capacity * width + i % width;
                    // The token before was rounded when it was stored.
                    assert_eq!((stored[at], stored[at + width]), (half(first).to_f32(), second), "{at_large}: {i}");
                }
            }
        }
    }
}

fn same_rows<B: CompactBackend>(a: &KvStore<B>, b: &KvStore<B>) {
    match (a, b) {
        (KvStore::F32(a), KvStore::F32(b)) => assert_eq!(a.to_data(), b.to_data()),
        (KvStore::F16(a), KvStore::F16(b)) => assert_eq!(a.to_data(), b.to_data()),
        (KvStore::Q8 { codes: a, scales: x }, KvStore::Q8 { codes: b, scales: y }) => {
            assert_eq!((a.to_data(), x.to_data()), (b.to_data(), y.to_data()));
        }
        _ => panic!("stores of different formats"),
    }
}

pub fn delta_net<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(6);
    for s in [1, 2, 7, 63, 64, 65, 129] {
        let (b, hk, hv, dk, dv, c, w) = (2, 2, 4, 8, 6, 20, 4);
        let u: Tensor<B, 3> = tensor(&mut random, [b, s, c], device);
        let tail: Tensor<B, 3> = tensor(&mut random, [b, w - 1, c], device);
        let weight: Tensor<B, 3> = tensor(&mut random, [c, 1, w], device);
        let conv = CausalConv { u, weight };
        let got = B::causal_conv1d_silu(conv.clone(), tail.clone());
        let expected = reference::causal_conv1d_silu(conv, tail);
        close(&format!("conv s={s}"), got.0, expected.0);
        close(&format!("conv tail s={s}"), got.1, expected.1);

        let [dt, b_logit] = [(); 2].map(|()| tensor::<B, 3>(&mut random, [b, s, hv], device) * 8.0);
        let [dt_bias, a_log] = [(); 2].map(|()| tensor::<B, 1>(&mut random, [hv], device));
        let gates = DeltaGates { dt, b: b_logit, dt_bias, a_log };
        let (got, expected) = (B::delta_gates(gates.clone()), reference::delta_gates(gates));
        close(&format!("decay s={s}"), got.0, expected.0);
        close(&format!("writing strength s={s}"), got.1, expected.1);

        let rule = DeltaRule::<B> {
            q: tensor(&mut random, [b, s, hk, dk], device),
            k: tensor(&mut random, [b, s, hk, dk], device),
            v: tensor(&mut random, [b, s, hv, dv], device),
            g: tensor::<B, 3>(&mut random, [b, s, hv], device).abs().neg() * 0.3,
            beta: burn::tensor::activation::sigmoid(tensor(&mut random, [b, s, hv], device)),
        };
        let state: Tensor<B, 4> = tensor(&mut random, [b, hv, dk, dv], device);
        // On the host: burn 0.21's batched matrix product on wgpu gives wrong numbers at these sizes.
        let on_host = DeltaRule {
            q: host(&rule.q),
            k: host(&rule.k),
            v: host(&rule.v),
            g: host(&rule.g),
            beta: host(&rule.beta),
        };
        let expected = reference::gated_delta_rule(on_host, host(&state));
        let got = B::gated_delta_rule(rule, state);
        close(&format!("delta rule s={s}"), host(&got.0), expected.0);
        close(&format!("delta state s={s}"), host(&got.1), expected.1);
    }
}

/// Operations on several sequences, against those on each of them.
pub fn spans<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(17);
    for tokens in [&[5][..], &[1, 1, 1], &[1, 9, 2]] {
        let n = tokens.iter().sum::<usize>();
        let starts: Vec<usize> = tokens.iter().scan(0, |end, &s| Some(std::mem::replace(end, *end + s))).collect();
        let of = |i: usize| starts[i]..starts[i] + tokens[i];

        let (heads, kv_heads, hd) = (4, 2, 8);
        let q: Tensor<B, 4> = tensor(&mut random, [1, n, heads, hd], device);
        for format in [KvFormat::F32, KvFormat::F16, KvFormat::Q8] {
            let mut store = |i: usize| {
                let t = 3 * i + tokens[i];
                let new = tensor(&mut random, [1, t, kv_heads, hd], device);
                B::store_kv(KvStore::new(format, [1, kv_heads, t + 2, hd], device), new, 0)
            };
            let stores: Vec<[KvStore<B>; 2]> = (0..tokens.len()).map(|i| [store(i), store(i)]).collect();
            let spans: Vec<AttentionSpan<'_, B>> = (stores.iter().enumerate())
                .map(|(i, [k, v])| AttentionSpan {
                    tokens: tokens[i],
                    kv: CachedKv {
                        k: KeyValue::Plain(k.into()),
                        v: KeyValue::Plain(v.into()),
                        shape: AttentionShape { past: 3 * i, kv_heads, scale: 0.25 },
                    },
                })
                .collect();
            let together = B::cached_attention_spans(q.clone(), &spans);
            for (i, span) in spans.iter().enumerate() {
                let alone = B::cached_attention(q.clone().slice_dim(1, of(i)), span.kv);
                let what = format!("attention of {tokens:?}, {format:?}: sequence {i}");
                close(&what, together.clone().slice_dim(1, of(i)), alone);
            }
        }

        let (hk, hv, dk, dv, c, w) = (2, 4, 8, 6, 20, 4);
        let u: Tensor<B, 3> = tensor(&mut random, [1, n, c], device);
        let weight: Tensor<B, 3> = tensor(&mut random, [c, 1, w], device);
        let tails: Vec<Tensor<B, 3>> = tokens.iter().map(|_| tensor(&mut random, [1, w - 1, c], device)).collect();
        let conv = CausalConv { u, weight };
        let (y, next) = B::causal_conv1d_silu_spans(conv.clone(), tokens, tails.clone());
        assert_eq!(next.len(), tokens.len());
        for (i, (tail, next)) in tails.into_iter().zip(next).enumerate() {
            let own = CausalConv { u: conv.u.clone().slice_dim(1, of(i)), weight: conv.weight.clone() };
            let alone = B::causal_conv1d_silu(own, tail);
            close(&format!("conv of {tokens:?}: sequence {i}"), y.clone().slice_dim(1, of(i)), alone.0);
            close(&format!("conv tail of {tokens:?}: sequence {i}"), next, alone.1);
        }

        let rule = DeltaRule::<B> {
            q: tensor(&mut random, [1, n, hk, dk], device),
            k: tensor(&mut random, [1, n, hk, dk], device),
            v: tensor(&mut random, [1, n, hv, dv], device),
            g: tensor::<B, 3>(&mut random, [1, n, hv], device).abs().neg() * 0.3,
            beta: burn::tensor::activation::sigmoid(tensor(&mut random, [1, n, hv], device)),
        };
        let states: Vec<Tensor<B, 4>> = tokens.iter().map(|_| tensor(&mut random, [1, hv, dk, dv], device)).collect();
        let (o, next) = B::gated_delta_rule_spans(rule.clone(), tokens, states.clone());
        assert_eq!(next.len(), tokens.len());
        for (i, (state, next)) in states.into_iter().zip(next).enumerate() {
            let cut = |t: &Tensor<B, 4>| t.clone().slice_dim(1, of(i));
            let [g, beta] = [&rule.g, &rule.beta].map(|t| t.clone().slice_dim(1, of(i)));
            let own = DeltaRule { q: cut(&rule.q), k: cut(&rule.k), v: cut(&rule.v), g, beta };
            let alone = B::gated_delta_rule(own, state);
            close(&format!("delta rule of {tokens:?}: sequence {i}"), cut(&o), alone.0);
            close(&format!("delta state of {tokens:?}: sequence {i}"), next, alone.1);
        }
    }
}

pub fn halting<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(7);
    for mode in [HaltMode::Cumulative, HaltMode::Step] {
        for weights in [HaltWeights::Remainder, HaltWeights::Truncate, HaltWeights::State] {
            for enabled in [true, false] {
                let rule = HaltRule { mode, weights, enabled, threshold: 0.7 };
                check_halting::<B>(&mut random, rule, None, device);
            }
            // The threshold of the rule does not count, nor whether it lets tokens stop.
            let rule = HaltRule { mode, weights, enabled: false, threshold: 0.0 };
            let thresholds = (0..33).map(|i| [0.0, 0.4, 0.7, 1.0, HaltRows::<B>::NEVER][i % 5]).collect();
            let rows = HaltRows::<B>::new(thresholds, (0..33).map(|i| 1 + i % 4).collect(), device);
            check_halting(&mut random, rule, Some(&rows), device);
        }
    }
}

/// Four steps of 33 tokens against the plain body.
fn check_halting<B: CompactBackend>(
    random: &mut Random,
    rule: HaltRule,
    rows: Option<&HaltRows<B>>,
    device: &B::Device,
) {
    let (m, h, steps) = (33, 6, 4);
    let (mut got, mut expected) = (HaltState::<B>::new(m, h, device), HaltState::<B>::new(m, h, device));
    for k in 0..steps {
        let s: Tensor<B, 2> = tensor(random, [m, h], device);
        let logit = (k + 1 < steps).then(|| tensor(random, [m], device) * 2.0);
        let step = HaltStep { state: s, logit, rule, rows };
        let (g, g_record) = B::halt_step(got, step.clone());
        let (e, e_record) = reference::halt_step(expected, step);
        let what = format!("{rule:?}, rows {}, step {k}", rows.is_some());
        assert_eq!(g.active.to_data(), e.active.to_data(), "{what}: active");
        assert_eq!(g.steps.to_data(), e.steps.to_data(), "{what}: steps");
        close(&what, g.output.clone(), e.output.clone());
        close(&what, g_record.weight, e_record.weight);
        match (g_record.probability, e_record.probability) {
            (Some(g), Some(e)) => close(&what, g, e),
            (None, None) => assert_eq!(k + 1, steps),
            _ => panic!("{what}: a probability is missing"),
        }
        (got, expected) = (g, e);
    }
}
