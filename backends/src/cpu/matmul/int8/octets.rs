//! A few rows of x against 8 rows of the matrix at a time, on AVX2.
//!
//! A register holds two weights of each of 8 rows, as 16-bit integers, and two elements of a row of x are broadcast. So no sum runs over
//! the lanes of a register, an integer for each of 8 rows becomes a float at once, and codes are looked up once for all rows of x. Codes
//! that are integers themselves, and whatever VNNI multiplies, take half as many multiplications: a register holds four of each row, as bytes. While an octet is
//! multiplied the next one is prefetched, its bytes in the order in which they lie. Sums are added as in the [tiles](super::tiles): both
//! give the same bits.

use super::BLOCK;
use super::gemv::{Codes, Gemv, Packing, further, stay_codes};
use super::next::Next;
use super::pairs::{PAIRS, Panel, halves_of_quads, halves_of_set_quads, in_quads, unsigned, words};
use super::panels::Panels;
use crate::cpu::pool::with_scratch;
use crate::cpu::simd::bytes::avx2::{Instruction, without_sign};
use crate::cpu::simd::dot::{Dot, Maddubs, VnniEvex, VnniVex};
use std::arch::x86_64::*;

/// Rows of the matrix: lanes of a register.
pub(super) const ROWS: usize = 8;
/// Most rows of x whose sums stay in registers.
const GROUP: usize = 8;

/// Rows of x in each group of `m`.
fn width(m: usize) -> usize {
    m.div_ceil(m.div_ceil(GROUP))
}

/// The `m` rows of x, of `k` elements, in groups.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
pub(super) unsafe fn pack(
    x: &[f32],
    (m, k): (usize, usize),
    packing: Packing,
    instruction: Instruction,
) -> Panels<Panel> {
    let (width, codes) = (width(m), packing.codes);
    // SAFETY: the caller's promise.
    Panels::new(x, (m, k), width, |group: &mut Panel, x| unsafe {
        if in_quads(packing.offset, instruction) {
            group.fill::<4>(x, (k, width), packing, |quad| places(codes, quad));
        } else {
            group.fill::<2>(x, (k, width), packing, |pair| places(codes, pair));
        }
    })
}

/// Which `N` codes of a block [`expand`] puts beside word `i` of x.
fn places<const N: usize>(codes: Codes, i: usize) -> [usize; N] {
    // All bytes of a word of the matrix, or every second.
    let step = 4 / N;
    let bytes = codes.block_bytes();
    // `i` counts what comes of four bytes fastest, then the codes of a byte, then words.
    let planes = BLOCK / bytes;
    let (word, plane, part) = (i / (step * planes), i / step % planes, i % step);
    std::array::from_fn(|n| plane * bytes + 4 * word + part + n * step)
}

/// The weights of a block: [`PAIRS`] of each row, or [`QUADS`](super::pairs::QUADS), then zeros.
type Octet = [__m256i; PAIRS];

