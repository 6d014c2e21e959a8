//! A few rows of x in bytes, in the order in which the codes of the weights leave a register.

use super::BLOCK;
use super::book::Shift;
use super::gemv::{Codes, Packing, stay_codes};
use super::round::Block;
use crate::cpu::Level;
use crate::cpu::simd::bytes::{self, ByteKernel, Bytes};

impl Codes {
    /// The element whose code [`Bytes`] puts at `place`.
    #[inline(always)]
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

    /// Bytes of x in the order of such codes. The places are constants of each arm, so that they become shuffles.
    #[inline(always)]
    fn in_order<S: Bytes>(self, bytes: &[i8; BLOCK]) -> [i8; BLOCK] {
        macro_rules! places {
            ($codes:expr) => {
                std::array::from_fn(|place| bytes[$codes.element::<S>(place)])
            };
        }
        match self {
            Codes::Bytes => places!(Codes::Bytes),
            Codes::Nibbles { high_first: true } => places!(Codes::Nibbles { high_first: true }),
            Codes::Nibbles { high_first: false } => places!(Codes::Nibbles { high_first: false }),
            Codes::Pairs => places!(Codes::Pairs),
        }
    }
}

/// A cache line of x.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([i8; 64]);

impl Line {
    fn bytes(lines: &mut [Line]) -> &mut [i8] {
        // SAFETY: a line is 64 bytes, without padding.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
    }
}

/// x in bytes, in the order of the codes.
pub(crate) struct Columns {
    /// `[block][column]`, as [`Bytes::put_x`] writes them, or 16-bit integers, which hold outliers, beside [widened](Bytes::WIDENS) bytes.
    low: Vec<Line>,
    /// As `low`, or all of x where a product of [words](Bytes::dot_words) takes the place of both; empty without outliers.
    high: Vec<Line>,
    /// `[block]`: whether any column has outliers there.
    outliers: Vec<bool>,
    /// How many blocks in a row have outliers, or have none, and whether they have.
    pub(super) runs: Vec<(usize, bool)>,
    /// `[column][block]`: what belongs to the sum of a block whatever the weights are: their shift and what dot products lack.
    pub(super) start: Vec<f32>,
    /// `[block][column][lane]`: what the offset of weights without sign adds, negated. As large as the products, so that it is added before
    /// these are rounded to floats. Empty where weights have signs.
    offsets: Vec<i32>,
    /// `[column][block]`.
    pub(super) steps: Vec<f32>,
    /// `[block]`, of one column beside codes that are looked up: the step, and what `start` adds to each lane.
    pub(super) lanes: Vec<[f32; 2]>,
    pub(super) columns: usize,
    /// Blocks of a column, rounded up to whole vectors.
    pub(super) stride: usize,
    /// Whether the weights beside them stay codes.
    pub(super) codes: bool,
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
        let Self { x, m: columns, k, packing } = self;
        let Packing { codes, shift, detail, offset } = packing;
        let (blocks, stride) = (k / BLOCK, (k / BLOCK).next_multiple_of(S::LANES));
        let stays_codes = stay_codes(offset);
        let unsigned = stays_codes || S::UNSIGNED;
        let lines = S::x_bytes(stays_codes) / BLOCK;
        let widens = S::WIDENS && codes == Codes::Bytes;
        let mut made = Columns {
            low: vec![Line([0; 64]); blocks * columns * lines],
            high: Vec::new(),
            outliers: vec![false; blocks],
            runs: Vec::new(),
            start: vec![0.0; columns * stride],
            offsets: vec![0; if unsigned { blocks * columns * S::LANES } else { 0 }],
            steps: vec![0.0; columns * stride],
            lanes: Vec::new(),
            columns,
            stride,
            codes: stays_codes,
        };
        for (column, x) in x.chunks_exact(k).enumerate().take(columns) {
            let threshold = detail.threshold(x);
            for (b, x) in x.chunks_exact(BLOCK).enumerate() {
                let at = (b * columns + column) * lines;
                let block = Block::new(x, threshold);
                made.steps[column * stride + b] = block.step;
                if widens {
                    let to = Line::bytes(&mut made.low[at..at + lines]).chunks_exact_mut(2);
                    for ((to, low), high) in to.zip(block.low).zip(block.high) {
                        let both = i16::from(low) + (i16::from(high) << 7);
                        to.copy_from_slice(&both.to_le_bytes().map(|byte| byte as i8));
                    }
                    continue;
                }
                let ordered = |bytes: &[i8; BLOCK], to: &mut [Line]| {
                    S::put_x(&codes.in_order::<S>(bytes), stays_codes, Line::bytes(&mut to[at..at + lines]))
                };
                if block.outliers {
                    made.outliers[b] = true;
                    made.high.resize(made.low.len(), Line([0; 64]));
                }
                let mut start = if block.outliers && S::WIDENS && !stays_codes {
                    let [low, high] = [&block.low, &block.high].map(|bytes| codes.in_order::<S>(bytes));
                    let words = std::array::from_fn(|place| (i16::from(high[place]) << 7) + i16::from(low[place]));
                    S::put_words(&words, Line::bytes(&mut made.high[at..at + lines]))
                } else if block.outliers {
                    ordered(&block.low, &mut made.low) + (ordered(&block.high, &mut made.high) << 7)
                } else {
                    ordered(&block.low, &mut made.low)
                };
                if unsigned {
                    let lanes = &mut made.offsets[(b * columns + column) * S::LANES..][..S::LANES];
                    let [low, high] = [&block.low, &block.high].map(|bytes| codes.in_order::<S>(bytes));
                    for (place, (low, high)) in low.into_iter().zip(high).enumerate() {
                        lanes[place / 4 % S::LANES] -= offset * (i32::from(low) + (i32::from(high) << 7));
                    }
                }
                if shift != Shift::NONE {
                    start += shift.of(block.eights()).iter().sum::<i32>();
                }
                made.start[column * stride + b] = start as f32;
            }
        }
        if columns == 1 && !stays_codes && codes != Codes::Bytes {
            let in_lanes = |(step, start): (&f32, &f32)| [*step, step * start / S::LANES as f32];
            made.lanes = made.steps.iter().zip(&made.start).map(in_lanes).collect();
        }
        made.runs = made.outliers.chunk_by(|a, b| a == b).map(|run| (run.len(), run[0])).collect();
        made
    }
}

