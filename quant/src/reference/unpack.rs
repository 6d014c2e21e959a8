//! Packed words to numbers, with integer shifts and table look-ups only.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, ElementConversion, Int, Tensor, TensorData};
use emberlm_backends::cpu::INT8_BLOCK;

use crate::host::FloatType;
use crate::packed::{BlockScales, CodeBook4Weight, HalfWeight, Int8Weight, PackedWeight, RowsWeight};

/// Bit positions of the eight codes of a word of [`CodeBook4Weight`]: high nibble first within each byte.
const HIGH_NIBBLE_FIRST: [u32; 8] = [4, 0, 12, 8, 20, 16, 28, 24];

/// The whole weight as floats.
///
/// # Shapes
/// `-> [n, k]`
pub fn dequantize<B: Backend>(w: &PackedWeight<B>) -> Tensor<B, 2> {
    match w {
        PackedWeight::Float(w) => w.val(),
        PackedWeight::Half(w) => half(w),
        PackedWeight::CodeBook4(w) => code_book4(w),
        PackedWeight::Int8(w) => int8(w),
        PackedWeight::Rows(w) => rows(w),
        PackedWeight::Split(w) => Tensor::cat(w.parts.iter().map(|part| dequantize(&part.weight())).collect(), 0),
    }
}

/// Words of two F16 numbers each, the earlier in the low half.
///
/// # Shapes
/// `[words] -> [2 * words]`
pub fn unpack_f16<B: Backend>(words: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let count = words.dims()[0] * 2;
    half_to_float(fields(words, &[0, 16], 16, count), FloatType::F16)
}

fn half<B: Backend>(w: &HalfWeight<B>) -> Tensor<B, 2> {
    let bits = fields(w.words.val(), &[0, 16], 16, w.n * w.k);
    half_to_float(bits, w.float).reshape([w.n, w.k])
}

fn code_book4<B: Backend>(w: &CodeBook4Weight<B>) -> Tensor<B, 2> {
    let count = w.n * w.k;
    let codes = fields(w.codes.val(), &HIGH_NIBBLE_FIRST, 4, count);
    let values = w.code_book.val().select(0, codes);
    let blocks = count.div_ceil(w.block);
    let scales = match &w.scales {
        BlockScales::Single(absmax) => absmax.val(),
        BlockScales::Double(d) => {
            let codes = fields(d.codes.val(), &[0, 8, 16, 24], 8, blocks);
            let absmax = repeat_each(d.absmax.val(), d.block, blocks);
            d.map.val().select(0, codes) * absmax + d.offset
        }
    };
    (values * repeat_each(scales, w.block, count)).reshape([w.n, w.k])
}

fn int8<B: Backend>(w: &Int8Weight<B>) -> Tensor<B, 2> {
    let blocks = w.k.div_ceil(INT8_BLOCK);
    let scales = half_to_float(fields(w.scales.val(), &[0, 16], 16, w.n * blocks), FloatType::F16);
    let scales = scales.reshape([w.n, blocks, 1]).repeat_dim(2, INT8_BLOCK).reshape([w.n, blocks * INT8_BLOCK]);
    unpack_i8(w.codes.val(), [w.n, w.k]) * scales.slice_dim(1, 0..w.k)
}

/// Words of four bytes in two's complement, the first in the lowest bits, as numbers.
///
/// # Shapes
/// `[rows * columns / 4] -> [rows, columns]`
pub fn unpack_i8<B: Backend>(words: Tensor<B, 1, Int>, shape: [usize; 2]) -> Tensor<B, 2> {
    let codes = fields(words, &[0, 8, 16, 24], 8, shape[0] * shape[1]).reshape(shape).float();
    // 128..255 stand for -128..-1.
    let wrap = codes.clone().greater_equal_elem(128.0).float() * 256.0;
    codes - wrap
}

