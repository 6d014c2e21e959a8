//! Products of many rows of x with BF16 weights where x may be rounded: both are multiplied in pairs of BF16, and added in f32.
//!
//! As in [`gemm`](super::gemm) the lanes are tokens and elements of the weight are broadcast, here two at a time.

use crate::cpu::Level;
use crate::cpu::pool::{Output, for_each_chunk, parallel, threads, with_scratch};
use std::arch::x86_64::*;

/// The crossover to f32: decoding, also of many sequences, multiplies x as it is.
pub(super) const MIN_ROWS: usize = 33;
/// Inputs per tile: a panel of x stays in the first cache.
const DEPTH: usize = 256;
/// Rows of a tile per call of the inner loop.
const STRIP: usize = 12;
/// Most outputs per task.
const WIDTH: usize = 96;
/// Tokens of a panel: two vectors.
const PANEL: usize = 32;
/// Pairs in a vector.
const LANES: usize = 16;

/// Whether the processor multiplies BF16.
pub(super) fn available(level: Level) -> bool {
    level == Level::Avx512 && is_x86_feature_detected!("avx512bf16")
}

/// `y = x Wᵀ + b` of `m` rows of x, for `w [n, k]`.
///
/// # Panics
/// If the processor lacks the instructions.
pub(super) fn gemm(x: &[f32], m: usize, w: &[u16], (n, k): (usize, usize), bias: Option<&[f32]>, y: Output) {
    assert!(available(Level::Avx512), "the processor multiplies no BF16");
    let x = pack(x, m, k);
    let even = n.div_ceil(16 * threads());
    let width = even.next_multiple_of(STRIP).clamp(2 * STRIP, WIDTH);
    parallel(n.div_ceil(width), |task| {
        let (first, last) = (task * width, n.min((task + 1) * width));
        let rows = (last - first).next_multiple_of(STRIP);
        let tokens = m.next_multiple_of(PANEL);
        let mut tile = vec![0u32; rows * (DEPTH / 2)];
        with_scratch(rows * tokens, |sums| {
            for from in (0..k).step_by(DEPTH) {
                let depth = DEPTH.min(k - from);
                for (r, pairs) in tile.chunks_exact_mut(DEPTH / 2).enumerate().take(last - first) {
                    pack_weights(&w[(first + r) * k + from..][..depth], pairs);
                }
                for panel in 0..tokens / PANEL {
                    for strip in (0..rows).step_by(STRIP) {
                        // SAFETY: the processor has the instructions; the strip lies in the tile, the panel in x, the sums in
                        // `[rows, tokens]`.
                        unsafe {
                            let part = Part {
                                pairs: depth.div_ceil(2),
                                first: from == 0,
                                w: tile.as_ptr().add(strip * (DEPTH / 2)),
                                x: x.as_ptr().add((panel * k.div_ceil(2) + from / 2) * PANEL),
                                sums: sums.as_mut_ptr().add(strip * tokens + panel * PANEL),
                                tokens,
                            };
                            // A last panel that is half empty takes the kernel of one vector.
                            if m - panel * PANEL > LANES { part.add::<2>() } else { part.add::<1>() }
                        }
                    }
                }
            }
            for token in 0..m {
                // SAFETY: tasks have different columns of y.
                let y = unsafe { y.row(token, first, last - first) };
                for (r, y) in y.iter_mut().enumerate() {
                    *y = sums[r * tokens + token] + bias.map_or(0.0, |bias| bias[first + r]);
                }
            }
        });
    });
}

/// Two BF16, the first in the lower half.
fn pair(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// Elements of a row in pairs, an odd last one beside 0.
fn pack_weights(row: &[u16], pairs: &mut [u32]) {
    let (two, last) = row.as_chunks::<2>();
    for (to, &[low, high]) in pairs.iter_mut().zip(two) {
        *to = pair(low, high);
    }
    if let [last] = *last {
        pairs[two.len()] = pair(last, 0);
    }
}

/// x rounded to the nearest BF16, as `[panel][k / 2][token]`, padded with zeros.
fn pack(x: &[f32], m: usize, k: usize) -> Vec<u32> {
    let pairs = k.div_ceil(2);
    let mut packed = vec![0u32; m.div_ceil(PANEL) * pairs * PANEL];
    for_each_chunk(&mut packed, pairs * PANEL, PANEL * k, |panel, packed| {
        let x = &x[panel * PANEL * k..m.min((panel + 1) * PANEL) * k];
        // A cache line of each token at a time.
        for first in (0..pairs).step_by(LANES) {
            let count = LANES.min(pairs - first);
            for (token, x) in x.chunks_exact(k).enumerate() {
                let x = &x[2 * first..k.min(2 * (first + count))];
                // SAFETY: `gemm` has found the instructions.
                let rounded = unsafe { rounded(x) };
                for (i, pair) in rounded.into_iter().enumerate().take(count) {
                    packed[(first + i) * PANEL + token] = pair;
                }
            }
        }
    });
    packed
}

/// Up to 32 numbers as BF16 in pairs, then zeros.
///
/// # Safety
/// The processor has AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rounded(x: &[f32]) -> [u32; LANES] {
    let mut padded = [0.0f32; 2 * LANES];
    padded[..x.len()].copy_from_slice(x);
    let mut pairs = [0u32; LANES];
    // SAFETY: both halves of `padded` are a vector, and so is `pairs`.
    unsafe {
        let (low, high) = (_mm512_loadu_ps(padded.as_ptr()), _mm512_loadu_ps(padded.as_ptr().add(LANES)));
        let bits: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
        _mm512_storeu_si512(pairs.as_mut_ptr().cast(), bits);
    }
    pairs
}

/// A strip of a tile and a panel.
struct Part {
    pairs: usize,
    /// Nothing was added before.
    first: bool,
    w: *const u32,
    x: *const u32,
    sums: *mut f32,
    /// From one row of the sums to the next.
    tokens: usize,
}

impl Part {
    /// Adds the products of [`STRIP`] rows and `V` vectors of tokens to their sums.
    ///
    /// # Safety
    /// The processor has AVX-512 with BF16, and the pointers are valid for them.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn add<const V: usize>(&self) {
        let mut sums = [[_mm512_setzero_ps(); V]; STRIP];
        // SAFETY: the caller's promise.
        unsafe {
            if !self.first {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm512_loadu_ps(self.sums.add(r * self.tokens + LANES * v));
                    }
                }
            }
            for i in 0..self.pairs {
                let mut x = [_mm512_setzero_si512(); V];
                for (v, x) in x.iter_mut().enumerate() {
                    *x = _mm512_loadu_si512(self.x.add(i * PANEL + LANES * v).cast());
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let w = _mm512_set1_epi32(*self.w.add(r * (DEPTH / 2) + i) as i32);
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = _mm512_dpbf16_ps(*sum, bf16(w), bf16(x));
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    _mm512_storeu_ps(self.sums.add(r * self.tokens + LANES * v), *sum);
                }
            }
        }
    }
}

/// The same bits.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, of which every pattern is valid.
    unsafe { std::mem::transmute(bits) }
}
