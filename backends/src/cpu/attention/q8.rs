//! Keys and values in 8 bits, as floats: of a tile, or one register at a time for a few queries, since the floats of a tile would fill an L1
//! cache.

use crate::cpu::attention::ahead::{LINE, Next};
use crate::cpu::simd::Simd;
use crate::types::{KV_BLOCK, KV_TILE as TILE};

/// Keys whose dot products with one or two queries are summed at the same time; with four half as many.
const KEYS: usize = 4;

/// Keys or values of consecutive positions of one head.
#[derive(Clone, Copy)]
pub(super) struct Q8Rows<'a> {
    /// `[count, width]`.
    pub(super) codes: &'a [i8],
    /// `[count, width / KV_BLOCK]`, rounded up.
    pub(super) scales: &'a [f32],
    pub(super) width: usize,
}

impl<'a> Q8Rows<'a> {
    /// `count` rows of a cache in 8 bits, the first of which is row `first` of all its heads and positions.
    pub(super) fn new(codes: &'a [i8], scales: &'a [f32], width: usize, first: usize, count: usize) -> Self {
        let blocks = width.div_ceil(KV_BLOCK);
        Q8Rows {
            codes: &codes[first * width..(first + count) * width],
            scales: &scales[first * blocks..(first + count) * blocks],
            width,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.codes.len() / self.width
    }

    /// How many positions, of whole blocks.
    ///
    /// # Panics
    /// If it is not so, or there are more than `TILE`.
    pub(super) fn checked(&self) -> usize {
        let (count, blocks) = (self.count(), self.width / KV_BLOCK);
        assert!((1..=TILE).contains(&count) && self.width.is_multiple_of(KV_BLOCK), "{count} positions in a tile");
        assert!(self.codes.len() == count * self.width && self.scales.len() == count * blocks);
        count
    }

    /// As floats, `[count, width]`.
    ///
    /// # Safety
    /// `S` must be enabled.
    #[inline(always)]
    pub(super) unsafe fn floats<S: Simd>(&self, to: &mut [f32]) {
        let blocks = self.width.div_ceil(KV_BLOCK);
        let rows = self.codes.chunks_exact(self.width).zip(self.scales.chunks_exact(blocks));
        for ((codes, scales), to) in rows.zip(to.chunks_exact_mut(self.width)) {
            for ((codes, scale), to) in codes.chunks(KV_BLOCK).zip(scales).zip(to.chunks_mut(KV_BLOCK)) {
                let whole = codes.len() / S::LANES * S::LANES;
                // SAFETY: `S` is enabled, and every access is inside the slices, which have one length.
                unsafe {
                    let scale = S::splat(*scale);
                    for i in (0..whole).step_by(S::LANES) {
                        S::store(to.as_mut_ptr().add(i), S::mul(S::load_i8(codes.as_ptr().add(i).cast()), scale));
                    }
                }
                for (to, code) in to[whole..].iter_mut().zip(&codes[whole..]) {
                    *to = f32::from(*code) * scale;
                }
            }
        }
    }
}

/// `scores[r][i] = q[r] · keys[i]`, rows of `TILE` scores. `next` is prefetched meanwhile.
///
/// # Panics
/// If queries and scores are not of as many rows, or keys not of whole blocks and at most `TILE`.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(super) unsafe fn scores<S: Simd>(q: &[f32], keys: Q8Rows, scores: &mut [f32], next: Option<Next>) {
    let (rows, count) = (q.len() / keys.width, keys.checked());
    assert!(scores.len() >= rows * TILE);
    for i in (0..count).step_by(KEYS) {
        if let Some(next) = next {
            for line in 0..KEYS * next.bytes / LINE {
                // SAFETY: `S` is enabled; the address need not be readable.
                unsafe { S::prefetch(next.skip(i).at.wrapping_add(line * LINE)) };
            }
        }
        let mut r = 0;
        while r < rows {
            // SAFETY: `S` is enabled; queries and scores have these rows, of `TILE` places, a multiple of `KEYS`.
            unsafe {
                let (q, to) = (q.as_ptr().add(r * keys.width), scores.as_mut_ptr().add(r * TILE + i));
                r += match rows - r {
                    4.. => {
                        dots::<S, 4, 2>(q, keys, i, to);
                        dots::<S, 4, 2>(q, keys, i + 2, to.add(2))
                    }
                    2.. => dots::<S, 2, KEYS>(q, keys, i, to),
                    _ => dots::<S, 1, KEYS>(q, keys, i, to),
                };
            }
        }
    }
}

