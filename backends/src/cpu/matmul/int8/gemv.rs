//! What the GEMV kernels share: the rows of a matrix that are stored alike, and their product with a few rows of x.

use super::book::{Book, Shift};
use super::round::{Detail, Input};
use super::{BLOCK, OFFSET};
use crate::cpu::matmul::memo::Memo;
use crate::cpu::matmul::types::InputRows;
use crate::cpu::matmul::weight::{BlockScales, CodeBook4, Int8, Matrix, Weight};
use crate::cpu::pool::Output;
use std::sync::Arc;

/// Where the codes of a row lie in its bytes.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Codes {
    /// One byte each.
    Bytes,
    /// Two in a byte, the even element in the high (or the low) nibble.
    Nibbles { high_first: bool },
    /// Four in a byte, from the lowest bits on.
    Pairs,
}

impl Codes {
    /// Bytes of a block.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) fn block_bytes(self) -> usize {
        match self {
            Codes::Bytes => BLOCK,
            Codes::Nibbles { .. } => BLOCK / 2,
            Codes::Pairs => BLOCK / 4,
        }
    }
}

/// How many bytes ahead rows are prefetched on AVX2 and NEON, codes of less than a byte into L1: rows of 1 kB are read a seventh slower with twice as many
/// bytes, longer ones 4 % faster; into L2 one of the two loses a seventh. Bytes into L2, which gains 4 % in rows of 8 kB.
pub(super) const AHEAD: usize = 1024;

/// The first of `R` rows at a time, of `first..last`, and how many rows apart the others are.
#[inline(always)]
pub(super) fn in_flight<const R: usize>(first: usize, last: usize) -> impl Iterator<Item = (usize, usize)> {
    // `R` streams far apart, each read in order: that is what hardware prefetchers follow.
    let apart = (last - first) / R;
    // The rest one at a time: `R` times the same row, to spare a kernel of its own.
    let rest = first + apart * R;
    (first..first + apart).chain(rest..last).map(move |row| (row, if row < rest { apart } else { 0 }))
}

/// How many bytes ahead the scales of blocks are prefetched, at least a row: rows of a stream follow each other, so that their scales do.
const SCALES_AHEAD: usize = 256;

/// The scales of stored rows.
pub(super) enum WeightScales<'a> {
    /// One per row.
    PerRow(&'a [f32]),
    /// Of blocks of bytes.
    Int8(Int8<'a>),
    /// Of blocks, and what a unit of the rounded code book stands for.
    CodeBook(CodeBook4<'a>, f32),
}

impl<'a> WeightScales<'a> {
    /// Those of the blocks of a row of `k` elements and all that follow, where they are stored as they are used.
    #[inline(always)]
    pub(super) fn floats_from(&self, k: usize, row: usize) -> Option<&'a [f32]> {
        match self {
            WeightScales::CodeBook(CodeBook4 { block: BLOCK, scales: BlockScales::Single(scales), .. }, _) => {
                Some(&scales[row * (k / BLOCK)..])
            }
            _ => None,
        }
    }

    /// As they are stored; rows have `k` elements.
    #[inline(always)]
    pub(super) fn stored(&self, k: usize) -> Stored {
        let (first, of_row): (*const u8, usize) = match self {
            WeightScales::PerRow(_) => (std::ptr::null(), 0),
            WeightScales::Int8(w) => (w.scales.as_ptr().cast(), k / BLOCK * size_of::<u16>()),
            WeightScales::CodeBook(w, _) => match w.scales {
                BlockScales::Single(scales) => (scales.as_ptr().cast(), k / w.block * size_of::<f32>()),
                BlockScales::Double { codes, .. } => (codes.as_ptr(), k / w.block),
            },
        };
        Stored { first, of_row }
    }
}

/// Scales of blocks as they are stored; none where each row has one.
#[derive(Clone, Copy)]
pub(super) struct Stored {
    pub(super) first: *const u8,
    /// Bytes from those of one row to those of the next, where rows are of whole blocks.
    pub(super) of_row: usize,
}

impl Stored {
    /// The cache lines of the scales that come [`SCALES_AHEAD`] bytes after those of a row, to be prefetched; where rows are not of whole
    /// blocks, about those.
    #[inline(always)]
    pub(super) fn lines_ahead(self, row: usize) -> impl Iterator<Item = *const u8> {
        let first = self.first.wrapping_add(row * self.of_row + self.of_row.max(SCALES_AHEAD));
        (0..self.of_row).step_by(64).map(move |line| first.wrapping_add(line))
    }
}

/// Scales of blocks that are quantised themselves.
#[derive(Clone, Copy)]
pub(super) struct Nested<'a> {
    pub(super) codes: &'a [u8],
    pub(super) map: &'a [f32; 256],
    pub(super) absmax: &'a [f32],
    /// Scales per absmax.
    pub(super) block: usize,
    pub(super) offset: f32,
}

impl<'a> Nested<'a> {
    /// Those of a matrix, if they are and each [`BLOCK`] has one.
    pub(super) fn of(w: &CodeBook4<'a>) -> Option<Nested<'a>> {
        let BlockScales::Double { codes, map, absmax, block, offset } = w.scales else {
            return None;
        };
        let map = <&[f32; 256]>::try_from(map).ok().filter(|_| w.block == BLOCK)?;
        Some(Nested { codes, map, absmax, block, offset })
    }
}

/// Rows of a matrix that are stored alike.
pub(super) struct StoredRows<'a> {
    pub(super) codes: Codes,
    pub(super) data: &'a [u8],
    /// Bytes from one row to the next.
    pub(super) stride: usize,
    pub(super) rows: usize,
    /// The column of the output that row 0 goes to.
    pub(super) column: usize,
    /// The signed byte of each 4- or 2-bit code.
    pub(super) table: [i8; 16],
    /// What makes all of these bytes unsigned, which VNNI needs.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) offset: i32,
    /// By how much the bytes are too small.
    pub(super) shift: Shift,
    pub(super) scales: WeightScales<'a>,
}

