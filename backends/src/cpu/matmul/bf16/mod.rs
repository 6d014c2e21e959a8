//! Products of BF16 weights in which x is rounded to BF16.
//!
//! Such products are exact in f32, and they are added in f32. Where no instruction multiplies BF16, the kernels of f32 do it, on x that
//! is rounded before.

#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::cpu::matmul::types::Product;
use crate::cpu::pool::for_each_chunk;
use crate::cpu::{Level, Matrix, Precision, Weight};
use half::bf16;

/// Whether x is rounded to BF16 before a product with this matrix.
pub(crate) fn rounds(precision: Precision, level: Level, w: &Weight) -> bool {
    let wanted = match precision {
        Precision::Exact | Precision::Int8Activations => false,
        Precision::Bf16Activations => true,
        Precision::Auto => level.multiplies_bf16() && w.n >= Precision::AUTO_MIN_MATRIX_ROWS,
    };
    wanted && matches!(w.data, Matrix::Bf16(_))
}

/// `y = x Wᵀ + b` for each product with a BF16 matrix, on a processor that multiplies BF16; `k` is not 0.
#[cfg(target_arch = "x86_64")]
pub(crate) fn products(x: &[f32], m: usize, k: usize, products: Vec<&mut Product>) {
    avx512::products(x, m, k, products);
}

/// The other processors do not.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn products(_: &[f32], _: usize, _: usize, _: Vec<&mut Product>) {
    unreachable!("no kernels for BF16")
}

/// x rounded to the nearest BF16, halves to even, in rows of `k`.
pub(crate) fn rounded(x: &[f32], k: usize) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    for_each_chunk(&mut y, k, k, |row, y| {
        for (y, x) in y.iter_mut().zip(&x[row * k..]) {
            *y = bf16::from_f32(*x).to_f32();
        }
    });
    y
}
