//! One row of x beside 4-bit codes that are looked up, with a scale for each block: what decodes NF4.
//!
//! Nothing stands between the blocks of a row: a scale is broadcast from where it is stored, and what belongs to x alone (its step, and what
//! a sum lacks) is added block by block, the same for all rows in flight. Scales that are quantised themselves are broadcast from a table of
//! what their codes stand for under the absmax at hand, which each row in flight has; to look up those of a row before its blocks would
//! take a fifth of the time.

use super::BLOCK;
use super::blocks::{AHEAD, Columns, Range};
use super::gemv::{Gemv, Nested, WeightScales};
use crate::cpu::simd::bytes::Bytes;

/// Rows in flight.
const ROWS: usize = 4;
/// The fewest scales per absmax for which a table is worth its making.
const TABLE_MIN_SCALES: usize = 64;

/// Where the scales of blocks come from.
#[derive(Clone, Copy)]
pub(super) enum Scales<'a> {
    /// One after the other.
    Stored(&'a [f32]),
    /// From tables.
    Nested(Nested<'a>),
}

impl<'a> Scales<'a> {
    /// Those of rows of `k`, if each block has one of its own that this kernel can read.
    pub(super) fn of(scales: &WeightScales<'a>, k: usize) -> Option<Scales<'a>> {
        match scales {
            WeightScales::CodeBook(w, _) => scales
                .floats_from(k, 0)
                .map(Scales::Stored)
                .or_else(|| Nested::of(w).filter(|nested| nested.block >= TABLE_MIN_SCALES).map(Scales::Nested)),
            _ => None,
        }
    }
}

/// What the codes of scales stand for.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Table {
    scales: [f32; 256],
    /// Which absmax it is of.
    absmax: usize,
}

impl Table {
    const NONE: Table = Table { scales: [0.0; 256], absmax: usize::MAX };

    /// Makes it that of an absmax, if it is not.
    ///
    /// # Safety
    /// `S` is enabled.
    #[inline(always)]
    unsafe fn set<S: Bytes>(&mut self, nested: &Nested, absmax: usize) {
        if self.absmax == absmax {
            return;
        }
        self.absmax = absmax;
        // SAFETY: the caller's promise; both are of whole vectors.
        unsafe {
            let (absmax, offset) = (S::splat(nested.absmax[absmax]), S::splat(nested.offset));
            for (to, from) in self.scales.chunks_exact_mut(S::LANES).zip(nested.map.chunks_exact(S::LANES)) {
                S::store(to.as_mut_ptr(), S::add(S::mul(S::load(from.as_ptr()), absmax), offset));
            }
        }
    }
}

/// The scales of the rows in flight.
trait RowScales: Copy {
    /// That of block `b` of row `r`.
    ///
    /// # Safety
    /// The row has the block.
    unsafe fn get(self, r: usize, b: usize) -> f32;
}

/// As they are stored, from the first block of each row on.
#[derive(Clone, Copy)]
struct Floats([*const f32; ROWS]);

impl RowScales for Floats {
    #[inline(always)]
    unsafe fn get(self, r: usize, b: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.0[r].add(b) }
    }
}

/// Their codes, from the first block of each row on, and what these stand for.
#[derive(Clone, Copy)]
struct Looked<'a>([*const u8; ROWS], &'a [Table; ROWS]);

impl RowScales for Looked<'_> {
    #[inline(always)]
    unsafe fn get(self, r: usize, b: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { self.1[r].scales[usize::from(*self.0[r].add(b))] }
    }
}

