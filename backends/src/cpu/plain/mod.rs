//! The equations, written down plainly: one thread of f64 arithmetic per result, no blocking, no SIMD.
//!
//! Every fast kernel is tested against its twin here, and a new storage or model starts from these. Arguments are those of
//! the functions of the same name in [`cpu`](super). Lengths are not checked again: there is no unsafe code here, and a slice that
//! is too short ends in a panic.

mod attention;

pub use attention::{activate, attention};

use super::{Mlp, Weight};
use crate::types::{ConvShape, DeltaRuleInputs, DeltaRuleShape, RmsNorm, RotaryShape};
use rayon::prelude::*;

/// Rows `first..first + count` as floats; the values are exact, one f32 product each.
pub fn dequantize_rows(w: &Weight, first: usize, count: usize, out: &mut [f32]) {
    for (i, value) in out[..count * w.k].iter_mut().enumerate() {
        *value = w.get(first + i / w.k, i % w.k);
    }
}

/// `y[m, n] = x[m, k] Wᵀ + b`.
pub fn linear(x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>, y: &mut [f32]) {
    let column = |j: usize| {
        let mut row = vec![0.0; w.k];
        dequantize_rows(w, j, 1, &mut row);
        let dot = |x: &[f32]| x.iter().zip(&row).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
        let b = bias.map_or(0.0, |bias| f64::from(bias[j]));
        (0..m).map(|i| (dot(&x[i * w.k..(i + 1) * w.k]) + b) as f32).collect::<Vec<_>>()
    };
    let columns: Vec<Vec<f32>> = match cfg!(miri) {
        // Miri is to look at our own code.
        true => (0..w.n).map(column).collect(),
        false => (0..w.n).into_par_iter().map(column).collect(),
    };
    for (j, column) in columns.iter().enumerate() {
        for (i, value) in column.iter().enumerate() {
            y[i * w.n + j] = *value;
        }
    }
}

/// `silu(a) = a / (1 + e^-a)`.
pub fn silu(a: f64) -> f64 {
    a / (1.0 + (-a).exp())
}

/// `y = down(silu(gate x) * up x)` on the active rows, 0 on the others.
pub fn swiglu_mlp(x: &[f32], m: usize, mlp: &Mlp, active: Option<&[bool]>, y: &mut [f32]) {
    let (k, inner) = (mlp.gate.k, mlp.gate.n);
    for (i, y) in y.chunks_exact_mut(mlp.down.n).enumerate().take(m) {
        y.fill(0.0);
        if active.is_none_or(|active| active[i]) {
            let x = &x[i * k..(i + 1) * k];
            let (mut gate, mut up) = (vec![0.0; inner], vec![0.0; inner]);
            linear(x, 1, &mlp.gate, None, &mut gate);
            linear(x, 1, &mlp.up, None, &mut up);
            for (gate, up) in gate.iter_mut().zip(&up) {
                *gate = (silu(f64::from(*gate)) * f64::from(*up)) as f32;
            }
            linear(&gate, 1, &mlp.down, None, y);
        }
    }
}

/// `y = x * rsqrt(mean(x²) + eps) * w`, or `* (1 + w)` with the unit offset.
pub fn rms_norm(x: &[f32], weight: &[f32], p: &RmsNorm, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(p.h).zip(y.chunks_exact_mut(p.h)).take(p.m) {
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / p.h as f64;
        let scale = 1.0 / (mean + f64::from(p.eps)).sqrt();
        for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
            let w = f64::from(w) + if p.unit_offset { 1.0 } else { 0.0 };
            *y = (f64::from(x) * scale * w) as f32;
        }
    }
}

/// `x += y`, and the norm of that.
pub fn add_rms_norm(x: &mut [f32], y: &[f32], weight: &[f32], p: &RmsNorm, normed: &mut [f32]) {
    x.iter_mut().zip(y).for_each(|(x, &y)| *x += y);
    rms_norm(x, weight, p, normed);
}

/// `x *= sigmoid(gate)`.
pub fn sigmoid_gate(x: &mut [f32], gate: &[f32]) {
    for (x, &gate) in x.iter_mut().zip(gate) {
        *x = (f64::from(*x) / (1.0 + (-f64::from(gate)).exp())) as f32;
    }
}

