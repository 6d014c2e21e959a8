//! Numbers from bytes: floats of any stored type as f32, and small quantised tensors in full.

use emberlm_quant::host::{FloatType, HostCodeBook4, HostRows, HostScales, HostStorage, HostWeight};
use half::{bf16, f16};

/// Little-endian numbers as f32. Bytes that do not fill a number are left out.
pub(super) fn floats(dtype: FloatType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        FloatType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        FloatType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        FloatType::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
    }
}

/// Little-endian i64 as row indices; `None` for one that is negative or beyond usize.
pub(super) fn indices(bytes: &[u8]) -> Vec<Option<usize>> {
    bytes.as_chunks().0.iter().map(|b| usize::try_from(i64::from_le_bytes(*b)).ok()).collect()
}

/// Position of the first number that is NaN or infinite.
pub(super) fn first_non_finite(dtype: FloatType, bytes: &[u8]) -> Option<usize> {
    match dtype {
        FloatType::F32 => bytes.as_chunks().0.iter().position(|b| !f32::from_le_bytes(*b).is_finite()),
        FloatType::F16 => bytes.as_chunks().0.iter().position(|b| !f16::from_le_bytes(*b).is_finite()),
        FloatType::Bf16 => bytes.as_chunks().0.iter().position(|b| !bf16::from_le_bytes(*b).is_finite()),
    }
}

/// The matrix in f32. For tensors that are read as vectors; large ones stay quantised.
pub(super) fn dequantise(weight: &HostWeight) -> Vec<f32> {
    match &weight.storage {
        HostStorage::Dense(dtype, bytes) => floats(*dtype, bytes),
        HostStorage::CodeBook4(book) => code_book(book, weight.n * weight.k),
        HostStorage::Rows(rows) => (0..weight.n).flat_map(|row| integer_row(rows, row, weight.k)).collect(),
    }
}

fn code_book(book: &HostCodeBook4, elements: usize) -> Vec<f32> {
    let scales: Vec<f32> = match &book.scales {
        HostScales::Single(bytes) => floats(FloatType::F32, bytes),
        HostScales::Double { codes, map, absmax, block, offset } => {
            let scale = |(i, &code): (usize, &u8)| map[usize::from(code)] * absmax[i / block] + offset;
            codes.iter().enumerate().map(scale).collect()
        }
    };
    let value = |i: usize| {
        let byte = book.codes[i / 2];
        let code = if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        book.code_book[usize::from(code)] * scales[i / book.block]
    };
    (0..elements).map(value).collect()
}

fn integer_row(rows: &HostRows, row: usize, k: usize) -> Vec<f32> {
    let slot = rows.slots.as_ref().map_or(row, |slots| slots[row] as usize);
    let scale = rows.scales[slot];
    if slot < rows.wide_rows {
        return rows.wide[slot * k..(slot + 1) * k].iter().map(|&q| f32::from(q as i8) * scale).collect();
    }
    let bits = rows.narrow_bits as usize;
    let stride = (k * bits).div_ceil(8);
    let start = (slot - rows.wide_rows) * stride;
    let (mask, zero) = if bits == 2 { (3, 1.0) } else { (15, 7.0) };
    let code = |j: usize| (rows.narrow[start + j * bits / 8] >> (j * bits % 8)) & mask;
    (0..k).map(|j| (f32::from(code(j)) - zero) * scale).collect()
}
