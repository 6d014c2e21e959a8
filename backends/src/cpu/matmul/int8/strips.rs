//! 2 rows of x and more against 16 rows of the matrix at a time.
//!
//! Rows of the matrix are the lanes of a register: each holds four bytes of all 16, and four bytes of x are broadcast from memory. The sums
//! of a block, an integer for each row, become floats at once: conversion, scales and addition cost a sixteenth of those of a dot product
//! per row, and codes are transposed and looked up once for all rows of x. While a strip is multiplied one of those after it is prefetched, its
//! bytes in the order in which they lie: that is how memory is read fastest. A row's sums are added in the same order as in the tiles of
//! [`gemm`](super::gemm) and whatever its neighbours are.

use super::gemv::{Codes, Gemv, Packing, WeightScales, for_stored_rows, further};
use super::next::Next;
use super::panel::{Order, WORDS};
use super::round::Block;
use super::strip_scales::{ROWS, Strip, StripScales};
use super::{BLOCK, OFFSET};
use crate::cpu::matmul::memo::Memo;
use crate::cpu::matmul::types::InputRows;
use crate::cpu::matmul::weight::Weight;
use crate::cpu::pool::{Output, Region, for_each_chunk};
use std::arch::x86_64::*;

/// How many rows ahead weights are prefetched. With the next strip instead, products of few rows wait for memory.
const AHEAD: usize = 2 * ROWS;
/// Rows of which a register holds 16 bytes before they are transposed.
const QUAD: usize = 4;

/// A block of a row of x, in the order of the codes.
struct Ordered {
    low: [i8; BLOCK],
    high: [i8; BLOCK],
    outliers: bool,
    step: f32,
    start: i32,
}

/// Where the high bytes of a block without outliers lie.
const NOWHERE: u32 = u32::MAX;

/// Rows of x. The bytes of blocks are in the order of the codes.
#[derive(Default)]
pub(crate) struct Tokens {
    /// `[block][token]`.
    low: Vec<[i8; BLOCK]>,
    /// `[block][token]`: what the offset of the weights adds, negated.
    start: Vec<i32>,
    /// `[block][token]`.
    steps: Vec<f32>,
    /// `[block][token]`: which of `high` is its own, or [`NOWHERE`].
    high_at: Vec<u32>,
    high: Vec<[i8; BLOCK]>,
}

impl Tokens {
    fn new(x: &[f32], m: usize, k: usize, packing: Packing) -> Tokens {
        let mut rounded: Vec<Vec<Ordered>> = Vec::new();
        rounded.resize_with(m, Vec::new);
        for_each_chunk(&mut rounded, 1, k, |token, blocks| {
            // SAFETY: `kernels` has found the features.
            blocks[0] = unsafe { Ordered::of(&x[token * k..(token + 1) * k], packing) };
        });
        let mut made = Tokens::default();
        for b in 0..k / BLOCK {
            for block in rounded.iter().map(|blocks| &blocks[b]) {
                made.low.push(block.low);
                made.start.push(block.start);
                made.steps.push(block.step);
                made.high_at.push(if block.outliers { made.high.len() as u32 } else { NOWHERE });
                made.high.extend(block.outliers.then_some(block.high));
            }
        }
        made
    }
}

impl Ordered {
    /// The blocks of a row.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI and VBMI.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn of(x: &[f32], packing: Packing) -> Vec<Ordered> {
        let order = match packing.codes {
            Codes::Bytes => Order::Natural,
            Codes::Nibbles { .. } => Order::EvenOdd,
            Codes::Pairs => Order::Quarters,
        };
        let threshold = packing.detail.threshold(x);
        let mut blocks = Vec::with_capacity(x.len() / BLOCK);
        for x in x.chunks_exact(BLOCK) {
            let block = Block::avx512(x, threshold);
            // Integers get the same offset as other codes.
            let start = Packing { offset: OFFSET, ..packing }.starts(block.eights()).iter().sum();
            let (low, high) = (order.apply(&block.low), order.apply(&block.high));
            blocks.push(Ordered { low, high, outliers: block.outliers, step: block.step, start });
        }
        blocks
    }
}

