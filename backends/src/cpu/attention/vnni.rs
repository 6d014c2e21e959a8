//! Attention over keys and values in 8 bits with AVX-512 VNNI: sums of whole numbers, 64 at a time.
//!
//! A query keeps 15 bits and a weight 16, each as two bytes: a score is off by about 1e-5 of the products in it, some hundredths of what the 8
//! bits of a key cost. Keys are made unsigned, 128 too large, because the instruction multiplies unsigned by signed bytes; the sum of a
//! query's bytes takes that back. Positions are the lanes of scores, numbers of a head those of weighted sums, so that no sum runs over the
//! lanes of a vector.

use crate::cpu::attention::ahead::LINE;
use crate::cpu::attention::q8::Q8Rows;
use crate::types::{KV_BLOCK, KV_TILE as TILE};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Numbers of a head that share a scale: a vector of codes.
const BLOCK: usize = 64;
const _: () = assert!(KV_BLOCK == BLOCK);
/// Positions in a vector of scores.
const LANES: usize = 16;
/// Queries that share the registers of a block of keys.
const ROWS: usize = 4;
/// The largest whole number of a query, whose higher byte is still one, and what that byte counts.
const STEPS: f32 = 16319.0;
const HIGH: i32 = 128;
/// Steps of a weight, of which the higher byte counts 256.
const WEIGHT_STEPS: f32 = 65535.0;
/// Whether this processor can.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

/// Queries as whole numbers.
pub(super) struct IntQueries {
    /// `[row][block][2][64]`: the higher bytes, then the lower.
    bytes: Vec<i8>,
    /// `[row][block][2]`: what 128 too much in every key adds to the products of each, negated.
    starts: Vec<[i32; 2]>,
    /// One per row; NaN where a number is not finite.
    steps: Vec<f32>,
    blocks: usize,
}

impl IntQueries {
    /// Of `q [rows, width]`, `width` a multiple of 64.
    pub(super) fn new(q: &[f32], width: usize) -> IntQueries {
        let (rows, blocks) = (q.len() / width, width / BLOCK);
        let mut queries = IntQueries {
            bytes: vec![0; 2 * q.len()],
            starts: vec![[0; 2]; rows * blocks],
            steps: Vec::with_capacity(rows),
            blocks,
        };
        for (row, q) in q.chunks_exact(width).enumerate() {
            let largest = q.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            let finite = q.iter().all(|x| x.is_finite());
            // A query so small is 0: its products are below every other rounding.
            let inverse = if finite && largest > 1e-30 { STEPS / largest } else { 0.0 };
            queries.steps.push(if finite { largest / STEPS } else { f32::NAN });
            for (block, q) in q.chunks_exact(BLOCK).enumerate() {
                let at = row * blocks + block;
                let mut sums = [0; 2];
                for (i, x) in q.iter().enumerate() {
                    // To the nearest: adding 1.5 * 2^23 leaves no fraction bits.
                    let whole = ((x * inverse + 12_582_912.0) - 12_582_912.0) as i32;
                    let high = (whole + HIGH / 2) >> 7;
                    let low = whole - (high << 7);
                    queries.bytes[at * 2 * BLOCK + i] = high as i8;
                    queries.bytes[(at * 2 + 1) * BLOCK + i] = low as i8;
                    sums = [sums[0] + high, sums[1] + low];
                }
                queries.starts[at] = sums.map(|sum| -HIGH * sum);
            }
        }
        queries
    }

    pub(super) fn rows(&self) -> usize {
        self.steps.len()
    }
}

impl Q8Rows<'_> {
    /// Codes of a block at a position; beyond the last those of the last.
    #[inline(always)]
    fn at(&self, position: usize, block: usize, blocks: usize) -> *const i8 {
        self.codes.as_ptr().wrapping_add((position.min(self.count() - 1) * blocks + block) * BLOCK)
    }

    /// Scales of a block at 16 positions; beyond the last 0.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn scales(&self, position: usize, block: usize, blocks: usize) -> __m512 {
        let left = self.count().saturating_sub(position).min(LANES);
        let there = ((1u32 << left) - 1) as __mmask16;
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let places = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(blocks as i32));
        let at = self.scales.as_ptr().wrapping_add(position * blocks + block);
        // SAFETY: the features are enabled; what the mask leaves lies in the scales, `blocks` of each position.
        unsafe {
            if blocks == 1 {
                return _mm512_maskz_loadu_ps(there, at);
            }
            _mm512_mask_i32gather_ps::<4>(_mm512_setzero_ps(), there, places, at)
        }
    }
}

