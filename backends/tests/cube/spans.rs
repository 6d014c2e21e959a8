//! Operations over several sequences at once, against each sequence alone: the same bits.

use emberlm_backends::cube::{self, Attention, AttentionSpan, Buffer, ConvSpan, DeltaSpan, KvRows, KvSide};
use emberlm_backends::types::{ConvShape, DeltaRuleInputs, DeltaRuleShape, KvFormat, StoreKv};

use crate::common::Rng;
use crate::device::{Client, Float, download, download_cache, upload_cache, with_all_instructions};

/// Tokens of each sequence, and those before them: two, prompts among sequences that decode, more than a launch takes.
const TOKENS: [&[(usize, usize)]; 3] = [
    &[(1, 3), (1, 70)],
    &[(1, 700), (40, 0), (1, 0), (3, 65), (1, 130)],
    &[(1, 5), (1, 64), (1, 129), (1, 300), (2, 1), (1, 0), (1, 63), (1, 700), (1, 8), (1, 128), (1, 5)],
];

/// A part as a buffer of its own: parts begin where bindings may not.
fn copied(client: &Client, float: Float, values: &[f32], from: usize, len: usize) -> Buffer {
    float.upload(client, &values[from..from + len])
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// How many kernels `f` launches.
pub fn launches(f: impl FnOnce()) -> u64 {
    let before = cube::launches_of_thread();
    f();
    cube::launches_of_thread() - before
}

#[test]
fn attention_is_that_of_each_sequence() {
    with_all_instructions(|client| {
        let mut rng = Rng(61);
        let (heads, kv_heads, head_dim) = (8, 2, 64);
        let (f32, f16, q8) = (KvFormat::F32, KvFormat::F16, KvFormat::Q8);
        for (float, formats, tokens) in [
            (Float::F32, [f16; 2], TOKENS[0]),
            (Float::F32, [f32; 2], TOKENS[1]),
            (Float::F32, [f16; 2], TOKENS[2]),
            (Float::F32, [q8; 2], TOKENS[2]),
            (Float::F32, [f32, q8], TOKENS[1]),
        ] {
            let shape = |(seq, past)| {
                let (key_dim, value_dim, scale) = (head_dim, head_dim, 0.2);
                Attention { batch: 1, seq, heads, kv_heads, key_dim, value_dim, past, scale }
            };
            let mut store = |format, capacity: usize| {
                let numbers = rng.floats(kv_heads * capacity * head_dim, 1.5);
                KvRows::of_store(upload_cache(client, format, &numbers, head_dim), kv_heads, capacity, head_dim)
            };
            let stores: Vec<[KvRows; 2]> =
                tokens.iter().map(|(seq, past)| formats.map(|format| store(format, seq + past + 3))).collect();
            let width = heads * head_dim;
            let all: usize = tokens.iter().map(|(seq, _)| seq).sum();
            let queries = float.rounded(&rng.floats(all * width, 2.0));
            let q = float.upload(client, &queries);
            let out = float.unwritten(client, all * width);
            let spans =
                tokens.iter().zip(&stores).map(|(&tokens, [k, v])| AttentionSpan { k, v, shape: shape(tokens) });
            let spans: Vec<_> = spans.collect();
            let together = launches(|| cube::attention_spans(client, &q, &spans, &out));
            let out = download(client, &out);
            let (mut first, mut alone) = (0, 0);
            for (i, span) in spans.iter().enumerate() {
                let len = span.shape.seq * width;
                let q = copied(client, float, &queries, first, len);
                let want = float.unwritten(client, len);
                alone += launches(|| cube::attention(client, &q, span.k, span.v, &want, span.shape));
                let want = download(client, &want);
                assert!(want.iter().all(|x| x.is_finite()), "sequence {i} of {tokens:?}");
                assert_eq!(bits(&out[first..first + len]), bits(&want), "sequence {i} of {tokens:?}");
                first += len;
            }
            assert!(together < alone, "{together} launches for {tokens:?}, {alone} one by one");
        }
    });
}

#[test]
fn a_launch_stores_keys_and_values_of_all_sequences() {
    with_all_instructions(|client| {
        let mut rng = Rng(62);
        let heads = 2;
        let formats = [(KvFormat::F16, 6), (KvFormat::F32, 6), (KvFormat::Q8, 100)];
        for (tokens, (format, width)) in TOKENS.into_iter().flat_map(|tokens| formats.map(|format| (tokens, format))) {
            let shapes =
                tokens.iter().map(|&(seq, at)| StoreKv { batch: 1, seq, heads, capacity: at + seq + 2, width, at });
            let shapes: Vec<StoreKv> = shapes.collect();
            let all: usize = tokens.iter().map(|(seq, _)| seq).sum();
            let new = [0, 1].map(|_| rng.floats(all * heads * width, 3.0));
            let before = |p: &StoreKv| upload_cache(client, format, &vec![1.5; heads * p.capacity * width], width);
            let stores = [0, 1].map(|_| shapes.iter().map(before).collect::<Vec<_>>());
            let on_device = new.each_ref().map(|new| Float::F32.upload(client, new));
            let sides = [0, 1].map(|side| KvSide { new: &on_device[side], stores: &stores[side] });
            let together = launches(|| cube::store_kv_spans(client, &sides, &shapes));
            // Codes and scales of two sides, beside what is new and the scalars: software Vulkan binds fewer.
            let few = format == KvFormat::Q8 && client.properties().hardware.max_bindings < 8 * 4 + 3;
            assert_eq!(together, shapes.len().div_ceil(if few { 4 } else { 8 }) as u64);
            for side in 0..2 {
                let mut first = 0;
                for (i, p) in shapes.iter().enumerate() {
                    let len = p.seq * heads * width;
                    let want = before(p);
                    cube::store_kv(client, &copied(client, Float::F32, &new[side], first, len), &want, *p);
                    let [got, want] = [&stores[side][i], &want].map(|store| download_cache(client, store));
                    assert_eq!(got, want, "side {side}, sequence {i} of {tokens:?}, {format:?}");
                    first += len;
                }
            }
        }
    });
}

#[test]
fn convolution_is_that_of_each_sequence() {
    with_all_instructions(|client| {
        let mut rng = Rng(63);
        let (channels, width) = (33, 4);
        for tokens in TOKENS {
            let all: usize = tokens.iter().map(|(seq, _)| seq).sum();
            let inputs = rng.floats(all * channels, 2.0);
            let weight = Float::F32.upload(client, &rng.floats(channels * width, 1.0));
            let (u, y) = (Float::F32.upload(client, &inputs), Float::F32.unwritten(client, all * channels));
            let len = (width - 1) * channels;
            let mut buffers =
                |_: &_| [Float::F32.upload(client, &rng.floats(len, 2.0)), Float::F32.unwritten(client, len)];
            let tails: Vec<[Buffer; 2]> = tokens.iter().map(&mut buffers).collect();
            let spans = tokens.iter().zip(&tails).map(|(&(seq, _), [tail, next_tail])| {
                let shape = ConvShape { batch: 1, seq, channels, width };
                ConvSpan { tail, next_tail, shape }
            });
            let spans: Vec<_> = spans.collect();
            let together = launches(|| cube::causal_conv1d_silu_spans(client, &u, &spans, &weight, &y));
            assert_eq!(together, spans.len().div_ceil(8) as u64);
            let y = download(client, &y);
            let mut first = 0;
            for (i, span) in spans.iter().enumerate() {
                let len = span.shape.seq * channels;
                let u = copied(client, Float::F32, &inputs, first, len);
                let [want, next] = [len, span.tail.len()].map(|len| Float::F32.unwritten(client, len));
                cube::causal_conv1d_silu(client, &u, span.tail, &weight, &want, &next, span.shape);
                assert_eq!(bits(&y[first..first + len]), bits(&download(client, &want)), "sequence {i} of {tokens:?}");
                let [got, want] = [span.next_tail, &next].map(|tail| bits(&download(client, tail)));
                assert_eq!(got, want, "tail {i} of {tokens:?}");
                first += len;
            }
        }
    });
}

#[test]
fn delta_rule_is_that_of_each_sequence() {
    with_all_instructions(|client| {
        let mut rng = Rng(64);
        let (key_heads, value_heads, key_dim, value_dim) = (2, 4, 64, 40);
        for tokens in TOKENS {
            let all: usize = tokens.iter().map(|(seq, _)| seq).sum();
            let (keys, values) = (key_heads * key_dim, value_heads * value_dim);
            let [q, k, v] = [keys, keys, values].map(|width| rng.floats(all * width, 2.0));
            let g: Vec<f32> = rng.floats(all * value_heads, 1.0).iter().map(|g| g - 1.0).collect();
            let beta: Vec<f32> = rng.floats(all * value_heads, 0.5).iter().map(|beta| beta + 0.5).collect();
            let states: Vec<Vec<f32>> =
                tokens.iter().map(|_| rng.floats(value_heads * key_dim * value_dim, 0.5)).collect();
            let on_device = [&q, &k, &v, &g, &beta].map(|values| Float::F32.upload(client, values));
            let o = Float::F32.unwritten(client, all * values);
            let after: Vec<Buffer> = states.iter().map(|state| Float::F32.upload(client, state)).collect();
            let spans = tokens.iter().zip(&after).map(|(&(seq, _), state)| DeltaSpan {
                state,
                shape: DeltaRuleShape { batch: 1, seq, key_heads, value_heads, key_dim, value_dim },
            });
            let spans: Vec<_> = spans.collect();
            let strides = spans[0].shape.dense_strides();
            let all = {
                let [q, k, v, g, beta] = &on_device;
                DeltaRuleInputs { q, k, v, g, beta }
            };
            let together = launches(|| cube::gated_delta_rule_spans(client, all, &spans, &o, strides));
            let short = tokens.iter().filter(|(seq, _)| *seq == 1).count();
            let long = tokens.len() - short;
            assert_eq!(together, (short.div_ceil(8) + long.div_ceil(8)) as u64);
            let o = download(client, &o);
            let mut first = 0;
            for (i, span) in spans.iter().enumerate() {
                let seq = span.shape.seq;
                let own = |values: &[f32], width| copied(client, Float::F32, values, first * width, seq * width);
                let (q, k, v) = (own(&q, keys), own(&k, keys), own(&v, values));
                let (g, beta) = (own(&g, value_heads), own(&beta, value_heads));
                let state = Float::F32.upload(client, &states[i]);
                let want = Float::F32.unwritten(client, seq * values);
                let own = DeltaRuleInputs { q: &q, k: &k, v: &v, g: &g, beta: &beta };
                cube::gated_delta_rule(client, own, &state, &want, span.shape, strides);
                let got = &o[first * values..(first + seq) * values];
                assert_eq!(bits(got), bits(&download(client, &want)), "sequence {i} of {tokens:?}");
                let [got, want] = [span.state, &state].map(|state| bits(&download(client, state)));
                assert_eq!(got, want, "state {i} of {tokens:?}");
                first += seq;
            }
        }
    });
}
