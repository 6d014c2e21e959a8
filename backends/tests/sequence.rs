//! Norms, rotary embedding, convolution, delta rule and the cache against their plain twins, at every level.

mod common;

use common::{Rng, close};
use emberlm_backends::cpu::{self, CacheSliceMut, Level, plain};
use emberlm_backends::types::{ConvShape, DeltaRuleInputs, DeltaRuleShape, RmsNorm, RotaryShape, StoreKv};

fn on_every_level(f: impl Fn(&str)) {
    for level in Level::available() {
        cpu::with_level(level, || f(level.name()));
    }
}

#[test]
fn norms_match_their_twins() {
    let mut rng = Rng(11);
    for d in [1, 7, 16, 64, 129, 2560] {
        for m in [1, 3, 17, 129] {
            let (x, z) = (rng.floats(m * d, 4.0), rng.floats(m * d, 30.0));
            let weight = rng.floats(d, 1.0);
            let (mut want, mut gated) = (vec![0.0; m * d], vec![0.0; m * d]);
            for unit_offset in [false, true] {
                let p = RmsNorm { m, h: d, eps: 1e-6, unit_offset };
                plain::rms_norm(&x, &weight, &p, &mut want);
                plain::rms_norm_gated(&x, &z, &weight, &p, &mut gated);
                let mut normed_sum = vec![0.0; m * d];
                plain::add_rms_norm(&mut x.clone(), &z, &weight, &p, &mut normed_sum);
                on_every_level(|level| {
                    let mut got = vec![f32::NAN; m * d];
                    cpu::rms_norm(&x, &weight, &p, &mut got);
                    close(&format!("norm [{m}, {d}] on {level}"), &got, &want, 1e-6);
                    let mut sum = x.clone();
                    cpu::add_rms_norm(&mut sum, &z, &weight, &p, &mut got);
                    close(&format!("norm of a sum [{m}, {d}] on {level}"), &got, &normed_sum, 1e-6);
                    assert!(sum.iter().zip(&x).zip(&z).all(|((sum, x), z)| *sum == x + z), "sum [{m}, {d}] on {level}");
                    cpu::rms_norm_gated(&x, &z, &weight, &p, &mut got);
                    close(&format!("gated norm [{m}, {d}] on {level}"), &got, &gated, 2e-6);
                });
            }
        }
    }
}

#[test]
fn gates_match_their_twins() {
    let mut rng = Rng(18);
    for n in [1, 7, 4096, 3 * 4096 + 5] {
        let (x, gate) = (rng.floats(n, 4.0), rng.floats(n, 60.0));
        let mut want = x.clone();
        plain::sigmoid_gate(&mut want, &gate);
        on_every_level(|level| {
            let mut got = x.clone();
            cpu::sigmoid_gate(&mut got, &gate);
            close(&format!("sigmoid gate of {n} on {level}"), &got, &want, 1e-6);
        });
    }
    for (m, heads) in [(0, 3), (1, 1), (5, 32)] {
        let [dt, b] = [(); 2].map(|()| rng.floats(m * heads, 40.0));
        let [dt_bias, a_log] = [(); 2].map(|()| rng.floats(heads, 3.0));
        let (mut want_g, mut want_beta) = (dt.clone(), b.clone());
        plain::delta_gates(&mut want_g, &mut want_beta, &dt_bias, &a_log);
        let (mut g, mut beta) = (dt, b);
        cpu::delta_gates(&mut g, &mut beta, &dt_bias, &a_log);
        // The decay is an exponent: what matters is its error relative to itself.
        assert!(g.iter().zip(&want_g).all(|(g, want)| (g - want).abs() <= 2e-6 * want.abs()), "{g:?} not {want_g:?}");
        close(&format!("writing strength of {m} tokens"), &beta, &want_beta, 1e-6);
    }
}

#[test]
fn rotary_matches_its_twin_and_leaves_the_rest_of_a_head() {
    let mut rng = Rng(12);
    for (batch, seq, heads, head_dim, half) in [(1, 1, 1, 2, 1), (2, 3, 5, 32, 4), (3, 70, 16, 128, 64)] {
        let p = RotaryShape { batch, seq, heads, head_dim, half };
        let x = rng.floats(batch * seq * heads * head_dim, 3.0);
        let angles = rng.floats(seq * half, 3.2);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let mut want = x.clone();
        plain::rotary(&mut want, &cos, &sin, &p);
        on_every_level(|level| {
            let mut got = x.clone();
            cpu::rotary(&mut got, &cos, &sin, &p);
            close(&format!("rotary {half} of {head_dim} on {level}"), &got, &want, 1e-6);
        });
    }
}

