//! Part of a row of any storage as floats: what tables, tiles and the general path read.

use super::dense::{self, Element};
use super::simd::{Kernel, Simd};
use super::weight::{CodeBook4, Matrix, Rows, Weight};

/// Decodes elements `first..first + out.len()` of a row; the values are exact (one f32 product).
pub(crate) struct Decode<'a> {
    pub(crate) w: &'a Weight<'a>,
    pub(crate) row: usize,
    pub(crate) first: usize,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // SAFETY: `S` is enabled.
        unsafe { decode::<S>(self.w, self.row, self.first, self.out) }
    }
}

/// See [`Decode`].
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(crate) unsafe fn decode<S: Simd>(w: &Weight, row: usize, first: usize, out: &mut [f32]) {
    let at = row * w.k + first;
    // SAFETY: `S` is enabled.
    unsafe {
        match &w.data {
            Matrix::F32(data) => out.copy_from_slice(&data[at..at + out.len()]),
            Matrix::F16(data) => convert::<S, _>(&dense::f16(data)[at..at + out.len()], 1.0, out),
            Matrix::Bf16(data) => convert::<S, _>(&dense::bf16(data)[at..at + out.len()], 1.0, out),
            Matrix::CodeBook4(data) => code_book::<S>(data, at, out),
            Matrix::Rows(data) => {
                let slot = data.slot(row);
                if slot < data.wide_rows {
                    let at = slot * w.k + first;
                    convert::<S, _>(&dense::i8(data.wide)[at..at + out.len()], data.scales[slot], out);
                } else {
                    narrow(data, slot, first, out);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn convert<S: Simd, E: Element>(from: &[E], scale: f32, out: &mut [f32]) {
    let whole = out.len() / S::LANES * S::LANES;
    // SAFETY: both slices hold `whole` elements.
    unsafe {
        let scales = S::splat(scale);
        let mut i = 0;
        while i < whole {
            S::store(out.as_mut_ptr().add(i), S::mul(E::load::<S>(from.as_ptr().add(i)), scales));
            i += S::LANES;
        }
    }
    for (out, from) in out[whole..].iter_mut().zip(&from[whole..]) {
        *out = from.value() * scale;
    }
}

#[inline(always)]
unsafe fn code_book<S: Simd>(w: &CodeBook4, first: usize, out: &mut [f32]) {
    let mut done = 0;
    let one = |at: usize, scale: f32| {
        let byte = w.codes[at / 2];
        w.code_book[(if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 }) as usize] * scale
    };
    while done < out.len() {
        let at = first + done;
        let end = out.len().min(done + w.block - at % w.block);
        let scale = w.scales.get(at / w.block);
        if !at.is_multiple_of(2) {
            out[done] = one(at, scale);
            done += 1;
        }
        // SAFETY: `S` is enabled; each step decodes `LANES` elements that lie before `end`, from an even one on.
        unsafe {
            let (book, scales) = (S::book(w.code_book), S::splat(scale));
            while done + S::LANES <= end {
                let values = S::decode_nibbles(w.codes.as_ptr().add((first + done) / 2), book);
                S::store(out.as_mut_ptr().add(done), S::mul(values, scales));
                done += S::LANES;
            }
        }
        for i in done..end {
            out[i] = one(first + i, scale);
        }
        done = end;
    }
}

/// The codes in a byte, for every byte.
static PAIRS: [[f32; 2]; 256] = {
    let mut table = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = [(byte & 15) as f32 - 7.0, (byte >> 4) as f32 - 7.0];
        byte += 1;
    }
    table
};
static QUADS: [[f32; 4]; 256] = {
    let mut table = [[0.0; 4]; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut i = 0;
        while i < 4 {
            table[byte][i] = (byte >> (2 * i) & 3) as f32 - 1.0;
            i += 1;
        }
        byte += 1;
    }
    table
};

fn narrow(w: &Rows, slot: usize, first: usize, out: &mut [f32]) {
    let row = &w.narrow[(slot - w.wide_rows) * w.narrow_stride..];
    let scale = w.scales[slot];
    if w.narrow_bits == 2 {
        unpack(&QUADS, row, first, scale, out);
    } else {
        unpack(&PAIRS, row, first, scale, out);
    }
}

#[inline(always)]
fn unpack<const N: usize>(table: &[[f32; N]; 256], row: &[u8], first: usize, scale: f32, out: &mut [f32]) {
    let mut done = 0;
    while done < out.len() && !(first + done).is_multiple_of(N) {
        out[done] = table[row[(first + done) / N] as usize][(first + done) % N] * scale;
        done += 1;
    }
    let bytes = &row[(first + done) / N..];
    for (out, &byte) in out[done..].chunks_mut(N).zip(bytes) {
        for (out, value) in out.iter_mut().zip(&table[byte as usize]) {
            *out = value * scale;
        }
    }
}
