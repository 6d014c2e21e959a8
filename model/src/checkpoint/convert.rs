//! Numbers from bytes: floats of any stored type as f32, and small quantised tensors in full.

use emberlm_quant::format::INT8_BLOCK;
use emberlm_quant::host::{FloatType, HostCodeBook4, HostInt8, HostRows, HostScales, HostStorage, HostWeight};
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

/// The matrix in f32; `None` when its parts are too short for its shape. For tensors that are read as vectors; large ones stay
/// quantised.
pub(super) fn dequantise(weight: &HostWeight) -> Option<Vec<f32>> {
    let elements = weight.n.checked_mul(weight.k)?;
    let out = match &weight.storage {
        HostStorage::Dense(dtype, bytes) => floats(*dtype, bytes),
        HostStorage::CodeBook4(book) => code_book(book, elements),
        HostStorage::Int8(w) => int8(w, weight.k),
        HostStorage::Rows(rows) => {
            let rows: Option<Vec<Vec<f32>>> = (0..weight.n).map(|row| integer_row(rows, row, weight.k)).collect();
            rows?.concat()
        }
    };
    (out.len() == elements).then_some(out)
}

fn code_book(book: &HostCodeBook4, elements: usize) -> Vec<f32> {
    let value = |map: &[f32], code: u8| map.get(usize::from(code)).copied().unwrap_or(f32::NAN);
    let scales: Vec<f32> = match &book.scales {
        HostScales::Single(bytes) => floats(FloatType::F32, bytes),
        HostScales::Double { codes, map, absmax, block, offset } => {
            let blocks = codes.chunks((*block).max(1)).zip(absmax);
            blocks
                .flat_map(|(codes, absmax)| codes.iter().map(move |&code| value(map, code) * absmax + offset))
                .collect()
        }
    };
    let codes = book.codes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let scales = scales.iter().flat_map(|scale| std::iter::repeat_n(scale, book.block));
    codes.zip(scales).map(|(code, scale)| value(&book.code_book, code) * scale).take(elements).collect()
}

fn int8(w: &HostInt8, k: usize) -> Vec<f32> {
    let scales = floats(FloatType::F16, &w.scales);
    let rows = w.codes.chunks(k.max(1)).zip(scales.chunks(k.div_ceil(INT8_BLOCK).max(1)));
    let blocks = rows.flat_map(|(codes, scales)| codes.chunks(INT8_BLOCK).zip(scales));
    blocks.flat_map(|(codes, scale)| codes.iter().map(move |&q| f32::from(q as i8) * scale)).collect()
}

fn integer_row(rows: &HostRows, row: usize, k: usize) -> Option<Vec<f32>> {
    let slot = match &rows.slots {
        Some(slots) => usize::try_from(*slots.get(row)?).ok()?,
        None => row,
    };
    let scale = *rows.scales.get(slot)?;
    let section = |bytes: &[u8], row: usize, stride: usize| -> Option<Vec<u8>> {
        let start = row.checked_mul(stride)?;
        bytes.get(start..start.checked_add(stride)?).map(<[u8]>::to_vec)
    };
    if slot < rows.wide_rows {
        let codes = section(&rows.wide, slot, k)?;
        return Some(codes.into_iter().map(|q| f32::from(q as i8) * scale).collect());
    }
    let bits = usize::try_from(rows.narrow_bits).ok()?;
    let bytes = section(&rows.narrow, slot.checked_sub(rows.wide_rows)?, k.checked_mul(bits)?.div_ceil(8))?;
    let (mask, zero) = if bits == 2 { (3, 1.0) } else { (15, 7.0) };
    let codes = bytes.iter().flat_map(|byte| (0..8).step_by(bits.max(1)).map(move |shift| (byte >> shift) & mask));
    Some(codes.take(k).map(|code| (f32::from(code) - zero) * scale).collect())
}
