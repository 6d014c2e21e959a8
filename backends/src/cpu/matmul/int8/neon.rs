//! 5 rows of x and more on aarch64: tiles of the matrix become bytes once and are multiplied from the cache, by [`dot`](super::dot).
//!
//! Chunks of a panel in which a token has an outlier are multiplied a second time, by the high bytes. Sums are exact integers and become
//! floats as in the tiles of AVX2 and AVX-512: all give the same bits.

use super::BLOCK;
use super::book::Shift;
use super::dot::{Dot, LANES, PANEL, Part, STRIP, SUMS, Sdot, Smmla};
use super::gemv::{Codes, Gemv, StoredRows};
use super::panels::Panels;
use super::round::{Block, Detail};
use crate::cpu::matmul::memo::Memo;
use crate::cpu::matmul::types::InputRows;
use crate::cpu::matmul::weight::Weight;
use crate::cpu::pool::{Output, Region, with_scratch};
use crate::cpu::simd::bytes::Bytes;
use crate::cpu::simd::neon::Neon;
use std::arch::aarch64::*;

/// Blocks of a row per tile.
const DEPTH: usize = 8;
/// Rows of a tile: x is read as often as there are tiles.
const HEIGHT: usize = 48;

/// The instruction that multiplies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Instruction {
    /// Of the dot product, which every processor with these kernels has.
    Sdot,
    /// Of i8mm (Apple M2, Neoverse V1 and N2 and later): twice the products.
    Smmla,
}

impl Instruction {
    pub(super) fn best() -> Instruction {
        if std::arch::is_aarch64_feature_detected!("i8mm") { Instruction::Smmla } else { Instruction::Sdot }
    }
}

/// What the order and the sums of x depend on.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Packing {
    codes: Codes,
    shift: Shift,
    detail: Detail,
    instruction: Instruction,
}

/// Up to [`PANEL`] tokens, padded with zeros.
#[derive(Default)]
pub(super) struct Panel {
    /// `[block][chunk][token]`: [`Dot::CHUNK`] bytes each.
    low: Vec<i8>,
    /// `[outlier][token]`, of the chunks in which a token has an outlier.
    high: Vec<i8>,
    /// Their numbers in their block.
    places: Vec<u8>,
    /// `[block + 1]`: where the places of a block begin.
    begins: Vec<u32>,
    /// `[block][token]`: what the shift of the weights adds.
    start: Vec<i32>,
    /// `[block][token]`.
    steps: Vec<f32>,
}

impl Panel {
    /// Fills it with these rows of `k`.
    fn fill<D: Dot>(&mut self, x: &[f32], k: usize, packing: Packing) {
        let Packing { codes, shift, detail, .. } = packing;
        let blocks = k / BLOCK;
        let order: [u8; BLOCK] = std::array::from_fn(|place| codes.element::<Neon>(place) as u8);
        let thresholds: Vec<f32> = x.chunks_exact(k).map(|x| detail.threshold(x)).collect();
        self.low = vec![0; blocks * BLOCK * PANEL];
        self.start = vec![0; blocks * PANEL];
        self.steps = vec![0.0; blocks * PANEL];
        self.begins = vec![0; blocks + 1];
        let mut high = [0; BLOCK * PANEL];
        for (b, low) in self.low.chunks_exact_mut(BLOCK * PANEL).enumerate() {
            let mut outliers = false;
            for (token, (x, &threshold)) in x.chunks_exact(k).zip(&thresholds).enumerate() {
                let block = Block::new(&x[b * BLOCK..], threshold);
                put::<D>(&permuted(&block.low, &order), token, low);
                if block.outliers {
                    outliers = true;
                    put::<D>(&permuted(&block.high, &order), token, &mut high);
                }
                if shift != Shift::NONE {
                    self.start[b * PANEL + token] = shift.of(block.eights()).iter().sum();
                }
                self.steps[b * PANEL + token] = block.step;
            }
            if outliers {
                for (place, chunk) in high.chunks_exact(PANEL * D::CHUNK).enumerate() {
                    if chunk.iter().any(|&byte| byte != 0) {
                        self.places.push(place as u8);
                        self.high.extend_from_slice(chunk);
                    }
                }
                high.fill(0);
            }
            self.begins[b + 1] = self.places.len() as u32;
        }
    }
}