/// `dt = -e^a_log log(1 + e^(dt + dt_bias))`, `b = sigmoid(b)`.
pub fn delta_gates(dt: &mut [f32], b: &mut [f32], dt_bias: &[f32], a_log: &[f32]) {
    for (i, dt) in dt.iter_mut().enumerate() {
        let [dt_bias, a_log] = [dt_bias, a_log].map(|values| f64::from(values[i % values.len()]));
        *dt = (-a_log.exp() * (f64::from(*dt) + dt_bias).exp().ln_1p()) as f32;
    }
    b.iter_mut().for_each(|b| *b = (1.0 / (1.0 + (-f64::from(*b)).exp())) as f32);
}

/// `y = w * x / rms(x) * silu(z)`.
pub fn rms_norm_gated(x: &[f32], z: &[f32], weight: &[f32], p: &RmsNorm, y: &mut [f32]) {
    rms_norm(x, weight, p, y);
    for (y, &z) in y.iter_mut().zip(z) {
        *y = (f64::from(*y) * silu(f64::from(z))) as f32;
    }
}

/// Rotates the halves of the first `2 half` elements of every head.
pub fn rotary(x: &mut [f32], cos: &[f32], sin: &[f32], p: &RotaryShape) {
    let &RotaryShape { batch, seq, heads, head_dim, half } = p;
    for (i, head) in x.chunks_exact_mut(head_dim).enumerate().take(batch * seq * heads) {
        let at = (i / heads % seq) * half;
        for j in 0..half {
            let (a, b) = (f64::from(head[j]), f64::from(head[half + j]));
            let (c, s) = (f64::from(cos[at + j]), f64::from(sin[at + j]));
            head[j] = (a * c - b * s) as f32;
            head[half + j] = (b * c + a * s) as f32;
        }
    }
}

/// `y_t = silu(sum_j W[:, j] u_{t - (w-1) + j})`; `tail` holds the `w-1` inputs before `u`, then the last `w-1` of all.
pub fn causal_conv1d_silu(u: &[f32], tail: &mut [f32], weight: &[f32], p: &ConvShape, y: &mut [f32]) {
    let &ConvShape { batch, seq, channels: c, width } = p;
    for b in 0..batch {
        let tail = &mut tail[b * (width - 1) * c..(b + 1) * (width - 1) * c];
        let inputs: Vec<f32> = tail.iter().chain(&u[b * seq * c..(b + 1) * seq * c]).copied().collect();
        for t in 0..seq {
            for i in 0..c {
                let term = |j: usize| f64::from(weight[i * width + j]) * f64::from(inputs[(t + j) * c + i]);
                y[(b * seq + t) * c + i] = silu((0..width).map(term).sum()) as f32;
            }
        }
        tail.copy_from_slice(&inputs[seq * c..]);
    }
}

/// The gated delta rule, token by token.
pub fn gated_delta_rule(rule: DeltaRuleInputs<&[f32]>, state: &mut [f32], p: &DeltaRuleShape, o: &mut [f32]) {
    let DeltaRuleInputs { q, k, v, g, beta } = rule;
    let &DeltaRuleShape { batch, seq, key_heads, value_heads, key_dim, value_dim } = p;
    let unit = |x: &[f32]| {
        let scale = 1.0 / (x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() + 1e-6).sqrt();
        x.iter().map(|&x| f64::from(x) * scale).collect::<Vec<f64>>()
    };
    for (i, state) in state.chunks_exact_mut(key_dim * value_dim).enumerate().take(batch * value_heads) {
        let (b, head) = (i / value_heads, i % value_heads);
        let mut s: Vec<f64> = state.iter().map(|&s| f64::from(s)).collect();
        for t in b * seq..(b + 1) * seq {
            let key = (t * key_heads + head / (value_heads / key_heads)) * key_dim;
            let value = t * value_heads + head;
            let (q, k) = (unit(&q[key..key + key_dim]), unit(&k[key..key + key_dim]));
            let decay = f64::from(g[value]).exp();
            s.iter_mut().for_each(|s| *s *= decay);
            for j in 0..value_dim {
                let at = |i: usize| i * value_dim + j;
                let recalled: f64 = (0..key_dim).map(|i| s[at(i)] * k[i]).sum();
                let d = f64::from(beta[value]) * (f64::from(v[value * value_dim + j]) - recalled);
                (0..key_dim).for_each(|i| s[at(i)] += k[i] * d);
                let out: f64 = (0..key_dim).map(|i| s[at(i)] * q[i]).sum();
                o[value * value_dim + j] = (out / (key_dim as f64).sqrt()) as f32;
            }
        }
        state.iter_mut().zip(&s).for_each(|(state, &s)| *state = s as f32);
    }
}