/// Adds a product with a few rows of x. Rows go where they are stored.
pub(super) fn add<'a>(
    rows: &InputRows<'a>,
    memo: &Memo<Packing, Tokens>,
    w: Weight<'a>,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    let &InputRows { x, m, k, .. } = rows;
    for_stored_rows(
        rows,
        memo,
        &w,
        bias,
        y,
        |packing| Tokens::new(x, m, k, packing),
        |gemv| {
            let (data, stride, count) = (gemv.w.data.as_ptr(), gemv.w.stride, gemv.w.rows);
            region.add_tiles(ROWS, (data, stride), count, m * k, move |first, last| {
                // SAFETY: `kernels` has found AVX-512 VNNI and VBMI, the matrix was checked, and tasks have different rows.
                unsafe {
                    match gemv.w.codes {
                        Codes::Bytes => gemv.strips::<8, false>(first, last),
                        Codes::Nibbles { high_first: true } => gemv.strips::<4, true>(first, last),
                        Codes::Nibbles { high_first: false } => gemv.strips::<4, false>(first, last),
                        Codes::Pairs => gemv.strips::<2, false>(first, last),
                    }
                }
            });
        },
    );
}

impl Gemv<'_, Tokens> {
    /// Rows `first..last`.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI and VBMI, the rows exist, and no other task writes their outputs.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn strips<const BITS: usize, const HIGH_FIRST: bool>(&self, first: usize, last: usize) {
        let blocks = self.k / BLOCK;
        let mut scales = StripScales::new(&self.w.scales, self.k);
        let mut totals = vec![0.0; self.m * ROWS];
        let table = self.table();
        let x = self.x.blocks();
        for first in (first..last).step_by(ROWS) {
            let strip = Strip { first, height: ROWS.min(last - first) };
            totals.fill(0.0);
            // SAFETY: the rows have these blocks; scales and totals have all blocks and rows of x that are added.
            unsafe {
                let scales = scales.of(strip);
                let next = Next { code_bytes: 8 * ROWS * BITS, ..self.next(strip.first + AHEAD, ROWS) };
                let table = _mm512_loadu_si512(table.as_ptr().cast());
                let rows: [*const u8; ROWS] = self.w.starts(strip.first, strip.height);
                let mut packed = [[_mm512_setzero_si512(); 4]; WORDS / 4];
                if blocks > 0 {
                    packed = self::packed::<BITS>(&rows);
                }
                for b in 0..blocks {
                    next.prefetch(b);
                    let w = look_up::<BITS, HIGH_FIRST>(&packed, table);
                    let scales = _mm512_loadu_ps(scales.as_ptr().add(b * ROWS));
                    for token in (0..self.m).step_by(2) {
                        let (at, totals) = (b * self.m + token, totals.as_mut_ptr().add(token * ROWS));
                        if token + 1 < self.m {
                            x.add::<2>(at, &w, scales, totals);
                        } else {
                            x.add::<1>(at, &w, scales, totals);
                        }
                        // The next block is read while this one is multiplied: registers have room for both, but for bytes.
                        if token == 0 && b + 1 < blocks {
                            packed = self::packed::<BITS>(&further(rows, (b + 1) * (8 * BITS)));
                        }
                    }
                }
                self.write(strip, &totals);
            }
        }
    }

    /// Writes the outputs of a strip.
    ///
    /// # Safety
    /// As for `strips`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn write(&self, strip: Strip, totals: &[f32]) {
        let factor = match &self.w.scales {
            WeightScales::CodeBook(_, factor) => *factor,
            _ => 1.0,
        };
        let column = self.w.column + strip.first;
        // SAFETY: the mask leaves the columns that exist.
        unsafe {
            let bias = match self.bias {
                Some(bias) => _mm512_maskz_loadu_ps(strip.mask(), bias.as_ptr().add(column)),
                None => _mm512_setzero_ps(),
            };
            for (token, total) in totals.chunks_exact(ROWS).enumerate() {
                let y = _mm512_mul_ps(_mm512_loadu_ps(total.as_ptr()), _mm512_set1_ps(factor));
                _mm512_mask_storeu_ps(self.y.at(token, column), strip.mask(), _mm512_add_ps(y, bias));
            }
        }
    }

    /// The unsigned byte of each code, in a register so often that the bits above a code do not matter.
    fn table(&self) -> [u8; 64] {
        let codes = if self.w.codes == Codes::Pairs { 4 } else { 16 };
        std::array::from_fn(|i| self.w.table[i % codes] as u8 ^ 0x80)
    }
}

