//! Borrowed weight matrices in every storage the kernels read.

use crate::check::elements;
use crate::cpu::simd::Simd;
use crate::types;
pub use crate::types::INT8_BLOCK;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

/// A borrowed matrix `[n, k]`, row-major.
pub type Weight<'a> = types::Weight<&'a [f32], &'a [u16], &'a [u8], &'a [u8], &'a [u32], &'a [f32; 16]>;
/// How the elements of a [`Weight`] are stored.
pub type Matrix<'a> = types::Matrix<&'a [f32], &'a [u16], &'a [u8], &'a [u8], &'a [u32], &'a [f32; 16]>;
/// 4-bit codes with a code book.
pub type CodeBook4<'a> = types::CodeBook4<&'a [f32], &'a [u8], &'a [f32; 16]>;
/// The block scales of a [`CodeBook4`].
pub type BlockScales<'a> = types::BlockScales<&'a [f32], &'a [u8]>;
/// Signed bytes with a scale per block of [`INT8_BLOCK`] elements of a row.
pub type Int8<'a> = types::Int8<&'a [u16], &'a [u8]>;
/// Integer rows with one scale each.
pub type IntegerRows<'a> = types::IntegerRows<&'a [f32], &'a [u8], &'a [u32]>;

impl BlockScales<'_> {
    /// The scale of block `i`.
    #[inline(always)]
    pub(crate) fn get(&self, i: usize) -> f32 {
        match *self {
            BlockScales::Single(scales) => scales[i],
            BlockScales::Double { codes, map, absmax, block, offset } => {
                map[codes[i] as usize] * absmax[i / block] + offset
            }
        }
    }

    fn check(&self, blocks: usize) {
        match *self {
            BlockScales::Single(scales) => {
                assert!(scales.len() >= blocks, "{} block scales, {blocks} needed", scales.len());
            }
            BlockScales::Double { codes, map, absmax, block, .. } => {
                assert!(block > 0, "scales per absmax must not be 0");
                assert!(codes.len() >= blocks, "{} scale codes, {blocks} needed", codes.len());
                assert!(map.len() == 256, "a scale map has 256 entries, not {}", map.len());
                let needed = blocks.div_ceil(block);
                assert!(absmax.len() >= needed, "{} nested absmax, {needed} needed", absmax.len());
            }
        }
    }
}

impl Int8<'_> {
    /// The scales of blocks `first..first + out.len()` of a row of `k` elements.
    #[inline(always)]
    pub(crate) fn scales(&self, k: usize, row: usize, first: usize, out: &mut [f32]) {
        let from = row * k.div_ceil(INT8_BLOCK) + first;
        let scales: &[f16] = self.scales[from..from + out.len()].reinterpret_cast();
        scales.convert_to_f32_slice(out);
    }

    /// [`scales`](Self::scales) of the first blocks of a row, where a kernel is compiled for an instruction set: it asks for none.
    ///
    /// # Safety
    /// `S` is enabled.
    #[inline(always)]
    pub(crate) unsafe fn row_scales<S: Simd>(&self, k: usize, row: usize, out: &mut [f32]) {
        let scales = &self.scales[row * k.div_ceil(INT8_BLOCK)..][..out.len()];
        let Some(last) = out.len().checked_sub(S::LANES) else {
            for (out, &scale) in out.iter_mut().zip(scales) {
                *out = f16::from_bits(scale).to_f32_const();
            }
            return;
        };
        // The last ones overlap those before them.
        for b in (0..last).step_by(S::LANES).chain([last]) {
            // SAFETY: both have as many numbers from `b` on.
            unsafe { S::store(out.as_mut_ptr().add(b), S::load_f16(scales.as_ptr().add(b))) };
        }
    }
}

impl IntegerRows<'_> {
    /// The stored row of output row `j`.
    #[inline(always)]
    pub(crate) fn slot(&self, j: usize) -> usize {
        self.slots.map_or(j, |slots| slots[j] as usize)
    }

    fn check(&self, n: usize, k: usize) {
        assert!(self.wide_rows <= n, "{} wide rows in a matrix of {n}", self.wide_rows);
        let wide = self.wide_rows.checked_mul(k).expect("wide rows overflow");
        assert!(self.wide.len() >= wide, "{} bytes of wide rows, {wide} needed", self.wide.len());
        assert!(self.scales.len() >= n, "{} row scales, {n} needed", self.scales.len());
        let narrow_rows = n - self.wide_rows;
        if narrow_rows > 0 {
            assert!(matches!(self.narrow_bits, 2 | 4), "narrow rows have 2 or 4 bits, not {}", self.narrow_bits);
            let row = k.checked_mul(self.narrow_bits as usize).expect("row bits overflow").div_ceil(8);
            assert!(self.narrow_stride >= row, "narrow stride {} is below {row} bytes", self.narrow_stride);
            let needed = (narrow_rows - 1).checked_mul(self.narrow_stride).and_then(|b| b.checked_add(row));
            let needed = needed.expect("narrow rows overflow");
            assert!(self.narrow.len() >= needed, "{} bytes of narrow rows, {needed} needed", self.narrow.len());
        }
        if let Some(slots) = self.slots {
            assert!(slots.len() == n, "{} row slots, {n} needed", slots.len());
            let highest = slots.iter().fold(0, |highest, &slot| highest.max(slot));
            assert!(n == 0 || (highest as usize) < n, "row slot {highest} in a matrix of {n} rows");
        }
    }
}

