//! Many rows of x: tiles of the matrix become bytes once and are multiplied from the cache.
//!
//! The lanes are tokens: x is packed into panels `[k / 4][tokens][4]`, and four bytes of the weight are broadcast.

use super::super::packed::block_scales;
use super::super::threads::{Output, for_each_chunk, parallel, threads};
use super::super::weight::{Matrix, Weight};
use super::{BLOCK, OFFSET, code_book, quantize};
use std::arch::x86_64::*;

/// Inputs per tile.
const DEPTH: usize = 512;
/// Most outputs per task.
const WIDTH: usize = 96;
/// Tokens per panel: two vectors.
const PANEL: usize = 32;
/// Rows of the tile per call with two vectors of tokens; twice as many with one.
const STRIP: usize = 6;

/// Up to [`PANEL`] tokens.
#[derive(Default)]
struct Panel {
    /// `[k / 4][token]`: four bytes each.
    words: Vec<i32>,
    /// `[k / 64][token]`: what the offset of the weights adds, negated.
    start: Vec<i32>,
    /// `[k / 64][token]`.
    scales: Vec<f32>,
}

impl Panel {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn new(x: &[f32], k: usize) -> Panel {
        let mut panel = Panel {
            words: vec![0; k / 4 * PANEL],
            start: vec![0; k / BLOCK * PANEL],
            scales: vec![0.0; k / BLOCK * PANEL],
        };
        for b in 0..k / BLOCK {
            for (token, x) in x.chunks_exact(k).enumerate() {
                let mut q = [0i8; BLOCK];
                panel.scales[b * PANEL + token] = quantize(&x[b * BLOCK..(b + 1) * BLOCK], &mut q);
                panel.start[b * PANEL + token] = -OFFSET * q.iter().map(|&q| i32::from(q)).sum::<i32>();
                for (i, q) in q.chunks_exact(4).enumerate() {
                    let bytes = [q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8];
                    panel.words[(b * BLOCK / 4 + i) * PANEL + token] = i32::from_le_bytes(bytes);
                }
            }
        }
        panel
    }
}

/// `y = x Wᵀ + b`.
pub(super) fn gemm(x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>, y: Output) {
    let mut panels: Vec<Panel> = (0..m.div_ceil(PANEL)).map(|_| Panel::default()).collect();
    for_each_chunk(&mut panels, 1, PANEL * w.k, |p, panel| {
        // SAFETY: `kernels` has found the features.
        panel[0] = unsafe { Panel::new(&x[p * PANEL * w.k..m.min((p + 1) * PANEL) * w.k], w.k) };
    });
    let book = match &w.data {
        Matrix::CodeBook4(w) => {
            let (book, factor) = code_book(w.code_book);
            (book.map(|value| (i32::from(value) + OFFSET) as u8), factor)
        }
        // What a 4-bit code of a row stands for.
        _ => (std::array::from_fn(|code| (code as i32 - 7 + OFFSET) as u8), 1.0),
    };
    let even = w.n.div_ceil(16 * threads());
    let width = even.next_multiple_of(2 * STRIP).clamp(2 * STRIP, WIDTH);
    parallel(w.n.div_ceil(width), |task| {
        let first = task * width;
        let task = Task { panels: &panels, m, w, book, bias, first, last: w.n.min(first + width), y };
        // SAFETY: `kernels` has found AVX-512 VNNI, the matrix was checked, and tasks have different columns of y.
        unsafe { task.run() };
    });
}

struct Task<'a> {
    panels: &'a [Panel],
    m: usize,
    w: &'a Weight<'a>,
    /// The byte of each code and what it stands for.
    book: ([u8; 16], f32),
    bias: Option<&'a [f32]>,
    first: usize,
    last: usize,
    y: Output<'a>,
}

