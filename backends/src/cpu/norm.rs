//! RMS norms, in f32.

use super::plain;

/// `y = x * rsqrt(mean(x²) + eps) * w` per row, or `* (1 + w)` with `unit_offset`.
///
/// # Shapes
/// `x [m, d]`, `weight [d]`, `y [m, d]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn rms_norm(x: &[f32], m: usize, weight: &[f32], eps: f32, unit_offset: bool, y: &mut [f32]) {
    check(x, m, weight, y);
    if x.is_empty() {
        return;
    }
    plain::rms_norm(x, m, weight, eps, unit_offset, y);
}

/// `y = w * x * rsqrt(mean(x²) + eps) * silu(z)` per row.
///
/// # Shapes
/// `x [m, d]`, `z [m, d]`, `weight [d]`, `y [m, d]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn rms_norm_gated(x: &[f32], z: &[f32], m: usize, weight: &[f32], eps: f32, y: &mut [f32]) {
    check(x, m, weight, y);
    assert!(z.len() == x.len(), "z has {} elements, x {}", z.len(), x.len());
    if x.is_empty() {
        return;
    }
    plain::rms_norm_gated(x, z, m, weight, eps, y);
}

fn check(x: &[f32], m: usize, weight: &[f32], y: &[f32]) {
    let d = weight.len();
    assert!(x.len() == m * d, "x has {} elements, not [{m}, {d}]", x.len());
    assert!(y.len() == x.len(), "y has {} elements, x {}", y.len(), x.len());
}