/// Where the blocks of rows of x lie: those of [`Tokens`], read once for a whole loop.
#[derive(Clone, Copy)]
struct TokenBlocks {
    low: *const [i8; BLOCK],
    start: *const i32,
    steps: *const f32,
    high_at: *const u32,
    high: *const [i8; BLOCK],
}

impl Tokens {
    fn blocks(&self) -> TokenBlocks {
        let Tokens { low, start, steps, high_at, high } = self;
        TokenBlocks {
            low: low.as_ptr(),
            start: start.as_ptr(),
            steps: steps.as_ptr(),
            high_at: high_at.as_ptr(),
            high: high.as_ptr(),
        }
    }
}

impl TokenBlocks {
    /// Adds the products of a block of 16 rows of the matrix with `T` rows of x, from `at` on in their order, to their totals, `[token][row]`.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI, and x and the totals have these.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn add<const T: usize>(self, at: usize, w: &Words, scales: __m512, totals: *mut f32) {
        let zero = _mm512_setzero_si512();
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [zero; T];
            for (t, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_set1_epi32(*self.start.add(at + t));
                let high_at = *self.high_at.add(at + t);
                if high_at != NOWHERE {
                    let [high] = products(w, self.high.add(high_at as usize), [zero]);
                    *sum = _mm512_add_epi32(*sum, _mm512_slli_epi32::<7>(high));
                }
            }
            let sums = products(w, self.low.add(at), sums);
            for (t, &sum) in sums.iter().enumerate() {
                let scales = _mm512_mul_ps(scales, _mm512_set1_ps(*self.steps.add(at + t)));
                let total = totals.add(t * ROWS);
                let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales, _mm512_loadu_ps(total));
                _mm512_storeu_ps(total, sum);
            }
        }
    }
}

/// A block of 16 rows as unsigned bytes: four of every row in each register, in the order of [`Order`].
type Words = [__m512i; WORDS];

/// Codes as they are stored, of the first registers as many as a block takes: words of 16 rows.
type Packed = [[__m512i; 4]; WORDS / 4];

/// The packed words of a block of 16 rows.
///
/// # Safety
/// The processor has AVX-512, and the rows have a block where the pointers point.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn packed<const BITS: usize>(rows: &[*const u8; ROWS]) -> Packed {
    // 16 bytes of four rows are a register; a block of theirs is so many.
    let count = BITS / 2;
    let mut packed = [[_mm512_setzero_si512(); QUAD]; WORDS / 4];
    for q in 0..QUAD {
        // SAFETY: the caller's promise.
        let parts = unsafe { parts::<BITS>([rows[q], rows[q + QUAD], rows[q + 2 * QUAD], rows[q + 3 * QUAD]]) };
        for i in 0..count {
            packed[i][q] = parts[i];
        }
    }
    for quads in packed.iter_mut().take(count) {
        *quads = transpose_quads(*quads);
    }
    packed
}

/// The bytes of packed words.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn look_up<const BITS: usize, const HIGH_FIRST: bool>(packed: &Packed, table: __m512i) -> Words {
    let mut words = [_mm512_setzero_si512(); WORDS];
    for i in 0..BITS / 2 {
        for (k, &word) in packed[i].iter().enumerate() {
            let at = 4 * i + k;
            match BITS {
                8 => words[at] = _mm512_xor_si512(word, _mm512_set1_epi8(-128)),
                4 => {
                    let (low, high) = if HIGH_FIRST { (at + WORDS / 2, at) } else { (at, at + WORDS / 2) };
                    words[low] = code::<0>(word, table);
                    words[high] = code::<4>(word, table);
                }
                _ => {
                    words[at] = code::<0>(word, table);
                    words[at + WORDS / 4] = code::<2>(word, table);
                    words[at + WORDS / 2] = code::<4>(word, table);
                    words[at + WORDS / 4 * 3] = code::<6>(word, table);
                }
            }
        }
    }
    words
}

