//! bitsandbytes' 4-bit storage, NF4 and FP4: codes into a book of 16 values, one scale per 64 elements.
//!
//! Source: Dettmers et al., QLoRA (arXiv 2305.14314). The bytes are those that bitsandbytes 0.50 writes for a weight on the
//! CPU. Codes and block scales are so for every weight. The offset of double-quantised scales is a mean whose last bits
//! depend on the order of additions: it is PyTorch's (x86-64) for weights of fewer than 2^21 elements, and for larger ones
//! when PyTorch runs on one thread; otherwise the offset may differ by a few units of its last place, and with it some of
//! the 8-bit scale codes by one. bitsandbytes on a GPU has kernels of its own, which may choose the neighbouring code for a value
//! that lies half-way.

use bytes::Bytes;
use emberlm_backends::cpu::{Level, Vectorized, level, run, vectorized};
use rayon::prelude::*;

use super::dense::{Dense, PIECE};
use super::dynamic_map::quantize_scales;
use super::float::absmax;
use crate::error::Result;
use crate::host::{HostCodeBook4, HostScales, HostStorage, HostWeight, WeightBuffer};

/// The values of NF4: quantiles of the normal distribution.
#[allow(clippy::excessive_precision)] // written as the source has them
pub const NF4: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// The values of FP4: sign, two bits of exponent, one of fraction, divided by the largest (12).
pub const FP4: [f32; 16] = {
    let sizes = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        values[i] = sizes[i] / 12.0;
        // Code 8 is +0, too.
        values[i + 8] = (0.0 - sizes[i]) / 12.0;
        i += 1;
    }
    values
};

/// Elements per scale.
const BLOCK: usize = 64;
/// Blocks per task: 16 KiB of codes, so that a small weight still feeds several threads.
const TASK: usize = 512;
/// Smallest divisor; the reciprocal of a smaller one would overflow. (Subnormal, as in bitsandbytes.)
const SMALLEST: f32 = 1e-38;

/// Quantises a dense weight to NF4.
///
/// Blocks of 64 elements run over the flattened matrix. With `double_quant` the block scales are quantised to 8 bits
/// (4.13 bits per weight instead of 4.5).
///
/// # Shapes
/// `[n, k]`, as the argument.
///
/// # Errors
/// If the weight is not dense, does not fit its shape, or holds a number that is not finite; with `double_quant` also if
/// the sum of the block scales overflows.
pub fn quantize_nf4(weight: &HostWeight, double_quant: bool) -> Result<HostWeight> {
    quantize(weight, &NF4, double_quant)
}

/// Quantises a dense weight to FP4. Otherwise as [`quantize_nf4`].
///
/// # Errors
/// As [`quantize_nf4`].
pub fn quantize_fp4(weight: &HostWeight, double_quant: bool) -> Result<HostWeight> {
    quantize(weight, &FP4, double_quant)
}

fn quantize(weight: &HostWeight, code_book: &[f32; 16], double_quant: bool) -> Result<HostWeight> {
    let level = level();
    run(|| quantize_inside(weight, code_book, double_quant, level))
}

/// On the threads of the kernels.
fn quantize_inside(weight: &HostWeight, code_book: &[f32; 16], double_quant: bool, level: Level) -> Result<HostWeight> {
    let dense = Dense::new(weight)?;
    let search = Search::new(code_book);
    let elements = dense.elements();
    let mut codes = WeightBuffer::new(elements.div_ceil(2));
    let mut scales = vec![0.0; elements.div_ceil(BLOCK)];
    let data = dense.data.par_chunks(TASK * BLOCK * dense.float.size());
    let tasks = data.zip(codes.par_chunks_mut(TASK * BLOCK / 2)).zip(scales.par_chunks_mut(TASK));
    tasks.with_max_len(PIECE / (TASK * BLOCK)).for_each(|((data, codes), scales)| {
        vectorized(level, Blocks { dense: &dense, search: &search, data, codes, scales });
    });
    dense.check_finite(&scales, BLOCK)?;

    let scales = if double_quant {
        quantize_scales(scales)?
    } else {
        let mut bytes = WeightBuffer::new(4 * scales.len());
        for (stored, scale) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&scales) {
            *stored = scale.to_le_bytes();
        }
        HostScales::Single(Bytes::from_owner(bytes))
    };
    let storage = HostStorage::CodeBook4(HostCodeBook4 {
        codes: Bytes::from_owner(codes),
        code_book: *code_book,
        block: BLOCK,
        scales,
        stored: dense.float,
    });
    Ok(HostWeight { n: weight.n, k: weight.k, storage })
}

