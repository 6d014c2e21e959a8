//! One row of x: codes are looked up and multiplied as they are read, some rows of the matrix in flight. What bounds it is memory, so x
//! takes as little of the caches as it can.

use super::BLOCK;
use super::gemv::{Codes, Gemv, Nested, Packing, WeightScales, for_stored_rows};
use super::round::Block;
use super::row_scales::{DECODED, Flight, HALVES, MatrixScales, NESTED, ROWS, STREAMS};
use crate::cpu::matmul::memo::Memo;
use crate::cpu::matmul::packed::AHEAD;
use crate::cpu::matmul::types::InputRows;
use crate::cpu::matmul::weight::Weight;
use crate::cpu::pool::Output;
use crate::cpu::pool::Region;
use std::arch::x86_64::*;

/// How many bytes ahead rows are prefetched that have no book: [`AHEAD`] takes 1.1 times as long there, and this 1.1 to 1.3 times as long
/// with a book (on Zen 4; which is better was only measured).
const NEAR_AHEAD: usize = 1024;

/// x in the order in which codes leave the bytes. Groups are 64 bytes of codes.
pub(crate) struct Row {
    /// `[group][code of a byte][byte]`.
    low: Vec<i8>,
    /// As `low`; empty without outliers.
    high: Vec<i8>,
    /// `[group]`: whether there are outliers.
    outliers: Vec<bool>,
    /// `[group][lane]`: what the offset of the weights adds, negated. Empty for bytes, where it is computed on the way.
    start: Vec<i32>,
    /// `[group][block]`.
    steps: Vec<f32>,
}

impl Row {
    fn new(x: &[f32], packing: Packing) -> Row {
        // SAFETY: `kernels` has found the features.
        unsafe {
            match packing.codes {
                Codes::Bytes => Row::order::<1>(x, packing, 0),
                Codes::Nibbles { high_first } => Row::order::<2>(x, packing, usize::from(high_first)),
                Codes::Pairs => Row::order::<4>(x, packing, 0),
            }
        }
    }

    /// The element at `e` of a byte is multiplied by the code at bit `8 / PER_BYTE * (e ^ flip)`.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn order<const PER_BYTE: usize>(x: &[f32], packing: Packing, flip: usize) -> Row {
        let group = 64 * PER_BYTE;
        let groups = x.len().div_ceil(group);
        let mut made = Row {
            low: vec![0; groups * group],
            high: Vec::new(),
            outliers: vec![false; groups],
            start: vec![0; if PER_BYTE == 1 { 0 } else { groups * 16 }],
            steps: vec![0.0; groups * PER_BYTE],
        };
        let threshold = packing.detail.threshold(x);
        for (index, x) in x.chunks_exact(BLOCK).enumerate() {
            let at = index / PER_BYTE;
            // The bytes of the group that this block fills.
            let from = index % PER_BYTE * (BLOCK / PER_BYTE);
            let block = Block::avx512(x, threshold);
            // SAFETY: as above.
            unsafe { spread::<PER_BYTE>(&block.low, &mut made.low[at * group + from..], flip) };
            if block.outliers {
                made.outliers[at] = true;
                made.high.resize(made.low.len(), 0);
                // SAFETY: as above.
                unsafe { spread::<PER_BYTE>(&block.high, &mut made.high[at * group + from..], flip) };
            }
            made.steps[index] = block.step;
            // Lanes hold 8 or 16 elements.
            if PER_BYTE > 1 {
                let lanes = &mut made.start[at * 16 + from / 4..][..16 / PER_BYTE];
                for (lane, starts) in lanes.iter_mut().zip(packing.starts(block.eights()).chunks_exact(PER_BYTE / 2)) {
                    *lane = starts.iter().sum();
                }
            }
        }
        made
    }
}

/// Puts the bytes of a block where the codes of a group are multiplied by them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn spread<const PER_BYTE: usize>(block: &[i8; BLOCK], to: &mut [i8], flip: usize) {
    let bytes = BLOCK / PER_BYTE;
    // SAFETY: the stores write `bytes` bytes to each slice.
    unsafe {
        let q = _mm512_loadu_si512(block.as_ptr().cast());
        for e in 0..PER_BYTE {
            let to = to[(e ^ flip) * 64..][..bytes].as_mut_ptr();
            match PER_BYTE {
                1 => _mm512_storeu_si512(to.cast(), q),
                2 if e == 0 => _mm256_storeu_si256(to.cast(), _mm512_cvtepi16_epi8(q)),
                2 => _mm256_storeu_si256(to.cast(), _mm512_cvtepi16_epi8(_mm512_srli_epi16::<8>(q))),
                _ => {
                    let by = _mm_cvtsi32_si128(8 * e as i32);
                    _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_srl_epi32(q, by)));
                }
            }
        }
    }
}

