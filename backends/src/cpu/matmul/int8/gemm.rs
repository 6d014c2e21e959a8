//! Many rows of x: tiles of the matrix become bytes once and are multiplied from the cache.
//!
//! The lanes are tokens: x is packed into panels `[k / 4][tokens][4]`, and four bytes of the weight are broadcast. Words in which a
//! token has an outlier are multiplied a second time, by the high bytes.

use super::book::{Book, Shift};
use super::round::{Block, Detail, Input};
use super::{BLOCK, OFFSET};
use crate::cpu::matmul::packed::block_scales;
use crate::cpu::matmul::types::Product;
use crate::cpu::matmul::weight::{Matrix, Weight};
use crate::cpu::pool::{Output, for_each_chunk, parallel, threads, with_scratch};
use std::arch::x86_64::*;

/// Inputs per tile.
const DEPTH: usize = 512;
/// Most outputs per task.
const WIDTH: usize = 96;
/// Tokens per panel: two vectors.
const PANEL: usize = 32;
/// Rows of the tile per call with two vectors of tokens; twice as many with one.
const STRIP: usize = 6;
/// Words of a block.
const WORDS: usize = BLOCK / 4;

/// Up to [`PANEL`] tokens.
#[derive(Default)]
struct Panel {
    /// `[k / 4][token]`: four low bytes each.
    low: Vec<i32>,
    /// `[k / 64][token]`: what the offset of the weights adds, negated.
    start: Vec<i32>,
    /// `[k / 64][token]`.
    steps: Vec<f32>,
    /// `[i][token]`: the high bytes of the words with outliers.
    high: Vec<i32>,
    /// `[i]`: which word of its block each is.
    places: Vec<u32>,
    /// `[k / 64 + 1]`: where those of each block begin.
    begins: Vec<u32>,
}

impl Panel {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn new(x: &[f32], k: usize, shift: Shift, detail: Detail) -> Panel {
        let mut panel = Panel {
            low: vec![0; k / 4 * PANEL],
            start: vec![0; k / BLOCK * PANEL],
            steps: vec![0.0; k / BLOCK * PANEL],
            ..Panel::default()
        };
        panel.begins.push(0);
        let mut thresholds = [0.0; PANEL];
        for (threshold, x) in thresholds.iter_mut().zip(x.chunks_exact(k)) {
            *threshold = detail.threshold(x);
        }
        // High bytes of a block, and which of its words have some.
        let mut high = [[0; PANEL]; BLOCK / 4];
        for b in 0..k / BLOCK {
            let mut used = 0u32;
            for (token, (x, threshold)) in x.chunks_exact(k).zip(thresholds).enumerate() {
                let block = Block::avx512(&x[b * BLOCK..(b + 1) * BLOCK], threshold);
                let words = |bytes: &[i8; BLOCK], i: usize| {
                    i32::from_le_bytes([4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3].map(|at| bytes[at] as u8))
                };
                for i in 0..BLOCK / 4 {
                    panel.low[(b * BLOCK / 4 + i) * PANEL + token] = words(&block.low, i);
                }
                if block.outliers {
                    for (i, high) in high.iter_mut().enumerate() {
                        let word = words(&block.high, i);
                        high[token] = word;
                        used |= u32::from(word != 0) << i;
                    }
                }
                let at = b * PANEL + token;
                block.sums::<8>(|_, sum| panel.start[at] += shift.of(sum) - OFFSET * sum);
                panel.steps[at] = block.step;
            }
            for place in (0..WORDS).filter(|place| used >> place & 1 == 1) {
                panel.places.push(place as u32);
                panel.high.extend_from_slice(&high[place]);
            }
            panel.begins.push(panel.places.len() as u32);
            if used != 0 {
                high = [[0; PANEL]; BLOCK / 4];
            }
        }
        panel
    }
}

/// Panels of all tokens for matrices with such bytes.
struct Panels {
    shift: Shift,
    detail: Detail,
    panels: Vec<Panel>,
}

