//! Gates: small elementwise functions of what a layer projects.

use super::elementwise::zip;
use super::level;
use super::simd::math;

/// `x *= sigmoid(gate)`.
///
/// # Panics
/// If the lengths differ.
pub fn sigmoid_gate(x: &mut [f32], gate: &[f32]) {
    zip(level(), x, gate, math::MulSigmoid);
}

/// The gates of the delta rule, in place: `dt` becomes `-e^a_log softplus(dt + dt_bias)` and `b` becomes `sigmoid(b)`.
///
/// # Shapes
/// `dt, b [m, heads]`, `dt_bias, a_log [heads]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn delta_gates(dt: &mut [f32], b: &mut [f32], dt_bias: &[f32], a_log: &[f32]) {
    let heads = dt_bias.len();
    assert!(a_log.len() == heads, "a_log has {} values, dt_bias {heads}", a_log.len());
    assert!(dt.len() == b.len(), "dt has {} values, b {}", dt.len(), b.len());
    assert!(dt.is_empty() || dt.len().is_multiple_of(heads), "dt has {} values, not [m, {heads}]", dt.len());
    for dt in dt.chunks_exact_mut(heads.max(1)) {
        for ((dt, bias), a_log) in dt.iter_mut().zip(dt_bias).zip(a_log) {
            let x = *dt + bias;
            // log(1 + e^x), without an exponential that overflows.
            let softplus = x.max(0.0) + (-x.abs()).exp().ln_1p();
            *dt = -a_log.exp() * softplus;
        }
    }
    b.iter_mut().for_each(|b| *b = 1.0 / (1.0 + (-*b).exp()));
}