impl Gemv<'_, Panels<Panel>> {
    /// Rows `first..last`, with x of [`pack`].
    ///
    /// # Safety
    /// The processor has AVX2, FMA, F16C and the instruction, the rows exist, and no other task writes their outputs.
    pub(super) unsafe fn octets(&self, first: usize, last: usize, instruction: Instruction) {
        // SAFETY: the caller's promise.
        unsafe {
            match instruction {
                Instruction::Maddubs => self.octets_with::<Maddubs>(first, last),
                Instruction::VnniVex => self.octets_with::<VnniVex>(first, last),
                Instruction::VnniEvex => self.octets_with::<VnniEvex>(first, last),
            }
        }
    }

    /// [`octets`](Self::octets) with `D`.
    ///
    /// # Safety
    /// As for `octets`.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn octets_with<D: Dot>(&self, first: usize, last: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.w.codes {
                Codes::Bytes => self.range_of_octets::<8, false, false, D>(first, last),
                Codes::Nibbles { .. } if stay_codes(self.w.offset) => {
                    self.range_of_octets::<4, true, false, D>(first, last);
                }
                Codes::Nibbles { .. } if self.m == 2 && !D::VNNI => {
                    self.range_of_octets::<4, false, true, D>(first, last);
                }
                Codes::Nibbles { .. } => self.range_of_octets::<4, false, false, D>(first, last),
                Codes::Pairs => self.range_of_octets::<2, true, false, D>(first, last),
            }
        }
    }

    /// [`octets`](Self::octets) of codes of `BITS` bits. With `CODES` they stay codes; with `TWO` there are two rows of x, and
    /// codes are looked up and multiplied in pairs.
    ///
    /// # Safety
    /// As for `octets`.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn range_of_octets<const BITS: usize, const CODES: bool, const TWO: bool, D: Dot>(
        &self,
        first: usize,
        last: usize,
    ) {
        let blocks = self.k / BLOCK;
        let width = width(self.m);
        let tokens = self.x.0.len() * width;
        // SAFETY: the caller's promise.
        let table = unsafe { unsigned(&self.w) };
        let add = product_of::<CODES, D>(width);
        // The scales of a row are read by fours.
        let stride = blocks.next_multiple_of(4);
        let mut decoded = vec![0.0; ROWS * stride];
        let mut w = [_mm256_setzero_si256(); PAIRS];
        with_scratch(ROWS * (stride + tokens), |scratch| {
            let (scales, totals) = scratch.split_at_mut(ROWS * stride);
            for first in (first..last).step_by(ROWS) {
                let height = ROWS.min(last - first);
                // The last row stands for those beyond it.
                let row = |r: usize| first + r.min(height - 1);
                let of_row = |(r, decoded): (usize, &mut [f32])| match self.w.scales.floats_from(self.k, row(r)) {
                    Some(scales) if scales.len() >= stride => scales.as_ptr(),
                    _ => {
                        self.w.scales.of_row(self.k, row(r), 0, &mut decoded[..blocks]);
                        decoded.as_ptr()
                    }
                };
                let mut of_rows = decoded.chunks_exact_mut(stride).enumerate().map(of_row);
                let of_rows: [*const f32; ROWS] = std::array::from_fn(|_| of_rows.next().unwrap_or(std::ptr::null()));
                // SAFETY: each row has `stride` scales.
                unsafe { transpose(of_rows, scales) };
                totals.fill(0.0);
                let next = Next { code_bytes: 8 * ROWS * BITS, ..self.next(first + ROWS, ROWS) };
                let rows: [*const u8; ROWS] = self.w.starts(first, height);
                for b in 0..blocks {
                    next.prefetch(b);
                    // SAFETY: the rows have this block, so have x, scales and totals of `width` rows for each group.
                    unsafe {
                        let rows = further(rows, b * 8 * BITS);
                        let (scales, mut totals) = (scales.as_ptr().add(b * ROWS), totals.as_mut_ptr());
                        if TWO {
                            product_of_two(rows, table, scales, &self.x.0[0], b, totals);
                            continue;
                        }
                        expand::<BITS, CODES, D>(rows, table, &mut w);
                        for x in &self.x.0 {
                            add(&w, scales, x, b, totals);
                            totals = totals.add(width * ROWS);
                        }
                    }
                }
                // SAFETY: the caller's promise.
                unsafe { self.write_octet(first, height, totals) };
            }
        });
    }

    /// Writes the outputs of an octet from its totals `[token][row]`.
    ///
    /// # Safety
    /// As for `octets`.
    #[inline]
    unsafe fn write_octet(&self, first: usize, height: usize, totals: &[f32]) {
        let factor = self.w.scales.factor();
        let column = self.w.column + first;
        for (token, totals) in totals.chunks_exact(ROWS).enumerate().take(self.m) {
            // SAFETY: the caller's promise.
            let y = unsafe { self.y.row(token, column, height) };
            for (r, (y, total)) in y.iter_mut().zip(totals).enumerate() {
                *y = total * factor + self.bias.map_or(0.0, |bias| bias[column + r]);
            }
        }
    }
}

/// Writes a block of 8 rows as [`integers`].
///
/// # Safety
/// The processor has AVX2, and each row has a block.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn expand<const BITS: usize, const CODES: bool, D: Dot>(
    rows: [*const u8; ROWS],
    table: __m256i,
    to: &mut Octet,
) {
    let mut to = to.as_mut_ptr();
    // SAFETY: the caller's promise; a block has at most `PAIRS` registers.
    unsafe {
        integers::<BITS, CODES, D>(rows, table, |integers| {
            to.write(integers);
            to = to.add(1);
        });
    }
}

