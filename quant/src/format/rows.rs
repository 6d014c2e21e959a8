//! Nano compact's integer rows: one symmetric scale per row.
//!
//! The rules are the exporter's: `scale = max|w| / qmax`, at least 1e-8; `q = clamp(round(w / scale), -qmax, qmax)` with the
//! scale in f32 and ties to even; the scale is then stored in f16. A row whose scale is below 3e-8 is therefore stored as zeros.

use bytes::Bytes;
use emberlm_backends::cpu::{Level, Vectorized, level, run, vectorized};
use half::f16;
use rayon::prelude::*;

use super::check::narrow_row_bytes;
use super::dense::{Dense, PIECE};
use super::float::absmax;
use super::sum::mean;
use crate::error::{Error, Result};
use crate::host::{HostRows, HostStorage, HostWeight, WeightBuffer};

/// Largest code of an 8-bit row.
pub(super) const QMAX_WIDE: f32 = 127.0;
/// Smallest scale.
const SMALLEST: f32 = 1e-8;
/// Elements that a task covers at the least, in whole rows.
const TASK: usize = 1 << 14;

/// Quantises a dense weight to 8-bit rows (`int8_linear`, `embedding`).
///
/// # Shapes
/// `[n, k]`, as the argument.
///
/// # Errors
/// If the weight is not dense, does not fit its shape, or holds a number that is not finite or too large for an f16 scale.
pub fn quantize_int8_rows(weight: &HostWeight) -> Result<HostWeight> {
    let level = level();
    run(|| int8_rows(weight, level))
}

/// On the threads of the kernels.
fn int8_rows(weight: &HostWeight, level: Level) -> Result<HostWeight> {
    let dense = Dense::new(weight)?;
    let (n, k) = (dense.n, dense.k);
    let mut wide = WeightBuffer::new(n * k);
    let mut largest = vec![0.0; n];
    let rows = wide.par_chunks_mut(k).zip(&mut largest).enumerate();
    rows.with_min_len(TASK.div_ceil(k)).with_max_len(PIECE.div_ceil(k)).for_each_init(
        || vec![0.0; k],
        |values, (row, (codes, largest))| {
            *largest = vectorized(level, Read { dense: &dense, row, values });
            vectorized(level, Wide { values, largest: *largest, qmax: QMAX_WIDE, codes });
        },
    );
    dense.check_finite(&largest, k)?;
    let scales = largest.iter().enumerate().map(|(row, &l)| stored_scale(row, l, QMAX_WIDE)).collect::<Result<_>>()?;
    let storage = HostStorage::Rows(HostRows {
        wide: Bytes::from_owner(wide),
        wide_rows: n,
        narrow: Bytes::new(),
        narrow_bits: 4,
        scales,
        slots: None,
    });
    Ok(HostWeight { n, k, storage })
}

/// Quantises a dense weight to rows of `bits` bits, except the `keep` rows with the largest RMS, which get 8 bits
/// (`truequant_linear`).
///
/// Rows are stored by ascending RMS, first the kept ones, then the others. Of rows with equal RMS the one that comes first counts as
/// smaller: PyTorch's `argsort` on the CPU does the same (it is stable in fact, though not by promise; on a GPU it may differ).
/// The RMS itself is added up in PyTorch's order. Rows of 6 and 8 bits are stored as 8-bit codes, so all rows are wide then.
///
/// # Shapes
/// `[n, k]`, as the argument.
///
/// # Errors
/// As [`quantize_int8_rows`], and if `bits` is not 2, 4, 6 or 8.
pub fn quantize_truequant(weight: &HostWeight, bits: u32, keep: usize) -> Result<HostWeight> {
    let level = level();
    run(|| truequant(weight, bits, keep, level))
}