/// `scores[r][i] = query[first + r] · keys[i]` for `rows` queries, rows of `TILE` scores. As many bytes as the keys have are prefetched
/// from `next` meanwhile.
///
/// # Panics
/// If a slice does not have its shape.
///
/// # Safety
/// The processor must be one of [`available`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn scores(
    queries: &IntQueries,
    first: usize,
    rows: usize,
    keys: Q8Rows,
    scores: &mut [f32],
    next: *const u8,
) {
    let blocks = queries.blocks;
    let count = keys.checked();
    assert!(blocks * BLOCK == keys.width);
    assert!(first + rows <= queries.rows() && scores.len() >= rows * TILE);
    for position in (0..count).step_by(LANES) {
        for block in 0..blocks {
            // SAFETY: the features are enabled. `at` gives 64 codes of a position; rows lie in the queries, and the 16 scores at
            // `position` in their row of `TILE`, a multiple of 16.
            unsafe {
                let words = if position + LANES <= count {
                    let at = keys.codes.as_ptr().add((position * blocks + block) * BLOCK);
                    transposed(|i| _mm512_loadu_si512(at.add(i * blocks * BLOCK).cast()))
                } else {
                    transposed(|i| _mm512_loadu_si512(keys.at(position + i, block, blocks).cast()))
                };
                let scales = keys.scales(position, block, blocks);
                let call = ScoreBlock { queries, block, words: &words, scales };
                let mut ahead = next.wrapping_add((position * blocks + block * LANES) * BLOCK);
                let mut r = 0;
                while r < rows {
                    let to = scores.as_mut_ptr().add(r * TILE + position);
                    r += match rows - r {
                        ROWS.. => call.rows::<ROWS>(first + r, to, ahead),
                        2.. => call.rows::<2>(first + r, to, ahead),
                        _ => call.rows::<1>(first + r, to, ahead),
                    };
                    ahead = keys.codes.as_ptr().cast();
                }
            }
        }
    }
}

/// A block of 16 keys against some queries.
struct ScoreBlock<'a> {
    queries: &'a IntQueries,
    block: usize,
    /// Four codes of 16 positions each.
    words: &'a [__m512i; 16],
    scales: __m512,
}

impl ScoreBlock<'_> {
    /// The scores of `R` queries, added to those of the blocks before; `R`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn rows<const R: usize>(&self, first: usize, to: *mut f32, ahead: *const u8) -> usize {
        let blocks = self.queries.blocks;
        let at = |r: usize| (first + r) * blocks + self.block;
        // SAFETY: the features are enabled, and the caller has checked rows and places of the scores.
        unsafe {
            let mut sums: [[__m512i; 2]; R] =
                std::array::from_fn(|r| self.queries.starts.get_unchecked(at(r)).map(|start| _mm512_set1_epi32(start)));
            for d in 0..16 {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(d * LINE).cast());
                for r in 0..R {
                    let bytes = self.queries.bytes.as_ptr().add(at(r) * 2 * BLOCK + 4 * d);
                    for part in 0..2 {
                        let word = _mm512_set1_epi32(bytes.add(part * BLOCK).cast::<i32>().read_unaligned());
                        sums[r][part] = _mm512_dpbusd_epi32(sums[r][part], self.words[d], word);
                    }
                }
            }
            for r in 0..R {
                let [high, low] = sums[r];
                let whole = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<7>(high), low));
                let scale = _mm512_mul_ps(self.scales, _mm512_set1_ps(*self.queries.steps.get_unchecked(first + r)));
                let to = to.add(r * TILE);
                let before = if self.block == 0 { _mm512_setzero_ps() } else { _mm512_loadu_ps(to) };
                _mm512_storeu_ps(to, _mm512_fmadd_ps(whole, scale, before));
            }
        }
        R
    }
}

