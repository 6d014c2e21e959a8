//! Many rows of x on AVX2: x and the bytes of the matrix as 16-bit integers, multiplied in pairs, or in quads of bytes where these are codes of
//! integers or VNNI multiplies them.
//!
//! The lanes are tokens, and words of the weight are broadcast. The sum of a block is exact; it becomes a float as in the tiles of AVX-512:
//! both give the same bits.

use super::BLOCK;
use super::gemv::{Codes, Gemv, Packing, stay_codes};
use super::pairs::{PAIRS, Panel, QUADS, halves_of_quads, halves_of_set_quads, in_quads, set_quads, unsigned, words};
use super::panels::Panels;
use crate::cpu::pool::with_scratch;
use crate::cpu::simd::avx2::Avx2;
use crate::cpu::simd::bytes::Bytes;
use crate::cpu::simd::bytes::avx2::{Instruction, without_sign};
use crate::cpu::simd::dot::{Dot, Maddubs, VnniEvex, VnniVex};
use std::arch::x86_64::*;

/// Blocks of a row per tile.
const DEPTH: usize = 4;
/// Rows of a tile whose products with a panel are computed at once.
pub(super) const STRIP: usize = 6;
/// Rows of a tile: x is read as often as there are tiles.
const HEIGHT: usize = 48;
/// Tokens of a panel: two vectors.
const PANEL: usize = 16;
const LANES: usize = 8;

/// The `m` rows of x, of `k` elements, in panels.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
pub(super) unsafe fn pack(
    x: &[f32],
    (m, k): (usize, usize),
    packing: Packing,
    instruction: Instruction,
) -> Panels<Panel> {
    // SAFETY: the caller's promise.
    Panels::new(x, (m, k), PANEL, |panel: &mut Panel, x| unsafe {
        if in_quads(packing.offset, instruction) {
            panel.fill::<4>(x, (k, PANEL), packing, |quad| std::array::from_fn(|i| 4 * quad + i));
        } else {
            panel.fill::<2>(x, (k, PANEL), packing, |pair| std::array::from_fn(|i| 2 * pair + i));
        }
    })
}