#[test]
fn convolution_matches_its_twin_in_any_split() {
    let mut rng = Rng(13);
    for (batch, seq, channels, width) in [(1, 1, 5, 4), (2, 2, 33, 4), (1, 65, 300, 4), (2, 9, 16, 1), (1, 20, 8192, 4)]
    {
        let p = ConvShape { batch, seq, channels, width };
        let u = rng.floats(batch * seq * channels, 2.0);
        let tail = rng.floats(batch * (width - 1) * channels, 2.0);
        let weight = rng.floats(channels * width, 1.0);
        let (mut want, mut last) = (vec![0.0; u.len()], tail.clone());
        plain::causal_conv1d_silu(&u, &mut last, &weight, &p, &mut want);
        on_every_level(|level| {
            let name = format!("[{batch}, {seq}, {channels}] x {width} on {level}");
            let (mut got, mut kept) = (vec![f32::NAN; u.len()], tail.clone());
            cpu::causal_conv1d_silu(&u, &mut kept, &weight, &p, &mut got);
            close(&name, &got, &want, 3e-6);
            assert_eq!(kept, last, "{name}");
            if batch == 1 {
                let (mut got, mut kept) = (vec![f32::NAN; u.len()], tail.clone());
                for (u, y) in u.chunks(channels).zip(got.chunks_mut(channels)) {
                    cpu::causal_conv1d_silu(u, &mut kept, &weight, &ConvShape { seq: 1, ..p }, y);
                }
                close(&format!("{name}, one by one"), &got, &want, 3e-6);
                assert_eq!(kept, last, "{name}, one by one");
            }
        });
    }
}

#[test]
fn the_delta_rule_matches_its_twin() {
    let mut rng = Rng(14);
    for (batch, seq, key_heads, value_heads, key_dim, value_dim) in [
        (1, 1, 1, 1, 1, 1),
        (2, 3, 2, 4, 8, 8),
        (1, 65, 1, 2, 17, 33),
        (1, 20, 4, 8, 128, 128),
        (2, 1, 16, 32, 128, 128),
        // Few tokens change whole vectors where they lie, and a copy of the columns beyond.
        (2, 1, 1, 2, 17, 163),
        (1, 2, 2, 2, 16, 144),
    ] {
        let p = DeltaRuleShape { batch, seq, key_heads, value_heads, key_dim, value_dim };
        let (keys, values) = (batch * seq * key_heads * key_dim, batch * seq * value_heads * value_dim);
        let (q, k, v) = (rng.floats(keys, 2.0), rng.floats(keys, 2.0), rng.floats(values, 2.0));
        let gates = batch * seq * value_heads;
        let g: Vec<f32> = (0..gates).map(|_| -rng.float(1.0).abs()).collect();
        let beta: Vec<f32> = (0..gates).map(|_| rng.float(1.0).abs()).collect();
        let state = rng.floats(batch * value_heads * key_dim * value_dim, 1.0);
        let (mut want, mut last) = (vec![0.0; values], state.clone());
        let rule = DeltaRuleInputs { q: &q[..], k: &k, v: &v, g: &g, beta: &beta };
        plain::gated_delta_rule(rule, &mut last, &p, &mut want);
        on_every_level(|level| {
            let (mut got, mut after) = (vec![f32::NAN; values], state.clone());
            cpu::gated_delta_rule(rule, &mut after, &p, &mut got);
            close(&format!("{p:?} on {level}"), &got, &want, 1e-5);
            close(&format!("state of {p:?} on {level}"), &after, &last, 1e-5);
        });
    }
}

