//! Rotary positions, the cache and the convolution.

use emberlm_backends::cpu::{self, plain};
use emberlm_backends::cube;
use emberlm_backends::types::{ConvShape, KvFormat, RotaryShape, StoreKv};
use half::f16;

use crate::common::{Eighths, Rng, close};
use crate::device::{Float, client, download, download_cache, upload_cache};

#[test]
fn rotary_matches_its_twin_and_leaves_the_rest_of_a_head() {
    let client = client();
    let mut rng = Rng(12);
    for float in Float::available(&client) {
        for (batch, seq, heads, head_dim, half) in
            [(1, 1, 1, 2, 1), (2, 3, 5, 80, 20), (3, 17, 16, 128, 64), (1, 129, 3, 256, 32), (2, 1, 7, 6, 0)]
        {
            let shape = RotaryShape { batch, seq, heads, head_dim, half };
            let x = float.rounded(&rng.floats(batch * seq * heads * head_dim, 3.0));
            let angles = rng.floats(seq * half, 3.2);
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
            let mut want = x.clone();
            plain::rotary(&mut want, &cos, &sin, &shape);
            let y = float.unwritten(&client, x.len());
            let x = float.upload(&client, &x);
            let [cos, sin] = [cos, sin].map(|table| Float::F32.upload(&client, &table));
            cube::rotary(&client, &x, &cos, &sin, &y, shape);
            let what = format!("rotary {half} of {head_dim} in {float:?}");
            close(&what, &download(&client, &y), &want, float.bound(1e-6));
        }
    }
}