impl Columns {
    /// Those of `m` rows of `k`, for the kernels at `level`, which there [are](bytes::available).
    pub(super) fn new(x: &[f32], (m, k): (usize, usize), packing: Packing, level: Level) -> Columns {
        bytes::launch(level, Arrange { x, m, k, packing })
    }

    /// Whether a block of one column has outliers.
    ///
    /// # Safety
    /// x has the block.
    #[inline(always)]
    pub(super) unsafe fn has_outliers(&self, block: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe { *self.outliers.as_ptr().add(block) }
    }

    /// x of a block and a column, the `at`-th of these.
    ///
    /// # Safety
    /// `S` is enabled, and x has it, arranged beside `CODES`.
    #[inline(always)]
    pub(super) unsafe fn load<S: Bytes, const CODES: bool>(&self, at: usize) -> S::X {
        // SAFETY: the caller's promise.
        unsafe { S::x::<CODES>(self.low.as_ptr().cast::<i8>().add(at * S::x_bytes(CODES))) }
    }

    /// Whole numbers that add up to the product of weights and x of a block and a column, the `at`-th of these, less its start; `outliers`
    /// counts those that x has there.
    ///
    /// # Safety
    /// As for [`load`](Self::load), which gave x; there are outliers only where x has some.
    #[inline(always)]
    pub(super) unsafe fn product<S: Bytes, const CODES: bool>(
        &self,
        w: S::Bytes,
        x: S::X,
        at: usize,
        outliers: bool,
    ) -> S::Sums {
        // SAFETY: the caller's promise.
        unsafe {
            let high = || self.high.as_ptr().cast::<i8>().add(at * S::x_bytes(CODES));
            if outliers && S::WIDENS && !CODES {
                return S::dot_words(w, high());
            }
            let sum = if CODES || S::UNSIGNED {
                let offsets = S::sums(self.offsets.as_ptr().add(at * S::LANES));
                S::dot_onto::<CODES>(offsets, w, x)
            } else {
                S::dot::<CODES>(w, x)
            };
            if !outliers {
                return sum;
            }
            S::add_high(sum, S::dot::<CODES>(w, S::x::<CODES>(high())))
        }
    }
}