/// `y = x Wᵀ + b` for each product.
pub(super) fn gemm(x: &[f32], m: usize, input: Input, products: &mut [&mut Product]) {
    let mut made: Vec<Panels> = Vec::new();
    let mut tasks = Vec::new();
    for product in products.iter_mut() {
        let (w, bias, y) = (product.weight, product.bias, Output::new(product.y, product.weight.n));
        let (book, factor, shift) = match &w.data {
            Matrix::CodeBook4(w) => {
                let Book { bytes, factor, shift } = Book::new(w.code_book);
                (bytes.map(|byte| (i32::from(byte) + OFFSET) as u8), factor, shift)
            }
            // What a 4-bit code of a row stands for.
            _ => (std::array::from_fn(|code| (code as i32 - 7 + OFFSET) as u8), 1.0, Shift::NONE),
        };
        let detail = Detail::of(input);
        let same = |made: &Panels| made.shift == shift && made.detail == detail;
        let panels = made.iter().position(same).unwrap_or_else(|| {
            let panels = panels(x, m, w.k, shift, detail);
            made.push(Panels { shift, detail, panels });
            made.len() - 1
        });
        let even = w.n.div_ceil(16 * threads());
        let width = even.next_multiple_of(2 * STRIP).clamp(2 * STRIP, WIDTH);
        let book = (book, factor);
        let ranges = (0..w.n).step_by(width).map(|first| (first, w.n.min(first + width)));
        tasks.extend(ranges.map(|(first, last)| Task { panels, m, w, book, bias, first, last, y }));
    }
    parallel(tasks.len(), |task| {
        let task = &tasks[task];
        // SAFETY: `kernels` has found AVX-512 VNNI, the matrices were checked, and tasks have different columns of y.
        unsafe { task.run(&made[task.panels].panels) };
    });
}

fn panels(x: &[f32], m: usize, k: usize, shift: Shift, detail: Detail) -> Vec<Panel> {
    let mut panels: Vec<Panel> = (0..m.div_ceil(PANEL)).map(|_| Panel::default()).collect();
    for_each_chunk(&mut panels, 1, PANEL * k, |p, panel| {
        let x = &x[p * PANEL * k..m.min((p + 1) * PANEL) * k];
        // SAFETY: `kernels` has found the features.
        panel[0] = unsafe { Panel::new(x, k, shift, detail) };
    });
    panels
}

struct Task<'a> {
    /// Which panels.
    panels: usize,
    m: usize,
    w: Weight<'a>,
    /// The byte of each code and what it stands for.
    book: ([u8; 16], f32),
    bias: Option<&'a [f32]>,
    first: usize,
    last: usize,
    y: Output<'a>,
}

