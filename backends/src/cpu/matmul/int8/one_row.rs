//! One row of x beside 4-bit codes that are looked up, with a scale for each block: what decodes NF4.
//!
//! Scales that are stored as floats are multiplied by the steps of x a vector at a time. Scales that are quantised themselves are broadcast
//! from a table of what their codes stand for under the absmax at hand, which each row in flight has, and steps are multiplied block by
//! block: to look up those of a row before its blocks takes a fifth of the time.

use super::BLOCK;
use super::columns::Columns;
use super::gemv::{AHEAD, Gemv, Nested, WeightScales, in_flight};
use crate::cpu::simd::bytes::Bytes;

/// Rows in flight.
const ROWS: usize = 4;
/// The most lanes of a vector of [`Bytes`].
const MAX_LANES: usize = 8;
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

/// Fewer scales than a vector holds, and zeros.
///
/// # Safety
/// `S` is enabled, and there are `count`.
#[inline(always)]
unsafe fn few<S: Bytes>(from: *const f32, count: usize) -> S::V {
    let mut scales = [0.0; MAX_LANES];
    // SAFETY: the caller's promise; a vector holds no more.
    unsafe {
        std::ptr::copy_nonoverlapping(from, scales.as_mut_ptr(), count);
        S::load(scales.as_ptr())
    }
}

/// The scales of the rows in flight.
trait RowFactors: Copy {
    /// `total` and the sums of block `b` of row `r`, times scale and step.
    ///
    /// # Safety
    /// `S` is enabled, and row and x have the block.
    unsafe fn add<S: Bytes>(self, x: &Columns, r: usize, b: usize, sums: S::V, total: S::V) -> S::V;
}

/// Scales times steps, [`Simd::LANES`](crate::cpu::simd::Simd::LANES) of each row; what sums lack is in the total already.
#[derive(Clone, Copy)]
struct Factors(*const f32);

impl RowFactors for Factors {
    #[inline(always)]
    unsafe fn add<S: Bytes>(self, _: &Columns, r: usize, b: usize, sums: S::V, total: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::fma(sums, S::splat(*self.0.wrapping_add(r * S::LANES + b)), total) }
    }
}

/// Codes of scales, from the first block of each row on, and what these stand for.
#[derive(Clone, Copy)]
struct Looked<'a>([*const u8; ROWS], &'a [Table; ROWS]);

impl RowFactors for Looked<'_> {
    #[inline(always)]
    unsafe fn add<S: Bytes>(self, x: &Columns, r: usize, b: usize, sums: S::V, total: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            let [step, start] = *x.lanes.as_ptr().add(b);
            let scale = self.1[r].scales[usize::from(*self.0[r].add(b))];
            S::fma(S::fma(sums, S::splat(step), S::splat(start)), S::splat(scale), total)
        }
    }
}

