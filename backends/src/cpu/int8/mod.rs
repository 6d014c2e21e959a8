//! Products in which x is rounded to 8 bits.
//!
//! Every 64 elements of x become signed bytes and a scale. For VNNI weights become unsigned bytes, 128 (or the offset of the
//! storage) too large, because the instruction multiplies unsigned by signed; the sum of the bytes of x, known before the first
//! weight is read, takes that back. Elsewhere (`blocks`) they stay signed. The sums of a block are exact integers; blocks are added in f32.

mod blocks;
#[cfg(target_arch = "x86_64")]
mod gemm;
#[cfg(target_arch = "x86_64")]
mod rows;

use super::linear::{self, Product, Rows};
use super::region::Region;
use super::simd::bytes;
use super::threads::Output;
use super::{Level, Matrix, Weight};
use std::cell::Cell;

/// Elements of x that share a scale.
pub(crate) const BLOCK: usize = 64;

/// What unsigned bytes of weights exceed them by.
#[cfg(target_arch = "x86_64")]
const OFFSET: i32 = 128;

/// The kernels of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// AVX-512 with VNNI and VBMI: for any number of rows of x.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Vnni,
    /// AVX2, or NEON with the dot product: for a few rows. With many, f32 is as fast.
    Blocks,
}

/// What products of `m` rows of x can use at `level` on this machine.
pub(crate) fn kernels(level: Level, m: usize) -> Option<Kernels> {
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx512 && is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vbmi") {
        return Some(Kernels::Vnni);
    }
    (bytes::available(level) && m <= blocks::FEW).then_some(Kernels::Blocks)
}

/// Whether this matrix can take part.
pub(crate) fn fits(w: &Weight) -> bool {
    w.k.is_multiple_of(BLOCK)
        && match &w.data {
            Matrix::CodeBook4(w) => w.block.is_multiple_of(BLOCK) && w.code_book.iter().all(|value| value.is_finite()),
            Matrix::Rows(_) => true,
            _ => false,
        }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use rows::FEW;

/// The most columns of x in one pass.
pub(crate) const MAX_COLUMNS: usize = 4;

/// x as the kernels of a region want it.
#[derive(Default)]
pub(crate) struct Rounded {
    blocks: linear::Made<blocks::Layout, blocks::Columns>,
    #[cfg(target_arch = "x86_64")]
    groups: linear::Made<rows::Layout, rows::Columns>,
}

/// Adds a product with at most [`MAX_COLUMNS`] rows of x, of a matrix that fits. Rows go where they are stored.
pub(crate) fn few<'a>(
    kernels: Kernels,
    rows: &Rows<'a>,
    w: Weight<'a>,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    match kernels {
        #[cfg(target_arch = "x86_64")]
        Kernels::Vnni => rows::few(rows, w, bias, y, region),
        _ => blocks::few(rows, w, bias, y, region),
    }
}

/// A product with more than [`FEW`] rows of x, of a matrix that fits, for [`Kernels::Vnni`].
#[cfg(target_arch = "x86_64")]
pub(crate) fn gemm(x: &[f32], m: usize, product: &mut Product) {
    gemm::gemm(x, m, &product.weight, product.bias, Output::new(product.y, product.weight.n));
}

/// The other processors never have that many.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const FEW: usize = usize::MAX;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn gemm(_: &[f32], _: usize, _: &mut Product) {
    unreachable!("no more than `FEW` rows")
}

/// Rounds [`BLOCK`] elements to `scale * q`; the scale is NaN where one of them is not finite.
///
/// # Panics
/// If `x` is shorter than a block.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn quantize(x: &[f32], q: &mut [i8; BLOCK]) -> f32 {
    use std::arch::x86_64::*;
    let x = &x[..BLOCK];
    /// Quiet NaN, both infinities, signalling NaN.
    const NOT_FINITE: i32 = 0x01 | 0x08 | 0x10 | 0x80;
    // SAFETY: the four loads and stores cover a block.
    unsafe {
        let mut parts = [_mm512_setzero_ps(); 4];
        let mut largest = _mm512_setzero_ps();
        let mut bad = 0;
        for i in 0..4 {
            parts[i] = _mm512_loadu_ps(x.as_ptr().add(16 * i));
            largest = _mm512_max_ps(largest, _mm512_abs_ps(parts[i]));
            bad |= _mm512_fpclass_ps_mask::<NOT_FINITE>(parts[i]);
        }
        let largest = _mm512_reduce_max_ps(largest);
        // Below this the reciprocal is not finite; such a block is 0.
        let inverse = _mm512_set1_ps(if largest > 1e-30 { 127.0 / largest } else { 0.0 });
        for i in 0..4 {
            // To the nearest, halves to even.
            let rounded = _mm512_cvtps_epi32(_mm512_mul_ps(parts[i], inverse));
            _mm_storeu_si128(q.as_mut_ptr().add(16 * i).cast(), _mm512_cvtepi32_epi8(rounded));
        }
        if bad != 0 { f32::NAN } else { largest / 127.0 }
    }
}

/// A code book in bytes: `value ≈ scale * byte`, with the scale whose rounding errors are least.
///
/// All layers of a model have the same, so the last one is kept.
fn code_book(values: &[f32; 16]) -> ([i8; 16], f32) {
    type Made = ([f32; 16], ([i8; 16], f32));
    thread_local! {
        static LAST: Cell<Made> = const { Cell::new(([0.0; 16], ([0; 16], 0.0))) };
    }
    let (of, made) = LAST.get();
    if of == *values {
        return made;
    }
    let made = fitted(values);
    LAST.set((*values, made));
    made
}

/// [`code_book`], computed.
fn fitted(values: &[f32; 16]) -> ([i8; 16], f32) {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    if largest < 1e-30 {
        return ([0; 16], 0.0);
    }
    let mut best = (f32::INFINITY, 127.0);
    for level in 96..=127 {
        let level = level as f32;
        let error: f32 = values
            .iter()
            .map(|value| {
                let exact = value / largest * level;
                ((exact.round_ties_even() - exact) / level).powi(2)
            })
            .sum();
        if error < best.0 {
            best = (error, level);
        }
    }
    let level = best.1;
    (values.map(|value| (value / largest * level).round_ties_even() as i8), largest / level)
}