impl Task<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn run(&self, panels: &[Panel]) {
        let rows = (self.last - self.first).next_multiple_of(2 * STRIP);
        // SAFETY: the caller's promise.
        with_scratch(rows * panels.len() * PANEL, |sums| unsafe { self.sum(panels, sums) });
    }

    /// [`run`](Task::run) with memory for the sums `[rows, tokens]`, of any value.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn sum(&self, panels: &[Panel], sums: &mut [f32]) {
        let used = self.last - self.first;
        let rows = used.next_multiple_of(2 * STRIP);
        let tokens = panels.len() * PANEL;
        let mut tile = vec![0u8; rows * DEPTH];
        let mut scales = vec![0f32; rows * (DEPTH / BLOCK)];
        for from in (0..self.w.k).step_by(DEPTH) {
            let depth = DEPTH.min(self.w.k - from);
            for r in 0..used {
                let tile = &mut tile[r * DEPTH..][..depth];
                let scales = &mut scales[r * (DEPTH / BLOCK)..][..depth / BLOCK];
                // SAFETY: the features are enabled, and the part of the row exists.
                unsafe { self.expand(self.first + r, from, tile, scales) };
            }
            for (p, panel) in panels.iter().enumerate() {
                let one = self.m - p * PANEL <= PANEL / 2;
                for strip in (0..rows).step_by(if one { 2 * STRIP } else { STRIP }) {
                    // SAFETY: the strip lies in the tile, the blocks in the panel, the sums in `[rows, tokens]`.
                    unsafe {
                        let part = Part {
                            blocks: depth / BLOCK,
                            first: from == 0,
                            w: tile.as_ptr().add(strip * DEPTH),
                            w_scales: scales.as_ptr().add(strip * (DEPTH / BLOCK)),
                            low: panel.low.as_ptr().add(from / 4 * PANEL),
                            start: panel.start.as_ptr().add(from / BLOCK * PANEL),
                            steps: panel.steps.as_ptr().add(from / BLOCK * PANEL),
                            high: panel.high.as_ptr(),
                            places: panel.places.as_ptr(),
                            begins: panel.begins.as_ptr().add(from / BLOCK),
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
            Matrix::Int8(w) => {
                w.scales(self.w.k, row, from / BLOCK, scales);
                let codes = &w.codes[row * self.w.k + from..];
                tile.iter_mut().zip(codes).for_each(|(to, code)| *to = code ^ 0x80);
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
    /// Nothing was added before.
    first: bool,
    w: *const u8,
    w_scales: *const f32,
    low: *const i32,
    start: *const i32,
    steps: *const f32,
    high: *const i32,
    places: *const u32,
    begins: *const u32,
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
        let mut total = [[_mm512_setzero_ps(); V]; NR];
        // SAFETY: the caller's promise.
        unsafe {
            if !self.first {
                for (r, total) in total.iter_mut().enumerate() {
                    for (v, total) in total.iter_mut().enumerate() {
                        *total = _mm512_loadu_ps(self.sums.add(r * self.tokens + 16 * v));
                    }
                }
            }
            for b in 0..self.blocks {
                let sums = self.products::<NR, V>(b);
                let steps = self.steps::<V>(b);
                for r in 0..NR {
                    let w = _mm512_set1_ps(*self.w_scales.add(r * (DEPTH / BLOCK) + b));
                    for v in 0..V {
                        let sum = _mm512_cvtepi32_ps(sums[r][v]);
                        total[r][v] = _mm512_fmadd_ps(sum, _mm512_mul_ps(w, steps[v]), total[r][v]);
                    }
                }
            }
            for (r, total) in total.iter().enumerate() {
                for (v, total) in total.iter().enumerate() {
                    _mm512_storeu_ps(self.sums.add(r * self.tokens + 16 * v), *total);
                }
            }
        }
    }

    /// The products of a block.
    ///
    /// # Safety
    /// As for `add`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn products<const NR: usize, const V: usize>(&self, block: usize) -> [[__m512i; V]; NR] {
        // SAFETY: the caller's promise.
        unsafe {
            let w = self.w.add(block * BLOCK);
            let mut start = [_mm512_setzero_si512(); V];
            for v in 0..V {
                start[v] = _mm512_loadu_si512(self.start.add(block * PANEL + 16 * v).cast());
            }
            let mut sums = [start; NR];
            let (begin, end) = (*self.begins.add(block) as usize, *self.begins.add(block + 1) as usize);
            if begin < end {
                sums = [[_mm512_setzero_si512(); V]; NR];
                for i in begin..end {
                    let at = w.add(4 * *self.places.add(i) as usize);
                    dot::<NR, V>(at, self.high.add(i * PANEL), &mut sums);
                }
                for sums in &mut sums {
                    for v in 0..V {
                        sums[v] = _mm512_add_epi32(_mm512_slli_epi32::<7>(sums[v]), start[v]);
                    }
                }
            }
            for i in 0..WORDS {
                dot::<NR, V>(w.add(4 * i), self.low.add((block * WORDS + i) * PANEL), &mut sums);
            }
            sums
        }
    }

    /// # Safety
    /// As for `add`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn steps<const V: usize>(&self, block: usize) -> [__m512; V] {
        let mut steps = [_mm512_setzero_ps(); V];
        for (v, steps) in steps.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *steps = unsafe { _mm512_loadu_ps(self.steps.add(block * PANEL + 16 * v)) };
        }
        steps
    }
}

/// Adds the products of a word of each row with a word of each token.
///
/// # Safety
/// The pointers are valid for them, rows [`DEPTH`] bytes apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn dot<const NR: usize, const V: usize>(w: *const u8, x: *const i32, sums: &mut [[__m512i; V]; NR]) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut words = [_mm512_setzero_si512(); V];
        for v in 0..V {
            words[v] = _mm512_loadu_si512(x.add(16 * v).cast());
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let w = _mm512_set1_epi32(w.add(r * DEPTH).cast::<i32>().read_unaligned());
            for v in 0..V {
                sums[v] = _mm512_dpbusd_epi32(sums[v], w, words[v]);
            }
        }
    }
}