/// The products of `R` queries with `K` keys from `first` on, a row of `TILE` for each query; `R`. Keys beyond the last are the last again.
///
/// # Safety
/// `S` is enabled, `R * K` is a multiple of four, and queries and places exist.
#[inline(always)]
unsafe fn dots<S: Simd, const R: usize, const K: usize>(
    q: *const f32,
    keys: Q8Rows,
    first: usize,
    to: *mut f32,
) -> usize {
    let (width, blocks) = (keys.width, keys.width / KV_BLOCK);
    // SAFETY: the caller's promise; keys below `count` have `width` codes and `blocks` scales.
    unsafe {
        let place: [usize; K] = std::array::from_fn(|j| (first + j).min(keys.count() - 1));
        let mut sums = [[S::splat(0.0); K]; R];
        for block in 0..blocks {
            let scales = place.map(|i| S::splat(*keys.scales.as_ptr().add(i * blocks + block)));
            for d in (block * KV_BLOCK..(block + 1) * KV_BLOCK).step_by(S::LANES) {
                let mut key = [S::splat(0.0); K];
                for j in 0..K {
                    key[j] = S::mul(S::load_i8(keys.codes.as_ptr().add(place[j] * width + d).cast()), scales[j]);
                }
                for r in 0..R {
                    let q = S::load(q.add(r * width + d));
                    for j in 0..K {
                        sums[r][j] = S::fma(q, key[j], sums[r][j]);
                    }
                }
            }
        }
        for n in (0..R * K).step_by(4) {
            let mut four = [0.0; 4];
            S::store_sums(four.as_mut_ptr(), [0, 1, 2, 3].map(|i| sums[(n + i) / K][(n + i) % K]));
            for (i, sum) in four.into_iter().enumerate() {
                *to.add((n + i) / K * TILE + (n + i) % K) = sum;
            }
        }
    }
    R
}

/// `out[r] += Σ weights[r][i] values[i]`, rows of `TILE` weights. `next` is prefetched meanwhile.
///
/// # Panics
/// If weights and results are not of as many rows, or values not of whole blocks and at most `TILE`.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(super) unsafe fn weigh<S: Simd>(weights: &[f32], values: Q8Rows, out: &mut [f32], next: Option<Next>) {
    let (rows, count) = (out.len() / values.width, values.checked());
    let blocks = values.width / KV_BLOCK;
    assert!(weights.len() >= rows * TILE);
    let part = next.map_or(0, |next| count * next.bytes / blocks);
    for block in 0..blocks {
        let mut scales = [0.0; TILE];
        for (to, scales) in scales.iter_mut().zip(values.scales.chunks_exact(blocks)) {
            *to = scales[block];
        }
        let mut ahead = next.map(|next| Next { at: next.at.wrapping_add(block * part), bytes: part, ..next });
        let mut r = 0;
        while r < rows {
            let call = WeighBlock { values, count, block, scales: &scales, next: ahead.take() };
            // SAFETY: `S` is enabled; weights and results have these rows.
            unsafe {
                let (weights, out) = (weights.as_ptr().add(r * TILE), out.as_mut_ptr().add(r * values.width));
                r += match rows - r {
                    4.. => call.rows::<S, 4, 2>(weights, out),
                    _ if S::LANES > 8 => call.rows::<S, 1, 4>(weights, out),
                    _ => call.rows::<S, 1, 8>(weights, out),
                };
            }
        }
    }
}

/// A block of the values of a tile.
struct WeighBlock<'a> {
    values: Q8Rows<'a>,
    count: usize,
    block: usize,
    scales: &'a [f32; TILE],
    /// So many bytes are prefetched meanwhile.
    next: Option<Next>,
}

impl WeighBlock<'_> {
    /// The sums of `R` rows, `V` registers of columns at a time; `R`.
    ///
    /// # Safety
    /// `S` is enabled, registers of columns are whole in a block, and weights and results have `R` rows.
    #[inline(always)]
    unsafe fn rows<S: Simd, const R: usize, const V: usize>(&self, weights: *const f32, out: *mut f32) -> usize {
        let width = self.values.width;
        // SAFETY: the caller's promise; each of `count` values has the columns of a block.
        unsafe {
            let mut scaled = [[0.0f32; TILE]; R];
            for (r, scaled) in scaled.iter_mut().enumerate() {
                for (i, (to, scale)) in scaled.iter_mut().zip(self.scales).enumerate() {
                    *to = *weights.add(r * TILE + i) * scale;
                }
            }
            let passes = KV_BLOCK / (V * S::LANES);
            let step = self.next.map_or(0, |next| next.bytes / (passes * self.count));
            let mut ahead = self.next.map_or(self.values.codes.as_ptr().cast(), |next| next.at);
            for pass in 0..passes {
                let column = self.block * KV_BLOCK + pass * V * S::LANES;
                let mut sums = [[S::splat(0.0); V]; R];
                for r in 0..R {
                    for v in 0..V {
                        sums[r][v] = S::load(out.add(r * width + column + v * S::LANES));
                    }
                }
                for i in 0..self.count {
                    S::prefetch(ahead);
                    ahead = ahead.wrapping_add(step);
                    let mut value = [S::splat(0.0); V];
                    for v in 0..V {
                        let at = self.values.codes.as_ptr().add(i * width + column + v * S::LANES);
                        value[v] = S::load_i8(at.cast());
                    }
                    for r in 0..R {
                        let weight = S::splat(scaled[r][i]);
                        for v in 0..V {
                            sums[r][v] = S::fma(weight, value[v], sums[r][v]);
                        }
                    }
                }
                for r in 0..R {
                    for v in 0..V {
                        S::store(out.add(r * width + column + v * S::LANES), sums[r][v]);
                    }
                }
            }
        }
        R
    }
}
