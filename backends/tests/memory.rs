//! Every kind of kernel at awkward lengths, on slices that end where their memory ends: short, for tools that watch each access.
//!
//! - AddressSanitizer, at every level of the machine:
//!   `RUSTFLAGS=-Zsanitizer=address cargo +nightly test -p emberlm-backends --target x86_64-unknown-linux-gnu --test memory --test int8`
//! - Miri, which runs the portable kernels and knows the rules of pointers:
//!   `MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test -p emberlm-backends --test memory --test border`
//! - valgrind, up to AVX2: `valgrind --error-exitcode=1 target/debug/deps/memory-*`

mod common;

use common::{Eighths, Kind, Rng, Stored, close, kinds};
use emberlm_backends::cpu::{
    self, Attention, CacheSlice, CacheSliceMut, CodeDecoder, KeyValue, Layer, Level, Mlp, plain,
};
use emberlm_backends::types::{
    CodeActivation, ConvShape, DeltaRuleInputs, DeltaRuleShape, RmsNorm, RotaryShape, StoreKv,
};
use half::f16;

fn on_every_level(f: impl Fn(&str)) {
    for level in Level::available() {
        cpu::with_level(level, || f(level.name()));
    }
}

/// What Miri, a thousand times slower, gets of a list.
fn some<T: Copy>(all: &[T], under_miri: usize) -> &[T] {
    if cfg!(miri) { &all[..under_miri] } else { all }
}

#[test]
fn linears_and_tables() {
    let mut rng = Rng(51);
    for kind in kinds() {
        for &k in some(&[67, 64, 1, 7, 50, 65, 128, 191, 192, 257, 320], 2) {
            let n = 5;
            let stored = Stored::tight(&mut rng, kind, n, k);
            let w = stored.weight();
            let mut want = vec![0.0; n * k];
            plain::dequantize_rows(&w, 0, n, &mut want);
            on_every_level(|level| {
                let mut rows = vec![f32::NAN; n * k].into_boxed_slice();
                cpu::dequantize_rows(&w, 0, n, &mut rows);
                assert_eq!(*rows, *want, "{kind:?} {k} on {level}");
                cpu::embed(&[4, 0, 1, 2, 3], &w, &mut rows);
                assert_eq!(rows[..k], want[4 * k..], "{kind:?} {k} on {level}");
            });
            for &m in some(&[3, 17, 1, 2, 5, 9, 33], 2) {
                let x = rng.floats(m * k, 1.7).into_boxed_slice();
                let mut want = vec![0.0; m * n];
                plain::linear(&x, m, &w, None, &mut want);
                on_every_level(|level| {
                    let mut y = vec![f32::NAN; m * n].into_boxed_slice();
                    cpu::linear(&x, m, &w, None, &mut y);
                    close(&format!("{kind:?} [{n}, {k}] x {m} on {level}"), &y, &want, 1e-5);
                });
            }
        }
    }
}

#[test]
fn blocks_of_which_some_rows_run() {
    let mut rng = Rng(52);
    let kind = Kind::Double { block: 64, nested: 3 };
    let (hidden, inner, m) = (33, 66, 3);
    let [gate, up] = [0, 1].map(|_| Stored::tight(&mut rng, kind, inner, hidden));
    let down = Stored::tight(&mut rng, kind, hidden, inner);
    let mlp = Mlp { gate: gate.weight(), up: up.weight(), down: down.weight() };
    let x = rng.floats(m * hidden, 3.0).into_boxed_slice();
    for active in [None, Some(&[true, false, true][..])] {
        let mut want = vec![0.0; m * hidden];
        plain::swiglu_mlp(&x, m, &mlp, active, &mut want);
        on_every_level(|level| {
            let mut y = vec![f32::NAN; m * hidden].into_boxed_slice();
            cpu::swiglu_mlp(&x, m, &mlp, active, &mut y);
            close(&format!("{active:?} on {level}"), &y, &want, 1e-5);
        });
    }
}

