//! One row of x or a few on AVX2 and NEON: 64 codes at a time become bytes and are multiplied. Outliers of x take a second product of their
//! blocks; stored bytes may be multiplied as 16-bit integers instead, which hold them. [`one_row`](super::one_row) takes what it can of one row.

use super::BLOCK;
use super::columns::Columns;
use super::gemv::{AHEAD, Codes, Gemv, Packing, WeightScales, for_stored_rows, in_flight};
use super::one_row::Scales;
use crate::cpu::matmul::memo::Memo;
use crate::cpu::matmul::packed::block_scales;
use crate::cpu::matmul::types::InputRows;
use crate::cpu::matmul::weight::Weight;
use crate::cpu::pool::Output;
use crate::cpu::pool::Region;
use crate::cpu::simd::bytes::{self, ByteKernel, Bytes};

/// The crossover of GEMV and GEMM: up to so many rows of x this is faster than tiles on NEON, or than octets on AVX2 beside bytes.
pub(crate) const MAX_COLUMNS: usize = 4;
/// The same beside codes that stay codes. Of a trained model a third of the blocks of each row of x have outliers, which octets multiply
/// with the rest.
pub(super) const CODES_MAX_COLUMNS: usize = if cfg!(target_arch = "x86_64") { 2 } else { MAX_COLUMNS };
/// The same beside codes that are looked up.
pub(super) const VALUES_MAX_COLUMNS: usize = if cfg!(target_arch = "x86_64") { 1 } else { MAX_COLUMNS };

/// Adds a product with at most [`MAX_COLUMNS`] rows of x. Rows go where they are stored.
pub(crate) fn add_gemv<'a>(
    rows: &InputRows<'a>,
    memo: &Memo<Packing, Columns>,
    w: Weight<'a>,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    let &InputRows { x, m, k, level, .. } = rows;
    let pack = |packing| Columns::new(x, (m, k), packing, level);
    for_stored_rows(rows, memo, &w, bias, y, pack, |gemv| {
        region.add(gemv.w.data.as_ptr(), (gemv.w.rows, gemv.w.stride), m * k, move |first, last| {
            bytes::launch(level, Range { gemv: &gemv, first, last });
        });
    });
}

/// Rows `first..last` of a product.
struct Range<'a> {
    gemv: &'a Gemv<'a, Columns>,
    first: usize,
    last: usize,
}

impl ByteKernel for Range<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Bytes>(self) {
        let x = &self.gemv.x;
        // Fewer rows in flight where columns take the registers.
        macro_rules! rows {
            ($bits:literal, $codes:literal, $most:expr) => {
                match x.columns {
                    1 => self.rows::<S, 4, 1, $bits, $codes>(),
                    2 if $most >= 2 => self.rows::<S, 2, 2, $bits, $codes>(),
                    3 if $most >= 3 => self.rows::<S, 1, 3, $bits, $codes>(),
                    4 if $most >= 4 => self.rows::<S, 1, 4, $bits, $codes>(),
                    columns => unreachable!("{columns} columns"),
                }
            };
        }
        // SAFETY: `S` is enabled.
        unsafe {
            if x.columns == 1
                && let Some(scales) = Scales::of(&self.gemv.w.scales, self.gemv.k)
            {
                return self.gemv.one_row::<S>(scales, self.first, self.last);
            }
            match (self.gemv.w.codes, x.codes) {
                (Codes::Bytes, _) => rows!(8, false, MAX_COLUMNS),
                (Codes::Nibbles { .. }, false) => rows!(4, false, VALUES_MAX_COLUMNS),
                (Codes::Nibbles { .. }, true) => rows!(4, true, CODES_MAX_COLUMNS),
                (Codes::Pairs, _) => rows!(2, true, CODES_MAX_COLUMNS),
            }
        }
    }
}

impl Range<'_> {
    /// `R` rows of codes of `BITS` bits in flight, times `M` columns. With `CODES` x is that beside codes.
    ///
    /// # Safety
    /// `S` is enabled, x has `M` columns, the rows exist, and no other task writes their outputs.
    #[inline(always)]
    unsafe fn rows<S: Bytes, const R: usize, const M: usize, const BITS: usize, const CODES: bool>(self) {
        let Self { gemv, first, last } = self;
        let stride = gemv.x.stride;
        // One column waits for memory, so that nothing must stand between the blocks of a row and those of the next for long.
        let chunk = if M == 1 && !CODES { S::LANES } else { stride };
        let mut decoded = vec![1.0; R * stride];
        let mut factors = vec![0.0; R * M * chunk];
        for (row, apart) in in_flight::<R>(first, last) {
            // SAFETY: the rows lie before `last`, so that all of their blocks exist; x has `M` columns of as many.
            unsafe {
                let mut scales = [RowScales::Floats(std::ptr::null()); R];
                for (r, decoded) in decoded.chunks_exact_mut(stride).enumerate() {
                    scales[r] = gemv.scales::<S>(row + r * apart, decoded);
                }
                gemv.product::<S, R, M, BITS, CODES>(row, apart, scales, &mut factors);
            }
        }
    }
}

