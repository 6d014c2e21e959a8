//! A few rows of x on AVX2 and NEON: 64 codes at a time become signed bytes and are multiplied.

use super::BLOCK;
use super::book::Shift;
use super::gemv::{Codes, Gemv, Packing, WeightScales, for_stored_rows};
use super::round::Block;
use crate::cpu::matmul::memo::Memo;
use crate::cpu::matmul::packed::{AHEAD, block_scales};
use crate::cpu::matmul::types::InputRows;
use crate::cpu::matmul::weight::Weight;
use crate::cpu::pool::Output;
use crate::cpu::pool::Region;
use crate::cpu::simd::bytes::{self, ByteKernel, Bytes};

/// The crossover of GEMV and GEMM: up to so many rows of x this is faster than tiles.
pub(crate) const MAX_COLUMNS: usize = 4;

impl Codes {
    /// The element whose code [`Bytes`] puts at `place`.
    pub(super) fn element<S: Bytes>(self, place: usize) -> usize {
        match self {
            Codes::Bytes => S::byte_at(place),
            Codes::Nibbles { high_first } => {
                let (byte, high) = S::nibble_at(place);
                byte * 2 + usize::from(high != high_first)
            }
            Codes::Pairs => place % 16 * 4 + place / 16,
        }
    }
}

/// Where a sum starts at 0.
static NOTHING: [i32; 8] = [0; 8];

/// x in bytes, in the order of the codes.
pub(crate) struct Columns {
    /// `[block][column][place]`.
    low: Vec<i8>,
    /// As `low`; empty without outliers.
    high: Vec<i8>,
    /// `[block][column]`: whether there are outliers.
    outliers: Vec<bool>,
    /// `[block][column][lane]`: what the shift of the weights adds.
    start: Vec<i32>,
    /// `[block][column]`.
    steps: Vec<f32>,
    columns: usize,
}

/// Makes [`Columns`] of `m` rows of `k`.
struct Arrange<'a> {
    x: &'a [f32],
    m: usize,
    k: usize,
    packing: Packing,
}

impl ByteKernel for Arrange<'_> {
    type Output = Columns;
    #[inline(always)]
    unsafe fn call<S: Bytes>(self) -> Columns {
        let Self { x, m, k, packing } = self;
        let Packing { codes, shift, detail, .. } = packing;
        let columns = m.next_power_of_two();
        let cells = k / BLOCK * columns;
        let mut made = Columns {
            low: vec![0; cells * BLOCK],
            high: Vec::new(),
            outliers: vec![false; cells],
            start: vec![0; cells * S::LANES],
            steps: vec![0.0; cells],
            columns,
        };
        let elements: [usize; BLOCK] = std::array::from_fn(|place| codes.element::<S>(place));
        for (column, x) in x.chunks_exact(k).enumerate().take(m) {
            let threshold = detail.threshold(x);
            for (block, x) in x.chunks_exact(BLOCK).enumerate() {
                let at = block * columns + column;
                let block = Block::new(x, threshold);
                let ordered = |bytes: &[i8; BLOCK], to: &mut [i8]| {
                    for (to, element) in to[at * BLOCK..(at + 1) * BLOCK].iter_mut().zip(elements) {
                        *to = bytes[element];
                    }
                };
                ordered(&block.low, &mut made.low);
                if block.outliers {
                    made.outliers[at] = true;
                    made.high.resize(cells * BLOCK, 0);
                    ordered(&block.high, &mut made.high);
                }
                made.steps[at] = block.step;
                if shift != Shift::NONE {
                    let start = &mut made.start[at * S::LANES..(at + 1) * S::LANES];
                    block.sums::<8>(|group, sum| start[8 * group * S::LANES / BLOCK] += shift.of(sum));
                }
            }
        }
        made
    }
}

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
    let pack = |packing| bytes::launch(level, Arrange { x, m, k, packing });
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
        // SAFETY: `S` is enabled. Fewer rows in flight where columns take the registers.
        unsafe {
            match self.gemv.x.columns {
                1 => self.rows::<S, 4, 1>(),
                2 => self.rows::<S, 2, 2>(),
                _ => self.rows::<S, 1, MAX_COLUMNS>(),
            }
        }
    }
}