impl Gemv<'_, Panels<Panel>> {
    /// Rows `first..last`, with x of [`pack`].
    ///
    /// # Safety
    /// The processor has AVX2, FMA, F16C and the instruction, the rows exist, and no other task writes their outputs.
    pub(super) unsafe fn tiles(&self, first: usize, last: usize, instruction: Instruction) {
        // SAFETY: the caller's promise.
        unsafe {
            match (instruction, stay_codes(self.w.offset)) {
                (Instruction::Maddubs, false) => self.range_of_tiles::<false, Maddubs>(first, last),
                (Instruction::Maddubs, true) => self.range_of_tiles::<true, Maddubs>(first, last),
                (Instruction::VnniVex, false) => self.range_of_tiles::<false, VnniVex>(first, last),
                (Instruction::VnniVex, true) => self.range_of_tiles::<true, VnniVex>(first, last),
                (Instruction::VnniEvex, false) => self.range_of_tiles::<false, VnniEvex>(first, last),
                (Instruction::VnniEvex, true) => self.range_of_tiles::<true, VnniEvex>(first, last),
            }
        }
    }

    /// [`tiles`](Self::tiles). With `CODES` weights stay codes.
    ///
    /// # Safety
    /// As for `tiles`.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn range_of_tiles<const CODES: bool, D: Dot>(&self, first: usize, last: usize) {
        let tokens = self.x.0.len() * PANEL;
        let quads = CODES || D::VNNI;
        let (words, block_size) = (words(quads), 4 * words(quads));
        let mut tile = vec![0u8; HEIGHT * DEPTH * block_size];
        let mut scales = vec![1.0; HEIGHT * DEPTH];
        with_scratch(HEIGHT * tokens, |totals| {
            for first in (first..last).step_by(HEIGHT) {
                let height = HEIGHT.min(last - first);
                totals.fill(0.0);
                for from in (0..self.k / BLOCK).step_by(DEPTH) {
                    let blocks = DEPTH.min(self.k / BLOCK - from);
                    let block_bytes = self.w.codes.block_bytes();
                    for r in 0..height {
                        // As many bytes of the next tile, but of whole rows one after the other: that is how memory is read fastest.
                        let next = self.w.data.as_ptr().wrapping_add((first + HEIGHT) * self.w.stride);
                        let next = next.wrapping_add((from * HEIGHT + r * blocks) * block_bytes);
                        for line in (0..blocks * block_bytes).step_by(64) {
                            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(line).cast());
                        }
                        let scales = &mut scales[r * DEPTH..][..blocks];
                        self.w.scales.of_row(self.k, first + r, from, scales);
                        for b in 0..blocks {
                            // SAFETY: the block of the row exists.
                            unsafe {
                                let to = &mut tile[(r * DEPTH + b) * block_size..][..block_size];
                                self.expand::<CODES, D>(first + r, from + b, to);
                            }
                        }
                    }
                    for (p, panel) in self.x.0.iter().enumerate() {
                        for strip in (0..height).step_by(STRIP) {
                            for b in 0..blocks {
                                // SAFETY: the strip lies in the tile, the block in the panel, the totals in `[rows, tokens]`.
                                unsafe {
                                    let at = (from + b) * words * PANEL;
                                    let part = Part {
                                        w: tile.as_ptr().add((strip * DEPTH + b) * block_size),
                                        w_scales: scales.as_ptr().add(strip * DEPTH + b),
                                        x: panel.words.as_ptr().add(at),
                                        outliers: panel.outliers[from + b],
                                        high: panel.high.as_ptr().wrapping_add(at),
                                        start: panel.start.as_ptr().add((from + b) * PANEL),
                                        steps: panel.steps.as_ptr().add((from + b) * PANEL),
                                        totals: totals.as_mut_ptr().add(strip * tokens + p * PANEL),
                                        tokens,
                                    };
                                    // A last panel that is half empty takes the kernel of one vector.
                                    if self.m - p * PANEL > LANES {
                                        part.add::<2, CODES, D>()
                                    } else {
                                        part.add::<1, CODES, D>()
                                    }
                                }
                            }
                        }
                    }
                }
                // SAFETY: the caller's promise.
                unsafe { self.write(first, height, totals, tokens) };
            }
        });
    }

    /// Writes the outputs of a tile.
    ///
    /// # Safety
    /// As for `tiles`.
    #[inline]
    unsafe fn write(&self, first: usize, height: usize, totals: &[f32], tokens: usize) {
        let factor = self.w.scales.factor();
        let column = self.w.column + first;
        for token in 0..self.m {
            // SAFETY: the caller's promise.
            let y = unsafe { self.y.row(token, column, height) };
            for (r, y) in y.iter_mut().enumerate() {
                *y = totals[r * tokens + token] * factor + self.bias.map_or(0.0, |bias| bias[column + r]);
            }
        }
    }

    /// A block of a row as 16-bit integers, or as bytes where they are `CODES` or `D` is of VNNI, in the order of [`Codes::element`].
    ///
    /// # Safety
    /// The processor has AVX2, and the block exists.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn expand<const CODES: bool, D: Dot>(&self, row: usize, block: usize, to: &mut [u8]) {
        // SAFETY: the caller's promise, and 64 integers are four vectors, or two of bytes.
        unsafe {
            let codes = self.w.data.as_ptr().add(row * self.w.stride);
            let table = unsigned(&self.w);
            let at = codes.add(block * self.w.codes.block_bytes());
            let bytes = match self.w.codes {
                Codes::Bytes => <Avx2>::bytes(at).map(|bytes| without_sign(bytes)),
                Codes::Nibbles { .. } => <Avx2>::nibbles::<CODES>(at, table),
                Codes::Pairs => <Avx2>::pairs::<CODES>(at, table),
            };
            for (bytes, to) in bytes.into_iter().zip(to.chunks_exact_mut(to.len() / 2)) {
                if CODES || D::VNNI {
                    _mm256_storeu_si256(to.as_mut_ptr().cast(), bytes);
                    continue;
                }
                let (low, high) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
                _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_cvtepu8_epi16(low));
                _mm256_storeu_si256(to.as_mut_ptr().add(32).cast(), _mm256_cvtepu8_epi16(high));
            }
        }
    }
}

/// A block of a strip and of a panel.
struct Part {
    /// Rows [`DEPTH`] blocks apart.
    w: *const u8,
    /// Rows [`DEPTH`] apart.
    w_scales: *const f32,
    x: *const i32,
    /// Which quads have outliers.
    outliers: u16,
    /// As `x`, valid where there are outliers.
    high: *const i32,
    start: *const i32,
    steps: *const f32,
    totals: *mut f32,
    /// From one row of the totals to the next.
    tokens: usize,
}

