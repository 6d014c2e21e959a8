//! Pairs of BF16 multiplied and added in f32 by one instruction (`vdpbf16ps`).
//!
//! An element of the result is one sum in one order, whatever the number of rows of x: lane `i` of a vector adds elements `2i + 1` and
//! `2i` of every 32, and every [`DEPTH`] elements the lanes are added. Kernels differ only in what they keep in registers and in
//! caches, so a row of x has the same bits alone and among others.

use crate::cpu::matmul::types::Product;
use crate::cpu::pool::{Output, Region, for_each_chunk, with_scratch};
use crate::cpu::{Level, Matrix};
use std::arch::x86_64::*;

/// Elements of a vector.
const LINE: usize = 32;
/// Elements whose products are added up before lanes are: four rows of the matrix and of x stay in the first cache.
const DEPTH: usize = 1024;
/// Rows of the matrix, and most rows of x, whose sums are in registers at once.
const SQUARE: usize = 4;
/// The most rows of x with which the matrix is read in streams from where it lies; with more, copying it into the first cache pays,
/// where no vector of it lies across two lines.
const STREAMS_MAX_ROWS: usize = 32;
/// The most elements of x that stay in the second cache while a stream passes.
const STREAMS_MAX_ELEMENTS: usize = 1 << 18;
/// Rows of the matrix with which a part of x is multiplied while it is in the second cache.
const HEIGHT: usize = 32;
/// Rows of x of which a part is there.
const TOKENS: usize = 128;
/// Elements by which a stream is asked for ahead, with so many rows of x at once: they leave the processor too little room to do it
/// itself. Into the second cache, since into the first it takes a fifth of the speed of one row.
const fn ahead(rows: usize) -> usize {
    if rows <= 2 { 512 } else { 768 }
}

/// `y = x Wᵀ + b` for each product; `k` is not 0.
///
/// # Panics
/// If the processor lacks the instructions.
pub(super) fn products(x: &[f32], m: usize, k: usize, products: Vec<&mut Product>) {
    assert!(Level::Avx512.multiplies_bf16(), "the processor multiplies no BF16");
    let x = Rounded::new(x, m, k);
    let mut region = Region::default();
    for Product { weight, bias, y } in products {
        let Matrix::Bf16(w) = weight.data else { unreachable!("`rounds` lets no other storage through") };
        let rows = Rows { w, k, x: &x, m, bias: *bias, y: Output::new(y, weight.n) };
        if m <= STREAMS_MAX_ROWS && m * k <= STREAMS_MAX_ELEMENTS {
            // SAFETY: the processor has the instructions, the matrix was checked, and tasks have different rows of it.
            let run = move |first, last| unsafe { rows.streams(first, last) };
            region.add(w.as_ptr().cast(), (weight.n, 2 * k), m * k, run);
        } else {
            // SAFETY: as above.
            let run = move |first, last| unsafe { rows.tiles(first, last) };
            region.add_tiles(HEIGHT, (w.as_ptr().cast(), 2 * k), weight.n, m * k, run);
        }
    }
    region.run();
}

/// BF16 bits of a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u16; LINE]);

/// x in BF16, rows of whole lines with zeros at the end.
struct Rounded {
    lines: Vec<Line>,
    /// Lines of a row: an odd number, so that parts of rows do not meet in the same sets of a cache.
    stride: usize,
}

impl Rounded {
    fn new(x: &[f32], m: usize, k: usize) -> Rounded {
        let stride = k.div_ceil(LINE) | 1;
        let mut lines = vec![Line([0; LINE]); m * stride];
        for_each_chunk(&mut lines, stride, k, |row, lines| {
            for (line, x) in lines.iter_mut().zip(x[row * k..(row + 1) * k].chunks(LINE)) {
                // SAFETY: `products` has found the instructions.
                *line = unsafe { rounded(x) };
            }
        });
        Rounded { lines, stride }
    }
}

/// Up to 32 numbers rounded to the nearest, halves to even, then zeros.
///
/// # Safety
/// The processor has AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rounded(x: &[f32]) -> Line {
    let mut padded = [0.0f32; LINE];
    padded[..x.len()].copy_from_slice(x);
    // SAFETY: both halves of `padded` are a vector, and a line is one.
    unsafe {
        let (low, high) = (_mm512_loadu_ps(padded.as_ptr()), _mm512_loadu_ps(padded.as_ptr().add(LINE / 2)));
        std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
    }
}

/// The sums of four rows of the matrix with a row of x.
type Sums = [f32; SQUARE];

/// A part of four rows of the matrix: where each begins, and its length.
#[derive(Clone, Copy)]
struct Part {
    w: [*const u16; SQUARE],
    from: usize,
    depth: usize,
}

