//! Plain readers of every storage: the reference for all kernels, exact to the bit.

use bytes::Bytes;
use emberlm_backends::cpu::{INT8_BLOCK, run};
use half::{bf16, f16};
use rayon::prelude::*;

use super::check::{check, narrow_row_bytes};
use crate::error::{Error, Result};
use crate::host::{FloatType, HostCodeBook4, HostInt8, HostRows, HostScales, HostStorage, HostWeight, WeightBuffer};

/// Elements that one task reads: large enough to hide the cost of a task, small enough to keep all threads busy.
const TASK: usize = 1 << 15;

/// The values of a weight in single precision.
///
/// Dense numbers are widened, which is exact. A quantised number is one product in f32: `code_book[code] * scale`,
/// where a double-quantised scale is `map[code] * absmax + offset` rounded after each operation, and `code * scale` for integers.
///
/// # Shapes
/// `n * k` values, row-major.
///
/// # Panics
/// If [`check`] refuses the weight.
pub fn dequantize(weight: &HostWeight) -> Vec<f32> {
    trust(weight);
    let mut values = vec![0.0; weight.n * weight.k];
    run(|| values.par_chunks_mut(TASK).enumerate().for_each(|(task, out)| read(weight, task * TASK, false, out)));
    values
}

/// Reads parts of a weight, which is checked once.
#[derive(Clone, Copy, Debug)]
pub struct Dequantizer<'a>(&'a HostWeight);

impl<'a> Dequantizer<'a> {
    /// # Errors
    /// As [`check`].
    pub fn new(weight: &'a HostWeight) -> Result<Self> {
        check(weight)?;
        Ok(Self(weight))
    }

    /// Elements `start..start + out.len()` of the flattened matrix, as [`dequantize`] has them.
    ///
    /// # Panics
    /// When the weight has no such elements.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        read(self.0, start, false, out);
    }
}

/// The weight rounded to the type it is meant to be computed in, as a dense weight.
///
/// bitsandbytes weights are rounded to the type they had before they were quantised; integers are `f16(f16(q) * f16(scale))`;
/// dense weights are returned as they are (sharing their buffer). Rounding is to nearest, ties to even.
///
/// # Shapes
/// `[n, k]`, as the argument.
///
/// # Panics
/// If [`check`] refuses the weight.
pub fn dequantize_rounded(weight: &HostWeight) -> HostWeight {
    trust(weight);
    let float = match &weight.storage {
        HostStorage::Dense(..) => return weight.clone(),
        HostStorage::CodeBook4(w) => w.stored,
        HostStorage::Int8(_) | HostStorage::Rows(_) => FloatType::F16,
    };
    dense(weight, float, true)
}

/// The values of a weight as a dense weight of type `float`: those of [`dequantize`], rounded to nearest, ties to even. A weight that is
/// already so is returned as it is (sharing its buffer).
///
/// # Shapes
/// `[n, k]`, as the argument.
///
/// # Errors
/// If the weight does not fit its shape, or a finite value is beyond `float`: F16 ends at 65504.
pub fn dequantize_to(weight: &HostWeight, float: FloatType) -> Result<HostWeight> {
    check(weight)?;
    if matches!(&weight.storage, HostStorage::Dense(stored, _) if *stored == float) {
        return Ok(weight.clone());
    }
    let out = dense(weight, float, false);
    let beyond = |task: usize| {
        let start = task * TASK;
        let length = TASK.min(weight.n * weight.k - start);
        let (mut values, mut kept) = (vec![0.0; length], vec![0.0; length]);
        read(weight, start, false, &mut values);
        read(&out, start, false, &mut kept);
        let at = values.iter().zip(&kept).position(|(value, kept)| value.is_finite() && !kept.is_finite())?;
        Some((start + at, values[at]))
    };
    let tasks = (weight.n * weight.k).div_ceil(TASK);
    // F32 and BF16 end where F32 ends, but for the rounding of its last numbers.
    let found = match float {
        FloatType::F32 => None,
        FloatType::F16 | FloatType::Bf16 => run(|| (0..tasks).into_par_iter().find_map_first(beyond)),
    };
    match found {
        None => Ok(out),
        Some((at, value)) => Err(Error::Beyond { row: at / weight.k, column: at % weight.k, value, float }),
    }
}