/// The scales of the blocks of a row, whole vectors of them.
#[derive(Clone, Copy)]
enum RowScales {
    Floats(*const f32),
    Halves(*const u16),
}

impl RowScales {
    /// A vector of them.
    ///
    /// # Safety
    /// `S` is enabled, and the scales of [`Simd::LANES`](crate::cpu::simd::Simd::LANES) blocks from `first` on can be read.
    #[inline(always)]
    unsafe fn load<S: Bytes>(self, first: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                RowScales::Floats(scales) => S::load(scales.add(first)),
                RowScales::Halves(scales) => S::load_f16(scales.add(first)),
            }
        }
    }
}

impl Gemv<'_, Columns> {
    /// The scales of a row: where they are stored, if as many can be read there, or else in `decoded`.
    ///
    /// # Safety
    /// `S` is enabled, and the row exists; `decoded` is as long as the steps of x, and is not touched while the scales are read.
    #[inline(always)]
    unsafe fn scales<S: Bytes>(&self, row: usize, decoded: &mut [f32]) -> RowScales {
        let blocks = self.k / BLOCK;
        for line in self.w.scales.stored(self.k).lines_ahead(row) {
            // SAFETY: the hint is no access.
            unsafe { S::prefetch_codes(line) };
        }
        if let Some(stored) = self.w.scales.floats_from(self.k, row).filter(|stored| stored.len() >= decoded.len()) {
            return RowScales::Floats(stored.as_ptr());
        }
        match &self.w.scales {
            // Ones from the start: the scale of the row comes last.
            WeightScales::PerRow(_) => {}
            WeightScales::Int8(w) if w.scales.len() - row * blocks >= decoded.len() => {
                return RowScales::Halves(w.scales[row * blocks..].as_ptr());
            }
            // SAFETY: `S` is enabled.
            WeightScales::Int8(w) => unsafe { w.row_scales::<S>(self.k, row, &mut decoded[..blocks]) },
            WeightScales::CodeBook(w, _) => block_scales(w, row * self.k, &mut decoded[..blocks]),
        }
        RowScales::Floats(decoded.as_ptr())
    }

    /// Rows `row`, `row + apart`, ... times `M` columns; `factors` are scratch for a chunk of blocks.
    ///
    /// # Safety
    /// `S` is enabled, the rows exist, x has `M` columns, and `scales` are those of these rows. `factors` are as many for each row and column,
    /// whole vectors. No other task writes the outputs of these rows.
    #[inline(always)]
    unsafe fn product<S: Bytes, const R: usize, const M: usize, const BITS: usize, const CODES: bool>(
        &self,
        row: usize,
        apart: usize,
        scales: [RowScales; R],
        factors: &mut [f32],
    ) {
        let chunk = factors.len() / (R * M);
        // SAFETY: the caller's promise; steps and scales are of whole vectors, and blocks end where the rows do.
        unsafe {
            let mut total = [[S::splat(0.0); M]; R];
            for first in (0..self.x.stride).step_by(chunk) {
                let end = self.x.stride.min(first + chunk);
                // Codes have neither scales of blocks nor a start.
                if !CODES {
                    for b in (first..end).step_by(S::LANES) {
                        self.factors::<S, R, M>(&scales, b, &mut factors[b - first..], chunk, &mut total);
                    }
                }
                if M == 1 {
                    let blocks = (first, end.min(self.k / BLOCK));
                    total = self.blocks::<S, R, M, BITS, CODES, true>(row, apart, &*factors, chunk, blocks, total);
                    continue;
                }
                // The chunk is the row.
                let mut first = first;
                for &(count, outliers) in &self.x.runs {
                    let (factors, blocks) = (&factors[first..], (first, first + count));
                    total = if outliers {
                        self.blocks::<S, R, M, BITS, CODES, true>(row, apart, factors, chunk, blocks, total)
                    } else {
                        self.blocks::<S, R, M, BITS, CODES, false>(row, apart, factors, chunk, blocks, total)
                    };
                    first += count;
                }
            }
            for r in 0..R {
                let mut sums = [0.0; M];
                for m in 0..M {
                    sums[m] = S::sum(total[r][m]);
                }
                self.store(row + r * apart, sums);
            }
        }
    }

    /// Scales times steps of a vector of blocks, `[row][column][block]`, of which a column has `chunk`. To `total` goes what does not depend
    /// on the weights.
    ///
    /// # Safety
    /// As for `product`, x has the vector that begins at block `first`, and so has `out`.
    #[inline(always)]
    unsafe fn factors<S: Bytes, const R: usize, const M: usize>(
        &self,
        scales: &[RowScales; R],
        first: usize,
        out: &mut [f32],
        chunk: usize,
        total: &mut [[S::V; M]; R],
    ) {
        let (steps, start, out) = (self.x.steps.as_ptr(), self.x.start.as_ptr(), out.as_mut_ptr());
        let blocks = self.k / BLOCK - first;
        for r in 0..R {
            // SAFETY: the caller's promise.
            unsafe {
                let mut scales = scales[r].load::<S>(first);
                // The last may be followed by those of another row, which need not be numbers.
                if blocks < S::LANES {
                    scales = S::first_lanes(scales, blocks);
                }
                for m in 0..M {
                    let at = m * self.x.stride + first;
                    let factors = S::mul(scales, S::load(steps.add(at)));
                    total[r][m] = S::fma(factors, S::load(start.add(at)), total[r][m]);
                    S::store(out.add((r * M + m) * chunk), factors);
                }
            }
        }
    }

    /// Adds the products of some blocks of a chunk: without outliers unless `HIGH`; with it, of one column, of those blocks that have some,
    /// of several columns of all.
    ///
    /// # Safety
    /// As for `product`, the blocks exist, and `factors` are theirs.
    #[inline(always)]
    unsafe fn blocks<
        S: Bytes,
        const R: usize,
        const M: usize,
        const BITS: usize,
        const CODES: bool,
        const HIGH: bool,
    >(
        &self,
        row: usize,
        apart: usize,
        factors: &[f32],
        chunk: usize,
        (first, end): (usize, usize),
        mut total: [[S::V; M]; R],
    ) -> [[S::V; M]; R] {
        // SAFETY: the caller's promise.
        unsafe {
            let table = S::table(&self.w.table);
            let codes: [*const u8; R] =
                std::array::from_fn(|r| self.w.data.as_ptr().add((row + r * apart) * self.w.stride));
            // Of a row and a column, from the first block on.
            let (factors, stride) =
                if CODES { (self.x.steps.as_ptr().add(first), self.x.stride) } else { (factors.as_ptr(), chunk) };
            for b in first..end {
                let at = b * (BLOCK * BITS / 8);
                // Once for a cache line.
                if at.is_multiple_of(64) {
                    for r in 0..R {
                        let ahead = codes[r].add(at).wrapping_add(AHEAD);
                        // Rows of bytes, with x as long as two of them, are more than L1 holds.
                        if BITS == 8 { S::prefetch(ahead) } else { S::prefetch_codes(ahead) }
                    }
                }
                let widens = S::WIDENS && BITS == 8;
                let outliers = HIGH && !widens && (M > 1 || self.x.has_outliers(b));
                let mut x = [self.x.load::<S, CODES>(b * M); M];
                for m in 1..M {
                    x[m] = self.x.load::<S, CODES>(b * M + m);
                }
                for r in 0..R {
                    let at = codes[r].add(at);
                    let mut add = |m: usize, sum: S::Sums| {
                        // Beside codes the same for all rows.
                        let of_row = if CODES { 0 } else { r * M };
                        let factor = S::splat(*factors.add((of_row + m) * stride + (b - first)));
                        total[r][m] = S::fma(S::floats(sum), factor, total[r][m]);
                    };
                    if widens {
                        let w = S::widened(at);
                        for m in 0..M {
                            add(m, S::dot_widened(w, x[m]));
                        }
                        continue;
                    }
                    let w = match BITS {
                        8 => S::bytes(at),
                        4 => S::nibbles::<CODES>(at, table),
                        _ => S::pairs::<CODES>(at, table),
                    };
                    for m in 0..M {
                        let sum = self.x.product::<S, CODES>(w, x[m], b * M + m, outliers);
                        add(m, sum);
                    }
                }
            }
        }
        total
    }
}