/// The bytes of a block in this order.
fn permuted(bytes: &[i8; BLOCK], order: &[u8; BLOCK]) -> [i8; BLOCK] {
    let mut to = [0; BLOCK];
    // SAFETY: 64 bytes each, and aarch64 has NEON.
    unsafe {
        let table = |i: usize| vld1q_s8(bytes.as_ptr().add(16 * i));
        let table = int8x16x4_t(table(0), table(1), table(2), table(3));
        for i in 0..4 {
            vst1q_s8(to.as_mut_ptr().add(16 * i), vqtbl4q_s8(table, vld1q_u8(order.as_ptr().add(16 * i))));
        }
    }
    to
}

/// Puts the bytes of a block where a panel has this token.
fn put<D: Dot>(bytes: &[i8; BLOCK], token: usize, to: &mut [i8]) {
    for (from, to) in bytes.chunks_exact(D::CHUNK).zip(to.chunks_exact_mut(PANEL * D::CHUNK)) {
        to[token * D::CHUNK..][..D::CHUNK].copy_from_slice(from);
    }
}

/// Adds a product with any number of rows of x, by an instruction that the processor has. Rows go where they are stored.
pub(super) fn add<'a>(
    instruction: Instruction,
    rows: &InputRows<'a>,
    memo: &Memo<Packing, Panels<Panel>>,
    w: Weight<'a>,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    let &InputRows { x, m, k, .. } = rows;
    for w in StoredRows::of(&w) {
        let packing = Packing { codes: w.codes, shift: w.shift, detail: Detail::of(rows.input), instruction };
        let fill = |panel: &mut Panel, x: &[f32]| match instruction {
            Instruction::Sdot => panel.fill::<Sdot>(x, k, packing),
            Instruction::Smmla => panel.fill::<Smmla>(x, k, packing),
        };
        let x = memo.get(packing, || Panels::new(x, (m, k), PANEL, fill));
        let (data, stride, count) = (w.data.as_ptr(), w.stride, w.rows);
        let gemv = Gemv { w, x, m, k, bias, y };
        region.add_tiles(STRIP, (data, stride), count, m * k, move |first, last| {
            // SAFETY: the processor has the instruction, the matrix was checked, and tasks have different rows.
            unsafe {
                match instruction {
                    Instruction::Sdot => gemv.range::<Sdot>(first, last),
                    Instruction::Smmla => gemv.range::<Smmla>(first, last),
                }
            }
        });
    }
}