#[test]
fn norms_and_rotations() {
    let mut rng = Rng(53);
    for &d in some(&[7, 64, 1, 15, 17, 33, 130], 2) {
        let (m, x) = (3, rng.floats(3 * d, 2.0).into_boxed_slice());
        let (w, z) = (rng.floats(d, 1.0).into_boxed_slice(), rng.floats(3 * d, 2.0).into_boxed_slice());
        let mut want = vec![0.0; m * d];
        let p = RmsNorm { m, h: d, eps: 1e-6, unit_offset: false };
        plain::rms_norm_gated(&x, &z, &w, &p, &mut want);
        on_every_level(|level| {
            let mut y = vec![f32::NAN; m * d].into_boxed_slice();
            cpu::rms_norm_gated(&x, &z, &w, &p, &mut y);
            close(&format!("norm of {d} on {level}"), &y, &want, 1e-5);
        });
        let half = d.div_ceil(2);
        let dim = 2 * half + 1;
        let p = RotaryShape { batch: 1, seq: 3, heads: 1, head_dim: dim, half };
        let x = rng.floats(3 * dim, 2.0).into_boxed_slice();
        let (cos, sin) = (rng.floats(3 * half, 1.0), rng.floats(3 * half, 1.0));
        let mut want = x.clone();
        plain::rotary(&mut want, &cos, &sin, &p);
        let mut got = x.clone();
        cpu::rotary(&mut got, &cos, &sin, &p);
        close(&format!("rotary of {dim}"), &got, &want, 1e-6);
    }
}

#[test]
fn convolutions_and_delta_rules() {
    let mut rng = Rng(54);
    for &(seq, channels, width) in some(&[(2, 9, 4), (1, 1, 1), (3, 17, 2), (5, 259, 4)], 2) {
        let u = rng.floats(seq * channels, 2.0).into_boxed_slice();
        let tail = rng.floats((width - 1) * channels, 2.0).into_boxed_slice();
        let weight = rng.floats(channels * width, 1.0).into_boxed_slice();
        let (mut want, mut last) = (vec![0.0; u.len()], tail.clone());
        let p = ConvShape { batch: 1, seq, channels, width };
        plain::causal_conv1d_silu(&u, &mut last, &weight, &p, &mut want);
        on_every_level(|level| {
            let (mut y, mut kept) = (vec![f32::NAN; u.len()].into_boxed_slice(), tail.clone());
            cpu::causal_conv1d_silu(&u, &mut kept, &weight, &p, &mut y);
            close(&format!("[{seq}, {channels}] x {width} on {level}"), &y, &want, 3e-6);
            assert_eq!(kept, last);
        });
    }
    // One token changes the state where it lies, the last columns through a copy.
    for &(seq, key_dim, value_dim) in
        some(&[(1, 3, 35), (3, 5, 7), (1, 7, 1), (1, 2, 129), (2, 17, 145), (3, 16, 33)], 2)
    {
        let p = DeltaRuleShape { batch: 1, seq, key_heads: 1, value_heads: 2, key_dim, value_dim };
        let [q, k] = [0, 1].map(|_| rng.floats(seq * key_dim, 2.0).into_boxed_slice());
        let v = rng.floats(seq * 2 * value_dim, 2.0).into_boxed_slice();
        let [g, beta] = [-0.3f32, 0.6].map(|x| vec![x; seq * 2].into_boxed_slice());
        let state = rng.floats(2 * key_dim * value_dim, 1.0).into_boxed_slice();
        let (mut want, mut last) = (vec![0.0; v.len()], state.clone());
        let rule = DeltaRuleInputs { q: &q[..], k: &k, v: &v, g: &g, beta: &beta };
        plain::gated_delta_rule(rule, &mut last, &p, &mut want);
        on_every_level(|level| {
            let (mut o, mut after) = (vec![f32::NAN; v.len()].into_boxed_slice(), state.clone());
            cpu::gated_delta_rule(rule, &mut after, &p, &mut o);
            close(&format!("{p:?} on {level}"), &o, &want, 1e-5);
            close(&format!("state of {p:?} on {level}"), &after, &last, 1e-5);
        });
    }
}