/// Parts of four rows of the matrix, in cache lines of their own.
#[repr(C, align(64))]
struct Tile([[u16; DEPTH]; SQUARE]);

/// Rows of a matrix times rows of x.
#[derive(Clone, Copy)]
struct Rows<'a> {
    w: &'a [u16],
    k: usize,
    x: &'a Rounded,
    m: usize,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
}

impl Rows<'_> {
    /// Rows `first..last` in four streams far apart, for up to [`STREAMS_MAX_ROWS`] rows of x.
    ///
    /// # Safety
    /// The processor has AVX-512 with BF16, the rows exist, and no other task writes their outputs.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn streams(&self, first: usize, last: usize) {
        let apart = (last - first) / SQUARE;
        let rest = first + SQUARE * apart;
        for row in (first..first + apart).chain((rest < last).then_some(rest)) {
            let (apart, count) = if row < rest { (apart, SQUARE) } else { (1, last - rest) };
            let mut sums = [[0.0; SQUARE]; STREAMS_MAX_ROWS];
            for from in (0..self.k).step_by(DEPTH) {
                // Beyond the last row it again.
                let at = |r: usize| (row + r.min(count - 1) * apart) * self.k + from;
                let w = std::array::from_fn(|r| self.w[at(r)..].as_ptr());
                let part = Part { w, from, depth: DEPTH.min(self.k - from) };
                // SAFETY: the caller's promise.
                unsafe { self.add(part, 0, &mut sums[..self.m], None) };
            }
            for (token, sums) in sums[..self.m].iter().enumerate() {
                for (r, sum) in sums[..count].iter().enumerate() {
                    let column = row + r * apart;
                    let bias = self.bias.map_or(0.0, |bias| bias[column]);
                    // SAFETY: the caller's promise.
                    unsafe { self.y.set(token, column, sum + bias) };
                }
            }
        }
    }

    /// Rows `first..last`, from tiles that are copied into the first cache.
    ///
    /// # Safety
    /// As for `streams`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn tiles(&self, first: usize, last: usize) {
        with_scratch(HEIGHT * TOKENS.min(self.m), |scratch| {
            for first in (first..last).step_by(HEIGHT) {
                for token in (0..self.m).step_by(TOKENS) {
                    // SAFETY: the caller's promise.
                    unsafe { self.tile(first, HEIGHT.min(last - first), token, TOKENS.min(self.m - token), scratch) };
                }
            }
        });
    }

    /// `height` rows of the matrix from `first` on times `tokens` rows of x from `token` on.
    ///
    /// # Safety
    /// As for `streams`; all of them exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn tile(&self, first: usize, height: usize, token: usize, tokens: usize, scratch: &mut [f32]) {
        let k = self.k;
        let strips = height.div_ceil(SQUARE);
        // [strip][token]
        let (sums, _) = scratch.as_chunks_mut::<SQUARE>();
        sums[..strips * tokens].fill([0.0; SQUARE]);
        let mut tile = Tile([[0; DEPTH]; SQUARE]);
        for from in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - from);
            for (strip, sums) in sums.chunks_exact_mut(tokens).enumerate().take(strips) {
                let rows = SQUARE.min(height - strip * SQUARE);
                for (r, row) in tile.0.iter_mut().enumerate().take(rows) {
                    let at = (first + strip * SQUARE + r) * k + from;
                    row[..depth].copy_from_slice(&self.w[at..at + depth]);
                    row[depth..depth.next_multiple_of(LINE)].fill(0);
                }
                let w = tile.0.each_ref().map(|row| row.as_ptr());
                let part = Part { w, from, depth: depth.next_multiple_of(LINE) };
                // The next strip, at last that of the next part or tile.
                let next = match (strip + 1 < strips, from + DEPTH < k) {
                    (true, _) => (first + (strip + 1) * SQUARE, from),
                    (false, true) => (first, from + DEPTH),
                    (false, false) => (first + height, 0),
                };
                let next = Prefetch::new(self.w.as_ptr().wrapping_add(next.0 * k + next.1), k, tokens);
                // SAFETY: the caller's promise; the tile is padded with zeros.
                unsafe { self.add(part, token, sums, Some(next)) };
            }
        }
        for i in 0..tokens {
            // SAFETY: the caller's promise.
            let y = unsafe { self.y.row(token + i, first, height) };
            for (strip, y) in y.chunks_mut(SQUARE).enumerate() {
                for (r, (y, sum)) in y.iter_mut().zip(&sums[strip * tokens + i]).enumerate() {
                    *y = sum + self.bias.map_or(0.0, |bias| bias[first + strip * SQUARE + r]);
                }
            }
        }
    }

    /// Adds the products of a part with as many rows of x as there are sums, from `token` on; asks for `next` meanwhile, or for what
    /// follows the part in memory.
    ///
    /// # Safety
    /// As for `streams`; the part is readable, and the rows of x exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn add(&self, part: Part, token: usize, sums: &mut [Sums], mut next: Option<Prefetch>) {
        let x = self.x.lines[token * self.x.stride + part.from / LINE..].as_ptr();
        for (i, sums) in sums.chunks_mut(SQUARE).enumerate() {
            let stream = i == 0 && next.is_none();
            if let Some(next) = &mut next {
                next.step();
            }
            // SAFETY: the caller's promise.
            unsafe {
                let (x, stride) = (x.add(i * SQUARE * self.x.stride), self.x.stride);
                match (sums.len(), stream) {
                    (1, true) => part.add::<1, true>(x, stride, sums),
                    (2, true) => part.add::<2, true>(x, stride, sums),
                    (3, true) => part.add::<3, true>(x, stride, sums),
                    (_, true) => part.add::<SQUARE, true>(x, stride, sums),
                    (1, false) => part.add::<1, false>(x, stride, sums),
                    (2, false) => part.add::<2, false>(x, stride, sums),
                    (3, false) => part.add::<3, false>(x, stride, sums),
                    (_, false) => part.add::<SQUARE, false>(x, stride, sums),
                }
            }
        }
    }
}