impl Range<'_> {
    /// The rows of 4-bit codes that are looked up, times one column.
    ///
    /// # Safety
    /// `S` is enabled, x has one column, the rows exist, and no other task writes their outputs.
    #[inline(always)]
    pub(super) unsafe fn one_row<S: Bytes>(self, scales: Scales) {
        let gemv = self.gemv;
        let blocks = gemv.k / BLOCK;
        let stored = gemv.w.scales.stored(gemv.k);
        let mut tables = [Table::NONE; ROWS];
        for (row, apart) in self.in_flight::<ROWS>() {
            let rows: [usize; ROWS] = std::array::from_fn(|r| row + r * apart);
            // SAFETY: the caller's promise; the check of the matrix found a scale for each block.
            unsafe {
                for line in rows.into_iter().flat_map(|row| stored.lines_ahead(row)) {
                    S::prefetch_codes(line);
                }
                let mut total = [S::splat(0.0); ROWS];
                match scales {
                    Scales::Stored(scales) => {
                        let floats = Floats(std::array::from_fn(|r| scales.as_ptr().add(rows[r] * blocks)));
                        total = gemv.add_blocks::<S, _>(rows, floats, (0, blocks), total);
                    }
                    Scales::Nested(nested) => {
                        let codes = std::array::from_fn(|r| nested.codes.as_ptr().add(rows[r] * blocks));
                        let mut first = 0;
                        while first < blocks {
                            let mut end = blocks;
                            for (table, row) in tables.iter_mut().zip(rows) {
                                let block = row * blocks + first;
                                table.set::<S>(&nested, block / nested.block);
                                end = end.min(first + nested.block - block % nested.block);
                            }
                            total = gemv.add_blocks::<S, _>(rows, Looked(codes, &tables), (first, end), total);
                            first = end;
                        }
                    }
                }
                for r in 0..ROWS {
                    gemv.store(rows[r], [S::sum(total[r])]);
                }
            }
        }
    }
}

impl Gemv<'_, Columns> {
    /// Adds the products of some blocks.
    ///
    /// # Safety
    /// As for [`Range::one_row`]; the blocks exist.
    #[inline(always)]
    unsafe fn add_blocks<S: Bytes, R: RowScales>(
        &self,
        rows: [usize; ROWS],
        scales: R,
        (first, end): (usize, usize),
        mut total: [S::V; ROWS],
    ) -> [S::V; ROWS] {
        // SAFETY: the caller's promise.
        unsafe {
            let table = S::table(&self.w.table);
            let codes: [*const u8; ROWS] = std::array::from_fn(|r| self.w.data.as_ptr().add(rows[r] * self.w.stride));
            for b in first..end {
                let at = b * (BLOCK / 2);
                // Once for a cache line.
                if at.is_multiple_of(64) {
                    for r in 0..ROWS {
                        S::prefetch_codes(codes[r].add(at).wrapping_add(AHEAD));
                    }
                }
                // The two cases are apart: a branch in each row would take the registers of both.
                total = if self.x.has_outliers(b) {
                    self.add_block::<S, R, true>(b, codes, table, scales, total)
                } else {
                    self.add_block::<S, R, false>(b, codes, table, scales, total)
                };
            }
        }
        total
    }

    /// Adds the products of a block, with outliers if `HIGH`.
    ///
    /// # Safety
    /// As for `add_blocks`; `codes` are those of the rows.
    #[inline(always)]
    unsafe fn add_block<S: Bytes, R: RowScales, const HIGH: bool>(
        &self,
        b: usize,
        codes: [*const u8; ROWS],
        table: S::Table,
        scales: R,
        mut total: [S::V; ROWS],
    ) -> [S::V; ROWS] {
        // SAFETY: the caller's promise.
        unsafe {
            let x = self.x.load::<S, false>(b);
            let [step, start] = *self.x.lanes.as_ptr().add(b);
            let (step, start) = (S::splat(step), S::splat(start));
            for r in 0..ROWS {
                let w = S::nibbles::<false>(codes[r].add(b * (BLOCK / 2)), table);
                let sums = S::floats(self.x.product::<S, false, HIGH>(w, x, b));
                total[r] = S::fma(S::fma(sums, step, start), S::splat(scales.get(r, b)), total[r]);
            }
        }
        total
    }
}