impl<'a> StoredRows<'a> {
    /// Those of a matrix that fits, in the order in which they are stored.
    pub(super) fn of(w: &Weight<'a>) -> Vec<StoredRows<'a>> {
        let k = w.k;
        let bytes = |data, rows, scales| {
            let (codes, table, shift) = (Codes::Bytes, [0; 16], Shift::NONE);
            StoredRows { codes, data, stride: k, rows, column: 0, table, offset: OFFSET, shift, scales }
        };
        match w.data {
            Matrix::CodeBook4(data) => {
                let Book { bytes: table, factor, shift } = Book::new(data.code_book);
                let (codes, scales) = (Codes::Nibbles { high_first: true }, WeightScales::CodeBook(data, factor));
                let (data, stride) = (data.codes, k / 2);
                vec![StoredRows { codes, data, stride, rows: w.n, column: 0, table, offset: OFFSET, shift, scales }]
            }
            Matrix::Int8(data) => vec![bytes(data.codes, w.n, WeightScales::Int8(data))],
            Matrix::IntegerRows(data) => {
                let wide = data.wide_rows;
                let (codes, offset) = match data.narrow_bits {
                    2 => (Codes::Pairs, 1),
                    _ => (Codes::Nibbles { high_first: false }, 7),
                };
                let narrow = StoredRows {
                    codes,
                    data: data.narrow,
                    stride: data.narrow_stride,
                    rows: w.n - wide,
                    column: wide,
                    table: std::array::from_fn(|code| code as i8 - offset as i8),
                    offset,
                    shift: Shift::NONE,
                    scales: WeightScales::PerRow(&data.scales[wide..]),
                };
                let wide = bytes(data.wide, wide, WeightScales::PerRow(data.scales));
                [wide, narrow].into_iter().filter(|stored| stored.rows > 0).collect()
            }
            _ => unreachable!("`fits` lets no other storage through"),
        }
    }
}

/// Whether kernels that would look codes up multiply them as they are: such codes are integers, but for their offset.
pub(super) fn stay_codes(offset: i32) -> bool {
    offset < OFFSET
}

/// What the order and the sums of x depend on.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Packing {
    pub(super) codes: Codes,
    /// Those of [`StoredRows`].
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) offset: i32,
    pub(super) shift: Shift,
    pub(super) detail: Detail,
}

impl Packing {
    /// What is added for each 8 elements of x of these sums, because weights are too large by the offset and too small by the shift.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    #[inline(always)]
    pub(super) fn starts<const N: usize>(self, sums: [i32; N]) -> [i32; N] {
        let mut starts = self.shift.of(sums);
        starts.iter_mut().zip(sums).for_each(|(start, sum)| *start -= self.offset * sum);
        starts
    }

    fn of(w: &StoredRows, input: Input) -> Packing {
        Packing { codes: w.codes, offset: w.offset, shift: w.shift, detail: Detail::of(input) }
    }
}

/// Calls `add` with each part of a product, with x as `pack` packs it for a kernel.
pub(super) fn for_stored_rows<'a, X>(
    rows: &InputRows<'a>,
    memo: &Memo<Packing, X>,
    w: &Weight<'a>,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    pack: impl Fn(Packing) -> X,
    mut add: impl FnMut(Gemv<'a, X>),
) {
    for w in StoredRows::of(w) {
        let packing = Packing::of(&w, rows.input);
        let x = memo.get(packing, || pack(packing));
        add(Gemv { w, x, m: rows.m, k: rows.k, bias, y });
    }
}

impl StoredRows<'_> {
    /// Where `height` rows from `first` on begin; the last stands for those beyond it.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    #[inline(always)]
    pub(super) fn starts<const N: usize>(&self, first: usize, height: usize) -> [*const u8; N] {
        std::array::from_fn(|r| self.data.as_ptr().wrapping_add((first + r.min(height - 1)) * self.stride))
    }
}

/// Pointers that are `bytes` further. Kernels call this rather than `map`: a closure of a function with features of a processor may
/// stay a call where the standard library calls it.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
#[inline(always)]
pub(super) fn further<T, const N: usize>(pointers: [*const T; N], bytes: usize) -> [*const T; N] {
    pointers.map(|pointer| pointer.wrapping_byte_add(bytes))
}

/// Stored rows times a few rows of x, packed as a kernel wants them.
pub(super) struct Gemv<'a, X> {
    pub(super) w: StoredRows<'a>,
    pub(super) x: Arc<X>,
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) y: Output<'a>,
}

impl<X> Gemv<'_, X> {
    /// Writes the products of a row from its sums, those beyond the rows of x left out.
    ///
    /// # Safety
    /// The row exists, and no other task writes its outputs.
    #[inline(always)]
    pub(super) unsafe fn store<const M: usize>(&self, row: usize, sums: [f32; M]) {
        let scale = match &self.w.scales {
            WeightScales::PerRow(scales) => scales[row],
            WeightScales::Int8(_) => 1.0,
            WeightScales::CodeBook(_, factor) => *factor,
        };
        let column = self.w.column + row;
        let bias = self.bias.map_or(0.0, |bias| bias[column]);
        for (m, sum) in sums.into_iter().enumerate() {
            if m < self.m {
                // SAFETY: the caller's promise.
                unsafe { self.y.set(m, column, sum * scale + bias) };
            }
        }
    }
}