/// A block of 8 rows, a register after the other: 16-bit integers, or bytes where they are `CODES` or `D` is of VNNI, in the order of
/// [`places`].
///
/// # Safety
/// The processor has AVX2, and each row has a block.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn integers<const BITS: usize, const CODES: bool, D: Dot>(
    rows: [*const u8; ROWS],
    table: __m256i,
    mut put: impl FnMut(__m256i),
) {
    let (nibble, pair) = (_mm256_set1_epi8(15), _mm256_set1_epi8(3));
    let mut put = |bytes: __m256i| {
        if CODES || D::VNNI {
            return put(bytes);
        }
        let (even, odd) = (_mm256_and_si256(bytes, _mm256_set1_epi16(255)), _mm256_srli_epi16::<8>(bytes));
        put(even);
        put(odd);
    };
    for part in 0..BITS / 2 {
        // SAFETY: a block has 8 bytes per bit of a code.
        let words = unsafe { transposed(further(rows, 16 * part)) };
        for word in words {
            match BITS {
                // SAFETY: the caller's promise.
                8 => put(unsafe { without_sign(word) }),
                4 => {
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(word), nibble);
                    for codes in [high, _mm256_and_si256(word, nibble)] {
                        put(if CODES { codes } else { _mm256_shuffle_epi8(table, codes) });
                    }
                }
                _ => {
                    put(_mm256_and_si256(word, pair));
                    put(_mm256_and_si256(_mm256_srli_epi16::<2>(word), pair));
                    put(_mm256_and_si256(_mm256_srli_epi16::<4>(word), pair));
                    put(_mm256_and_si256(_mm256_srli_epi16::<6>(word), pair));
                }
            }
        }
    }
}

/// 16 bytes of each of 8 rows: word `i` of each row in register `i`.
///
/// # Safety
/// The processor has AVX2, and each row has 16 bytes.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn transposed(rows: [*const u8; ROWS]) -> [__m256i; 4] {
    // Rows 4 apart share a register.
    // SAFETY: the caller's promise.
    let two = |r: usize| unsafe {
        let (first, second) = (_mm_loadu_si128(rows[r].cast()), _mm_loadu_si128(rows[r + 4].cast()));
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(first), second)
    };
    let (a, b, c, d) = (two(0), two(1), two(2), two(3));
    let (low, high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (low_next, high_next) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(low, low_next),
        _mm256_unpackhi_epi64(low, low_next),
        _mm256_unpacklo_epi64(high, high_next),
        _mm256_unpackhi_epi64(high, high_next),
    ]
}

/// Writes scales of 8 rows as `[block][row]`.
///
/// # Safety
/// The processor has AVX2, and each row has as many scales as there is room for, in fours.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn transpose(of_rows: [*const f32; ROWS], to: &mut [f32]) {
    for (i, to) in to.chunks_exact_mut(4 * ROWS).enumerate() {
        // SAFETY: the caller's promise; a register holds eight floats.
        unsafe {
            let words = transposed(further(of_rows, 16 * i).map(<*const f32>::cast));
            for (word, to) in words.into_iter().zip(to.chunks_exact_mut(ROWS)) {
                _mm256_storeu_si256(to.as_mut_ptr().cast(), word);
            }
        }
    }
}

/// Adds the products of a block of an octet and of a group, given its scales, to totals `[token][row]`.
type Product = unsafe fn(&Octet, *const f32, &Panel, usize, *mut f32);

/// That of a group of `m` rows of x, 1 to [`GROUP`].
fn product_of<const CODES: bool, D: Dot>(m: usize) -> Product {
    match m {
        1 => product::<1, CODES, D>,
        2 => product::<2, CODES, D>,
        3 => product::<3, CODES, D>,
        4 => product::<4, CODES, D>,
        5 => product::<5, CODES, D>,
        6 => product::<6, CODES, D>,
        7 => product::<7, CODES, D>,
        _ => product::<GROUP, CODES, D>,
    }
}

