//! Numbers from bytes: floats of any stored type as f32, and small quantised tensors in full.

use emberlm_quant::format;
use emberlm_quant::host::{FloatType, HostWeight};
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
///
/// # Errors
/// When its parts do not fit its shape, or its scales are not finite.
pub(super) fn dequantise(weight: &HostWeight) -> Result<Vec<f32>, emberlm_quant::Error> {
    format::check(weight)?;
    Ok(format::dequantize(weight))
}
