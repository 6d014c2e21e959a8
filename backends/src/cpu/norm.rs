//! RMS norms, in f32.

use super::elementwise::zip;
use super::level;
use super::simd::{Kernel, Simd, launch, math};
use crate::check::check_len;
use crate::cpu::pool::for_each_chunk;
use crate::types::RmsNorm;

/// `y = x * rsqrt(mean(x²) + eps) * w` per row, or `* (1 + w)` with `unit_offset`.
///
/// # Shapes
/// `x [m, h]`, `weight [h]`, `y [m, h]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn rms_norm(x: &[f32], weight: &[f32], p: &RmsNorm, y: &mut [f32]) {
    check(x, weight, p, y);
    if x.is_empty() {
        return;
    }
    let (level, &RmsNorm { h, eps, .. }) = (level(), p);
    let offset = if p.unit_offset { 1.0 } else { 0.0 };
    for_each_chunk(y, h, 2 * h, |i, y| {
        launch(level, Norm { x: &x[i * h..(i + 1) * h], weight, eps, offset, gate: None, y });
    });
}

/// `x += y`, then `normed` is the [`rms_norm`] of the sum.
///
/// # Shapes
/// `x [m, h]`, `y [m, h]`, `weight [h]`, `normed [m, h]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn add_rms_norm(x: &mut [f32], y: &[f32], weight: &[f32], p: &RmsNorm, normed: &mut [f32]) {
    check(x, weight, p, normed);
    check_len("y", y.len(), &[p.m, p.h]);
    zip(level(), x, y, math::Add);
    rms_norm(x, weight, p, normed);
}

/// `y = w * x * rsqrt(mean(x²) + eps) * silu(z)` per row.
///
/// # Shapes
/// `x [m, h]`, `z [m, h]`, `weight [h]`, `y [m, h]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn rms_norm_gated(x: &[f32], z: &[f32], weight: &[f32], p: &RmsNorm, y: &mut [f32]) {
    check(x, weight, p, y);
    check_len("z", z.len(), &[p.m, p.h]);
    if x.is_empty() {
        return;
    }
    let (level, &RmsNorm { h, eps, .. }) = (level(), p);
    let offset = if p.unit_offset { 1.0 } else { 0.0 };
    for_each_chunk(y, h, 8 * h, |i, y| {
        let gate = Some(&z[i * h..(i + 1) * h]);
        launch(level, Norm { x: &x[i * h..(i + 1) * h], weight, eps, offset, gate, y });
    });
}

fn check(x: &[f32], weight: &[f32], p: &RmsNorm, y: &[f32]) {
    check_len("x", x.len(), &[p.m, p.h]);
    check_len("y", y.len(), &[p.m, p.h]);
    check_len("weight", weight.len(), &[p.h]);
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