fn dense(weight: &HostWeight, float: FloatType, half_scales: bool) -> HostWeight {
    let data = match float {
        FloatType::F32 => rounded(weight, half_scales, f32::to_le_bytes),
        FloatType::F16 => rounded(weight, half_scales, |v| f16::from_f32(v).to_le_bytes()),
        FloatType::Bf16 => rounded(weight, half_scales, |v| bf16::from_f32(v).to_le_bytes()),
    };
    HostWeight { n: weight.n, k: weight.k, storage: HostStorage::Dense(float, data) }
}

fn trust(weight: &HostWeight) {
    if let Err(error) = check(weight) {
        panic!("{error}");
    }
}

fn rounded<const SIZE: usize>(
    weight: &HostWeight,
    half_scales: bool,
    encode: impl Fn(f32) -> [u8; SIZE] + Sync,
) -> Bytes {
    const PIECE: usize = 256;
    let mut data = WeightBuffer::new(weight.n * weight.k * SIZE);
    let encode_task = |(task, out): (usize, &mut [u8])| {
        let mut values = [0.0; PIECE];
        for (piece, out) in out.chunks_mut(PIECE * SIZE).enumerate() {
            let out = out.as_chunks_mut::<SIZE>().0;
            let values = &mut values[..out.len()];
            read(weight, task * TASK + piece * PIECE, half_scales, values);
            for (out, &value) in out.iter_mut().zip(&*values) {
                *out = encode(value);
            }
        }
    };
    run(|| data.par_chunks_mut(TASK * SIZE).enumerate().for_each(encode_task));
    Bytes::from_owner(data)
}

/// Reads elements `start..start + out.len()` of the flattened matrix.
///
/// With `half_scales`, row scales are rounded to f16 first; the product of a code and an f16 is then exact in f32.
fn read(weight: &HostWeight, start: usize, half_scales: bool, out: &mut [f32]) {
    match &weight.storage {
        HostStorage::Dense(float, data) => {
            let size = float.size();
            float.decode(&data[start * size..(start + out.len()) * size], out);
        }
        HostStorage::CodeBook4(w) => read_code_book(w, start, out),
        HostStorage::Int8(w) => read_int8(w, weight.k, start, out),
        HostStorage::Rows(w) => read_rows(w, weight.k, start, half_scales, out),
    }
}

fn read_code_book(w: &HostCodeBook4, start: usize, out: &mut [f32]) {
    for_runs(w.block, start, out, |block, within, out| {
        let scale = scale(&w.scales, block);
        let value = |code: u8| w.code_book[usize::from(code)] * scale;
        let element = block * w.block + within;
        // A run that starts at an odd element begins with a low nibble.
        let (low, out) = out.split_at_mut(element % 2);
        if let [low] = low {
            *low = value(w.codes[element / 2] & 15);
        }
        let (pairs, last) = out.as_chunks_mut::<2>();
        let codes = &w.codes[element.div_ceil(2)..];
        for ([even, odd], byte) in pairs.iter_mut().zip(codes) {
            *even = value(byte >> 4);
            *odd = value(byte & 15);
        }
        if let [last] = last {
            *last = value(codes[pairs.len()] >> 4);
        }
    });
}

/// The scale of a block of 4-bit codes.
fn scale(scales: &HostScales, index: usize) -> f32 {
    match scales {
        HostScales::Single(data) => f32::from_le_bytes(data.as_chunks::<4>().0[index]),
        HostScales::Double { codes, map, absmax, block, offset } => {
            map[usize::from(codes[index])] * absmax[index / block] + offset
        }
    }
}