/// A [`Product`] of a group of `M` rows of x.
///
/// # Safety
/// The processor has AVX2, FMA and the instruction, x has this block, and there are 8 scales and `M` times 8 totals.
#[target_feature(enable = "avx2,fma")]
unsafe fn product<const M: usize, const CODES: bool, D: Dot>(
    w: &Octet,
    scales: *const f32,
    x: &Panel,
    block: usize,
    totals: *mut f32,
) {
    let quads = CODES || D::VNNI;
    let at = block * words(quads) * M;
    // SAFETY: the caller's promise.
    unsafe {
        let start = x.start.as_ptr().add(block * M);
        let mut sums: [__m256i; M] = std::array::from_fn(|m| _mm256_set1_epi32(*start.add(m)));
        let words = x.words.as_ptr().add(at);
        if quads {
            add_quads::<D, M>(w, words, halves_of_quads(), &mut sums);
            let outliers = x.outliers[block];
            if outliers != 0 {
                let mut of_high = [_mm256_setzero_si256(); M];
                add_quads::<D, M>(w, x.high.as_ptr().add(at), halves_of_set_quads(outliers), &mut of_high);
                for (sum, high) in sums.iter_mut().zip(of_high) {
                    *sum = _mm256_add_epi32(*sum, _mm256_slli_epi32::<7>(high));
                }
            }
        } else {
            for (i, w) in w.iter().enumerate() {
                for (m, sum) in sums.iter_mut().enumerate() {
                    let x = _mm256_set1_epi32(*words.add(i * M + m));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*w, x));
                }
            }
        }
        add_sums(sums, scales, x, block, totals);
    }
}

/// A [`Product`] of two rows of x and codes that are looked up, whose pairs are multiplied as they leave the rows of the matrix: it spares
/// writing and reading them, a fifth of the time. With three rows the compiler has too few registers, and it takes a fifth longer.
///
/// # Safety
/// As for [`product`]; each row of the matrix has a block.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn product_of_two(
    rows: [*const u8; ROWS],
    table: __m256i,
    scales: *const f32,
    x: &Panel,
    block: usize,
    totals: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let start = x.start.as_ptr().add(block * 2);
        let mut sums = [_mm256_set1_epi32(*start), _mm256_set1_epi32(*start.add(1))];
        let mut words = x.words.as_ptr().add(block * PAIRS * 2);
        integers::<4, false, Maddubs>(rows, table, |w| {
            for (m, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(w, _mm256_set1_epi32(*words.add(m))));
            }
            words = words.add(2);
        });
        add_sums(sums, scales, x, block, totals);
    }
}

/// Adds the sums of a block of an octet with `M` rows of x to totals.
///
/// # Safety
/// As for [`product`].
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn add_sums<const M: usize>(sums: [__m256i; M], scales: *const f32, x: &Panel, block: usize, totals: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let (scales, steps) = (_mm256_loadu_ps(scales), x.steps.as_ptr().add(block * M));
        for (m, sum) in sums.into_iter().enumerate() {
            let scale = _mm256_mul_ps(scales, _mm256_set1_ps(*steps.add(m)));
            let total = totals.add(m * ROWS);
            let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, _mm256_loadu_ps(total));
            _mm256_storeu_ps(total, sum);
        }
    }
}

/// Adds the products of weights in bytes (codes alone, without VNNI) and some quads of `M` rows of x.
///
/// # Safety
/// The processor has AVX2 and the instruction, and x has a block.
#[inline(always)]
unsafe fn add_quads<D: Dot, const M: usize>(
    w: &Octet,
    x: *const i32,
    halves: [impl Iterator<Item = usize>; 2],
    sums: &mut [__m256i; M],
) {
    // SAFETY: the caller's promise.
    unsafe {
        for half in halves {
            if D::VNNI {
                for i in half {
                    for (m, sum) in sums.iter_mut().enumerate() {
                        *sum = D::add(*sum, w[i], _mm256_set1_epi32(*x.add(i * M + m)));
                    }
                }
                continue;
            }
            // Sums of half a block fit 16 bits.
            let mut products = [_mm256_setzero_si256(); M];
            for i in half {
                for (m, products) in products.iter_mut().enumerate() {
                    let x = _mm256_set1_epi32(*x.add(i * M + m));
                    *products = _mm256_add_epi16(*products, _mm256_maddubs_epi16(w[i], x));
                }
            }
            for (sum, products) in sums.iter_mut().zip(products) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
            }
        }
    }
}