#[test]
fn caches_and_attention() {
    let mut rng = Rng(55);
    for &(seq, past, head_dim) in
        some(&[(1, 2, 5), (13, 0, 3), (1, 0, 1), (2, 65, 17), (3, 61, 33), (1, 130, 64), (5, 66, 128)], 2)
    {
        let (heads, kv_heads, t) = (4, 2, past + seq);
        let p = Attention { batch: 1, seq, heads, kv_heads, head_dim, past, capacity: t, scale: 0.3 };
        let mut halves = vec![0u16; kv_heads * t * head_dim].into_boxed_slice();
        let src = rng.floats(halves.len(), 1.5).into_boxed_slice();
        let store = StoreKv { batch: 1, seq: t, heads: kv_heads, capacity: t, width: head_dim, at: 0 };
        assert!(cpu::store_kv(&src, CacheSliceMut::F16(&mut halves), &store));
        let floats: Box<[f32]> = halves.iter().map(|&bits| f16::from_bits(bits).to_f32()).collect();
        let q = rng.floats(seq * heads * head_dim, 2.0).into_boxed_slice();
        let (r, inner) = (3, 5);
        let first = Stored::tight(&mut rng, Kind::F32, inner, r);
        let last = Stored::tight(&mut rng, Kind::F16, kv_heads * head_dim, inner);
        let layer = |stored| Layer { weight: Stored::weight(stored), bias: None };
        let decoder = CodeDecoder { hidden: Some((layer(&first), CodeActivation::Gelu)), output: layer(&last) };
        let codes = rng.floats(t * r, 1.0).into_boxed_slice();
        let (halves, floats, codes) = ([CacheSlice::F16(&halves)], [CacheSlice::F32(&floats)], [&codes[..]]);
        let (halves, floats) = (KeyValue::Plain(&halves), KeyValue::Plain(&floats));
        let compressed = KeyValue::Compressed { codes: &codes, decoder: &decoder };
        let (one, h) = (layer(&last), if past == 130 { 64 } else { inner });
        let wide = Stored::tight(&mut rng, Kind::F16, kv_heads * head_dim, 64);
        let output = if h == 64 { layer(&wide) } else { one };
        let hidden = rng.floats(t * h, 1.0).into_boxed_slice();
        let hidden16: Box<[u16]> = hidden.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
        let hidden8 = Eighths::new(&hidden, h);
        let hidden = [[CacheSlice::F32(&hidden)], [CacheSlice::F16(&hidden16)], [hidden8.slice()]];
        let [hidden, hidden16, hidden8] = hidden.each_ref().map(|values| KeyValue::Hidden { values, output: &output });
        let stored = Eighths::new(&src, head_dim);
        let eighths = [stored.slice()];
        let eighths = KeyValue::Plain(&eighths);
        for (what, k, v) in [
            ("eighths", eighths, eighths),
            ("halves", halves, halves),
            ("floats", floats, floats),
            ("codes", halves, compressed),
            ("hidden values", halves, hidden),
            ("hidden halves", floats, hidden16),
            ("hidden eighths", halves, hidden8),
            ("hidden keys", hidden16, floats),
            ("both hidden", hidden8, hidden16),
        ] {
            let mut want = vec![0.0; q.len()];
            plain::attention(&q, &k, &v, &p, &mut want);
            // Whole numbers keep 15 bits of a query, and the scores here are large; of a weight they keep 15 or 16 (4.4e-5 was measured).
            let tolerance = match what {
                "eighths" => 5e-4,
                "both hidden" | "hidden eighths" if h == 64 => 1e-4,
                _ => 2e-5,
            };
            on_every_level(|level| {
                let mut out = vec![f32::NAN; q.len()].into_boxed_slice();
                cpu::attention(&q, &k, &v, &p, &mut out);
                close(&format!("{what} of {seq} + {past} x {head_dim} on {level}"), &out, &want, tolerance);
            });
        }
    }
}