/// `out[r] += Σ weights[r][i] values[i]` for rows of `TILE` weights, which are 0 from `values` on. As many bytes as the values have
/// are prefetched from `next` meanwhile.
///
/// # Panics
/// If a slice does not have its shape.
///
/// # Safety
/// The processor must be one of [`available`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn weigh(weights: &[f32], rows: usize, values: Q8Rows, out: &mut [f32], next: *const u8) {
    let (count, width) = (values.checked(), values.width);
    let blocks = width / BLOCK;
    assert!(weights.len() >= rows * TILE && out.len() >= rows * width);
    let groups = count.div_ceil(4);
    for block in 0..blocks {
        // SAFETY: the features are enabled; groups below `groups` are written before they are read, and rows lie in their slices.
        unsafe {
            let scales: [__m512; TILE / LANES] = std::array::from_fn(|i| values.scales(i * LANES, block, blocks));
            let mut tile = [const { MaybeUninit::<[__m512i; 4]>::uninit() }; TILE / 4];
            let mut ahead = next.wrapping_add(block * count * BLOCK);
            let whole = count / 4;
            let at = values.codes.as_ptr().add(block * BLOCK);
            let step = blocks * BLOCK;
            for (group, tile) in tile[..whole].iter_mut().enumerate() {
                for line in 0..2 {
                    _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add((2 * group + line) * LINE).cast());
                }
                let at = at.add(4 * group * step);
                tile.write(interleaved([0, 1, 2, 3].map(|i| _mm512_loadu_si512(at.add(i * step).cast()))));
            }
            for (group, tile) in tile[..groups].iter_mut().enumerate().skip(whole) {
                let row = |i: usize| _mm512_loadu_si512(values.at(4 * group + i, block, blocks).cast());
                tile.write(interleaved([0, 1, 2, 3].map(row)));
            }
            ahead = ahead.wrapping_add(2 * groups * LINE);
            let call = WeightBlock { tile: tile.as_ptr().cast(), groups, width };
            let mut r = 0;
            while r < rows {
                // Some rows are rounded at once: each for itself would wait for its sums.
                let some = ROWS.min(rows - r);
                let mut rounded = [RoundedWeights::ZERO; ROWS];
                for (i, rounded) in rounded[..some].iter_mut().enumerate() {
                    *rounded = RoundedWeights::new(&weights[(r + i) * TILE..][..TILE], &scales);
                }
                let mut i = 0;
                while i < some {
                    let out = out.as_mut_ptr().add((r + i) * width + block * BLOCK);
                    i += match some - i {
                        2.. => call.rows::<2>(&rounded[i..], out, ahead),
                        _ => call.rows::<1>(&rounded[i..], out, ahead),
                    };
                    ahead = values.codes.as_ptr().cast();
                }
                r += some;
            }
        }
    }
}

/// A block of a tile of values against the weights of some rows.
struct WeightBlock {
    /// `groups` groups of four positions.
    tile: *const [__m512i; 4],
    groups: usize,
    width: usize,
}

impl WeightBlock {
    /// The sums of `R` rows; `R`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn rows<const R: usize>(&self, rounded: &[RoundedWeights], out: *mut f32, ahead: *const u8) -> usize {
        let rounded = &rounded[..R];
        // SAFETY: the features are enabled, and the caller has checked the slices; `tile` holds `groups` groups.
        unsafe {
            let mut sums = [[[_mm512_setzero_si512(); 4]; 2]; R];
            for group in 0..self.groups {
                for line in 0..2 {
                    _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add((2 * group + line) * LINE).cast());
                }
                let values = &*self.tile.add(group);
                for r in 0..R {
                    for part in 0..2 {
                        let word = rounded[r].bytes[part].as_ptr().add(4 * group).cast::<i32>().read_unaligned();
                        let word = _mm512_set1_epi32(word);
                        for v in 0..4 {
                            sums[r][part][v] = _mm512_dpbusd_epi32(sums[r][part][v], word, values[v]);
                        }
                    }
                }
            }
            for r in 0..R {
                let [high, low] = sums[r];
                let step = _mm512_set1_ps(rounded[r].step);
                let whole = |v: usize| _mm512_add_epi32(_mm512_slli_epi32::<8>(high[v]), low[v]);
                let ordered = quarters(std::array::from_fn(whole));
                for (v, whole) in ordered.into_iter().enumerate() {
                    let to = out.add(r * self.width + v * 16);
                    _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), step, _mm512_loadu_ps(to)));
                }
            }
        }
        R
    }
}

