//! Part of a row of any storage as floats: what tables, tiles and the general path read.

use crate::cpu::matmul::dense::{self, Element};
use crate::cpu::matmul::weight::{CodeBook4, INT8_BLOCK, Int8, IntegerRows, Matrix, Weight};
use crate::cpu::simd::{Kernel, Simd};

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
            Matrix::Int8(data) => int8::<S>(data, (w.k, row), first, out),
            Matrix::IntegerRows(data) => {
                let slot = data.slot(row);
                if slot < data.wide_rows {
                    let at = slot * w.k + first;
                    convert::<S, _>(&dense::i8(data.wide)[at..at + out.len()], data.scales[slot], out);
                } else {
                    narrow::<S>(data, slot, first, out);
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

/// Elements from `first` on of a row of `k`.
#[inline(always)]
unsafe fn int8<S: Simd>(w: &Int8, (k, row): (usize, usize), first: usize, out: &mut [f32]) {
    let mut done = 0;
    while done < out.len() {
        let column = first + done;
        let end = out.len().min(done + INT8_BLOCK - column % INT8_BLOCK);
        let mut scale = [0.0];
        w.scales(k, row, column / INT8_BLOCK, &mut scale);
        let codes = &dense::i8(w.codes)[row * k + column..][..end - done];
        // SAFETY: `S` is enabled.
        unsafe { convert::<S, _>(codes, scale[0], &mut out[done..end]) };
        done = end;
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
                let values = S::decode_nibbles::<true>(w.codes.as_ptr().add((first + done) / 2), book);
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

/// The value of every 4-bit code of narrow rows.
pub(crate) static NARROW4: [f32; 16] =
    [-7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];

/// The value of the 2-bit code in the low bits of the index.
pub(crate) static NARROW2: [f32; 16] =
    [-1.0, 0.0, 1.0, 2.0, -1.0, 0.0, 1.0, 2.0, -1.0, 0.0, 1.0, 2.0, -1.0, 0.0, 1.0, 2.0];

/// The four 2-bit codes in a byte, for every byte.
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

#[inline(always)]
unsafe fn narrow<S: Simd>(w: &IntegerRows, slot: usize, first: usize, out: &mut [f32]) {
    let row = &w.narrow[(slot - w.wide_rows) * w.narrow_stride..];
    let scale = w.scales[slot];
    let per_byte = 8 / w.narrow_bits as usize;
    let one = |at: usize| {
        let code = row[at / per_byte] >> (w.narrow_bits as usize * (at % per_byte));
        if per_byte == 4 { NARROW2[(code & 3) as usize] } else { NARROW4[(code & 15) as usize] }
    };
    // To the next whole byte, bytes, and what is left.
    let mut done = 0;
    while done < out.len() && !(first + done).is_multiple_of(per_byte) {
        out[done] = one(first + done) * scale;
        done += 1;
    }
    if per_byte == 4 {
        let bytes = &row[(first + done) / 4..];
        for (out, &byte) in out[done..].chunks_exact_mut(4).zip(bytes) {
            for (out, value) in out.iter_mut().zip(&QUADS[byte as usize]) {
                *out = value * scale;
            }
        }
        done += (out.len() - done) / 4 * 4;
    } else {
        // SAFETY: `S` is enabled; each step decodes `LANES` elements of the row, from an even one on.
        unsafe {
            let (book, scales) = (S::book(&NARROW4), S::splat(scale));
            while done + S::LANES <= out.len() {
                let values = S::decode_nibbles::<false>(row.as_ptr().add((first + done) / 2), book);
                S::store(out.as_mut_ptr().add(done), S::mul(values, scales));
                done += S::LANES;
            }
        }
    }
    for (i, out) in out.iter_mut().enumerate().skip(done) {
        *out = one(first + i) * scale;
    }
}
