//! Attention over plain caches.

use emberlm_backends::cpu::{self, plain};
use emberlm_backends::cube::{self, KvRows};
use half::f16;

use crate::common::{Rng, close};
use crate::device::{Client, Float, download, upload_words, with_all_instructions};

/// A cache `[b, kv_heads, capacity, width]` here and on the device; slots after `used` are NaN.
struct Cache {
    halves: bool,
    floats: Vec<f32>,
    bits: Vec<u16>,
    on_device: KvRows,
}

impl Cache {
    fn new(client: &Client, rng: &mut Rng, halves: bool, dims: [usize; 4], used: usize) -> Cache {
        let [b, heads, capacity, width] = dims;
        let mut floats = rng.floats(b * heads * capacity * width, 1.5);
        for head in floats.chunks_exact_mut(capacity * width) {
            head[used * width..].fill(f32::NAN);
        }
        let bits: Vec<u16> = floats.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
        let buffer = if halves {
            let words: Vec<u32> = bits.chunks(2).map(|p| u32::from(p[0]) | u32::from(p[1]) << 16).collect();
            upload_words(client, &words)
        } else {
            Float::F32.upload(client, &floats)
        };
        let on_device = KvRows::of_store(buffer, halves, heads, capacity, width);
        Cache { halves, floats, bits, on_device }
    }

    fn host(&self) -> [cpu::CacheSlice<'_>; 1] {
        [match self.halves {
            true => cpu::CacheSlice::F16(&self.bits),
            false => cpu::CacheSlice::F32(&self.floats),
        }]
    }
}

struct Case {
    batch: usize,
    seq: usize,
    past: usize,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
}

fn check(client: &Client, rng: &mut Rng, float: Float, halves: bool, case: &Case) {
    let &Case { batch, seq, past, kv_heads, group, head_dim } = case;
    let (heads, capacity) = (kv_heads * group, past + seq + 3);
    let dims = [batch, kv_heads, capacity, head_dim];
    let [k, v] = [0, 1].map(|_| Cache::new(client, rng, halves, dims, past + seq));
    let q = float.rounded(&rng.floats(batch * seq * heads * head_dim, 2.0));
    let scale = (head_dim as f32).powf(-0.5);
    let twin = cpu::Attention { batch, seq, heads, kv_heads, head_dim, past, capacity, scale };
    let mut want = vec![0.0; q.len()];
    let [k_host, v_host] = [k.host(), v.host()];
    plain::attention(&q, &cpu::KeyValue::Plain(&k_host), &cpu::KeyValue::Plain(&v_host), &twin, &mut want);

    let out = float.unwritten(client, q.len());
    let q = float.upload(client, &q);
    let (key_dim, value_dim) = (head_dim, head_dim);
    let shape = cube::Attention { batch, seq, heads, kv_heads, key_dim, value_dim, past, scale };
    cube::attention(client, &q, &k.on_device, &v.on_device, &out, shape);
    let what = format!("{shape:?}, {float:?}, halves {halves}");
    let got = download(client, &out);
    close(&what, &got, &want, float.bound(3e-6));
}

/// Types of queries, and whether the cache holds halves. Every variant is a kernel to compile, so not all pairs.
fn variants(client: &Client) -> Vec<(Float, bool)> {
    let mut variants = vec![(Float::F32, true), (Float::F32, false)];
    if Float::available(client).contains(&Float::F16) {
        variants.extend([(Float::F16, true), (Float::F16, false)]);
    }
    variants
}

#[test]
fn attention_matches_its_twin() {
    with_all_instructions(|client| {
        let mut rng = Rng(15);
        for (float, halves) in variants(client) {
            for (head_dim, kv_heads, group, lengths) in [
                (64, 2, 4, &[(1, 0), (3, 5), (1, 300), (129, 300), (17, 5)][..]),
                (80, 1, 8, &[(1, 5), (17, 0)]),
                (128, 2, 1, &[(1, 300), (129, 0)]),
                (256, 1, 4, &[(1, 5), (3, 300)]),
                (6, 3, 5, &[(1, 130), (17, 5)]),
            ] {
                for &(seq, past) in lengths {
                    let case = Case { batch: 1, seq, past, kv_heads, group, head_dim };
                    check(client, &mut rng, float, halves, &case);
                }
            }
        }
    });
}

