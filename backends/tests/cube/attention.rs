//! Attention over plain caches.

use emberlm_backends::cpu::{self, plain};
use emberlm_backends::cube::{self, CacheBuffer, KvRows};
use emberlm_backends::types::KvFormat;
use half::f16;

use crate::common::{Eighths, Rng, close};
use crate::device::{Client, Float, download, upload_cache, with_all_instructions};

/// A cache `[b, kv_heads, capacity, width]` here and on the device; slots after `used` are NaN.
struct Cache {
    format: KvFormat,
    floats: Vec<f32>,
    bits: Vec<u16>,
    eighths: Eighths,
    on_device: KvRows,
}

impl Cache {
    fn new(client: &Client, rng: &mut Rng, format: KvFormat, dims: [usize; 4], used: usize) -> Cache {
        let [b, heads, capacity, width] = dims;
        let mut floats = rng.floats(b * heads * capacity * width, 1.5);
        for head in floats.chunks_exact_mut(capacity * width) {
            head[used * width..].fill(f32::NAN);
        }
        let bits = floats.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
        let eighths = Eighths::new(&floats, width);
        let on_device = KvRows::of_store(upload_cache(client, format, &floats, width), heads, capacity, width);
        Cache { format, floats, bits, eighths, on_device }
    }

    fn host(&self) -> [cpu::CacheSlice<'_>; 1] {
        [match self.format {
            KvFormat::F32 => cpu::CacheSlice::F32(&self.floats),
            KvFormat::F16 => cpu::CacheSlice::F16(&self.bits),
            KvFormat::Q8 => self.eighths.slice(),
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

fn check(client: &Client, rng: &mut Rng, float: Float, formats: [KvFormat; 2], case: &Case) {
    let &Case { batch, seq, past, kv_heads, group, head_dim } = case;
    let (heads, capacity) = (kv_heads * group, past + seq + 3);
    let dims = [batch, kv_heads, capacity, head_dim];
    let [k, v] = formats.map(|format| Cache::new(client, rng, format, dims, past + seq));
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
    let what = format!("{shape:?}, {float:?}, {formats:?}");
    let got = download(client, &out);
    close(&what, &got, &want, float.bound(3e-6));
}

/// Types of queries, and formats of keys and values. Every variant is a kernel to compile, so not all of them.
fn variants(client: &Client) -> Vec<(Float, [KvFormat; 2])> {
    let (f32, f16, q8) = (KvFormat::F32, KvFormat::F16, KvFormat::Q8);
    let mut variants =
        vec![(Float::F32, [f16; 2]), (Float::F32, [f32; 2]), (Float::F32, [q8; 2]), (Float::F32, [q8, f16])];
    if Float::available(client).contains(&Float::F16) {
        variants.extend([(Float::F16, [f16; 2]), (Float::F16, [f32; 2]), (Float::F16, [f32, q8])]);
    }
    variants
}

#[test]
fn attention_matches_its_twin() {
    with_all_instructions(|client| {
        let mut rng = Rng(15);
        for (float, formats) in variants(client) {
            for (head_dim, kv_heads, group, lengths) in [
                (64, 2, 4, &[(1, 0), (3, 5), (1, 300), (129, 300), (17, 5)][..]),
                (80, 1, 8, &[(1, 5), (17, 0)]),
                (128, 2, 1, &[(1, 300), (129, 0)]),
                (256, 1, 4, &[(1, 5), (3, 300)]),
                (100, 3, 5, &[(1, 130), (17, 5)]),
                (6, 3, 5, &[(1, 130), (17, 5)]),
            ] {
                if formats.iter().any(|format| head_dim % format.per_word() != 0) {
                    continue;
                }
                for &(seq, past) in lengths {
                    let case = Case { batch: 1, seq, past, kv_heads, group, head_dim };
                    check(client, &mut rng, float, formats, &case);
                }
            }
        }
    });
}

#[test]
fn rows_of_a_batch_match_their_twin() {
    with_all_instructions(|client| {
        let mut rng = Rng(16);
        for (float, formats) in variants(client) {
            for (seq, past) in [(1, 5), (17, 0), (3, 300), (70, 0)] {
                let case = Case { batch: 2, seq, past, kv_heads: 2, group: 8, head_dim: 128 };
                check(client, &mut rng, float, formats, &case);
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
            data: CacheBuffer::F32(Float::F32.upload(client, values)),
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
    for (format, widths) in [
        (KvFormat::F32, [1024, 512, 510, 255]),
        (KvFormat::F16, [1024, 512, 510, 2]),
        (KvFormat::Q8, [1024, 1020, 68, 4]),
    ] {
        for head_dim in widths {
            assert!(cube::fits_attention(head_dim), "{head_dim}");
            let case = Case { batch: 1, seq: 1, past: 3, kv_heads: 1, group: 1, head_dim };
            check(&client, &mut rng, Float::F32, [format; 2], &case);
        }
    }
    for head_dim in [1028, 514, 257, 4096] {
        assert!(!cube::fits_attention(head_dim), "{head_dim}");
        let case = Case { batch: 1, seq: 1, past: 3, kv_heads: 1, group: 1, head_dim };
        let message = emberlm_backends::panics::catch_quietly(|| {
            check(&client, &mut rng, Float::F32, [KvFormat::F32; 2], &case);
        });
        let message = message.expect_err("beyond the kernel");
        assert!(message.contains("too wide for attention"), "{message}");
    }
}