/// Blocks side by side.
struct Blocks<'a> {
    dense: &'a Dense<'a>,
    search: &'a Search,
    /// As encoded.
    data: &'a [u8],
    codes: &'a mut [u8],
    scales: &'a mut [f32],
}

impl Vectorized for Blocks<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let size = self.dense.float.size();
        let mut values = [0.0; BLOCK];
        for ((data, codes), scale) in
            self.data.chunks(BLOCK * size).zip(self.codes.chunks_mut(BLOCK / 2)).zip(self.scales)
        {
            if data.len() == BLOCK * size {
                self.dense.float.decode(data, &mut values);
                *scale = absmax(&values);
                let inverse = 1.0 / scale.max(SMALLEST);
                for value in &mut values {
                    *value *= inverse;
                }
            } else {
                // The short block at the end: bitsandbytes divides here, and stores the divisor. Its last byte may be padded.
                let (values, padding) = values.split_at_mut(data.len() / size);
                self.dense.float.decode(data, values);
                let largest = absmax(values);
                // Not `max`, which would lose NaN.
                *scale = if largest < SMALLEST { SMALLEST } else { largest };
                for value in values {
                    *value /= *scale;
                }
                padding.fill(0.0);
            }
            let packed = self.search.pack(&values);
            codes.copy_from_slice(&packed[..codes.len()]);
        }
    }
}

/// Finds the code whose value is nearest; half-way, the lower value's.
struct Search {
    /// Between neighbouring values.
    middles: [f32; 15],
    /// Codes by ascending value; `None` if they ascend already.
    order: Option<[u8; 16]>,
}

impl Search {
    fn new(code_book: &[f32; 16]) -> Self {
        let mut order: [u8; 16] = std::array::from_fn(|i| i as u8);
        // Stable: of the two zeros of FP4, code 0 comes first and code 8 stands for what is just above it.
        order.sort_by(|&a, &b| code_book[usize::from(a)].total_cmp(&code_book[usize::from(b)]));
        let value = |i: usize| code_book[usize::from(order[i])];
        Self {
            middles: std::array::from_fn(|i| (value(i) + value(i + 1)) / 2.0),
            order: (!order.is_sorted()).then_some(order),
        }
    }

    /// The codes of a block, two per byte, the first in the high nibble.
    ///
    /// Counting the middles below a value needs no branch and no table, so that the compiler can do many values at once.
    /// Values outside [-1, 1] (by rounding) get the outermost codes.
    #[inline(always)]
    fn pack(&self, values: &[f32; BLOCK]) -> [u8; BLOCK / 2] {
        let mut codes = [0u8; BLOCK];
        for (codes, values) in codes.as_chunks_mut::<16>().0.iter_mut().zip(values.as_chunks::<16>().0) {
            let mut counts = [0i32; 16];
            for middle in &self.middles {
                for (count, value) in counts.iter_mut().zip(values) {
                    *count += i32::from(value > middle);
                }
            }
            for (code, count) in codes.iter_mut().zip(counts) {
                *code = count as u8;
            }
        }
        if let Some(order) = &self.order {
            for code in &mut codes {
                *code = order[usize::from(*code & 15)];
            }
        }
        let mut packed = [0; BLOCK / 2];
        for (packed, [high, low]) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
            *packed = high << 4 | low;
        }
        packed
    }
}