/// On the threads of the kernels.
fn truequant(weight: &HostWeight, bits: u32, keep: usize, level: Level) -> Result<HostWeight> {
    let qmax = match bits {
        2 => 1.0,
        4 => 7.0,
        6 => 31.0,
        8 => QMAX_WIDE,
        _ => return Err(Error::Bits { bits }),
    };
    let dense = Dense::new(weight)?;
    let (n, k) = (dense.n, dense.k);
    let count = u32::try_from(n).map_err(|_| Error::TooLarge { n, k })?;
    let min_rows = TASK.div_ceil(k);
    let (largest, rms): (Vec<f32>, Vec<f32>) = (0..n)
        .into_par_iter()
        .with_min_len(min_rows)
        .map_init(
            || vec![0.0; k],
            |values, row| {
                let largest = vectorized(level, Read { dense: &dense, row, values });
                values.iter_mut().for_each(|v| *v *= *v);
                (largest, mean(values).sqrt())
            },
        )
        .unzip();
    dense.check_finite(&largest, k)?;

    let mut ascending: Vec<u32> = (0..count).collect();
    ascending.sort_by(|&a, &b| rms[a as usize].total_cmp(&rms[b as usize]));
    let (degraded, kept) = ascending.split_at(n - keep.min(n));
    let order = [kept, degraded].concat();
    let qmax_of = |slot: usize| if slot < kept.len() { QMAX_WIDE } else { qmax };

    let packed = bits < 6 && !degraded.is_empty();
    let (wide_rows, narrow_bits) = if packed { (kept.len(), bits) } else { (n, 4) };
    let mut wide = WeightBuffer::new(wide_rows * k);
    wide.par_chunks_mut(k).enumerate().with_min_len(min_rows).for_each_init(
        || vec![0.0; k],
        |values, (slot, codes)| {
            let row = order[slot] as usize;
            vectorized(level, Read { dense: &dense, row, values });
            vectorized(level, Wide { values, largest: largest[row], qmax: qmax_of(slot), codes });
        },
    );
    let row_bytes = narrow_row_bytes(k, narrow_bits);
    let mut narrow = WeightBuffer::new((n - wide_rows) * row_bytes);
    narrow.par_chunks_mut(row_bytes).zip(&order[wide_rows..]).with_min_len(min_rows).for_each_init(
        || vec![0.0; k],
        |values, (codes, &row)| {
            let row = row as usize;
            dense.read(row * k, values);
            quantize_row(values, largest[row], qmax);
            pack_row(values, qmax, narrow_bits, codes);
        },
    );
    let scales = order
        .iter()
        .enumerate()
        .map(|(slot, &row)| stored_scale(row as usize, largest[row as usize], qmax_of(slot)))
        .collect::<Result<_>>()?;
    let mut slots = vec![0; n];
    for (slot, &row) in order.iter().enumerate() {
        slots[row as usize] = slot as u32;
    }
    let rows = HostRows {
        wide: Bytes::from_owner(wide),
        wide_rows,
        narrow: Bytes::from_owner(narrow),
        narrow_bits,
        scales,
        slots: Some(slots),
    };
    Ok(HostWeight { n, k, storage: HostStorage::Rows(rows) })
}

fn scale(largest: f32, qmax: f32) -> f32 {
    (largest / qmax).max(SMALLEST)
}

/// The scale as it is stored, in f16.
fn stored_scale(row: usize, largest: f32, qmax: f32) -> Result<f32> {
    let stored = f16::from_f32(scale(largest, qmax));
    if stored.is_finite() { Ok(stored.to_f32()) } else { Err(Error::RowTooLarge { row, absmax: largest }) }
}

/// Reads a row and gives its largest magnitude.
struct Read<'a> {
    dense: &'a Dense<'a>,
    row: usize,
    values: &'a mut [f32],
}

impl Vectorized for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn call(self) -> f32 {
        self.dense.read(self.row * self.dense.k, self.values);
        absmax(self.values)
    }
}

/// Turns a row into 8-bit codes; its values are overwritten.
struct Wide<'a> {
    values: &'a mut [f32],
    largest: f32,
    qmax: f32,
    codes: &'a mut [u8],
}

impl Vectorized for Wide<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        quantize_row(self.values, self.largest, self.qmax);
        store_row(self.values, self.codes);
    }
}

/// Replaces the values by their codes.
#[inline(always)]
fn quantize_row(values: &mut [f32], largest: f32, qmax: f32) {
    round_to_codes(values, scale(largest, qmax), qmax);
}

/// Added to a number of magnitude below 2^22, this leaves no room for a fraction: the sum is rounded to an integer, ties to
/// even, whose lowest bits are those of the sum. Unlike `round_ties_even` and a cast, which saturates, it compiles to vector
/// instructions on every processor.
const INTEGER: f32 = 12_582_912.0; // 1.5 * 2^23

/// Replaces the values by their codes; what is no number, as zeros under a scale of 0, is stored as 0.
#[inline(always)]
pub(super) fn round_to_codes(values: &mut [f32], scale: f32, qmax: f32) {
    for value in values {
        *value = ((*value / scale + INTEGER) - INTEGER).clamp(-qmax, qmax);
    }
}

/// Stores 8-bit codes.
#[inline(always)]
pub(super) fn store_row(values: &[f32], codes: &mut [u8]) {
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value + INTEGER).to_bits() as u8;
    }
}

/// Packs codes, the least significant first; the last byte is filled with zero bits.
fn pack_row(values: &[f32], qmax: f32, bits: u32, codes: &mut [u8]) {
    for (byte, values) in codes.iter_mut().zip(values.chunks(8 / bits as usize)) {
        let shifts = (0..).step_by(bits as usize);
        *byte = values.iter().zip(shifts).fold(0, |byte, (value, shift)| byte | ((value + qmax) as u8) << shift);
    }
}
