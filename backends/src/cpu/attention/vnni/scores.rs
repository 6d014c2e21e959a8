//! Scores: queries against the keys of a tile.

use super::{BLOCK, Fetch, LANES, ROWS};
use crate::cpu::attention::ahead::Next;
use crate::cpu::attention::q8::Q8Rows;
use crate::types::KV_TILE as TILE;
use std::arch::x86_64::*;

/// The largest whole number of a query, whose higher byte is still one, and what that byte counts.
const STEPS: f32 = 16319.0;
const HIGH: i32 = 128;
/// Keys that are in registers at the same time, a few words of each.
const KEYS: usize = 2 * LANES;

/// Queries as whole numbers.
pub(in crate::cpu::attention) struct IntQueries {
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
    pub(in crate::cpu::attention) fn new(q: &[f32], width: usize) -> IntQueries {
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

    pub(in crate::cpu::attention) fn rows(&self) -> usize {
        self.steps.len()
    }
}

/// `scores[r][i] = query[first + r] · keys[i]` for `rows` queries, rows of `TILE` scores. As many bytes as the keys have are prefetched
/// from `next` meanwhile.
///
/// # Panics
/// If a slice does not have its shape.
///
/// # Safety
/// The processor must be one of [`available`](super::available).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in crate::cpu::attention) unsafe fn scores(
    queries: &IntQueries,
    first: usize,
    rows: usize,
    keys: Q8Rows,
    scores: &mut [f32],
    next: Option<Next>,
) {
    let (blocks, width) = (queries.blocks, keys.width);
    let count = keys.checked();
    assert!(blocks * BLOCK == width);
    assert!(first + rows <= queries.rows() && scores.len() >= rows * TILE);
    let mut fetch = Fetch::new(next, keys.codes);
    for position in (0..count).step_by(KEYS) {
        for block in 0..blocks {
            // SAFETY: the features are enabled. `KEYS` rows of codes are there, or copied; rows lie in the queries, and the scores at
            // `position` in their row of `TILE`, a multiple of `KEYS`.
            unsafe {
                let scales = [keys.scales_at(position, block), keys.scales_at(position + LANES, block)];
                let call = ScoreBlock { queries, block, first, scales, to: scores.as_mut_ptr().add(position), fetch };
                if position + KEYS <= count {
                    let codes = keys.codes_at(position, block);
                    match width {
                        64 => call.all::<64>(codes, rows),
                        128 => call.all::<128>(codes, rows),
                        _ => call.of_words(&words(codes, width), rows),
                    }
                } else {
                    let tail = keys.tail::<KEYS>(position, block);
                    call.all::<BLOCK>(tail.as_ptr().cast(), rows);
                }
            }
            fetch = fetch.skip(KEYS * BLOCK);
        }
    }
}

/// Four codes of 16 positions in each vector: words `4 q..4 q + 4` of 32 positions in element `q`.
type Words = [[[__m512i; 4]; 2]; 4];

/// The words of a block of `KEYS` keys, a row every `stride` bytes.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn words(codes: *const i8, stride: usize) -> Words {
    let mut words = [[[_mm512_setzero_si512(); 4]; 2]; 4];
    for (quarter, words) in words.iter_mut().enumerate() {
        for (half, words) in words.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *words = unsafe { words_of(codes.add(half * LANES * stride), stride, quarter) };
        }
    }
    words
}

/// Words `4 quarter..4 quarter + 4` of 16 rows, every byte 128 larger, so that it has no sign.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn words_of(rows: *const i8, stride: usize, quarter: usize) -> [__m512i; 4] {
    let sign = _mm512_set1_epi8(-128);
    let mut fours = [_mm512_setzero_si512(); 4];
    for (j, four) in fours.iter_mut().enumerate() {
        // Rows `j`, `4 + j`, `8 + j` and `12 + j`: loads that leave the other quarters, since permutations are what there is too little of.
        // SAFETY: the caller's promise.
        unsafe {
            let at = rows.add(j * stride + 16 * quarter);
            let mut pieces = _mm512_broadcast_i32x4(_mm_loadu_si128(at.cast()));
            pieces = _mm512_mask_broadcast_i32x4(pieces, 0x00f0, _mm_loadu_si128(at.add(4 * stride).cast()));
            pieces = _mm512_mask_broadcast_i32x4(pieces, 0x0f00, _mm_loadu_si128(at.add(8 * stride).cast()));
            pieces = _mm512_mask_broadcast_i32x4(pieces, 0xf000, _mm_loadu_si128(at.add(12 * stride).cast()));
            *four = _mm512_xor_si512(pieces, sign);
        }
    }
    let [a, b, c, d] = fours;
    let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (low_next, high_next) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(low, low_next),
        _mm512_unpackhi_epi64(low, low_next),
        _mm512_unpacklo_epi64(high, high_next),
        _mm512_unpackhi_epi64(high, high_next),
    ]
}

