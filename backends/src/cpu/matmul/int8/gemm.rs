//! Many rows of x: tiles of the matrix become bytes once and are multiplied from the cache.
//!
//! The lanes are tokens ([`panel`](super::panel)), and words of the weight are broadcast. Vectors in which a token has an outlier are
//! multiplied a second time, by the high bytes.

use super::book::{Book, Shift};
use super::next::Next;
use super::panel::{Order, PANEL, Panel, WORDS};
use super::round::{Detail, Input};
use super::{BLOCK, OFFSET};
use crate::cpu::matmul::packed::block_scales;
use crate::cpu::matmul::types::Product;
use crate::cpu::matmul::weight::{BlockScales, Matrix, Weight};
use crate::cpu::pool::{Output, for_each_chunk, parallel, threads, with_scratch};
use std::arch::x86_64::*;

/// Inputs per tile.
const DEPTH: usize = 512;
/// Rows of a tile whose products with all panels are computed at once; half of them with two vectors of tokens.
const STRIP: usize = 12;
/// Rows of a tile with many tokens: x is read as often as there are tiles.
const HEIGHT: usize = 96;

/// All tokens for matrices with such bytes.
struct Panels {
    order: Order,
    shift: Shift,
    detail: Detail,
    panels: Vec<Panel>,
}

impl Panels {
    fn new(x: &[f32], m: usize, k: usize, order: Order, shift: Shift, detail: Detail) -> Panels {
        let mut panels: Vec<Panel> = Vec::new();
        let mut first = 0;
        while first < m {
            let panel = Panel::vectors(first, m - first);
            first += panel.tokens;
            panels.push(panel);
        }
        for_each_chunk(&mut panels, 1, m.min(PANEL) * k, |_, panel| {
            // SAFETY: `kernels` has found the features.
            unsafe { panel[0].fill(x, k, order, shift, detail) };
        });
        Panels { order, shift, detail, panels }
    }
}

/// `y = x Wᵀ + b` for each product.
pub(super) fn gemm(x: &[f32], m: usize, input: Input, products: &mut [&mut Product]) {
    let mut made: Vec<Panels> = Vec::new();
    let mut tiled = Vec::new();
    for product in products.iter_mut() {
        let (w, bias, y) = (product.weight, product.bias, Output::new(product.y, product.weight.n));
        let (book, factor, shift, order) = match &w.data {
            Matrix::CodeBook4(w) => {
                let Book { bytes, factor, shift } = Book::new(w.code_book);
                (bytes.map(|byte| (i32::from(byte) + OFFSET) as u8), factor, shift, Order::EvenOdd)
            }
            // What a 4-bit code of a row stands for.
            data => {
                let order = match data {
                    Matrix::IntegerRows(rows) if rows.wide_rows < w.n && rows.narrow_bits == 4 => Order::EvenOdd,
                    Matrix::IntegerRows(rows) if rows.wide_rows < w.n => Order::Quarters,
                    _ => Order::Natural,
                };
                (std::array::from_fn(|code| (code as i32 - 7 + OFFSET) as u8), 1.0, Shift::NONE, order)
            }
        };
        let detail = Detail::of(input);
        let same = |made: &Panels| made.shift == shift && made.detail == detail && made.order == order;
        let panels = made.iter().position(same).unwrap_or_else(|| {
            made.push(Panels::new(x, m, w.k, order, shift, detail));
            made.len() - 1
        });
        tiled.push((panels, Tiled { w, book, factor, order, bias, y }));
    }
    let mut tasks = Vec::new();
    for (panels, tiled) in &tiled {
        let even = tiled.w.n.div_ceil(16 * threads());
        let height = even.next_multiple_of(STRIP).clamp(STRIP, HEIGHT);
        let ranges = (0..tiled.w.n).step_by(height).map(|first| (first, tiled.w.n.min(first + height)));
        tasks.extend(ranges.map(|(first, last)| (&made[*panels].panels, tiled, first, last)));
    }
    parallel(tasks.len(), |task| {
        let (panels, tiled, first, last) = tasks[task];
        // SAFETY: `kernels` has found AVX-512 VNNI and VBMI, the matrices were checked, and tasks have different columns of y.
        unsafe { tiled.range(panels, first, last) };
    });
}

/// A product in tiles.
struct Tiled<'a> {
    w: Weight<'a>,
    /// The byte of each 4-bit code, and what a unit of it stands for.
    book: [u8; 16],
    factor: f32,
    order: Order,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
}

/// Rows of a matrix that follow each other.
#[derive(Clone, Copy)]
struct Tile {
    first: usize,
    height: usize,
}