/// A block of four rows: 16 bytes of each in every register that it takes.
///
/// # Safety
/// The processor has AVX-512, and the rows have a block at `at`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn parts<const BITS: usize>([a, b, c, d]: [*const u8; QUAD]) -> [__m512i; 4] {
    let mut parts = [_mm512_setzero_si512(); 4];
    // SAFETY: a block has 8 bytes per bit of a code.
    unsafe {
        match BITS {
            8 => {
                let (a, b) = (_mm512_loadu_si512(a.cast()), _mm512_loadu_si512(b.cast()));
                let (c, d) = (_mm512_loadu_si512(c.cast()), _mm512_loadu_si512(d.cast()));
                let (low, high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
                let (low2, high2) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
                parts = [
                    _mm512_shuffle_i32x4::<0x88>(low, low2),
                    _mm512_shuffle_i32x4::<0xdd>(low, low2),
                    _mm512_shuffle_i32x4::<0x88>(high, high2),
                    _mm512_shuffle_i32x4::<0xdd>(high, high2),
                ];
            }
            4 => {
                let (a, b) = (_mm256_loadu_si256(a.cast()), _mm256_loadu_si256(b.cast()));
                let (c, d) = (_mm256_loadu_si256(c.cast()), _mm256_loadu_si256(d.cast()));
                let a = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
                let c = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(c), d);
                parts[0] = _mm512_shuffle_i32x4::<0x88>(a, c);
                parts[1] = _mm512_shuffle_i32x4::<0xdd>(a, c);
            }
            _ => {
                let part = _mm512_castsi128_si512(_mm_loadu_si128(a.cast()));
                let part = _mm512_inserti32x4::<1>(part, _mm_loadu_si128(b.cast()));
                let part = _mm512_inserti32x4::<2>(part, _mm_loadu_si128(c.cast()));
                parts[0] = _mm512_inserti32x4::<3>(part, _mm_loadu_si128(d.cast()));
            }
        }
    }
    parts
}

/// Transposes words of rows: register `q` has four of rows `q`, `q + 4`, `q + 8` and `q + 12`; then each has one of all rows, in order.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_quads([a, b, c, d]: [__m512i; QUAD]) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab2, cd2) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab2, cd2),
        _mm512_unpackhi_epi64(ab2, cd2),
    ]
}

/// The bytes of the codes from bit `SHIFT` of each byte on; the table does not mind the bits above them.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn code<const SHIFT: u32>(bytes: __m512i, table: __m512i) -> __m512i {
    let bytes = if SHIFT == 0 { bytes } else { _mm512_srli_epi16::<SHIFT>(bytes) };
    _mm512_permutexvar_epi8(bytes, table)
}

/// Adds the products of a block of 16 rows with `T` of x, in the order of the words, to sums for each row. Two sums take turns, since the
/// next product of one would wait for the last.
///
/// # Safety
/// The processor has AVX-512 with VNNI, and x has these blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn products<const T: usize>(w: &Words, x: *const [i8; BLOCK], mut sums: [__m512i; T]) -> [__m512i; T] {
    let mut others = [_mm512_setzero_si512(); T];
    for (i, w) in w.iter().enumerate() {
        for (t, (sum, other)) in sums.iter_mut().zip(&mut others).enumerate() {
            // SAFETY: the caller's promise.
            let x = unsafe { _mm512_set1_epi32(x.add(t).cast::<i32>().add(i).read_unaligned()) };
            let sum = if T == 1 && i % 2 == 1 { other } else { sum };
            *sum = _mm512_dpbusd_epi32(*sum, *w, x);
        }
    }
    if T == 1 {
        sums[0] = _mm512_add_epi32(sums[0], others[0]);
    }
    sums
}