/// Numbers in every range of F16: ordinary, subnormal, ties, too large, signed zeros.
fn awkward(rng: &mut Rng, len: usize) -> Vec<f32> {
    let special = [0.0, -0.0, 65504.0, 65519.9, 65520.0, -1e9, 6.1e-5, -5.9e-8, 2.98e-8, 2.99e-8, 1.0 + 1.0 / 2048.0];
    let pick = |rng: &mut Rng| special[rng.word() as usize % special.len()];
    let tiny = |rng: &mut Rng| rng.float(1e-4);
    (0..len)
        .map(|i| match i % 3 {
            0 => pick(rng),
            1 => tiny(rng),
            _ => rng.float(300.0),
        })
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn tokens_are_stored_where_they_belong_and_rounded_as_on_the_cpu() {
    let client = client();
    let mut rng = Rng(13);
    for float in Float::available(&client) {
        for (batch, seq, heads, capacity, width, at) in [
            (1, 1, 1, 1, 2, 0),
            (2, 3, 5, 9, 80, 4),
            (1, 17, 8, 40, 128, 23),
            (2, 129, 1, 130, 6, 1),
            (1, 2, 2, 5, 7, 3),
            (2, 5, 3, 9, 4, 0),
            (1, 3, 7, 4, 196, 1),
        ] {
            let new = float.rounded(&awkward(&mut rng, batch * seq * heads * width));
            let before = rng.floats(batch * heads * capacity * width, 1.0);
            let on_new = float.upload(&client, &new);
            for format in [KvFormat::F32, KvFormat::F16, KvFormat::Q8] {
                if width % format.per_word() != 0 {
                    continue;
                }
                let shape = StoreKv { batch, seq, heads, capacity, width, at };
                let store = upload_cache(&client, format, &before, width);
                cube::store_kv(&client, &on_new, &store, shape);
                let got = download_cache(&client, &store);
                let words =
                    |halves: &[u16]| halves.chunks(2).map(|p| u32::from(p[0]) | u32::from(p[1]) << 16).collect();
                let want = match format {
                    KvFormat::F32 => {
                        let mut want = before.clone();
                        assert!(cpu::store_kv(&new, cpu::CacheSliceMut::F32(&mut want), &shape));
                        (bits(&want), Vec::new())
                    }
                    KvFormat::F16 => {
                        let mut want: Vec<u16> = before.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
                        let _ = cpu::store_kv(&new, cpu::CacheSliceMut::F16(&mut want), &shape);
                        // A GPU cannot tell that a number did not fit, and so stores NaN.
                        want.iter_mut().filter(|half| **half & 0x7fff == 0x7c00).for_each(|half| *half |= 0x0200);
                        (words(&want), Vec::new())
                    }
                    KvFormat::Q8 => {
                        let mut want = Eighths::new(&before, width);
                        assert!(cpu::store_kv(&new, want.slice_mut(), &shape));
                        (want.words(), bits(&want.scales))
                    }
                };
                assert!(got == want, "{format:?} of {float:?} {shape:?}");
            }
        }
    }
}

/// Numbers at and beside the middle between two codes, zeros, subnormal numbers, the largest there are, and blocks that are not finite.
#[test]
fn eight_bits_are_those_of_the_cpu() {
    let client = client();
    let mut rng = Rng(19);
    let (rows, width) = (600, 132);
    let mut new = Vec::with_capacity(rows * width);
    for row in 0..rows {
        for block in [64, 64, 4] {
            let exponent = (rng.word() % 254) as u32;
            let largest = match row % 12 {
                0 => 0.0,
                1 => f32::from_bits(rng.word() as u32 % 300),
                2 => f32::from_bits(rng.word() as u32 & 0x01ff_ffff),
                3 => f32::MAX,
                _ => f32::from_bits((exponent << 23) | (rng.word() as u32 & 0x007f_ffff)),
            };
            let scale = largest / 127.0;
            let place = rng.word() as usize % block;
            for i in 0..block {
                let middle = (rng.word() % 254) as f32 * 0.5 * scale;
                let near = middle.to_bits().saturating_add(rng.word() as u32 % 5).saturating_sub(2);
                let size = if i == place { largest } else { f32::from_bits(near).min(largest) };
                let size = if row % 100 == 99 && i == place { [f32::NAN, f32::INFINITY][row / 100 % 2] } else { size };
                new.push(if rng.word().is_multiple_of(2) { size } else { -size });
            }
        }
    }
    let shape = StoreKv { batch: 1, seq: rows, heads: 1, capacity: rows, width, at: 0 };
    let mut want = Eighths::zeros(new.len(), width);
    assert!(cpu::store_kv(&new, want.slice_mut(), &shape));
    let store = upload_cache(&client, KvFormat::Q8, &vec![1.0; new.len()], width);
    cube::store_kv(&client, &Float::F32.upload(&client, &new), &store, shape);
    let (words, scales) = download_cache(&client, &store);
    for (row, new) in new.chunks(width).enumerate() {
        let own = |words: &[u32], count: usize| words[row * count..(row + 1) * count].to_vec();
        assert_eq!(own(&scales, 3), own(&bits(&want.scales), 3), "scales of row {row}");
        assert_eq!(own(&words, 33), own(&want.words(), 33), "codes of row {row}: {new:?}");
    }
}

#[test]
fn convolution_matches_its_twin_in_any_split() {
    let client = client();
    let mut rng = Rng(14);
    for float in Float::available(&client) {
        for (batch, seq, channels, width) in
            [(1, 1, 5, 4), (2, 2, 33, 4), (1, 65, 300, 4), (2, 9, 16, 1), (1, 3, 8192, 4), (2, 17, 7, 5)]
        {
            let shape = ConvShape { batch, seq, channels, width };
            let u = float.rounded(&rng.floats(batch * seq * channels, 2.0));
            let tail = rng.floats(batch * (width - 1) * channels, 2.0);
            let weight = rng.floats(channels * width, 1.0);
            let (mut want, mut want_tail) = (vec![0.0; u.len()], tail.clone());
            plain::causal_conv1d_silu(&u, &mut want_tail, &weight, &shape, &mut want);
            let y = float.unwritten(&client, u.len());
            let next = Float::F32.unwritten(&client, tail.len().max(1));
            let first = |buffer: cube::Buffer| cube::Buffer::new(buffer.handle().clone(), tail.len(), buffer.dtype());
            let next = first(next);
            let tail = first(Float::F32.upload(&client, &[&tail[..], &[0.0]].concat()));
            let (u, weight) = (float.upload(&client, &u), Float::F32.upload(&client, &weight));
            cube::causal_conv1d_silu(&client, &u, &tail, &weight, &y, &next, shape);
            let what = format!("{shape:?} of {float:?}");
            close(&what, &download(&client, &y), &want, float.bound(2e-6));
            close(&format!("tail of {what}"), &download(&client, &next), &want_tail, 0.0);
        }
    }
}