impl Tiled<'_> {
    /// Rows `first..last`.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI and VBMI, the rows exist, and no other task writes their outputs.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn range(&self, panels: &[Panel], first: usize, last: usize) {
        let tile = Tile { first, height: last - first };
        let rows = tile.height.next_multiple_of(STRIP);
        let lanes: usize = panels.iter().map(|panel| panel.lanes).sum();
        let mut bytes = vec![0u8; rows * DEPTH];
        let mut scales = vec![0f32; rows * (DEPTH / BLOCK)];
        with_scratch(rows * lanes, |sums| {
            // SAFETY: the caller's promise.
            unsafe { self.sum(panels, tile, &mut bytes, &mut scales, sums, lanes) };
        });
    }

    /// The outputs of a tile, with memory for its bytes and scales and the sums `[rows, lanes]`, of any value.
    ///
    /// # Safety
    /// As for `range`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn sum(
        &self,
        panels: &[Panel],
        tile: Tile,
        bytes: &mut [u8],
        scales: &mut [f32],
        sums: &mut [f32],
        lanes: usize,
    ) {
        let rows = tile.height.next_multiple_of(STRIP);
        for from in (0..self.w.k).step_by(DEPTH) {
            let depth = DEPTH.min(self.w.k - from);
            let stored = self.stored_scales(tile, from);
            let (w_scales, scale_stride) = stored.unwrap_or((scales.as_ptr(), DEPTH / BLOCK));
            for r in 0..tile.height {
                let bytes = &mut bytes[r * DEPTH..][..depth];
                let scales = &mut scales[r * (DEPTH / BLOCK)..][..depth / BLOCK];
                // SAFETY: the features are enabled, and the part of the row exists.
                unsafe { self.expand(tile.first + r, from, bytes) };
                if stored.is_none() {
                    self.scales(tile.first + r, from, scales);
                }
            }
            let mut lane = 0;
            for (p, panel) in panels.iter().enumerate() {
                let width = panel.lanes;
                let height = if width == PANEL { STRIP / 2 } else { STRIP };
                for strip in (0..rows).step_by(height) {
                    // SAFETY: the strip lies in the tile, the blocks in the panel, the sums in `[rows, lanes]`.
                    unsafe {
                        let part = Part {
                            blocks: depth / BLOCK,
                            first: from == 0,
                            next: if p == 0 { self.next(tile.first + tile.height + strip, height, from) } else { None },
                            w: bytes.as_ptr().add(strip * DEPTH),
                            w_scales: w_scales.add(strip * scale_stride),
                            scale_stride,
                            low: panel.low.as_ptr().add(from / 4 * width),
                            start: panel.start.as_ptr().add(from / BLOCK * width),
                            steps: panel.steps.as_ptr().add(from / BLOCK * width),
                            high: panel.high.as_ptr(),
                            places: panel.places.as_ptr(),
                            begins: panel.begins.as_ptr().add(from / BLOCK),
                            sums: sums.as_mut_ptr().add(strip * lanes + lane),
                            lanes,
                        };
                        if width == PANEL { part.add::<{ STRIP / 2 }, 2>() } else { part.add::<STRIP, 1>() }
                    }
                }
                lane += width;
            }
        }
        let mut lane = 0;
        for panel in panels {
            for token in 0..panel.tokens {
                // SAFETY: tasks have different columns of y.
                let y = unsafe { self.y.row(panel.first + token, tile.first, tile.height) };
                for (r, y) in y.iter_mut().enumerate() {
                    let sum = sums[r * lanes + lane + token];
                    *y = sum * self.factor + self.bias.map_or(0.0, |bias| bias[tile.first + r]);
                }
            }
            lane += panel.lanes;
        }
    }

    /// The scales of the blocks from element `from` on of a tile that needs no rows beyond its own, where they are stored as they are
    /// used, and how many there are from one row to the next.
    fn stored_scales(&self, tile: Tile, from: usize) -> Option<(*const f32, usize)> {
        let Matrix::CodeBook4(w) = &self.w.data else { return None };
        let BlockScales::Single(scales) = w.scales else { return None };
        let fits = w.block == BLOCK && tile.height.is_multiple_of(STRIP);
        let stride = self.w.k / BLOCK;
        fits.then(|| (scales[tile.first * stride + from / BLOCK..].as_ptr(), stride))
    }

    /// The part of `height` rows from `row` on that is to be prefetched while elements from `from` on of other rows are multiplied.
    fn next(&self, row: usize, height: usize, from: usize) -> Option<Next> {
        let k = self.w.k;
        // As many bytes, but of whole rows one after the other: that is how memory is read fastest.
        let at = |data: *const u8, row_bytes: usize, block: usize| {
            let part = height * (from / BLOCK * block);
            (data.wrapping_add(row.wrapping_mul(row_bytes).wrapping_add(part)), height * block)
        };
        let ((codes, code_bytes), (scales, scale_bytes)) = match &self.w.data {
            Matrix::CodeBook4(w) => {
                let (data, size) = match w.scales {
                    BlockScales::Single(scales) => (scales.as_ptr().cast(), 4),
                    BlockScales::Double { codes, .. } => (codes.as_ptr(), 1),
                };
                let scales = if w.block == BLOCK { at(data, k / BLOCK * size, size) } else { (data, 0) };
                (at(w.codes.as_ptr(), k / 2, BLOCK / 2), scales)
            }
            Matrix::Int8(w) => (at(w.codes.as_ptr(), k, BLOCK), at(w.scales.as_ptr().cast(), k / BLOCK * 2, 2)),
            Matrix::IntegerRows(w) if w.slots.is_some() => return None,
            Matrix::IntegerRows(w) if row < w.wide_rows => {
                (at(w.wide.as_ptr(), k, BLOCK), (w.scales.as_ptr().cast(), 0))
            }
            Matrix::IntegerRows(w) if w.wide_rows < self.w.n => {
                let first = w.narrow.as_ptr().wrapping_sub(w.wide_rows.wrapping_mul(w.narrow_stride));
                let codes = at(first, w.narrow_stride, BLOCK / 8 * w.narrow_bits as usize);
                (codes, (w.scales.as_ptr().cast(), 0))
            }
            _ => return None,
        };
        Some(Next { codes, code_bytes, scales, scale_bytes })
    }

    /// The scale of every 64 elements from `from` on of a row.
    fn scales(&self, row: usize, from: usize, scales: &mut [f32]) {
        match &self.w.data {
            Matrix::CodeBook4(w) => block_scales(w, row * self.w.k + from, scales),
            Matrix::Int8(w) => w.scales(self.w.k, row, from / BLOCK, scales),
            Matrix::IntegerRows(w) => scales.fill(w.scales[w.slot(row)]),
            _ => unreachable!("`fits` lets no other storage through"),
        }
    }

    /// Elements `from..from + bytes.len()` of a row as bytes.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI and VBMI.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn expand(&self, row: usize, from: usize, bytes: &mut [u8]) {
        let k = self.w.k;
        // SAFETY: the features are enabled.
        unsafe {
            match &self.w.data {
                Matrix::CodeBook4(w) => nibbles::<true>(&w.codes[(row * k + from) / 2..], &self.book, bytes),
                Matrix::Int8(w) => signed(&w.codes[row * k + from..], Order::Natural, bytes),
                Matrix::IntegerRows(w) => {
                    let slot = w.slot(row);
                    if slot < w.wide_rows {
                        return signed(&w.wide[slot * k + from..], self.order, bytes);
                    }
                    let codes = &w.narrow[(slot - w.wide_rows) * w.narrow_stride..];
                    match w.narrow_bits {
                        4 => nibbles::<false>(&codes[from / 2..], &self.book, bytes),
                        _ => pairs(&codes[from / 4..], bytes),
                    }
                }
                _ => unreachable!("`fits` lets no other storage through"),
            }
        }
    }
}