fn rows<B: Backend>(w: &RowsWeight<B>) -> Tensor<B, 2> {
    let narrow_rows = w.n - w.wide_rows;
    let mut stored = Vec::new();
    if let Some(wide) = &w.wide {
        stored.push(unpack_i8(wide.val(), [w.wide_rows, w.k]));
    }
    if let Some(narrow) = &w.narrow {
        let bits = w.narrow_bits as u32;
        let shifts: Vec<u32> = (0..32 / bits).map(|i| i * bits).collect();
        let per_row = w.narrow_stride() * 8 / w.narrow_bits;
        let codes = fields(narrow.val(), &shifts, bits, narrow_rows * per_row);
        let codes = codes.reshape([narrow_rows, per_row]).slice([0..narrow_rows, 0..w.k]).float();
        let offset = (1 << (bits - 1)) - 1;
        stored.push(codes - offset as f32);
    }
    let values = Tensor::cat(stored, 0) * w.scales.val().reshape([w.n, 1]);
    match &w.slots {
        None => values,
        Some(slots) => {
            let slots = fields(slots.val(), &[0], 32, w.n);
            values.select(0, slots)
        }
    }
}

/// Splits words into the fields at `shifts` and keeps the first `count`, in the backend's default integer type.
fn fields<B: Backend>(words: Tensor<B, 1, Int>, shifts: &[u32], bits: u32, count: usize) -> Tensor<B, 1, Int> {
    let device = words.device();
    let words = whole_words(words);
    let total = words.dims()[0] * shifts.len();
    let default = Tensor::<B, 1, Int>::empty([1], &device).dtype();
    let parts = shifts.iter().map(|&shift| {
        let field = words.clone().bitwise_right_shift_scalar(shift.elem());
        let field = if bits == 32 { field } else { field.bitwise_and_scalar(((1u32 << bits) - 1).elem()) };
        field.cast(default)
    });
    Tensor::stack::<2>(parts.collect(), 1).reshape([total]).slice_dim(0, 0..count)
}

/// U32 words as they are; those of U8, padded with zeros.
fn whole_words<B: Backend>(packed: Tensor<B, 1, Int>) -> Tensor<B, 1, Int> {
    if packed.dtype() != DType::U8 {
        return packed;
    }
    let device = packed.device();
    let bytes: Vec<u8> = packed.into_data().into_vec().expect("a tensor of U8");
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
    let words: Vec<u32> = bytes.chunks(4).map(word).collect();
    let count = words.len();
    Tensor::from_data(TensorData::new(words, [count]), (&device, DType::U32))
}

/// Each element `times` times, cut to `count`.
fn repeat_each<B: Backend>(t: Tensor<B, 1>, times: usize, count: usize) -> Tensor<B, 1> {
    let len = t.dims()[0];
    t.reshape([len, 1]).repeat_dim(1, times).reshape([len * times]).slice_dim(0, 0..count)
}

/// Decodes half-precision bit patterns: `(-1)^sign 2^exponent (1 + mantissa)`, each factor exact in f32.
fn half_to_float<B: Backend>(bits: Tensor<B, 1, Int>, float: FloatType) -> Tensor<B, 1> {
    let device = bits.device();
    let (mantissa_bits, bias): (i32, i32) = match float {
        FloatType::F16 => (10, 15),
        FloatType::Bf16 => (7, 127),
        FloatType::F32 => unreachable!("F32 weights are plain tensors"),
    };
    let exponents = 1usize << (15 - mantissa_bits);
    // Exponent 0 holds the subnormals: the scale of exponent 1 and no implicit one.
    let scale: Vec<f32> = (0..exponents).map(|e| 2f32.powi(e.max(1) as i32 - bias)).collect();
    let implicit: Vec<f32> = (0..exponents).map(|e| if e == 0 { 0.0 } else { 1.0 }).collect();
    let table =
        |values: Vec<f32>| Tensor::<B, 1>::from_data(TensorData::new(values, [exponents]), (&device, DType::F32));
    let exponent =
        bits.clone().bitwise_right_shift_scalar(mantissa_bits.elem()).bitwise_and_scalar((exponents as i32 - 1).elem());
    let mantissa = bits.clone().bitwise_and_scalar(((1 << mantissa_bits) - 1).elem()).float();
    let mantissa = mantissa / (1 << mantissa_bits) as f32;
    let sign = bits.bitwise_right_shift_scalar(15.elem()).float() * -2.0 + 1.0;
    sign * table(scale).select(0, exponent.clone()) * (table(implicit).select(0, exponent) + mantissa)
}