impl Gemv<'_, Columns> {
    /// Rows `first..last` of 4-bit codes that are looked up, times one column.
    ///
    /// # Safety
    /// `S` is enabled, x has one column, the scales are those of the matrix, the rows exist, and no other task writes their outputs.
    #[inline(always)]
    pub(super) unsafe fn one_row<S: Bytes>(&self, scales: Scales, first: usize, last: usize) {
        let stored = self.w.scales.stored(self.k);
        let mut tables = [Table::NONE; ROWS];
        for (row, apart) in in_flight::<ROWS>(first, last) {
            let rows: [usize; ROWS] = std::array::from_fn(|r| row + r * apart);
            // SAFETY: the caller's promise.
            unsafe {
                for line in rows.into_iter().flat_map(|row| stored.lines_ahead(row)) {
                    S::prefetch_codes(line);
                }
                let total = match scales {
                    Scales::Stored(scales) => self.with_stored::<S>(rows, scales),
                    Scales::Nested(nested) => self.with_tables::<S>(rows, &nested, &mut tables),
                };
                for r in 0..ROWS {
                    self.store(rows[r], [S::sum(total[r])]);
                }
            }
        }
    }

    /// The sums of rows whose scales are stored as floats.
    ///
    /// # Safety
    /// As for [`one_row`](Self::one_row).
    #[inline(always)]
    unsafe fn with_stored<S: Bytes>(&self, rows: [usize; ROWS], scales: &[f32]) -> [S::V; ROWS] {
        const { assert!(S::LANES <= MAX_LANES) };
        let blocks = self.k / BLOCK;
        let (steps, start) = (self.x.steps.as_ptr(), self.x.start.as_ptr());
        let mut factors = [0.0; ROWS * MAX_LANES];
        // SAFETY: the caller's promise; steps and starts are of whole vectors, and the check of the matrix found a scale for each block.
        unsafe {
            let mut total = [S::splat(0.0); ROWS];
            for first in (0..blocks).step_by(S::LANES) {
                let end = blocks.min(first + S::LANES);
                let factors = factors.as_mut_ptr();
                for r in 0..ROWS {
                    let from = scales.as_ptr().add(rows[r] * blocks + first);
                    let scales = if end - first == S::LANES { S::load(from) } else { few::<S>(from, end - first) };
                    let scaled = S::mul(scales, S::load(steps.add(first)));
                    total[r] = S::fma(scaled, S::load(start.add(first)), total[r]);
                    S::store(factors.add(r * S::LANES), scaled);
                }
                let factors = Factors(factors.cast_const().wrapping_sub(first));
                total = self.add_blocks::<S, _>(rows, factors, (first, end), total);
            }
            total
        }
    }

    /// The sums of rows whose scales are quantised themselves.
    ///
    /// # Safety
    /// As for [`one_row`](Self::one_row).
    #[inline(always)]
    unsafe fn with_tables<S: Bytes>(
        &self,
        rows: [usize; ROWS],
        nested: &Nested,
        tables: &mut [Table; ROWS],
    ) -> [S::V; ROWS] {
        let blocks = self.k / BLOCK;
        // SAFETY: the caller's promise; the check of the matrix found a code for the scale of each block.
        unsafe {
            let codes = std::array::from_fn(|r| nested.codes.as_ptr().add(rows[r] * blocks));
            let mut total = [S::splat(0.0); ROWS];
            let mut first = 0;
            while first < blocks {
                let mut end = blocks;
                for (table, row) in tables.iter_mut().zip(rows) {
                    let block = row * blocks + first;
                    table.set::<S>(nested, block / nested.block);
                    end = end.min(first + nested.block - block % nested.block);
                }
                total = self.add_blocks::<S, _>(rows, Looked(codes, tables), (first, end), total);
                first = end;
            }
            total
        }
    }

    /// Adds the products of some blocks.
    ///
    /// # Safety
    /// As for [`one_row`](Self::one_row); the blocks exist.
    #[inline(always)]
    unsafe fn add_blocks<S: Bytes, F: RowFactors>(
        &self,
        rows: [usize; ROWS],
        scales: F,
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
                    self.add_block::<S, F, true>(b, codes, table, scales, total)
                } else {
                    self.add_block::<S, F, false>(b, codes, table, scales, total)
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
    unsafe fn add_block<S: Bytes, F: RowFactors, const HIGH: bool>(
        &self,
        b: usize,
        codes: [*const u8; ROWS],
        table: S::Table,
        scales: F,
        mut total: [S::V; ROWS],
    ) -> [S::V; ROWS] {
        // SAFETY: the caller's promise.
        unsafe {
            let x = self.x.load::<S, false>(b);
            for r in 0..ROWS {
                let w = S::nibbles::<false>(codes[r].add(b * (BLOCK / 2)), table);
                let sums = S::floats(self.x.product::<S, false>(w, x, b, HIGH));
                total[r] = scales.add::<S>(&self.x, r, b, sums, total[r]);
            }
        }
        total
    }
}
