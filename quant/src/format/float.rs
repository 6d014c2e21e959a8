//! Little-endian bytes to single precision.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use crate::host::FloatType;

impl FloatType {
    /// Reads `out.len()` numbers from as many little-endian ones. Exact for every type; the bytes need not be aligned.
    #[inline(always)]
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => decode_f32(bytes, out),
            Self::F16 => decode_f16(bytes, out),
            Self::Bf16 => decode_bf16(bytes, out),
        }
    }

    /// All numbers of `bytes`, as [`decode`](Self::decode) reads them; bytes that do not fill a number are left out.
    pub fn decode_all(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; bytes.len() / self.size()];
        self.decode(bytes, &mut out);
        out
    }

    /// The place of the first little-endian number that is NaN or infinite.
    pub fn first_non_finite(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().position(|b| !f32::from_le_bytes(*b).is_finite()),
            Self::F16 => bytes.as_chunks().0.iter().position(|b| !f16::from_le_bytes(*b).is_finite()),
            Self::Bf16 => bytes.as_chunks().0.iter().position(|b| !bf16::from_le_bytes(*b).is_finite()),
        }
    }
}

#[inline(always)]
fn decode_f32(data: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(data.as_chunks::<4>().0) {
        *out = f32::from_le_bytes(bytes);
    }
}

#[inline(always)]
fn decode_bf16(data: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(data.as_chunks::<2>().0) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
    }
}

#[inline(always)]
fn decode_f16(data: &[u8], out: &mut [f32]) {
    // The slice conversion uses the processor's instruction where there is one, but wants aligned input.
    let mut bits = [0u16; 64];
    for (out, data) in out.chunks_mut(64).zip(data.chunks(128)) {
        let bits = &mut bits[..out.len()];
        for (bits, &bytes) in bits.iter_mut().zip(data.as_chunks::<2>().0) {
            *bits = u16::from_le_bytes(bytes);
        }
        let halves: &[f16] = bits.reinterpret_cast();
        halves.convert_to_f32_slice(out);
    }
}

/// The largest magnitude. Infinity if there is one, NaN if there is one, 0 for no values.
///
/// Without the sign, the bits of floating point numbers are ordered as integers, with infinity and NaN on top; unlike
/// `f32::max`, the integer maximum does not lose NaN.
#[inline(always)]
pub(super) fn absmax(values: &[f32]) -> f32 {
    let bits = values.iter().fold(0, |max: i32, v| max.max(v.to_bits() as i32 & i32::MAX));
    f32::from_bits(bits as u32)
}
