//! RMS norms, in f32.

use super::elementwise::zip;
use super::level;
use super::simd::{Kernel, Simd, launch, math};
use crate::check::check_len;
use crate::cpu::pool::for_each_chunk;

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
    let (level, d) = (level(), weight.len());
    let offset = if unit_offset { 1.0 } else { 0.0 };
    for_each_chunk(y, d, 2 * d, |i, y| {
        launch(level, Norm { x: &x[i * d..(i + 1) * d], weight, eps, offset, gate: None, y });
    });
}

/// `x += y`, then `normed` is the [`rms_norm`] of the sum.
///
/// # Shapes
/// `x [m, d]`, `y [m, d]`, `weight [d]`, `normed [m, d]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn add_rms_norm(
    x: &mut [f32],
    y: &[f32],
    m: usize,
    weight: &[f32],
    eps: f32,
    unit_offset: bool,
    normed: &mut [f32],
) {
    check(x, m, weight, normed);
    check_len("y", y.len(), &[m, weight.len()]);
    zip(level(), x, y, math::Add);
    rms_norm(x, m, weight, eps, unit_offset, normed);
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
    check_len("z", z.len(), &[m, weight.len()]);
    if x.is_empty() {
        return;
    }
    let (level, d) = (level(), weight.len());
    for_each_chunk(y, d, 8 * d, |i, y| {
        let gate = Some(&z[i * d..(i + 1) * d]);
        launch(level, Norm { x: &x[i * d..(i + 1) * d], weight, eps, offset: 0.0, gate, y });
    });
}

fn check(x: &[f32], m: usize, weight: &[f32], y: &[f32]) {
    check_len("x", x.len(), &[m, weight.len()]);
    check_len("y", y.len(), &[m, weight.len()]);
}

/// One row of a norm.
struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    offset: f32,
    gate: Option<&'a [f32]>,
    y: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let d = self.x.len() as f32;
        // SAFETY: `S` is enabled.
        unsafe {
            let scale = 1.0 / (math::dot::<S>(self.x, self.x) / d + self.eps).sqrt();
            self.y.copy_from_slice(self.x);
            math::zip::<S, _>(self.y, self.weight, math::ScaleMul(scale, self.offset));
            if let Some(gate) = self.gate {
                math::zip::<S, _>(self.y, gate, math::MulSilu);
            }
        }
    }
}