/// Signed bytes in this order.
///
/// # Safety
/// The processor has AVX-512 with VNNI and VBMI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn signed(codes: &[u8], order: Order, bytes: &mut [u8]) {
    let elements = order.elements();
    // SAFETY: all slices have 64 bytes.
    unsafe {
        let elements = _mm512_loadu_si512(elements.as_ptr().cast());
        let flip = _mm512_set1_epi8(-128);
        for (codes, to) in codes.chunks_exact(BLOCK).zip(bytes.chunks_exact_mut(BLOCK)) {
            let mut codes = _mm512_loadu_si512(codes.as_ptr().cast());
            if order != Order::Natural {
                codes = _mm512_permutexvar_epi8(elements, codes);
            }
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_xor_si512(codes, flip));
        }
    }
}

/// Looks up nibbles, the even element in the high or the low one, in the order [`Order::EvenOdd`].
///
/// # Safety
/// The processor has AVX-512 with VNNI and VBMI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn nibbles<const HIGH_FIRST: bool>(codes: &[u8], book: &[u8; 16], bytes: &mut [u8]) {
    // SAFETY: the slices are as long as the loads and stores.
    unsafe {
        // The book lies in the register twice, so that the upper bits do not matter.
        let book = _mm256_broadcastsi128_si256(_mm_loadu_si128(book.as_ptr().cast()));
        for (codes, to) in codes.chunks_exact(BLOCK / 2).zip(bytes.chunks_exact_mut(BLOCK)) {
            let codes = _mm256_loadu_si256(codes.as_ptr().cast());
            let low = lookup(codes, book);
            let high = lookup(_mm256_srli_epi16::<4>(codes), book);
            let (even, odd) = if HIGH_FIRST { (high, low) } else { (low, high) };
            _mm256_storeu_si256(to.as_mut_ptr().cast(), even);
            _mm256_storeu_si256(to.as_mut_ptr().add(BLOCK / 2).cast(), odd);
        }
    }
}