/// The weights of a row times the scales of the values, as whole numbers.
#[derive(Clone, Copy)]
struct RoundedWeights {
    /// The higher bytes, then the lower, both unsigned.
    bytes: [[u8; TILE]; 2],
    /// NaN where a weight is not finite.
    step: f32,
}

impl RoundedWeights {
    const ZERO: Self = Self { bytes: [[0; TILE]; 2], step: 0.0 };

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    unsafe fn new(weights: &[f32], scales: &[__m512; TILE / LANES]) -> Self {
        let mut rounded = Self::ZERO;
        let weights = &weights[..TILE];
        // SAFETY: the features are enabled, and the weights are `TILE` floats, the bytes as many.
        unsafe {
            let mut products = [_mm512_setzero_ps(); TILE / LANES];
            for i in 0..TILE / LANES {
                products[i] = _mm512_mul_ps(_mm512_loadu_ps(weights.as_ptr().add(i * LANES)), scales[i]);
            }
            let [a, b, c, d] = products;
            let largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d)));
            // A maximum may pass over NaN, a sum does not.
            let sum = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
            let poisoned = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(sum, sum) != 0;
            rounded.step = if poisoned { f32::NAN } else { largest * (1.0 / WEIGHT_STEPS) };
            let inverse = if largest > 1e-30 { WEIGHT_STEPS / largest } else { 0.0 };
            for i in 0..TILE / LANES {
                let whole = _mm512_cvtps_epi32(_mm512_mul_ps(products[i], _mm512_set1_ps(inverse)));
                let to = i * LANES;
                let high = _mm512_cvtepi32_epi8(_mm512_srli_epi32::<8>(whole));
                _mm_storeu_si128(rounded.bytes[0].as_mut_ptr().add(to).cast(), high);
                _mm_storeu_si128(rounded.bytes[1].as_mut_ptr().add(to).cast(), _mm512_cvtepi32_epi8(whole));
            }
        }
        rounded
    }
}

/// The words of 16 rows: word `d` of each in vector `d`, every byte 128 larger, so that it has no sign.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn transposed(row: impl Fn(usize) -> __m512i) -> [__m512i; 16] {
    let sign = _mm512_set1_epi8(-128);
    let rows: [__m512i; 16] = std::array::from_fn(|i| _mm512_xor_si512(row(i), sign));
    // In each quarter: words of two rows, then of four.
    let pairs: [__m512i; 16] = std::array::from_fn(|i| {
        let (a, b) = (rows[i / 2 * 2], rows[i / 2 * 2 + 1]);
        if i % 2 == 0 { _mm512_unpacklo_epi32(a, b) } else { _mm512_unpackhi_epi32(a, b) }
    });
    // `fours[4 * g + w]`: word `w` of each quarter of rows `4 g..4 g + 4`.
    let fours: [__m512i; 16] = std::array::from_fn(|i| {
        let (g, w) = (i / 4, i % 4);
        let (a, b) = (pairs[4 * g + w / 2], pairs[4 * g + 2 + w / 2]);
        if w % 2 == 0 { _mm512_unpacklo_epi64(a, b) } else { _mm512_unpackhi_epi64(a, b) }
    });
    let mut words = [_mm512_setzero_si512(); 16];
    for w in 0..4 {
        let ordered = quarters([fours[w], fours[4 + w], fours[8 + w], fours[12 + w]]);
        for (quarter, word) in ordered.into_iter().enumerate() {
            words[4 * quarter + w] = word;
        }
    }
    words
}

/// Quarter `q` of each vector, one after the other, in vector `q`.
#[target_feature(enable = "avx512f")]
#[inline]
fn quarters([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let low = [_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d)];
    let high = [_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d)];
    [
        _mm512_shuffle_i32x4::<0x88>(low[0], low[1]),
        _mm512_shuffle_i32x4::<0xdd>(low[0], low[1]),
        _mm512_shuffle_i32x4::<0x88>(high[0], high[1]),
        _mm512_shuffle_i32x4::<0xdd>(high[0], high[1]),
    ]
}

/// The bytes of four positions side by side: vector `v` has numbers `4 v..4 v + 4` of each quarter.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn interleaved([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
    let (low_next, high_next) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
    [
        _mm512_unpacklo_epi16(low, low_next),
        _mm512_unpackhi_epi16(low, low_next),
        _mm512_unpacklo_epi16(high, high_next),
        _mm512_unpackhi_epi16(high, high_next),
    ]
}