impl Part {
    /// Adds the products with `C` rows of x, `stride` lines apart; `STREAM` asks for what follows in memory.
    ///
    /// # Safety
    /// The processor has AVX-512 with BF16, the part is readable, and so are as many elements of x, padded with zeros to whole lines;
    /// there are `C` sums.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn add<const C: usize, const STREAM: bool>(self, x: *const Line, stride: usize, sums: &mut [Sums]) {
        let mut squares = [[_mm512_setzero_ps(); SQUARE]; C];
        let whole = self.depth / LINE;
        // SAFETY: the caller's promise; past the end of the part no element is loaded, and a prefetch loads none.
        unsafe {
            for i in 0..whole {
                let x: [_; C] = std::array::from_fn(|c| _mm512_load_si512(x.add(c * stride + i).cast()));
                for r in 0..SQUARE {
                    if STREAM {
                        _mm_prefetch::<_MM_HINT_T1>(self.w[r].wrapping_add(i * LINE + ahead(C)).cast());
                    }
                    let w = _mm512_loadu_si512(self.w[r].add(i * LINE).cast());
                    for c in 0..C {
                        squares[c][r] = _mm512_dpbf16_ps(squares[c][r], bf16(w), bf16(x[c]));
                    }
                }
            }
            if !self.depth.is_multiple_of(LINE) {
                let some = (1u32 << (self.depth % LINE)) - 1;
                let x: [_; C] = std::array::from_fn(|c| _mm512_load_si512(x.add(c * stride + whole).cast()));
                for r in 0..SQUARE {
                    let w = _mm512_maskz_loadu_epi16(some, self.w[r].add(whole * LINE).cast());
                    for c in 0..C {
                        squares[c][r] = _mm512_dpbf16_ps(squares[c][r], bf16(w), bf16(x[c]));
                    }
                }
            }
            for (square, sums) in squares.into_iter().zip(sums) {
                let total = _mm_add_ps(_mm_loadu_ps(sums.as_ptr()), lane_sums(square));
                _mm_storeu_ps(sums.as_mut_ptr(), total);
            }
        }
    }
}

/// The sum of the lanes of each vector, all in the same order.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn lane_sums([a, b, c, d]: [__m512; SQUARE]) -> __m128 {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let four = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
    let two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps::<1>(four));
    _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps::<1>(two))
}

/// The same bits.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, of which every pattern is valid.
    unsafe { std::mem::transmute(bits) }
}

/// Lines of a part of four rows that are asked for while others are multiplied.
struct Prefetch {
    at: *const u16,
    /// Elements from one row to the next.
    stride: usize,
    /// Of the part, line after line of each row.
    lines: std::ops::Range<usize>,
    per_step: usize,
}

impl Prefetch {
    /// For so many tokens meanwhile. The part need not exist.
    fn new(at: *const u16, stride: usize, tokens: usize) -> Prefetch {
        const LINES: usize = SQUARE * DEPTH / LINE;
        Prefetch { at, stride, lines: 0..LINES, per_step: LINES.div_ceil(tokens.div_ceil(SQUARE)) }
    }

    #[inline(always)]
    fn step(&mut self) {
        for line in self.lines.by_ref().take(self.per_step) {
            let (row, line) = (line / (DEPTH / LINE), line % (DEPTH / LINE));
            let at = self.at.wrapping_add(row * self.stride + line * LINE);
            // SAFETY: a prefetch reads nothing that the program sees, and faults nowhere.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
        }
    }
}
