//! Signed bytes with one F16 scale per block of 64 elements: 8.25 bits per weight.
//!
//! Every row begins a block, so that no block crosses rows; the last block of a row is short where `k` is not a multiple of 64.
//! `scale = max|w| / 127`, rounded up to F16, so that no code is beyond 127; `q = round(w / scale)`, ties to even. No value is
//! off by more than half a scale. In files it is what compressed-tensors calls `int-quantized` in groups of 64.

use bytes::Bytes;
use emberlm_backends::cpu::{INT8_BLOCK, Level, Vectorized, level, run, vectorized};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::dense::{Dense, PIECE};
use super::float::absmax;
use super::rows::{QMAX_WIDE, round_to_codes, store_row};
use crate::error::{Error, Result};
use crate::host::{HostInt8, HostStorage, HostWeight, WeightBuffer};

/// Elements that a task covers at the least, in whole rows.
const TASK: usize = 1 << 14;

/// Quantises a dense weight to signed bytes with a scale per block.
///
/// # Shapes
/// `[n, k]`, as the argument.
///
/// # Errors
/// If the weight is not dense, does not fit its shape, or holds a number that is not finite or too large for an f16 scale.
pub fn quantize_int8(weight: &HostWeight) -> Result<HostWeight> {
    let level = level();
    run(|| quantize(weight, level))
}

/// On the threads of the kernels.
fn quantize(weight: &HostWeight, level: Level) -> Result<HostWeight> {
    let dense = Dense::new(weight)?;
    let (n, k) = (dense.n, dense.k);
    let blocks = k.div_ceil(INT8_BLOCK);
    let mut codes = WeightBuffer::new(n * k);
    let mut scales = WeightBuffer::new(n * blocks * 2);
    let mut largest = vec![0.0; n];
    let rows = TASK.div_ceil(k);
    let tasks = codes.par_chunks_mut(rows * k).zip(scales.par_chunks_mut(rows * blocks * 2));
    let tasks = tasks.zip(largest.par_chunks_mut(rows)).enumerate().with_max_len(PIECE / TASK);
    tasks.for_each(|(task, ((codes, scales), largest))| {
        vectorized(level, Rows { dense: &dense, first: task * rows, codes, scales, largest });
    });
    dense.check_finite(&largest, k)?;
    // Beyond this a scale would be infinite.
    let limit = f16::MAX.to_f32() * QMAX_WIDE;
    if let Some(row) = largest.iter().position(|&largest| largest > limit) {
        return Err(Error::RowTooLarge { row, absmax: largest[row] });
    }
    let storage = HostStorage::Int8(HostInt8 { codes: Bytes::from_owner(codes), scales: Bytes::from_owner(scales) });
    Ok(HostWeight { n, k, storage })
}

/// Rows from `first` on, as many as `largest` has room for.
struct Rows<'a> {
    dense: &'a Dense<'a>,
    first: usize,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    largest: &'a mut [f32],
}

impl Vectorized for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let k = self.dense.k;
        let blocks = k.div_ceil(INT8_BLOCK);
        let (mut absmax_of, mut scales_of) = (vec![0.0; blocks], vec![f16::ZERO; blocks]);
        let rows = self.codes.chunks_mut(k).zip(self.scales.chunks_mut(2 * blocks));
        for (row, ((codes, scales), largest)) in rows.zip(self.largest).enumerate() {
            let start = (self.first + row) * k;
            // Step by step for all blocks of the row: what one block does waits for what it did before.
            for (block, largest) in absmax_of.iter_mut().enumerate() {
                let (mut values, start) = ([0.0; INT8_BLOCK], start + block * INT8_BLOCK);
                *largest = match k - block * INT8_BLOCK {
                    INT8_BLOCK.. => read(self.dense, start, &mut values),
                    short => read(self.dense, start, &mut values[..short]),
                };
            }
            *largest = absmax(&absmax_of);
            scales_of_blocks(&absmax_of, &mut scales_of);
            for (stored, scale) in scales.as_chunks_mut::<2>().0.iter_mut().zip(&scales_of) {
                *stored = scale.to_le_bytes();
            }
            // The magnitudes are not needed any more.
            scales_of.convert_to_f32_slice(&mut absmax_of);
            for (block, (codes, &scale)) in codes.chunks_mut(INT8_BLOCK).zip(&absmax_of).enumerate() {
                let (mut values, start) = ([0.0; INT8_BLOCK], start + block * INT8_BLOCK);
                // A length that the compiler knows, but for the last block of a row.
                match codes.len() {
                    INT8_BLOCK => quantize_block(self.dense, start, scale, &mut values, codes),
                    short => quantize_block(self.dense, start, scale, &mut values[..short], codes),
                }
            }
        }
    }
}

/// Reads the elements from `start` on and gives their largest magnitude.
#[inline(always)]
fn read(dense: &Dense, start: usize, values: &mut [f32]) -> f32 {
    dense.read(start, values);
    absmax(values)
}

/// Writes the codes of the elements from `start` on.
#[inline(always)]
fn quantize_block(dense: &Dense, start: usize, scale: f32, values: &mut [f32], codes: &mut [u8]) {
    dense.read(start, values);
    round_to_codes(values, scale, QMAX_WIDE);
    store_row(values, codes);
}

/// For each magnitude the smallest F16 of which 127 times is no less.
#[inline(always)]
fn scales_of_blocks(absmax: &[f32], scales: &mut [f16]) {
    let mut quotients = [0.0; 64];
    for (absmax, scales) in absmax.chunks(64).zip(scales.chunks_mut(64)) {
        let quotients = &mut quotients[..absmax.len()];
        for (quotient, absmax) in quotients.iter_mut().zip(absmax) {
            *quotient = absmax / QMAX_WIDE;
        }
        scales.convert_from_f32_slice(quotients);
        scales.convert_to_f32_slice(quotients);
        for ((scale, found), absmax) in scales.iter_mut().zip(&*quotients).zip(absmax) {
            // Exact: 11 bits times 7.
            *scale = f16::from_bits(scale.to_bits() + u16::from(found * QMAX_WIDE < *absmax));
        }
    }
}
