//! Matrix products for many rows of x: tiles of the weight are dequantised once and multiplied from the cache.
//!
//! The lanes of a vector are rows of x (tokens): x is packed once into panels `[k][tokens]`, and an element of the weight is
//! broadcast. So a dequantised tile stays row-major and needs no packing.

use crate::cpu::matmul::dequantize::decode;
use crate::cpu::matmul::weight::Weight;
use crate::cpu::pool::{Output, parallel, with_scratch};
use crate::cpu::simd::{Kernel, Simd};
use crate::cpu::{Level, simd};

/// Inputs per tile: a panel of x and a strip of the tile stay in the L1 and L2 caches.
const DEPTH: usize = 512;
/// Most outputs per task.
const WIDTH: usize = 96;
/// Vectors of tokens per panel.
pub(crate) const VECTORS: usize = 2;

/// Rows of a tile per call of the inner loop, by registers.
const fn strip(registers: usize) -> usize {
    if registers >= 32 { 12 } else { 6 }
}

/// `y = x Wᵀ + b` for many rows.
pub(crate) fn gemm(level: Level, x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>, y: Output) {
    let panel = VECTORS * simd::lanes(level);
    let panels = m.div_ceil(panel);
    let packed = pack(x, m, w.k, panel);
    let strip = strip(if level == Level::Avx512 || level == Level::Neon { 32 } else { 16 });
    let even = w.n.div_ceil(16 * crate::cpu::threads());
    let width = even.next_multiple_of(strip).clamp(2 * strip, WIDTH);
    parallel(w.n.div_ceil(width), |task| {
        let first = task * width;
        let last = w.n.min(first + width);
        let rows = (last - first).next_multiple_of(strip);
        let depth = DEPTH.min(w.k);
        let tokens = panels * panel;
        with_scratch(rows * depth + rows * tokens, |scratch| {
            let (tile, sums) = scratch.split_at_mut(rows * depth);
            let task = Task { x: &packed, m, w, bias, first, last, rows, depth, tokens, tile, sums, y };
            simd::launch(level, task);
        });
    });
}

/// x as `[panel][k][tokens]`, padded with zeros.
fn pack(x: &[f32], m: usize, k: usize, panel: usize) -> Vec<f32> {
    let mut packed = vec![0.0; m.div_ceil(panel) * panel * k];
    crate::cpu::pool::for_each_chunk(&mut packed, panel * k, panel * k, |p, packed| {
        let x = &x[p * panel * k..m.min((p + 1) * panel) * k];
        // A cache line of each token at a time: the rows may lie a multiple of the cache's size apart.
        for first in (0..k).step_by(16) {
            let last = k.min(first + 16);
            for (token, x) in x.chunks_exact(k).enumerate() {
                for (i, &value) in x[first..last].iter().enumerate() {
                    packed[(first + i) * panel + token] = value;
                }
            }
        }
    });
    packed
}

struct Task<'a> {
    x: &'a [f32],
    m: usize,
    w: &'a Weight<'a>,
    bias: Option<&'a [f32]>,
    first: usize,
    last: usize,
    /// `last - first`, padded to whole strips.
    rows: usize,
    depth: usize,
    /// `m`, padded to whole panels.
    tokens: usize,
    /// `[rows, depth]`.
    tile: &'a mut [f32],
    /// `[rows, tokens]`.
    sums: &'a mut [f32],
    y: Output<'a>,
}

impl Kernel for Task<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // SAFETY: `S` is enabled; the buffers have the sizes that `gemm` gave them.
        unsafe { if strip(S::REGISTERS) == 12 { self.run::<S, 12>() } else { self.run::<S, 6>() } }
    }
}

