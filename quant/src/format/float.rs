//! Little-endian bytes to single precision. Exact for every input type; buffers need no alignment.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use crate::host::FloatType;

/// Reads `out.len()` numbers from as many encoded ones.
pub(super) type Decode = fn(&[u8], &mut [f32]);

pub(super) fn decoder(float: FloatType) -> Decode {
    match float {
        FloatType::F32 => decode_f32,
        FloatType::F16 => decode_f16,
        FloatType::Bf16 => decode_bf16,
    }
}

fn decode_f32(data: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(data.as_chunks::<4>().0) {
        *out = f32::from_le_bytes(bytes);
    }
}

fn decode_bf16(data: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(data.as_chunks::<2>().0) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
    }
}

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
pub(super) fn absmax(values: &[f32]) -> f32 {
    let bits = values.iter().fold(0, |max: i32, v| max.max(v.to_bits() as i32 & i32::MAX));
    f32::from_bits(bits as u32)
}
