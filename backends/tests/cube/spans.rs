//! Operations over several sequences at once, against each sequence alone: the same bits.

use emberlm_backends::cube::{self, Attention, AttentionSpan, Buffer, ConvSpan, DeltaSpan, KvRows, KvSide};
use emberlm_backends::types::{ConvShape, DeltaRuleInputs, DeltaRuleShape, StoreKv};

use crate::common::Rng;
use crate::device::{Client, Float, download, download_words, upload_words, with_all_instructions};

/// Tokens of each sequence, and those before them: two, prompts among sequences that decode, more than a launch takes.
const TOKENS: [&[(usize, usize)]; 3] = [
    &[(1, 3), (1, 70)],
    &[(1, 700), (40, 0), (1, 0), (3, 65), (1, 130)],
    &[(1, 5), (1, 64), (1, 129), (1, 300), (2, 1), (1, 0), (1, 63), (1, 700), (1, 8), (1, 128), (1, 5)],
];

/// The part of a buffer from element `from` on.
fn part(buffer: &Buffer, from: usize, len: usize) -> Buffer {
    let handle = buffer.handle().clone().offset_start((from * buffer.dtype().size()) as u64);
    Buffer::new(handle, len, buffer.dtype())
}

/// The part as a buffer of its own: parts begin where bindings may not.
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
        for (float, halves, tokens) in
            [(Float::F32, true, TOKENS[0]), (Float::F32, false, TOKENS[1]), (Float::F32, true, TOKENS[2])]
        {
            let shape = |(seq, past)| {
                let (key_dim, value_dim, scale) = (head_dim, head_dim, 0.2);
                Attention { batch: 1, seq, heads, kv_heads, key_dim, value_dim, past, scale }
            };
            let mut store = |capacity: usize| {
                let numbers = kv_heads * capacity * head_dim;
                let buffer = match halves {
                    // Halves of about 1, so that none is infinite.
                    true => upload_words(
                        client,
                        &(0..numbers / 2).map(|_| rng.word() as u32 & 0xbbff_bbff).collect::<Vec<_>>(),
                    ),
                    false => Float::F32.upload(client, &rng.floats(numbers, 1.5)),
                };
                KvRows::of_store(buffer, halves, kv_heads, capacity, head_dim)
            };
            let stores: Vec<[KvRows; 2]> =
                tokens.iter().map(|(seq, past)| [0, 1].map(|_| store(seq + past + 3))).collect();
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
        let (heads, width) = (2, 6);
        for (tokens, halves) in TOKENS.into_iter().flat_map(|tokens| [(tokens, true), (tokens, false)]) {
            let shapes =
                tokens.iter().map(|&(seq, at)| StoreKv { batch: 1, seq, heads, capacity: at + seq + 2, width, at });
            let shapes: Vec<StoreKv> = shapes.collect();
            let all: usize = tokens.iter().map(|(seq, _)| seq).sum();
            let new = [0, 1].map(|_| rng.floats(all * heads * width, 3.0));
            let words = if halves { width / 2 } else { width };
            let before = upload_words(client, &vec![0x3c00_4000; heads * words * 2000]);
            // Every store is a copy of the same words.
            let empty = |p: &StoreKv| {
                let len = heads * p.capacity * words;
                upload_words(client, &download_words(client, &part(&before, 0, len)))
            };
            let stores = [0, 1].map(|_| shapes.iter().map(empty).collect::<Vec<_>>());
            let on_device = new.each_ref().map(|new| Float::F32.upload(client, new));
            let sides = [0, 1].map(|side| KvSide { new: &on_device[side], stores: &stores[side] });
            let together = launches(|| cube::store_kv_spans(client, &sides, &shapes, halves));
            assert_eq!(together, shapes.len().div_ceil(8) as u64);
            for side in 0..2 {
                let mut first = 0;
                for (i, p) in shapes.iter().enumerate() {
                    let len = p.seq * heads * width;
                    let want = empty(p);
                    cube::store_kv(client, &copied(client, Float::F32, &new[side], first, len), &want, *p, halves);
                    let got = download_words(client, &stores[side][i]);
                    assert_eq!(got, download_words(client, &want), "side {side}, sequence {i} of {tokens:?}");
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