impl Gemv<'_, Panels<Panel>> {
    /// Rows `first..last`.
    ///
    /// # Safety
    /// The processor has the instruction that x was packed for, `D`; the rows exist, and no other task writes their outputs.
    unsafe fn range<D: Dot>(&self, first: usize, last: usize) {
        let panels = &self.x.0;
        let mut tile = vec![0; HEIGHT * DEPTH * BLOCK];
        let mut scales = vec![1.0; HEIGHT * DEPTH];
        let expand = match self.w.codes {
            Codes::Bytes => Self::expand::<D, 8>,
            Codes::Nibbles { .. } => Self::expand::<D, 4>,
            Codes::Pairs => Self::expand::<D, 2>,
        };
        with_scratch(panels.len() * HEIGHT * PANEL, |totals| {
            for first in (first..last).step_by(HEIGHT) {
                let height = HEIGHT.min(last - first);
                totals.fill(0.0);
                for from in (0..self.k / BLOCK).step_by(DEPTH) {
                    let blocks = DEPTH.min(self.k / BLOCK - from);
                    // SAFETY: the rows have these blocks, and the buffers room for a tile.
                    unsafe { expand(self, (first, height), (from, blocks), tile.as_mut_ptr(), scales.as_mut_ptr()) };
                    for (p, (panel, totals)) in panels.iter().zip(totals.chunks_exact_mut(HEIGHT * PANEL)).enumerate() {
                        for b in 0..blocks {
                            // SAFETY: the blocks lie in the tile and in the panel, and the processor has `D`.
                            unsafe {
                                let part = Part {
                                    strips: height.div_ceil(STRIP),
                                    w: tile.as_ptr().add(b * HEIGHT * BLOCK),
                                    scales: scales.as_ptr().add(b * HEIGHT),
                                    low: panel.low.as_ptr().add((from + b) * BLOCK * PANEL),
                                    high: panel.high.as_ptr(),
                                    places: panel.places.as_ptr(),
                                    outliers: (panel.begins[from + b], panel.begins[from + b + 1]),
                                    start: panel.start.as_ptr().add((from + b) * PANEL),
                                    steps: panel.steps.as_ptr().add((from + b) * PANEL),
                                    totals: totals.as_mut_ptr(),
                                };
                                // A last panel that is half empty takes the kernel of one vector.
                                if self.m - p * PANEL > LANES { D::add::<2>(&part) } else { D::add::<1>(&part) }
                            }
                        }
                    }
                }
                // SAFETY: the caller's promise.
                unsafe { self.write::<D>((first, height), totals) };
            }
        });
    }

    /// Makes some blocks of up to [`HEIGHT`] rows bytes, `[block][strip]` as [`Dot::put`] orders a strip's, with their scales,
    /// `[block][row]`.
    ///
    /// # Safety
    /// The rows have these blocks of codes of `BITS` bits; `tile` and `scales` have room for [`DEPTH`] blocks of [`HEIGHT`] rows.
    unsafe fn expand<D: Dot, const BITS: usize>(
        &self,
        (first, height): (usize, usize),
        (from, blocks): (usize, usize),
        tile: *mut i8,
        scales: *mut f32,
    ) {
        let block_bytes = BLOCK * BITS / 8;
        // As many bytes of the next tile, but of whole rows one after the other: that is how memory is read fastest.
        let next = self.w.data.as_ptr().wrapping_add((first + HEIGHT) * self.w.stride);
        let next = next.wrapping_add(from * HEIGHT * block_bytes);
        for line in (0..height * blocks * block_bytes).step_by(64) {
            prefetch(next.wrapping_add(line));
        }
        // SAFETY: the caller's promise.
        unsafe {
            let table = Neon::table(&self.w.table);
            for r in 0..height {
                let row = first + r;
                let mut of_row = [1.0; DEPTH];
                let of_row = &mut of_row[..blocks];
                self.w.scales.of_row(self.k, row, from, of_row);
                let codes = self.w.data.as_ptr().add(row * self.w.stride + from * block_bytes);
                let to = tile.add(r / STRIP * STRIP * BLOCK);
                for (b, &scale) in of_row.iter().enumerate() {
                    *scales.add(b * HEIGHT + r) = scale;
                    let at = codes.add(b * block_bytes);
                    let bytes = match BITS {
                        8 => Neon::bytes(at),
                        4 => Neon::nibbles::<false>(at, table),
                        _ => Neon::pairs::<false>(at, table),
                    };
                    D::put(bytes, r % STRIP, to.add(b * HEIGHT * BLOCK));
                }
            }
        }
    }

    /// Writes the outputs of a tile.
    ///
    /// # Safety
    /// As for `range`.
    #[inline]
    unsafe fn write<D: Dot>(&self, (first, height): (usize, usize), totals: &[f32]) {
        let factor = self.w.scales.factor();
        for token in (0..self.m).step_by(LANES) {
            for r in (0..height).step_by(LANES) {
                let column = self.w.column + first + r;
                let (tokens, rows) = (LANES.min(self.m - token), LANES.min(height - r));
                let mut bias = [0.0; LANES];
                if let Some(all) = self.bias {
                    bias[..rows].copy_from_slice(&all[column..column + rows]);
                }
                let at = token / PANEL * HEIGHT * PANEL + r / STRIP * SUMS + token % PANEL * STRIP + r % STRIP * LANES;
                let square = &totals[at..at + LANES * LANES];
                // SAFETY: the lengths just checked, and the caller's promise: these rows and tokens exist.
                unsafe {
                    let [a, b, c, d] = std::array::from_fn(|i| vld1q_f32(square.as_ptr().add(i * LANES)));
                    let ([a, b], [c, d]) = (D::rows([a, b]), D::rows([c, d]));
                    let bias = vld1q_f32(bias.as_ptr());
                    for (i, sums) in transposed([a, b, c, d]).into_iter().enumerate().take(tokens) {
                        let y = vaddq_f32(vmulq_n_f32(sums, factor), bias);
                        let to = self.y.at(token + i, column);
                        if rows == LANES {
                            vst1q_f32(to, y);
                        } else {
                            let mut some = [0.0; LANES];
                            vst1q_f32(some.as_mut_ptr(), y);
                            to.copy_from_nonoverlapping(some.as_ptr(), rows);
                        }
                    }
                }
            }
        }
    }
}