impl Task<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd, const NR: usize>(self) {
        let k = self.w.k;
        let panel = VECTORS * S::LANES;
        let used = self.last - self.first;
        self.tile[used * self.depth..].fill(0.0);
        for from in (0..k).step_by(self.depth) {
            let depth = self.depth.min(k - from);
            for (r, row) in self.tile.chunks_exact_mut(self.depth).enumerate().take(used) {
                // SAFETY: `S` is enabled.
                unsafe { decode::<S>(self.w, self.first + r, from, &mut row[..depth]) };
            }
            for p in 0..self.tokens / panel {
                // A last panel that is half empty takes the kernel of one vector.
                let vectors = (self.m - p * panel).div_ceil(S::LANES).min(VECTORS);
                for strip in (0..self.rows).step_by(NR) {
                    // SAFETY: the strip lies in the tile, the panel in x, the sums in `[rows, tokens]`.
                    unsafe {
                        let w = self.tile.as_ptr().add(strip * self.depth);
                        let x = self.x.as_ptr().add((p * k + from) * panel);
                        let sums = self.sums.as_mut_ptr().add(strip * self.tokens + p * panel);
                        let first = from == 0;
                        if vectors == VECTORS {
                            tile::<S, NR, VECTORS>(depth, w, self.depth, 1, x, panel, sums, self.tokens, first);
                        } else {
                            tile::<S, NR, 1>(depth, w, self.depth, 1, x, panel, sums, self.tokens, first);
                        }
                    }
                }
            }
        }
        self.write(used);
    }

    /// Transposes the sums into y, in squares that fit the L1 cache.
    #[inline(always)]
    fn write(self, used: usize) {
        for from in (0..self.m).step_by(16) {
            for i in from..self.m.min(from + 16) {
                // SAFETY: tasks have different columns of y.
                let y = unsafe { self.y.row(i, self.first, used) };
                for (r, y) in y.iter_mut().enumerate() {
                    *y = self.sums[r * self.tokens + i] + self.bias.map_or(0.0, |bias| bias[self.first + r]);
                }
            }
        }
    }
}

/// `c[r][token] (+)= sum_i w[r][i] x[i][token]` for `NR` rows of w and `V` vectors of tokens.
///
/// # Safety
/// `w` is valid at `r * w_row + i * w_step`, `x` at `i * x_step + V * LANES`, `c` at `r * c_row + V * LANES`, for `r < NR`
/// and `i < depth`; `S` is enabled.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, const NR: usize, const V: usize>(
    depth: usize,
    w: *const f32,
    w_row: usize,
    w_step: usize,
    x: *const f32,
    x_step: usize,
    c: *mut f32,
    c_row: usize,
    overwrite: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; NR];
        if !overwrite {
            for r in 0..NR {
                for v in 0..V {
                    sums[r][v] = S::load(c.add(r * c_row + v * S::LANES));
                }
            }
        }
        for i in 0..depth {
            let mut xs = [S::splat(0.0); V];
            for v in 0..V {
                xs[v] = S::load(x.add(i * x_step + v * S::LANES));
            }
            for r in 0..NR {
                let w = S::splat(*w.add(r * w_row + i * w_step));
                for v in 0..V {
                    sums[r][v] = S::fma(w, xs[v], sums[r][v]);
                }
            }
        }
        for r in 0..NR {
            for v in 0..V {
                S::store(c.add(r * c_row + v * S::LANES), sums[r][v]);
            }
        }
    }
}

/// `c[rows, columns] (+)= w[rows, depth] x[depth, columns]`, all row-major with the row lengths `w_row`, `x_row`, `c_row`.
///
/// # Safety
/// The pointers are valid for these shapes; `S` is enabled.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
pub(crate) unsafe fn small<S: Simd>(
    (rows, depth, columns): (usize, usize, usize),
    w: *const f32,
    w_row: usize,
    x: *const f32,
    x_row: usize,
    c: *mut f32,
    c_row: usize,
    overwrite: bool,
) {
    let pair = VECTORS * S::LANES;
    // SAFETY: the caller's promise; each step stays inside the shapes.
    unsafe {
        let mut row = 0;
        while row < rows {
            let (w, c) = (w.add(row * w_row), c.add(row * c_row));
            let mut column = 0;
            macro_rules! columns {
                ($rows:literal) => {{
                    while column + pair <= columns {
                        let (x, c) = (x.add(column), c.add(column));
                        tile::<S, $rows, VECTORS>(depth, w, w_row, 1, x, x_row, c, c_row, overwrite);
                        column += pair;
                    }
                    while column + S::LANES <= columns {
                        let (x, c) = (x.add(column), c.add(column));
                        tile::<S, $rows, 1>(depth, w, w_row, 1, x, x_row, c, c_row, overwrite);
                        column += S::LANES;
                    }
                    $rows
                }};
            }
            let done = match rows - row {
                8.. if S::REGISTERS >= 32 => columns!(8),
                4.. => columns!(4),
                _ => columns!(1),
            };
            for r in 0..done {
                for column in column..columns {
                    let mut sum = if overwrite { 0.0 } else { *c.add(r * c_row + column) };
                    for i in 0..depth {
                        sum += *w.add(r * w_row + i) * *x.add(i * x_row + column);
                    }
                    *c.add(r * c_row + column) = sum;
                }
            }
            row += done;
        }
    }
}
