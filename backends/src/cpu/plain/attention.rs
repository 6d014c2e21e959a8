//! Softmax attention over a cache, with every key and value spelled out.

use super::super::{Attention, CacheSlice, CodeDecoder, KeyValue, Layer};
use super::silu;
use crate::types::{CodeActivation, KV_BLOCK};
use half::f16;

/// Attention of the new queries over the cache: every key and value is formed, then `softmax(q Kᵀ) V`.
pub fn attention(q: &[f32], k: &KeyValue, v: &KeyValue, p: &Attention, out: &mut [f32]) {
    let (hd, t) = (p.head_dim, p.past + p.seq);
    let group = p.heads / p.kv_heads;
    for b in 0..p.batch {
        let keys: Vec<Vec<f64>> = (0..t).map(|i| token(k, p, b, i)).collect();
        let values: Vec<Vec<f64>> = (0..t).map(|i| token(v, p, b, i)).collect();
        for s in 0..p.seq {
            for head in 0..p.heads {
                let row = ((b * p.seq + s) * p.heads + head) * hd;
                let kv = head / group * hd..(head / group + 1) * hd;
                let seen = 0..p.past + s + 1;
                let dot = |key: &Vec<f64>| {
                    let products = q[row..row + hd].iter().zip(&key[kv.clone()]).map(|(&q, k)| f64::from(q) * k);
                    products.sum::<f64>() * f64::from(p.scale)
                };
                let scores: Vec<f64> = seen.clone().map(|i| dot(&keys[i])).collect();
                let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..hd {
                    let sum: f64 = seen.clone().zip(&weights).map(|(i, w)| w * values[i][kv.start + d]).sum();
                    out[row + d] = (sum / total) as f32;
                }
            }
        }
    }
}

/// The keys or values of all heads for token `i` of row `b`.
fn token(kv: &KeyValue, p: &Attention, b: usize, i: usize) -> Vec<f64> {
    match kv {
        KeyValue::Plain(parts) => stored(parts, [p.batch, p.kv_heads, p.head_dim], b, i),
        KeyValue::Hidden { values, output } => apply(output, &stored(values, [p.batch, 1, output.weight.k], b, i)),
        KeyValue::Compressed { codes, decoder } => {
            let r = decoder.code_dim();
            let (part, slots, i) = part_of(codes.iter().map(|part| part.len() / (p.batch * r)), i);
            decode(&codes[part][(b * slots + i) * r..][..r], decoder)
        }
    }
}

/// The vectors of all heads for token `i` of row `b` of a cache `[batch, heads, tokens, width]` in parts.
fn stored(parts: &[CacheSlice], [batch, heads, width]: [usize; 3], b: usize, i: usize) -> Vec<f64> {
    let (part, slots, i) = part_of(parts.iter().map(|part| part.len() / (batch * heads * width)), i);
    let number = |j: usize| {
        let (head, d) = (j / width, j % width);
        let row = (b * heads + head) * slots + i;
        let at = row * width + d;
        match parts[part] {
            CacheSlice::F32(cache) => f64::from(cache[at]),
            CacheSlice::F16(cache) => f16::from_bits(cache[at]).to_f64(),
            CacheSlice::Q8 { codes, scales } => {
                let block = row * width.div_ceil(KV_BLOCK) + d / KV_BLOCK;
                f64::from(codes[at]) * f64::from(scales[block])
            }
        }
    };
    (0..heads * width).map(number).collect()
}

/// Which of the parts holds token `i`, how many it holds, and which of them it is.
fn part_of(parts: impl Iterator<Item = usize>, mut i: usize) -> (usize, usize, usize) {
    for (part, slots) in parts.enumerate() {
        if i < slots {
            return (part, slots, i);
        }
        i -= slots;
    }
    panic!("no part holds the token")
}

fn decode(code: &[f32], decoder: &CodeDecoder) -> Vec<f64> {
    let code: Vec<f64> = code.iter().map(|&c| f64::from(c)).collect();
    match &decoder.hidden {
        Some((layer, activation)) => {
            let hidden: Vec<f64> = apply(layer, &code).iter().map(|&a| activate(*activation, a)).collect();
            apply(&decoder.output, &hidden)
        }
        None => apply(&decoder.output, &code),
    }
}

fn apply(layer: &Layer, x: &[f64]) -> Vec<f64> {
    let row = |j: usize| {
        let sum: f64 = x.iter().enumerate().map(|(i, x)| x * f64::from(layer.weight.get(j, i))).sum();
        sum + layer.bias.map_or(0.0, |bias| f64::from(bias[j]))
    };
    (0..layer.weight.n).map(row).collect()
}

/// The activation in f64; erf by its series and continued fraction.
pub fn activate(activation: CodeActivation, a: f64) -> f64 {
    match activation {
        CodeActivation::Gelu => 0.5 * a * (1.0 + erf(a / std::f64::consts::SQRT_2)),
        CodeActivation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (a + 0.044715 * a.powi(3));
            0.5 * a * (1.0 + inner.tanh())
        }
        CodeActivation::Silu => silu(a),
        CodeActivation::Relu => a.max(0.0),
    }
}

/// The error function: its Maclaurin series below 3, the continued fraction of its complement above.
fn erf(x: f64) -> f64 {
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let a = x.abs();
        let fraction = (1..60).rev().fold(a, |fraction, n| a + n as f64 / 2.0 / fraction);
        x.signum() * (1.0 - (-a * a).exp() / fraction / std::f64::consts::PI.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_its_tables() {
        for (x, expected) in [(0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (3.5, 0.9999992569016276)] {
            assert!((erf(x) - expected).abs() < 1e-14);
            assert!((erf(-x) + expected).abs() < 1e-14);
        }
    }
}
