//! Sums of the values of a tile, each times its weight.

use super::{BLOCK, LANES, WORDS, prefetch, step};
use crate::cpu::attention::ahead::Next;
use crate::cpu::attention::q8::Q8Rows;
use crate::cpu::simd::dot::Dot;
use crate::types::KV_TILE as TILE;
use std::arch::x86_64::*;

/// `out[r] += Σ weights[r][i] values[i]` for rows of `TILE` weights, which are 0 from `values` on. `next` is prefetched meanwhile.
///
/// # Panics
/// If a slice does not have its shape.
///
/// # Safety
/// The processor has AVX2 and FMA, and the instruction of `D`.
#[target_feature(enable = "avx2,fma")]
pub(in crate::cpu::attention) unsafe fn weigh<D: Dot>(
    weights: &[f32],
    rows: usize,
    values: Q8Rows,
    out: &mut [f32],
    next: Option<Next>,
) {
    let (count, width) = (values.checked(), values.width);
    assert!(weights.len() >= rows * TILE && out.len() >= rows * width);
    let blocks = width / BLOCK;
    let part = next.map_or(0, |next| next.bytes / blocks);
    for block in 0..blocks {
        let mut scales = [0.0; TILE];
        for (to, scales) in scales.iter_mut().zip(values.scales.chunks_exact(blocks)) {
            *to = scales[block];
        }
        let mut next = next.map(|next| Next { at: next.at.wrapping_add(block * count * part), bytes: part, ..next });
        let mut r = 0;
        while r < rows {
            let call = WeightBlock { values, count, block, scales: &scales, next: next.take() };
            // SAFETY: the features are enabled; weights and results have these rows.
            unsafe {
                let (weights, out) = (weights.as_ptr().add(r * TILE), out.as_mut_ptr().add(r * width + block * BLOCK));
                r += match rows - r {
                    4.. => call.rows::<D, 4, 1>(weights, out),
                    2.. => call.rows::<D, 2, 2>(weights, out),
                    _ => call.rows::<D, 1, 4>(weights, out),
                };
            }
        }
    }
}

/// A block of a tile of values.
struct WeightBlock<'a> {
    values: Q8Rows<'a>,
    count: usize,
    block: usize,
    /// 0 where there is no value.
    scales: &'a [f32; TILE],
    next: Option<Next>,
}

impl WeightBlock<'_> {
    /// The sums of `R` rows, `16 P` columns at a time; `R`.
    ///
    /// # Safety
    /// The features are enabled; there are `R` rows of weights, and of `width` results.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn rows<D: Dot, const R: usize, const P: usize>(&self, weights: *const f32, out: *mut f32) -> usize {
        const { assert!(BLOCK.is_multiple_of(P * WORDS)) };
        let (width, passes) = (self.values.width, BLOCK / (P * WORDS));
        // SAFETY: the caller's promise; values below `count` have the columns of the block.
        unsafe {
            let mut words = [[0; TILE]; R];
            let mut steps = [0.0; R];
            for r in 0..R {
                (words[r], steps[r]) = rounded(weights.add(r * TILE), self.scales);
            }
            let values = self.values.codes.as_ptr().add(self.block * BLOCK);
            for pass in 0..passes {
                let column = pass * P * WORDS;
                let mut sums = [[[_mm256_setzero_si256(); 2]; P]; R];
                for pair in 0..self.count.div_ceil(2) {
                    if pair % passes == 0 {
                        let first = pass * self.count.div_ceil(passes);
                        prefetch(self.next, first + 2 * pair / passes, 2);
                    }
                    // A value beyond the last is the last again, of weight 0.
                    let (low, high) = (2 * pair, (2 * pair + 1).min(self.count - 1));
                    let mut value = [[_mm256_setzero_si256(); 2]; P];
                    for (p, value) in value.iter_mut().enumerate() {
                        let at = values.add(column + p * WORDS);
                        let low = _mm_loadu_si128(at.add(low * width).cast());
                        let high = _mm_loadu_si128(at.add(high * width).cast());
                        *value = [
                            _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(low, high)),
                            _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(low, high)),
                        ];
                    }
                    for r in 0..R {
                        let weight = words[r].as_ptr().add(2 * pair).cast::<i32>().read_unaligned();
                        let weight = _mm256_set1_epi32(weight);
                        for p in 0..P {
                            for half in 0..2 {
                                sums[r][p][half] = D::add_words(sums[r][p][half], value[p][half], weight);
                            }
                        }
                    }
                }
                for r in 0..R {
                    let step = _mm256_set1_ps(steps[r]);
                    for p in 0..P {
                        for half in 0..2 {
                            let to = out.add(r * width + column + p * WORDS + half * LANES);
                            let sum = _mm256_cvtepi32_ps(sums[r][p][half]);
                            _mm256_storeu_ps(to, _mm256_fmadd_ps(sum, step, _mm256_loadu_ps(to)));
                        }
                    }
                }
            }
        }
        R
    }
}

/// The weights of a row times the scales of the values, as whole numbers and their step, NaN where a weight is not finite.
///
/// # Safety
/// The features are enabled, and there are `TILE` weights.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn rounded(weights: *const f32, scales: &[f32; TILE]) -> ([i16; TILE], f32) {
    let mut products = [_mm256_setzero_ps(); TILE / LANES];
    let (mut largest, mut sum) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for (i, product) in products.iter_mut().enumerate() {
        // SAFETY: the caller's promise, and there are `TILE` scales.
        unsafe {
            let weights = _mm256_loadu_ps(weights.add(i * LANES));
            *product = _mm256_mul_ps(weights, _mm256_loadu_ps(scales.as_ptr().add(i * LANES)));
        }
        largest = _mm256_max_ps(largest, *product);
        // A maximum may pass over NaN, a sum does not.
        sum = _mm256_add_ps(sum, *product);
    }
    let poisoned = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(sum, sum)) != 0;
    let largest = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps::<1>(largest));
    let largest = _mm_max_ps(largest, _mm_movehl_ps(largest, largest));
    let largest = _mm_cvtss_f32(_mm_max_ss(largest, _mm_movehdup_ps(largest)));
    let (step, inverse) = step(largest);
    let inverse = _mm256_set1_ps(inverse);
    let mut words = [0; TILE];
    for i in 0..TILE / WORDS {
        let [low, high] = [2 * i, 2 * i + 1].map(|i| _mm256_cvtps_epi32(_mm256_mul_ps(products[i], inverse)));
        // The halves of both take turns.
        let in_order = _mm256_permute4x64_epi64::<0xd8>(_mm256_packs_epi32(low, high));
        // SAFETY: there are `TILE` places.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().add(i * WORDS).cast(), in_order) };
    }
    (words, if poisoned { f32::NAN } else { step })
}