impl Part {
    /// Word `i` of a block of `V` vectors of tokens.
    ///
    /// # Safety
    /// The processor has AVX2, and x has this word.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn x<const V: usize>(x: *const i32, i: usize) -> [__m256i; V] {
        let mut vectors = [_mm256_setzero_si256(); V];
        for (v, vector) in vectors.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *vector = unsafe { _mm256_loadu_si256(x.add(i * PANEL + LANES * v).cast()) };
        }
        vectors
    }

    /// Word `i` of a block of `WORDS` of row `r` of the strip, in all lanes.
    ///
    /// # Safety
    /// The processor has AVX2, and the weights have this word.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn w<const WORDS: usize>(&self, r: usize, i: usize) -> __m256i {
        // SAFETY: the caller's promise.
        _mm256_set1_epi32(unsafe { self.w.cast::<i32>().add(r * DEPTH * WORDS + i).read_unaligned() })
    }

    /// Adds the products of weights in bytes (codes alone, without VNNI) and some quads of x.
    ///
    /// # Safety
    /// As for `add`, of a strip of bytes.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn add_quads<const V: usize, D: Dot>(
        &self,
        x: *const i32,
        halves: [impl Iterator<Item = usize>; 2],
        sums: &mut [[__m256i; V]; STRIP],
    ) {
        for half in halves {
            if D::VNNI {
                for i in half {
                    // SAFETY: the caller's promise.
                    let x = unsafe { Self::x::<V>(x, i) };
                    for (r, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: the caller's promise.
                        let w = unsafe { self.w::<QUADS>(r, i) };
                        for (sum, x) in sums.iter_mut().zip(x) {
                            // SAFETY: the caller's promise.
                            *sum = unsafe { D::add(*sum, w, x) };
                        }
                    }
                }
                continue;
            }
            // Sums of half a block fit 16 bits.
            let mut products = [[_mm256_setzero_si256(); V]; STRIP];
            for i in half {
                // SAFETY: the caller's promise.
                let x = unsafe { Self::x::<V>(x, i) };
                for (r, products) in products.iter_mut().enumerate() {
                    // SAFETY: the caller's promise.
                    let w = unsafe { self.w::<QUADS>(r, i) };
                    for (product, x) in products.iter_mut().zip(x) {
                        *product = _mm256_add_epi16(*product, _mm256_maddubs_epi16(w, x));
                    }
                }
            }
            for (sum, products) in sums.as_flattened_mut().iter_mut().zip(products.as_flattened()) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*products, _mm256_set1_epi16(1)));
            }
        }
    }

    /// Adds what quads of outliers need besides, of weights in bytes (codes alone, without VNNI).
    ///
    /// # Safety
    /// As for `add`, of a strip of bytes.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn add_outliers<const V: usize, D: Dot>(&self, sums: &mut [[__m256i; V]; STRIP]) {
        if !D::VNNI {
            let mut of_high = [[_mm256_setzero_si256(); V]; STRIP];
            // SAFETY: the caller's promise.
            unsafe { self.add_quads::<V, D>(self.high, halves_of_set_quads(self.outliers), &mut of_high) };
            for (sum, high) in sums.as_flattened_mut().iter_mut().zip(of_high.as_flattened()) {
                *sum = _mm256_add_epi32(*sum, _mm256_slli_epi32::<7>(*high));
            }
            return;
        }
        // Row by row: the quads are few, and sums of all rows would leave no register for the weights.
        for (r, sums) in sums.iter_mut().enumerate() {
            let mut of_high = [_mm256_setzero_si256(); V];
            for i in set_quads(self.outliers) {
                // SAFETY: the caller's promise.
                let (x, w) = unsafe { (Self::x::<V>(self.high, i), self.w::<QUADS>(r, i)) };
                for (high, x) in of_high.iter_mut().zip(x) {
                    // SAFETY: the caller's promise.
                    *high = unsafe { D::add(*high, w, x) };
                }
            }
            for (sum, high) in sums.iter_mut().zip(of_high) {
                *sum = _mm256_add_epi32(*sum, _mm256_slli_epi32::<7>(high));
            }
        }
    }

    /// Adds the products of [`STRIP`] rows and `V` vectors of tokens to their totals.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and the instruction, and the pointers are valid for them.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn add<const V: usize, const CODES: bool, D: Dot>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut start = [_mm256_setzero_si256(); V];
            for (v, start) in start.iter_mut().enumerate() {
                *start = _mm256_loadu_si256(self.start.add(LANES * v).cast());
            }
            let mut sums = [start; STRIP];
            if CODES || D::VNNI {
                self.add_quads::<V, D>(self.x, halves_of_quads(), &mut sums);
                if self.outliers != 0 {
                    self.add_outliers::<V, D>(&mut sums);
                }
            } else {
                for i in 0..PAIRS {
                    let x = Self::x::<V>(self.x, i);
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let w = self.w::<PAIRS>(r, i);
                        for (sum, x) in sums.iter_mut().zip(x) {
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(w, x));
                        }
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let w = _mm256_set1_ps(*self.w_scales.add(r * DEPTH));
                for (v, sum) in sums.iter().enumerate() {
                    let total = self.totals.add(r * self.tokens + LANES * v);
                    let scale = _mm256_mul_ps(w, _mm256_loadu_ps(self.steps.add(LANES * v)));
                    let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(*sum), scale, _mm256_loadu_ps(total));
                    _mm256_storeu_ps(total, sum);
                }
            }
        }
    }
}
