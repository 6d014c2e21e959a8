//! Signed bytes with one F16 scale per block of 64 elements: 8.25 bits per weight.
//!
//! Every row begins a block, so that no block crosses rows; the last block of a row is short where `k` is not a multiple of 64.
//! `scale = max|w| / 127`, rounded up to F16, so that no code is beyond 127; `q = round(w / scale)`, ties to even. No value is
//! off by more than half a scale. In files it is what compressed-tensors calls `int-quantized` in groups of 64.

use bytes::Bytes;
use emberlm_backends::cpu::{INT8_BLOCK, Level, Vectorized, level, run, vectorized};
use half::f16;
use rayon::prelude::*;

use super::dense::Dense;
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
    tasks.zip(largest.par_chunks_mut(rows)).enumerate().for_each(|(task, ((codes, scales), largest))| {
        vectorized(level, Rows { dense: &dense, first: task * rows, codes, scales, largest });
    });
    dense.check_finite(&largest, k)?;
    if let Some(row) = largest.iter().position(|&largest| !scale(largest).is_finite()) {
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
        let rows = self.codes.chunks_mut(k).zip(self.scales.chunks_mut(2 * k.div_ceil(INT8_BLOCK)));
        for (row, ((codes, scales), largest)) in rows.zip(self.largest).enumerate() {
            let start = (self.first + row) * k;
            let mut row_absmax = 0.0;
            let blocks = codes.chunks_mut(INT8_BLOCK).zip(scales.as_chunks_mut::<2>().0);
            for (block, (codes, scale)) in blocks.enumerate() {
                let mut values = [0.0; INT8_BLOCK];
                let start = start + block * INT8_BLOCK;
                // A length that the compiler knows, but for the last block of a row.
                let block_absmax = match codes.len() {
                    INT8_BLOCK => quantize_block(self.dense, start, &mut values, codes, scale),
                    short => quantize_block(self.dense, start, &mut values[..short], codes, scale),
                };
                row_absmax = absmax(&[row_absmax, block_absmax]);
            }
            *largest = row_absmax;
        }
    }
}

/// Writes the codes and the scale of the elements from `start` on, and gives their largest magnitude.
#[inline(always)]
fn quantize_block(dense: &Dense, start: usize, values: &mut [f32], codes: &mut [u8], stored: &mut [u8; 2]) -> f32 {
    dense.read(start, values);
    let absmax = absmax(values);
    let scale = scale(absmax);
    *stored = scale.to_le_bytes();
    round_to_codes(values, scale.to_f32_const(), QMAX_WIDE);
    store_row(values, codes);
    absmax
}

/// The smallest F16 of which 127 times is no less.
#[inline(always)]
fn scale(absmax: f32) -> f16 {
    // What is converted in a constant needs no instruction of the processor, and no call of a function that has it.
    let scale = f16::from_f32_const(absmax / QMAX_WIDE);
    // Exact: 11 bits times 7.
    if scale.to_f32_const() * QMAX_WIDE < absmax { f16::from_bits(scale.to_bits() + 1) } else { scale }
}