fn read_int8(w: &HostInt8, k: usize, start: usize, out: &mut [f32]) {
    for_runs(k, start, out, |row, column, out| {
        for_runs(INT8_BLOCK, column, out, |block, within, out| {
            let scale = f16::from_le_bytes(w.scales.as_chunks().0[row * k.div_ceil(INT8_BLOCK) + block]).to_f32();
            let codes = &w.codes[row * k + block * INT8_BLOCK + within..];
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = f32::from(code as i8) * scale;
            }
        });
    });
}

fn read_rows(w: &HostRows, k: usize, start: usize, half_scales: bool, out: &mut [f32]) {
    for_runs(k, start, out, |row, column, out| {
        let slot = w.slots.as_ref().map_or(row, |slots| slots[row] as usize);
        let mut scale = w.scales[slot];
        if half_scales {
            scale = f16::from_f32(scale).to_f32();
        }
        if let Some(narrow) = slot.checked_sub(w.wide_rows) {
            let row_bytes = narrow_row_bytes(k, w.narrow_bits);
            let codes = &w.narrow[narrow * row_bytes..][..row_bytes];
            let (per_byte, offset) = if w.narrow_bits == 2 { (4, 1) } else { (2, 7) };
            let mask = (1u8 << w.narrow_bits) - 1;
            for (j, out) in (column..).zip(out) {
                let code = codes[j / per_byte] >> (w.narrow_bits as usize * (j % per_byte)) & mask;
                *out = (i32::from(code) - offset) as f32 * scale;
            }
        } else {
            let codes = &w.wide[slot * k + column..];
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = f32::from(code as i8) * scale;
            }
        }
    });
}

/// Splits elements `start..start + out.len()` at the multiples of `period` and calls `run(index of the period, offset
/// within it, part of out)`.
fn for_runs(period: usize, start: usize, out: &mut [f32], mut run: impl FnMut(usize, usize, &mut [f32])) {
    let (mut start, mut out) = (start, out);
    while !out.is_empty() {
        let within = start % period;
        let length = (period - within).min(out.len());
        let (part, rest) = out.split_at_mut(length);
        run(start / period, within, part);
        start += length;
        out = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{quantize_fp4, quantize_int8, quantize_int8_rows, quantize_nf4, quantize_truequant};

    /// Parts of every storage, wherever they begin and end, are parts of the whole.
    #[test]
    fn parts_are_those_of_the_whole() {
        let (n, k) = (37, 75);
        let data: Vec<u8> = (0..n * k).flat_map(|i| ((i * 31 % 97) as f32 / 41.0 - 1.1).to_le_bytes()).collect();
        let dense = HostWeight { n, k, storage: HostStorage::Dense(FloatType::F32, data.into()) };
        let quantized = [
            quantize_nf4(&dense, false),
            quantize_nf4(&dense, true),
            quantize_fp4(&dense, false),
            quantize_int8(&dense),
            quantize_int8_rows(&dense),
            quantize_truequant(&dense, 2, 9),
            quantize_truequant(&dense, 4, 9),
        ];
        for weight in [Ok(dense)].into_iter().chain(quantized) {
            let weight = weight.expect("a weight");
            let (whole, reader) = (dequantize(&weight), Dequantizer::new(&weight).expect("a reader"));
            for (start, length) in [(0, n * k), (0, 1), (1, 64), (63, 130), (75 * 9, 75), (n * k - 5, 5), (7, 0)] {
                let mut part = vec![f32::NAN; length];
                reader.read(start, &mut part);
                assert_eq!(part, whole[start..start + length], "{start} {length}");
            }
        }
    }

    #[test]
    fn a_weight_that_does_not_fit_has_no_reader() {
        let data = vec![0; 15].into();
        let weight = HostWeight { n: 2, k: 2, storage: HostStorage::Dense(FloatType::F32, data) };
        assert!(Dequantizer::new(&weight).is_err());
    }
}