impl Range<'_> {
    /// `R` rows in flight, times `M` columns.
    ///
    /// # Safety
    /// `S` is enabled, x has `M` columns, the rows exist, and no other task writes their outputs.
    #[inline(always)]
    unsafe fn rows<S: Bytes, const R: usize, const M: usize>(self) {
        let Self { gemv, first, last } = self;
        let blocks = gemv.k / BLOCK;
        let mut scales = vec![1.0; R * blocks];
        // `R` streams far apart, each read in order: that is what hardware prefetchers follow.
        let apart = (last - first) / R;
        // The rest one at a time: `R` times the same row, to spare a kernel of its own.
        let rest = first + apart * R;
        for row in (first..first + apart).chain(rest..last) {
            let apart = if row < rest { apart } else { 0 };
            for (r, scales) in scales.chunks_exact_mut(blocks).enumerate() {
                match &gemv.w.scales {
                    WeightScales::PerRow(_) => {}
                    WeightScales::Int8(w) => w.scales(gemv.k, row + r * apart, 0, scales),
                    WeightScales::CodeBook(w, _) => block_scales(w, (row + r * apart) * gemv.k, scales),
                }
            }
            // SAFETY: the rows lie before `last`, so that all of their blocks exist; x has `M` columns of as many.
            unsafe {
                match gemv.w.codes {
                    Codes::Bytes => gemv.product::<S, R, M, 8>(row, apart, &scales),
                    Codes::Nibbles { .. } => gemv.product::<S, R, M, 4>(row, apart, &scales),
                    Codes::Pairs => gemv.product::<S, R, M, 2>(row, apart, &scales),
                }
            }
        }
    }
}

impl Gemv<'_, Columns> {
    /// Rows `row`, `row + apart`, ... of codes of `BITS` bits, times `M` columns.
    ///
    /// # Safety
    /// `S` is enabled, the rows exist, and x has `M` columns.
    #[inline(always)]
    unsafe fn product<S: Bytes, const R: usize, const M: usize, const BITS: usize>(
        &self,
        row: usize,
        apart: usize,
        scales: &[f32],
    ) {
        let blocks = self.k / BLOCK;
        // SAFETY: the caller's promise, and every row has `blocks` blocks.
        unsafe {
            let table = S::table(&self.w.table);
            let codes: [*const u8; R] =
                std::array::from_fn(|r| self.w.data.as_ptr().add((row + r * apart) * self.w.stride));
            let mut total = [[S::splat(0.0); M]; R];
            for b in 0..blocks {
                let low = self.x.low.as_ptr().add(b * M * BLOCK);
                let start = self.x.start.as_ptr().add(b * M * S::LANES);
                let steps = &self.x.steps[b * M..(b + 1) * M];
                let outliers = &self.x.outliers[b * M..(b + 1) * M];
                for r in 0..R {
                    let at = codes[r].add(b * (BLOCK * BITS / 8));
                    S::prefetch(at.wrapping_add(AHEAD));
                    let w = match BITS {
                        8 => S::bytes(at),
                        4 => S::nibbles(at, table),
                        _ => S::pairs(at, table),
                    };
                    let scale = scales[r * blocks + b];
                    for m in 0..M {
                        let mut sum = S::dot(w, low.add(m * BLOCK), S::sums(start.add(m * S::LANES)));
                        if outliers[m] {
                            let high = self.x.high.as_ptr().add((b * M + m) * BLOCK);
                            sum = S::add_high(sum, S::dot(w, high, S::sums(NOTHING.as_ptr())));
                        }
                        total[r][m] = S::fma(S::floats(sum), S::splat(scale * steps[m]), total[r][m]);
                    }
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
}