impl Task<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn run(&self) {
        let used = self.last - self.first;
        let rows = used.next_multiple_of(2 * STRIP);
        let tokens = self.panels.len() * PANEL;
        let mut tile = vec![0u8; rows * DEPTH];
        let mut scales = vec![0f32; rows * (DEPTH / BLOCK)];
        let mut sums = vec![0f32; rows * tokens];
        for from in (0..self.w.k).step_by(DEPTH) {
            let depth = DEPTH.min(self.w.k - from);
            for r in 0..used {
                let tile = &mut tile[r * DEPTH..][..depth];
                let scales = &mut scales[r * (DEPTH / BLOCK)..][..depth / BLOCK];
                // SAFETY: the features are enabled, and the part of the row exists.
                unsafe { self.expand(self.first + r, from, tile, scales) };
            }
            for (p, panel) in self.panels.iter().enumerate() {
                let one = self.m - p * PANEL <= PANEL / 2;
                for strip in (0..rows).step_by(if one { 2 * STRIP } else { STRIP }) {
                    // SAFETY: the strip lies in the tile, the blocks in the panel, the sums in `[rows, tokens]`.
                    unsafe {
                        let part = Part {
                            blocks: depth / BLOCK,
                            w: tile.as_ptr().add(strip * DEPTH),
                            w_scales: scales.as_ptr().add(strip * (DEPTH / BLOCK)),
                            x: panel.words.as_ptr().add(from / 4 * PANEL),
                            start: panel.start.as_ptr().add(from / BLOCK * PANEL),
                            x_scales: panel.scales.as_ptr().add(from / BLOCK * PANEL),
                            sums: sums.as_mut_ptr().add(strip * tokens + p * PANEL),
                            tokens,
                        };
                        if one { part.add::<{ 2 * STRIP }, 1>() } else { part.add::<STRIP, 2>() }
                    }
                }
            }
        }
        for from in (0..self.m).step_by(16) {
            for i in from..self.m.min(from + 16) {
                // SAFETY: tasks have different columns of y.
                let y = unsafe { self.y.row(i, self.first, used) };
                for (r, y) in y.iter_mut().enumerate() {
                    *y = sums[r * tokens + i] + self.bias.map_or(0.0, |bias| bias[self.first + r]);
                }
            }
        }
    }

    /// Elements `from..from + tile.len()` of a row as bytes, and the scale of every 64.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn expand(&self, row: usize, from: usize, tile: &mut [u8], scales: &mut [f32]) {
        let (book, factor) = &self.book;
        match &self.w.data {
            Matrix::CodeBook4(w) => {
                let at = row * self.w.k + from;
                block_scales(w, at, scales);
                scales.iter_mut().for_each(|scale| *scale *= factor);
                // SAFETY: the features are enabled.
                unsafe { nibbles::<true>(&w.codes[at / 2..], book, tile) };
            }
            Matrix::Rows(w) => {
                let slot = w.slot(row);
                scales.fill(w.scales[slot]);
                if slot < w.wide_rows {
                    let codes = &w.wide[slot * self.w.k + from..];
                    tile.iter_mut().zip(codes).for_each(|(to, code)| *to = code ^ 0x80);
                    return;
                }
                let codes = &w.narrow[(slot - w.wide_rows) * w.narrow_stride..];
                if w.narrow_bits == 4 {
                    // SAFETY: the features are enabled.
                    unsafe { nibbles::<false>(&codes[from / 2..], book, tile) };
                    return;
                }
                for (to, code) in tile.chunks_exact_mut(4).zip(&codes[from / 4..]) {
                    for (e, to) in to.iter_mut().enumerate() {
                        *to = (code >> (2 * e) & 3) + (OFFSET - 1) as u8;
                    }
                }
            }
            _ => unreachable!("`fits` lets no other storage through"),
        }
    }
}

/// Looks up the codes of `tile`, a multiple of 64 of them, the high or the low nibble first.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn nibbles<const HIGH_FIRST: bool>(codes: &[u8], book: &[u8; 16], tile: &mut [u8]) {
    // SAFETY: the slices of `codes` and `tile` are as long as the loads and stores.
    unsafe {
        let book = _mm512_broadcast_i32x4(_mm_loadu_si128(book.as_ptr().cast()));
        let low = _mm512_set1_epi16(15);
        for (codes, to) in codes.chunks_exact(32).zip(tile.chunks_exact_mut(64)) {
            let bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(codes.as_ptr().cast()));
            let high = _mm512_srli_epi16::<4>(bytes);
            let low = _mm512_and_si512(bytes, low);
            let (first, second) = if HIGH_FIRST { (high, low) } else { (low, high) };
            let index = _mm512_or_si512(first, _mm512_slli_epi16::<8>(second));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_shuffle_epi8(book, index));
        }
    }
}

/// A strip of a tile and a panel.
struct Part {
    blocks: usize,
    w: *const u8,
    w_scales: *const f32,
    x: *const i32,
    start: *const i32,
    x_scales: *const f32,
    sums: *mut f32,
    /// From one row of the sums to the next.
    tokens: usize,
}

impl Part {
    /// Adds the products of `NR` rows and `V` vectors of tokens to their sums.
    ///
    /// # Safety
    /// The pointers are valid for them.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn add<const NR: usize, const V: usize>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut total = [[_mm512_setzero_ps(); V]; NR];
            for r in 0..NR {
                for v in 0..V {
                    total[r][v] = _mm512_loadu_ps(self.sums.add(r * self.tokens + 16 * v));
                }
            }
            for b in 0..self.blocks {
                let mut start = [_mm512_setzero_si512(); V];
                let mut scales = [_mm512_setzero_ps(); V];
                for v in 0..V {
                    start[v] = _mm512_loadu_si512(self.start.add(b * PANEL + 16 * v).cast());
                    scales[v] = _mm512_loadu_ps(self.x_scales.add(b * PANEL + 16 * v));
                }
                let mut sums = [start; NR];
                for i in 0..BLOCK / 4 {
                    let mut x = [_mm512_setzero_si512(); V];
                    for v in 0..V {
                        x[v] = _mm512_loadu_si512(self.x.add((b * BLOCK / 4 + i) * PANEL + 16 * v).cast());
                    }
                    for r in 0..NR {
                        let word = self.w.add(r * DEPTH + b * BLOCK + 4 * i).cast::<i32>().read_unaligned();
                        let w = _mm512_set1_epi32(word);
                        for v in 0..V {
                            sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], w, x[v]);
                        }
                    }
                }
                for r in 0..NR {
                    let w = _mm512_set1_ps(*self.w_scales.add(r * (DEPTH / BLOCK) + b));
                    for v in 0..V {
                        let sum = _mm512_cvtepi32_ps(sums[r][v]);
                        total[r][v] = _mm512_fmadd_ps(sum, _mm512_mul_ps(w, scales[v]), total[r][v]);
                    }
                }
            }
            for r in 0..NR {
                for v in 0..V {
                    _mm512_storeu_ps(self.sums.add(r * self.tokens + 16 * v), total[r][v]);
                }
            }
        }
    }
}