impl Weight<'_> {
    /// Checks that the storage holds `n * k` elements.
    ///
    /// # Panics
    /// Names the part that is too short or out of range.
    pub fn check(&self) {
        let elements = elements("a matrix", &[self.n, self.k]);
        let floats = |len: usize| assert!(len == elements, "{len} elements for a matrix [{}, {}]", self.n, self.k);
        match &self.data {
            Matrix::F32(w) => floats(w.len()),
            Matrix::F16(w) | Matrix::Bf16(w) => floats(w.len()),
            Matrix::CodeBook4(w) => {
                assert!(w.block > 0, "elements per block must not be 0");
                let bytes = elements.div_ceil(2);
                assert!(w.codes.len() >= bytes, "{} bytes of codes, {bytes} needed", w.codes.len());
                w.scales.check(elements.div_ceil(w.block));
            }
            Matrix::Int8(w) => {
                assert!(w.codes.len() >= elements, "{} bytes of codes, {elements} needed", w.codes.len());
                let blocks = self.n * self.k.div_ceil(INT8_BLOCK);
                assert!(w.scales.len() >= blocks, "{} block scales, {blocks} needed", w.scales.len());
            }
            Matrix::IntegerRows(w) => w.check(self.n, self.k),
        }
    }

    /// Bytes that one pass over the matrix reads: what bounds a matrix-vector product.
    ///
    /// # Panics
    /// As [`check`](Self::check).
    pub fn bytes(&self) -> usize {
        self.check();
        let elements = self.n * self.k;
        match &self.data {
            Matrix::F32(w) => size_of_val(*w),
            Matrix::F16(w) | Matrix::Bf16(w) => size_of_val(*w),
            Matrix::CodeBook4(w) => {
                let blocks = elements.div_ceil(w.block);
                let scales = match w.scales {
                    BlockScales::Single(_) => 4 * blocks,
                    BlockScales::Double { block, .. } => blocks + 4 * blocks.div_ceil(block) + 1024,
                };
                elements.div_ceil(2) + scales
            }
            Matrix::Int8(_) => elements + 2 * self.n * self.k.div_ceil(INT8_BLOCK),
            Matrix::IntegerRows(w) => {
                let row = self.k.saturating_mul(w.narrow_bits as usize).div_ceil(8);
                let narrow = (self.n - w.wide_rows).saturating_mul(row);
                w.wide_rows * self.k + narrow + 4 * self.n + w.slots.map_or(0, |s| 4 * s.len())
            }
        }
    }

    /// The value at `[row, column]`, exactly as stored: one f32 product for the quantised kinds.
    #[inline(always)]
    pub(crate) fn get(&self, row: usize, column: usize) -> f32 {
        let at = row * self.k + column;
        match &self.data {
            Matrix::F32(w) => w[at],
            Matrix::F16(w) => f16::from_bits(w[at]).to_f32(),
            Matrix::Bf16(w) => bf16::from_bits(w[at]).to_f32(),
            Matrix::CodeBook4(w) => {
                let byte = w.codes[at / 2];
                let code = if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
                w.code_book[code as usize] * w.scales.get(at / w.block)
            }
            Matrix::Int8(w) => {
                let scale = f16::from_bits(w.scales[row * self.k.div_ceil(INT8_BLOCK) + column / INT8_BLOCK]);
                f32::from(w.codes[at] as i8) * scale.to_f32()
            }
            Matrix::IntegerRows(w) => {
                let slot = w.slot(row);
                let code = if slot < w.wide_rows {
                    i32::from(w.wide[slot * self.k + column] as i8)
                } else {
                    let stored = &w.narrow[(slot - w.wide_rows) * w.narrow_stride..];
                    if w.narrow_bits == 2 {
                        i32::from(stored[column / 4] >> (2 * (column % 4)) & 3) - 1
                    } else {
                        i32::from(stored[column / 2] >> (4 * (column % 2)) & 15) - 7
                    }
                };
                code as f32 * w.scales[slot]
            }
        }
    }
}