/// The byte of the code in the low nibble of each byte.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
#[inline]
fn lookup(codes: __m256i, book: __m256i) -> __m256i {
    _mm256_permutexvar_epi8(codes, book)
}

/// Pairs of bits, which stand for what they say less 1, in the order [`Order::Quarters`].
///
/// # Safety
/// The processor has AVX-512 with VNNI and VBMI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn pairs(codes: &[u8], bytes: &mut [u8]) {
    // SAFETY: the slices are as long as the loads and stores.
    unsafe {
        let by = _mm512_set_epi64(6, 6, 4, 4, 2, 2, 0, 0);
        let (mask, offset) = (_mm512_set1_epi8(3), _mm512_set1_epi8((OFFSET - 1) as i8));
        for (codes, to) in codes.chunks_exact(BLOCK / 4).zip(bytes.chunks_exact_mut(BLOCK)) {
            let codes = _mm512_broadcast_i32x4(_mm_loadu_si128(codes.as_ptr().cast()));
            let codes = _mm512_and_si512(_mm512_srlv_epi64(codes, by), mask);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_add_epi8(codes, offset));
        }
    }
}

/// A strip of a tile and a panel.
struct Part {
    blocks: usize,
    /// Nothing was added before.
    first: bool,
    next: Option<Next>,
    w: *const u8,
    w_scales: *const f32,
    /// Scales from one row to the next.
    scale_stride: usize,
    low: *const i32,
    start: *const i32,
    steps: *const f32,
    high: *const i32,
    places: *const u32,
    begins: *const u32,
    sums: *mut f32,
    /// From one row of the sums to the next.
    lanes: usize,
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
                        *total = _mm512_loadu_ps(self.sums.add(r * self.lanes + 16 * v));
                    }
                }
            }
            for b in 0..self.blocks {
                if let Some(next) = self.next {
                    next.prefetch(b);
                }
                let sums = self.products::<NR, V>(b);
                let steps = self.steps::<V>(b);
                for r in 0..NR {
                    let w = _mm512_set1_ps(*self.w_scales.add(r * self.scale_stride + b));
                    for v in 0..V {
                        let sum = _mm512_cvtepi32_ps(sums[r][v]);
                        total[r][v] = _mm512_fmadd_ps(sum, _mm512_mul_ps(w, steps[v]), total[r][v]);
                    }
                }
            }
            for (r, total) in total.iter().enumerate() {
                for (v, total) in total.iter().enumerate() {
                    _mm512_storeu_ps(self.sums.add(r * self.lanes + 16 * v), *total);
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
                start[v] = _mm512_loadu_si512(self.start.add((block * V + v) * 16).cast());
            }
            let mut sums = [start; NR];
            let (begin, end) = (*self.begins.add(block) as usize, *self.begins.add(block + 1) as usize);
            if begin < end {
                sums = [[_mm512_setzero_si512(); V]; NR];
                for i in begin..end {
                    let at = w.add(4 * *self.places.add(i) as usize);
                    dot::<NR, V>(at, self.high.add(i * 16 * V), &mut sums);
                }
                for sums in &mut sums {
                    for v in 0..V {
                        sums[v] = _mm512_add_epi32(_mm512_slli_epi32::<7>(sums[v]), start[v]);
                    }
                }
            }
            for i in 0..WORDS {
                dot::<NR, V>(w.add(4 * i), self.low.add((block * WORDS + i) * 16 * V), &mut sums);
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
            *steps = unsafe { _mm512_loadu_ps(self.steps.add((block * V + v) * 16)) };
        }
        steps
    }
}

/// Adds the products of a word of each row with one of each token.
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
            let w = w.add(r * DEPTH);
            let w = _mm512_set1_epi32(w.cast::<i32>().read_unaligned());
            for v in 0..V {
                sums[v] = _mm512_dpbusd_epi32(sums[v], w, words[v]);
            }
        }
    }
}