/// Into L2. Only a hint: any address may be named.
#[inline(always)]
fn prefetch(at: *const u8) {
    // SAFETY: no access.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{at}]", at = in(reg) at, options(readonly, nostack, preserves_flags));
    }
}

/// A vector of each column.
#[inline(always)]
fn transposed([a, b, c, d]: [float32x4_t; LANES]) -> [float32x4_t; LANES] {
    // SAFETY: aarch64 has NEON.
    unsafe {
        let [ab, cd] =
            [(a, b), (c, d)].map(|(a, b)| [vtrn1q_f32(a, b), vtrn2q_f32(a, b)].map(|v| vreinterpretq_f64_f32(v)));
        let low = |i: usize| vreinterpretq_f32_f64(vtrn1q_f64(ab[i], cd[i]));
        let high = |i: usize| vreinterpretq_f32_f64(vtrn2q_f64(ab[i], cd[i]));
        [low(0), low(1), high(0), high(1)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::Input;
    use super::*;
    use crate::cpu::Level;
    use crate::cpu::matmul::weight::{BlockScales, CodeBook4, Int8, IntegerRows, Matrix};

    #[test]
    fn both_instructions_give_the_same_bits() {
        if Instruction::best() != Instruction::Smmla {
            return;
        }
        let (n, k) = (117, 704);
        let mut state = 1u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let codes: Vec<u8> = (0..n * k).map(|_| byte()).collect();
        let book: [f32; 16] = std::array::from_fn(|i| (i as f32 - 7.2) / 8.0);
        let scales: Vec<f32> = (0..n * k / 64).map(|_| f32::from(byte()) + 1.0).collect();
        let halves: Vec<u16> = (0..n * k / 64).map(|_| u16::from(byte()) + 0x2c00).collect();
        let code_book = CodeBook4 { codes: &codes, code_book: &book, block: 64, scales: BlockScales::Single(&scales) };
        let (narrow, wide, narrow_stride) = (&codes[5 * k..], &codes[..5 * k], k / 4);
        let rows =
            IntegerRows { wide, narrow, narrow_bits: 2, narrow_stride, wide_rows: 5, scales: &scales, slots: None };
        let int8 = Matrix::Int8(Int8 { codes: &codes, scales: &halves });
        let mut x: Vec<f32> = (0..35 * k).map(|_| f32::from(byte()) - 127.5).collect();
        x.iter_mut().step_by(1001).for_each(|x| *x *= 90.0);
        for data in [Matrix::CodeBook4(code_book), int8, Matrix::IntegerRows(rows)] {
            for (m, input) in [(5, Input::Usual), (11, Input::Gated), (16, Input::Head), (35, Input::Usual)] {
                let product = |instruction| {
                    let rows = InputRows::new(&x[..m * k], m, k, Level::Neon, input);
                    let mut y = vec![f32::NAN; m * n];
                    let (memo, w) = (Memo::default(), Weight { n, k, data });
                    let mut region = Region::default();
                    add(instruction, &rows, &memo, w, None, Output::new(&mut y, n), &mut region);
                    region.run();
                    y
                };
                let [sdot, smmla] = [Instruction::Sdot, Instruction::Smmla].map(product);
                assert!(sdot.iter().all(|y| y.is_finite()));
                assert!(sdot == smmla, "{m} rows, {input:?}");
            }
        }
    }
}