#[test]
fn rows_of_a_batch_match_their_twin() {
    with_all_instructions(|client| {
        let mut rng = Rng(16);
        for (float, halves) in variants(client) {
            for (seq, past) in [(1, 5), (17, 0), (3, 300), (70, 0)] {
                let case = Case { batch: 2, seq, past, kv_heads: 2, group: 8, head_dim: 128 };
                check(client, &mut rng, float, halves, &case);
            }
        }
    });
}

/// Codes of a compressor attend to keys of one width and values of another, with all heads reading the same rows.
#[test]
fn keys_and_values_of_different_widths_and_shared_rows() {
    with_all_instructions(|client| {
        let mut rng = Rng(20);
        let (batch, seq, past, heads, key_dim, value_dim) = (2, 3, 70, 6, 24, 100);
        let tokens = past + seq;
        let q = rng.floats(batch * seq * heads * key_dim, 2.0);
        let [k, v] = [key_dim, value_dim].map(|width| rng.floats(batch * tokens * width, 1.5));
        let scale = 0.3;
        let mut want = Vec::new();
        for row in 0..batch * seq * heads {
            let (b, t) = (row / heads / seq, row / heads % seq);
            let q = &q[row * key_dim..][..key_dim];
            let at = |i: usize, width: usize| (b * tokens + i) * width;
            let score = |i: usize| -> f64 {
                q.iter().zip(&k[at(i, key_dim)..]).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>() * scale
            };
            let weights: Vec<f64> = (0..past + t + 1).map(|i| score(i).exp()).collect();
            let total: f64 = weights.iter().sum();
            want.extend((0..value_dim).map(|d| {
                let sum: f64 = weights.iter().enumerate().map(|(i, w)| w * f64::from(v[at(i, value_dim) + d])).sum();
                (sum / total) as f32
            }));
        }
        let shared = |values: &[f32], width: usize| KvRows {
            buffer: Float::F32.upload(client, values),
            halves: false,
            batch_stride: tokens * width,
            head_stride: 0,
            token_stride: width,
        };
        let (k, v) = (shared(&k, key_dim), shared(&v, value_dim));
        let out = Float::F32.unwritten(client, want.len());
        let q = Float::F32.upload(client, &q);
        let scale = scale as f32;
        let p = cube::Attention { batch, seq, heads, kv_heads: 2, key_dim, value_dim, past, scale };
        cube::attention(client, &q, &k, &v, &out, p);
        close("shared rows", &download(client, &out), &want, 3e-6);
    });
}

/// Widths up to the limit are computed, those beyond are refused before a kernel starts.
#[test]
fn widths_at_the_limit() {
    let client = crate::device::client();
    let mut rng = Rng(77);
    for (halves, widths) in [(false, [1024, 512, 510, 255]), (true, [1024, 512, 510, 2])] {
        for head_dim in widths {
            assert!(cube::fits_attention(head_dim), "{head_dim}");
            let case = Case { batch: 1, seq: 1, past: 3, kv_heads: 1, group: 1, head_dim };
            check(&client, &mut rng, Float::F32, halves, &case);
        }
    }
    for head_dim in [1028, 514, 257, 4096] {
        assert!(!cube::fits_attention(head_dim), "{head_dim}");
        let case = Case { batch: 1, seq: 1, past: 3, kv_heads: 1, group: 1, head_dim };
        let message = emberlm_backends::panics::catch_quietly(|| {
            check(&client, &mut rng, Float::F32, false, &case);
        });
        let message = message.expect_err("beyond the kernel");
        assert!(message.contains("too wide for attention"), "{message}");
    }
}