/// Adds a product with one row of x. Rows go where they are stored.
pub(crate) fn add_gemv<'a>(
    rows: &InputRows<'a>,
    memo: &Memo<Packing, Row>,
    w: Weight<'a>,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    for_stored_rows(rows, memo, &w, bias, y, |packing| Row::new(rows.x, packing), |gemv| add(gemv, region));
}

/// Adds a product to a region.
fn add<'a>(gemv: Gemv<'a, Row>, region: &mut Region<'a>) {
    let row_bytes = gemv.row_bytes();
    region.add(gemv.w.data.as_ptr(), (gemv.w.rows, gemv.w.stride), row_bytes, move |first, last| {
        // SAFETY: `kernels` has found AVX-512 VNNI and VBMI, the matrix was checked, and tasks have different rows.
        unsafe {
            match (gemv.w.codes, &gemv.w.scales) {
                (Codes::Nibbles { .. }, WeightScales::CodeBook(w, _)) if Nested::in_groups(w, gemv.k).is_some() => {
                    gemv.range::<4, NESTED>(first, last)
                }
                (Codes::Nibbles { .. }, WeightScales::CodeBook(..)) => gemv.range::<4, DECODED>(first, last),
                (Codes::Nibbles { .. }, _) => gemv.range::<4, ROWS>(first, last),
                (Codes::Bytes, WeightScales::Int8(_)) => gemv.range::<8, HALVES>(first, last),
                (Codes::Bytes, _) => gemv.range::<8, ROWS>(first, last),
                (Codes::Pairs, _) => gemv.range::<2, ROWS>(first, last),
            }
        }
    });
}

impl Gemv<'_, Row> {
    /// Bytes of a row that hold codes.
    fn row_bytes(&self) -> usize {
        match self.w.codes {
            Codes::Bytes => self.k,
            Codes::Nibbles { .. } => self.k / 2,
            Codes::Pairs => self.k / 4,
        }
    }

    /// Rows `first..last`, [`STREAMS`] of them in flight.
    ///
    /// # Safety
    /// The processor has AVX-512 VNNI and VBMI, the rows exist, and no other task writes their outputs.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn range<const BITS: usize, const SCALES: u8>(&self, first: usize, last: usize) {
        let mut scales = MatrixScales::new::<SCALES>(&self.w.scales, self.k);
        // Streams far apart, each read in order: that is what hardware prefetchers follow.
        let apart = (last - first) / STREAMS;
        // The rest one at a time: the same row several times, to spare a kernel of its own.
        let rest = first + apart * STREAMS;
        for row in (first..first + apart).chain(rest..last) {
            let flight = Flight { row, apart: if row < rest { apart } else { 0 } };
            // SAFETY: the rows lie before `last`.
            unsafe { self.rows::<BITS, SCALES>(flight, &mut scales) };
        }
    }

    /// The rows in flight.
    ///
    /// # Safety
    /// As for `range`, and x is ordered for `BITS`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn rows<const BITS: usize, const SCALES: u8>(&self, flight: Flight, scales: &mut MatrixScales) {
        const R: usize = STREAMS;
        let row_bytes = self.row_bytes();
        for row in flight.rows() {
            for line in scales.stored.lines_ahead(row) {
                _mm_prefetch::<_MM_HINT_T0>(line.cast());
            }
        }
        // SAFETY: the last group of a row is read under a mask; x and decoded scales are padded to whole groups, and
        // the check of the matrix found a nested scale for each of its blocks.
        unsafe {
            let mut scales = scales.of(flight);
            let book = _mm_add_epi8(_mm_loadu_si128(self.w.table.as_ptr().cast()), _mm_set1_epi8(self.w.offset as i8));
            let book = _mm512_broadcast_i32x4(book);
            let mut spread = [_mm512_setzero_si512(); R];
            for (r, lanes) in (0..).zip(&mut spread) {
                *lanes = if BITS == 8 { _mm512_set1_epi32(r) } else { halves(2 * r, 2 * r + 1) };
            }
            let zero = _mm512_setzero_si512();
            // One pointer and a step, for a pointer per row would not stay in the registers.
            let codes = self.w.data.as_ptr().add(flight.row * self.w.stride);
            let step = flight.apart * self.w.stride;
            let planes = 8 / BITS;
            // Whole groups only, where the storage says so.
            let even = SCALES == NESTED || BITS == 8;
            let whole = row_bytes / 64;
            let tail = (1u64 << (row_bytes % 64)) - 1;
            let ahead = if BITS == 4 && SCALES != ROWS { AHEAD } else { NEAR_AHEAD };
            let mut total = [_mm512_setzero_ps(); R];
            for g in 0..row_bytes.div_ceil(64) {
                let at = codes.add(g * 64);
                let mut bytes = [zero; R];
                for (r, bytes) in bytes.iter_mut().enumerate() {
                    let at = at.wrapping_add(r * step);
                    // Into L2: rows are often a power of two apart, and would push each other and x out of L1.
                    _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(ahead).cast());
                    if even || g < whole {
                        *bytes = _mm512_loadu_si512(at.cast());
                    }
                }
                if !even && g == whole {
                    for (r, bytes) in bytes.iter_mut().enumerate() {
                        *bytes = _mm512_maskz_loadu_epi8(tail, at.wrapping_add(r * step).cast());
                    }
                }
                let mut weights = [[zero; 4]; R];
                for (weights, &bytes) in weights.iter_mut().zip(&bytes) {
                    *weights = unpack::<BITS, SCALES>(bytes, book);
                }
                let x_of = |bytes: &[i8]| {
                    let mut x = [zero; 4];
                    for (plane, x) in x.iter_mut().enumerate().take(planes) {
                        *x = _mm512_loadu_si512(bytes.as_ptr().add((g * planes + plane) * 64).cast());
                    }
                    x
                };
                // Bytes are 128 too large.
                let start_of = |x| _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, _mm512_set1_epi8(-128), x));
                let x = x_of(&self.x.low);
                let mut sums = match BITS {
                    8 => [start_of(x[0]); R],
                    _ => [_mm512_loadu_si512(self.x.start.as_ptr().add(g * 16).cast()); R],
                };
                for (sum, weights) in sums.iter_mut().zip(&weights) {
                    for plane in 0..planes {
                        *sum = _mm512_dpbusd_epi32(*sum, weights[plane], x[plane]);
                    }
                }
                if *self.x.outliers.as_ptr().add(g) {
                    let x = x_of(&self.x.high);
                    let start = if BITS == 8 { start_of(x[0]) } else { zero };
                    for (sum, weights) in sums.iter_mut().zip(&weights) {
                        let mut high = start;
                        for plane in 0..planes {
                            high = _mm512_dpbusd_epi32(high, weights[plane], x[plane]);
                        }
                        *sum = _mm512_add_epi32(*sum, _mm512_slli_epi32::<7>(high));
                    }
                }
                let steps = self.x.steps.as_ptr().add(g * planes);
                let factors = _mm512_castps256_ps512(scales.factors::<SCALES>(g, steps));
                for r in 0..R {
                    let factor = match SCALES {
                        ROWS => steps_of_lanes::<BITS>(steps),
                        _ => _mm512_permutexvar_ps(spread[r], factors),
                    };
                    total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r]), factor, total[r]);
                }
            }
            for (row, total) in flight.rows().into_iter().zip(total) {
                self.store(row, [_mm512_reduce_add_ps(total)]);
            }
        }
    }
}