#[test]
fn the_cache_is_appended_in_place_and_rounded_to_even() {
    let p = StoreKv { batch: 2, seq: 3, heads: 2, capacity: 5, width: 3, at: 1 };
    let src = Rng(15).floats(2 * 3 * 2 * 3, 2.0);
    let mut floats = vec![-1.0f32; 2 * 2 * 5 * 3];
    let mut halves = vec![7u16; floats.len()];
    assert!(cpu::store_kv(&src, CacheSliceMut::F32(&mut floats), &p));
    assert!(cpu::store_kv(&src, CacheSliceMut::F16(&mut halves), &p));
    for i in 0..floats.len() {
        let (d, t, h, b) = (i % 3, i / 3 % 5, i / 15 % 2, i / 30);
        let stored = (1..4).contains(&t).then(|| src[((b * 3 + t - 1) * 2 + h) * 3 + d]);
        assert_eq!(floats[i], stored.unwrap_or(-1.0));
        assert_eq!(halves[i], stored.map_or(7, |value| half::f16::from_f32(value).to_bits()));
    }
    // Half way between 1 and the next half: to the even one.
    let mut one = [0u16; 1];
    let p = StoreKv { batch: 1, seq: 1, heads: 1, capacity: 1, width: 1, at: 0 };
    assert!(cpu::store_kv(&[1.0 + f32::powi(2.0, -11)], CacheSliceMut::F16(&mut one), &p));
    assert_eq!(one, [0x3c00]);
}

/// Every block of a head has a scale, its largest number 127 steps; the last block is shorter.
#[test]
fn the_cache_in_8_bits_is_appended_in_place_and_rounded() {
    let (heads, capacity, seq, width) = (2, 4, 2, 100);
    let p = StoreKv { batch: 2, seq, heads, capacity, width, at: 1 };
    let mut rng = Rng(16);
    let mut src = rng.floats(2 * seq * heads * width, 3.0);
    // Zeros, numbers so small that their scale is 0, the largest there are, and what is not finite.
    src[..64].fill(0.0);
    src[100..164].fill(1e-45);
    src[200..264].copy_from_slice(&rng.floats(64, f32::MAX));
    src[300] = f32::NAN;
    src[399] = f32::INFINITY;
    let mut codes = vec![99i8; 2 * heads * capacity * width];
    let mut scales = vec![-1.0f32; 2 * heads * capacity * 2];
    assert!(cpu::store_kv(&src, CacheSliceMut::Q8 { codes: &mut codes, scales: &mut scales }, &p));
    for (row, codes) in codes.chunks_exact(width).enumerate() {
        let (t, h, b) = (row % capacity, row / capacity % heads, row / capacity / heads);
        if !(1..=seq).contains(&t) {
            assert!(codes.iter().all(|&code| code == 99) && scales[2 * row..][..2] == [-1.0; 2], "{row} is not new");
            continue;
        }
        let from = ((b * seq + t - 1) * heads + h) * width;
        for (block, range) in [0..64, 64..100].into_iter().enumerate() {
            let (stored, scale) = (&codes[range.clone()], scales[2 * row + block]);
            let numbers = &src[from + range.start..from + range.end];
            let largest = numbers.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            if !numbers.iter().all(|x| x.is_finite()) {
                assert!(scale.is_nan(), "{row}, {block}: {scale}");
                continue;
            }
            assert_eq!(scale, largest / 127.0, "{row}, {block}");
            for (&code, &x) in stored.iter().zip(numbers) {
                let off = (f64::from(code) * f64::from(scale) - f64::from(x)).abs();
                assert!(code != -128 && off <= 0.5001 * f64::from(scale) + 1e-42, "{row}, {block}: {code} for {x}");
            }
        }
    }
}

/// The largest half is 65504; from 65520 on a number is rounded to infinity.
#[test]
fn a_number_that_halves_cannot_hold_is_told() {
    let (batch, seq, heads, capacity, width) = (1, 2, 3, 4, 10);
    let p = StoreKv { batch, seq, heads, capacity, width, at: 1 };
    for (number, fits) in
        [(65519.0, true), (65520.0, false), (7e4, false), (f32::MAX, false), (f32::INFINITY, true), (f32::NAN, true)]
    {
        for number in [number, -number] {
            for at in [0, 17, seq * heads * width - 1] {
                let mut src = vec![1.0; seq * heads * width];
                src[at] = number;
                let mut halves = vec![0u16; heads * capacity * width];
                assert_eq!(cpu::store_kv(&src, CacheSliceMut::F16(&mut halves), &p), fits, "{number} at {at}");
                let mut floats = vec![0.0; halves.len()];
                assert!(cpu::store_kv(&src, CacheSliceMut::F32(&mut floats), &p), "{number} at {at}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "exceed the capacity")]
fn an_append_beyond_the_capacity_is_refused() {
    let p = StoreKv { batch: 1, seq: 2, heads: 1, capacity: 2, width: 1, at: 1 };
    let _ = cpu::store_kv(&[0.0; 2], CacheSliceMut::F32(&mut [0.0; 2]), &p);
}