/// A block of 32 keys against some queries.
struct ScoreBlock<'a> {
    queries: &'a IntQueries,
    block: usize,
    /// The first of the queries.
    first: usize,
    scales: [__m512; 2],
    /// Its scores.
    to: *mut f32,
    fetch: Fetch,
}

/// Where the words of a block come from.
trait KeyWords: Copy {
    unsafe fn quarter(self, quarter: usize) -> [[__m512i; 4]; 2];
}

/// From keys, a row every `STRIDE` bytes.
#[derive(Clone, Copy)]
struct Stored<const STRIDE: usize>(*const i8);

impl<const STRIDE: usize> KeyWords for Stored<STRIDE> {
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    unsafe fn quarter(self, quarter: usize) -> [[__m512i; 4]; 2] {
        // SAFETY: the caller's promise.
        unsafe { [words_of(self.0, STRIDE, quarter), words_of(self.0.add(LANES * STRIDE), STRIDE, quarter)] }
    }
}

impl KeyWords for &Words {
    #[inline(always)]
    unsafe fn quarter(self, quarter: usize) -> [[__m512i; 4]; 2] {
        self[quarter]
    }
}

impl ScoreBlock<'_> {
    /// Of keys with a row every `STRIDE` bytes; put in order once where there are more queries than registers have room for.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn all<const STRIDE: usize>(&self, codes: *const i8, rows: usize) {
        let keys = Stored::<STRIDE>(codes);
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                1 => self.rows::<1, _>(keys, 0, self.fetch),
                2 => self.rows::<2, _>(keys, 0, self.fetch),
                3 => self.rows::<3, _>(keys, 0, self.fetch),
                4 => self.rows::<4, _>(keys, 0, self.fetch),
                _ => self.of_words(&words(codes, STRIDE), rows),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn of_words(&self, words: &Words, rows: usize) {
        let mut fetch = self.fetch;
        for r in (0..rows).step_by(ROWS) {
            // SAFETY: the caller's promise.
            unsafe {
                match rows - r {
                    1 => self.rows::<1, _>(words, r, fetch),
                    2 => self.rows::<2, _>(words, r, fetch),
                    3 => self.rows::<3, _>(words, r, fetch),
                    _ => self.rows::<ROWS, _>(words, r, fetch),
                }
            }
            fetch = Fetch::new(None, self.queries.bytes.as_slice());
        }
    }

    /// The scores of `R` queries from `row` on, added to those of the blocks before.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn rows<const R: usize, K: KeyWords>(&self, keys: K, row: usize, fetch: Fetch) {
        let (queries, blocks) = (self.queries, self.queries.blocks);
        let first = self.first + row;
        // SAFETY: the features are enabled, and the caller has checked rows and places of the scores.
        unsafe {
            let mut sums = [[[_mm512_setzero_si512(); 2]; 2]; R];
            for r in 0..R {
                let starts = queries.starts.get_unchecked((first + r) * blocks + self.block);
                for part in 0..2 {
                    sums[r][part] = [_mm512_set1_epi32(starts[part]); 2];
                }
            }
            let bytes = queries.bytes.as_ptr().add((first * blocks + self.block) * 2 * BLOCK);
            for quarter in 0..4 {
                let words = keys.quarter(quarter);
                for d in 0..4 {
                    fetch.step(4 * quarter + d);
                    for r in 0..R {
                        for part in 0..2 {
                            let at = bytes.add((r * blocks * 2 + part) * BLOCK + 16 * quarter + 4 * d);
                            let word = _mm512_set1_epi32(at.cast::<i32>().read_unaligned());
                            for half in 0..2 {
                                sums[r][part][half] = _mm512_dpbusd_epi32(sums[r][part][half], words[half][d], word);
                            }
                        }
                    }
                }
            }
            for r in 0..R {
                let step = _mm512_set1_ps(*queries.steps.get_unchecked(first + r));
                for half in 0..2 {
                    let [high, low] = sums[r].map(|sums| sums[half]);
                    let whole = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<7>(high), low));
                    let to = self.to.add((row + r) * TILE + half * LANES);
                    let before = if self.block == 0 { _mm512_setzero_ps() } else { _mm512_loadu_ps(to) };
                    let scale = _mm512_mul_ps(self.scales[half], step);
                    _mm512_storeu_ps(to, _mm512_fmadd_ps(whole, scale, before));
                }
            }
        }
    }
}