/// Lanes of the first and of the second half of a register.
#[target_feature(enable = "avx512f")]
#[inline]
fn halves(a: i32, b: i32) -> __m512i {
    _mm512_setr_epi32(a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b)
}

/// The step of the block that each lane of a group belongs to.
///
/// # Safety
/// The processor has AVX-512, and the group has these steps.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn steps_of_lanes<const BITS: usize>(steps: *const f32) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let (steps, lanes) = match BITS {
            8 => return _mm512_set1_ps(*steps),
            4 => (_mm_castpd_ps(_mm_load_sd(steps.cast())), halves(0, 1)),
            _ => (_mm_loadu_ps(steps), _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)),
        };
        _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(steps))
    }
}

/// The unsigned bytes of a group, for each code of a byte; codes with scales of blocks are looked up.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn unpack<const BITS: usize, const SCALES: u8>(bytes: __m512i, book: __m512i) -> [__m512i; 4] {
    let (by_2, by_4, by_6) =
        (_mm512_srli_epi16::<2>(bytes), _mm512_srli_epi16::<4>(bytes), _mm512_srli_epi16::<6>(bytes));
    let pair = _mm512_set1_epi8(3);
    match BITS {
        8 => [_mm512_xor_si512(bytes, _mm512_set1_epi8(-128)); 4],
        4 if SCALES == ROWS => {
            let nibble = _mm512_set1_epi8(15);
            let (low, high) = (_mm512_and_si512(bytes, nibble), _mm512_and_si512(by_4, nibble));
            [low, high, low, high]
        }
        4 => {
            // The book lies in the register four times, so that the upper bits do not matter.
            let (low, high) = (_mm512_permutexvar_epi8(bytes, book), _mm512_permutexvar_epi8(by_4, book));
            [low, high, low, high]
        }
        _ => [
            _mm512_and_si512(bytes, pair),
            _mm512_and_si512(by_2, pair),
            _mm512_and_si512(by_4, pair),
            _mm512_and_si512(by_6, pair),
        ],
    }
}
