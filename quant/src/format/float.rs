//! Little-endian bytes to single precision. Exact for every input type; buffers need no alignment.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

/// Reads `out.len()` numbers from as many encoded ones.
pub(super) type Decode = fn(&[u8], &mut [f32]);

pub(super) fn decode_f32(data: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(data.as_chunks::<4>().0) {
        *out = f32::from_le_bytes(bytes);
    }
}

pub(super) fn decode_bf16(data: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(data.as_chunks::<2>().0) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
    }
}

pub(super) fn decode_f16(data: &[u8], out: &mut [f32]) {
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
