//! Scores: queries against the keys of a tile.

use super::{BLOCK, LANES, WORDS, prefetch, step};
use crate::cpu::attention::ahead::Next;
use crate::cpu::attention::q8::Q8Rows;
use crate::cpu::simd::dot::Dot;
use crate::types::KV_TILE as TILE;
use std::arch::x86_64::*;

/// Queries as whole numbers.
pub(in crate::cpu::attention) struct WordQueries {
    /// `[rows, width]`.
    words: Vec<i16>,
    /// One per row; NaN where a number is not finite.
    steps: Vec<f32>,
    width: usize,
}

impl WordQueries {
    /// Of `q [rows, width]`.
    pub(in crate::cpu::attention) fn new(q: &[f32], width: usize) -> WordQueries {
        let mut queries = WordQueries { words: Vec::with_capacity(q.len()), steps: Vec::new(), width };
        for q in q.chunks_exact(width) {
            let finite = q.iter().all(|x| x.is_finite());
            let largest = q.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            let (step, inverse) = step(if finite { largest } else { 0.0 });
            queries.steps.push(if finite { step } else { f32::NAN });
            // To the nearest: adding 1.5 * 2^23 leaves no fraction bits.
            queries.words.extend(q.iter().map(|x| ((x * inverse + 12_582_912.0) - 12_582_912.0) as i16));
        }
        queries
    }
}

/// `scores[r][i] = query[first + r] · keys[i]` for `rows` queries, rows of `TILE` scores. `next` is prefetched meanwhile.
///
/// # Panics
/// If a slice does not have its shape.
///
/// # Safety
/// The processor has AVX2 and FMA, and the instruction of `D`.
#[target_feature(enable = "avx2,fma")]
pub(in crate::cpu::attention) unsafe fn scores<D: Dot>(
    queries: &WordQueries,
    first: usize,
    rows: usize,
    keys: Q8Rows,
    scores: &mut [f32],
    next: Option<Next>,
) {
    let (width, count) = (queries.width, keys.checked());
    assert!(width == keys.width && first + rows <= queries.steps.len() && scores.len() >= rows * TILE);
    let mut next = next;
    let mut r = 0;
    while r < rows {
        let to = &mut scores[r * TILE..];
        let call = Call { queries, first: first + r, keys, count, next: next.take() };
        // SAFETY: the features are enabled, and rows lie in the queries and the scores.
        r += unsafe {
            match rows - r {
                4.. => call.rows::<D, 4, 2>(to),
                2.. => call.rows::<D, 2, 4>(to),
                _ => call.rows::<D, 1, 8>(to),
            }
        };
    }
}

/// Some queries, from `first` on, and a tile of keys.
struct Call<'a> {
    queries: &'a WordQueries,
    first: usize,
    keys: Q8Rows<'a>,
    count: usize,
    next: Option<Next>,
}

impl Call<'_> {
    /// The scores of `R` queries, `K` keys at a time; `R`. Keys beyond the last are the last again.
    ///
    /// # Safety
    /// The features are enabled; the queries are there, and `R` rows of `TILE` scores, a multiple of `K`.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn rows<D: Dot, const R: usize, const K: usize>(&self, scores: &mut [f32]) -> usize {
        const { assert!(R * K == LANES && TILE.is_multiple_of(K)) };
        let (width, blocks) = (self.keys.width, self.keys.width / BLOCK);
        for position in (0..self.count).step_by(K) {
            prefetch(self.next, position, K);
            let mut sums = [[_mm256_setzero_ps(); K]; R];
            for block in 0..blocks {
                // SAFETY: the caller's promise; keys below `count` have `width` codes and `blocks` scales.
                unsafe {
                    let place = |j: usize| (position + j).min(self.count - 1);
                    let queries = self.queries.words.as_ptr().add(self.first * width + block * BLOCK);
                    let mut whole = [[_mm256_setzero_si256(); K]; R];
                    for d in (0..BLOCK).step_by(WORDS) {
                        let mut key = [_mm256_setzero_si256(); K];
                        for (j, key) in key.iter_mut().enumerate() {
                            let at = self.keys.codes.as_ptr().add(place(j) * width + block * BLOCK + d);
                            *key = _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast()));
                        }
                        for r in 0..R {
                            let query = _mm256_loadu_si256(queries.add(r * width + d).cast());
                            for j in 0..K {
                                whole[r][j] = D::add_words(whole[r][j], key[j], query);
                            }
                        }
                    }
                    for j in 0..K {
                        let scale = _mm256_set1_ps(*self.keys.scales.as_ptr().add(place(j) * blocks + block));
                        for r in 0..R {
                            sums[r][j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[r][j]), scale, sums[r][j]);
                        }
                    }
                }
            }
            let mut in_order = [_mm256_setzero_ps(); LANES];
            for (n, sum) in in_order.iter_mut().enumerate() {
                *sum = sums[n / K][n % K];
            }
            let mut sums = [0.0; LANES];
            // SAFETY: there are eight places.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), sums_of(in_order)) };
            for r in 0..R {
                let step = self.queries.steps[self.first + r];
                for j in 0..K {
                    scores[r * TILE + position + j] = sums[r * K + j] * step;
                }
            }
        }
        R
    }
}

/// The sum of vector `i` in lane `i`.
#[target_feature(enable = "avx2")]
#[inline]
fn sums_of([a, b, c, d, e, f, g, h]: [__m256; LANES]) -> __m256 {
    let low = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let high = _mm256_hadd_ps(_mm256_hadd_ps(e, f), _mm256_hadd_ps(g, h));
    // Each half has the sums of its half of the vectors.
    _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
}
