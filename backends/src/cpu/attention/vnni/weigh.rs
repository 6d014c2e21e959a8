//! Sums of the values of a tile, each times its weight.

use super::{BLOCK, Fetch, LANES, ROWS};
use crate::cpu::attention::ahead::{LINE, Next};
use crate::cpu::attention::q8::Q8Rows;
use crate::types::KV_TILE as TILE;
use std::arch::x86_64::*;

/// Steps of a weight, of which the higher byte counts 256.
const WEIGHT_STEPS: f32 = 65535.0;
/// Positions whose products an instruction adds.
const FOUR: usize = 4;

/// `out[r] += Σ weights[r][i] values[i]` for rows of `TILE` weights, which are 0 from `values` on. As many bytes as the values have
/// are prefetched from `next` meanwhile.
///
/// # Panics
/// If a slice does not have its shape.
///
/// # Safety
/// The processor must be one of [`available`](super::available).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in crate::cpu::attention) unsafe fn weigh(
    weights: &[f32],
    rows: usize,
    values: Q8Rows,
    out: &mut [f32],
    next: Option<Next>,
) {
    let (count, width) = (values.checked(), values.width);
    assert!(weights.len() >= rows * TILE && out.len() >= rows * width);
    let mut fetch = Fetch::new(next, values.codes);
    for block in 0..width / BLOCK {
        let mut scales = [_mm512_setzero_ps(); TILE / LANES];
        for (i, scales) in scales.iter_mut().enumerate() {
            // SAFETY: the features are enabled.
            *scales = unsafe { values.scales_at(i * LANES, block) };
        }
        let tail = values.tail::<FOUR>(count / FOUR * FOUR, block);
        let mut ahead = fetch;
        for r in (0..rows).step_by(ROWS) {
            // SAFETY: the features are enabled, and rows lie in their slices.
            unsafe {
                let call = WeightBlock {
                    values: values.codes_at(0, block),
                    tail: (!count.is_multiple_of(FOUR)).then_some(&tail),
                    count,
                    width,
                    scales: &scales,
                    weights: weights.as_ptr().add(r * TILE),
                    out: out.as_mut_ptr().add(r * width + block * BLOCK),
                    fetch: ahead,
                };
                match (width, rows - r) {
                    (64, 1) => call.rows::<1, 64>(),
                    (64, 2) => call.rows::<2, 64>(),
                    (64, 3) => call.rows::<3, 64>(),
                    (64, _) => call.rows::<ROWS, 64>(),
                    (128, 1) => call.rows::<1, 128>(),
                    (128, 2) => call.rows::<2, 128>(),
                    (128, 3) => call.rows::<3, 128>(),
                    (128, _) => call.rows::<ROWS, 128>(),
                    (_, 1) => call.rows::<1, 0>(),
                    (_, 2) => call.rows::<2, 0>(),
                    (_, 3) => call.rows::<3, 0>(),
                    (..) => call.rows::<ROWS, 0>(),
                }
            }
            ahead = Fetch::new(None, values.codes);
        }
        fetch = fetch.skip(count * BLOCK);
    }
}

/// A block of a tile of values against the weights of some rows.
struct WeightBlock<'a> {
    values: *const i8,
    /// The positions after the last whole four.
    tail: Option<&'a [[i8; BLOCK]; FOUR]>,
    count: usize,
    width: usize,
    scales: &'a [__m512; TILE / LANES],
    weights: *const f32,
    out: *mut f32,
    fetch: Fetch,
}

/// Sums of the higher and of the lower bytes of the weights of `R` rows, for half a block.
type Sums<const R: usize> = [[[__m512i; 2]; 2]; R];

impl WeightBlock<'_> {
    /// The sums of `R` rows; values are `STRIDE` bytes apart, or `width` where that is 0.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn rows<const R: usize, const STRIDE: usize>(&self) {
        // SAFETY: the features are enabled, and the caller has checked the slices.
        unsafe {
            let rounded = RoundedWeights::new::<R>(self.weights, self.scales);
            let low = self.half::<R, STRIDE, false>(&rounded, self.fetch);
            let high = self.half::<R, STRIDE, true>(&rounded, self.fetch.skip(self.count / FOUR * 2 * LINE));
            for r in 0..R {
                let step = _mm512_set1_ps(rounded.steps[r]);
                let ordered = quarters([low[r][0], low[r][1], high[r][0], high[r][1]]);
                for (v, whole) in ordered.into_iter().enumerate() {
                    let to = self.out.add(r * self.width + v * LANES);
                    _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), step, _mm512_loadu_ps(to)));
                }
            }
        }
    }

    /// Whole sums of the lower or the higher eight numbers of every quarter of a block, four of each quarter in a vector.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn half<const R: usize, const STRIDE: usize, const HIGH: bool>(
        &self,
        rounded: &RoundedWeights,
        fetch: Fetch,
    ) -> [[__m512i; 2]; R] {
        let stride = if STRIDE == 0 { self.width } else { STRIDE };
        let mut sums: Sums<R> = [[[_mm512_setzero_si512(); 2]; 2]; R];
        let groups = self.count / FOUR;
        // SAFETY: as for `rows`.
        unsafe {
            for group in 0..groups {
                fetch.step(group);
                let values = interleaved::<HIGH>(self.values.add(FOUR * group * stride), stride);
                rounded.add(group, values, &mut sums);
            }
            if let Some(tail) = self.tail {
                rounded.add(groups, interleaved::<HIGH>(tail.as_ptr().cast(), BLOCK), &mut sums);
            }
        }
        let mut whole = [[_mm512_setzero_si512(); 2]; R];
        for r in 0..R {
            let [high, low] = sums[r];
            for v in 0..2 {
                whole[r][v] = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[v]), low[v]);
            }
        }
        whole
    }
}

/// The weights of some rows times the scales of the values, as whole numbers.
struct RoundedWeights {
    /// The higher bytes of each row, then the lower, both unsigned.
    bytes: [[[u8; TILE]; 2]; ROWS],
    /// NaN where a weight is not finite.
    steps: [f32; ROWS],
}

impl RoundedWeights {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    unsafe fn new<const R: usize>(weights: *const f32, scales: &[__m512; TILE / LANES]) -> Self {
        const { assert!(R <= ROWS && TILE == 4 * LANES) };
        let mut rounded = Self { bytes: [[[0; TILE]; 2]; ROWS], steps: [0.0; ROWS] };
        let (mut largest, mut poisoned) = ([_mm512_setzero_ps(); ROWS], [false; ROWS]);
        for r in 0..R {
            // SAFETY: as for `products`.
            let [a, b, c, d] = unsafe { products(weights.add(r * TILE), scales) };
            largest[r] = _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d));
            // A maximum may pass over NaN, a sum does not.
            let sum = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
            poisoned[r] = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(sum, sum) != 0;
        }
        let largest = largest_of(largest);
        let small = _mm_cmp_ps_mask::<_CMP_LE_OQ>(largest, _mm_set1_ps(1e-30));
        let inverse = _mm_mask_div_ps(_mm_setzero_ps(), !small & 0xf, _mm_set1_ps(WEIGHT_STEPS), largest);
        let mut inverses = [0.0; ROWS];
        // SAFETY: the features are enabled; there are four places, and 64 bytes of each row.
        unsafe {
            _mm_storeu_ps(inverses.as_mut_ptr(), inverse);
            let steps = _mm_mul_ps(largest, _mm_set1_ps(1.0 / WEIGHT_STEPS));
            _mm_storeu_ps(rounded.steps.as_mut_ptr(), steps);
            for r in 0..R {
                if poisoned[r] {
                    rounded.steps[r] = f32::NAN;
                }
                let inverse = _mm512_set1_ps(inverses[r]);
                let whole = products(weights.add(r * TILE), scales);
                let [high, low] = split(whole.map(|product| _mm512_cvtps_epi32(_mm512_mul_ps(product, inverse))));
                _mm512_storeu_si512(rounded.bytes[r][0].as_mut_ptr().cast(), high);
                _mm512_storeu_si512(rounded.bytes[r][1].as_mut_ptr().cast(), low);
            }
        }
        rounded
    }

    /// Adds the products of a group of four positions.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn add<const R: usize>(&self, group: usize, values: [__m512i; 2], sums: &mut Sums<R>) {
        for r in 0..R {
            for part in 0..2 {
                // SAFETY: the features are enabled; a row has `TILE / 4` groups.
                let word = unsafe { self.bytes[r][part].as_ptr().add(FOUR * group).cast::<i32>().read_unaligned() };
                let word = _mm512_set1_epi32(word);
                for v in 0..2 {
                    sums[r][part][v] = _mm512_dpbusd_epi32(sums[r][part][v], word, values[v]);
                }
            }
        }
    }
}

/// The weights of a row times the scales.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn products(weights: *const f32, scales: &[__m512; TILE / LANES]) -> [__m512; TILE / LANES] {
    let mut products = *scales;
    for (i, product) in products.iter_mut().enumerate() {
        // SAFETY: the features are enabled, and a row has `TILE` weights.
        *product = _mm512_mul_ps(unsafe { _mm512_loadu_ps(weights.add(i * LANES)) }, *product);
    }
    products
}

/// The largest number of each vector.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn largest_of([a, b, c, d]: [__m512; 4]) -> __m128 {
    let two = _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let others = _mm512_max_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let (two, others) = (_mm512_castps_pd(two), _mm512_castps_pd(others));
    // Number `i` of each quarter is of vector `i`.
    let four = (_mm512_unpacklo_pd(two, others), _mm512_unpackhi_pd(two, others));
    let four = _mm512_max_ps(_mm512_castpd_ps(four.0), _mm512_castpd_ps(four.1));
    let four = _mm512_max_ps(four, _mm512_shuffle_f32x4::<0x4e>(four, four));
    _mm512_castps512_ps128(_mm512_max_ps(four, _mm512_shuffle_f32x4::<0xb1>(four, four)))
}

/// The higher and the lower bytes of whole numbers below 65536.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn split([a, b, c, d]: [__m512i; 4]) -> [__m512i; 2] {
    let (first, second) = (_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d));
    let high = _mm512_packus_epi16(_mm512_srli_epi16::<8>(first), _mm512_srli_epi16::<8>(second));
    let byte = _mm512_set1_epi16(255);
    let low = _mm512_packus_epi16(_mm512_and_si512(first, byte), _mm512_and_si512(second, byte));
    // Each quarter has four numbers of `a`, of `b`, of `c` and of `d`.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    [_mm512_permutexvar_epi32(order, high), _mm512_permutexvar_epi32(order, low)]
}

/// The bytes of four positions side by side, of the lower or the higher eight numbers of each quarter of a block: four of each in a vector.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn interleaved<const HIGH: bool>(values: *const i8, stride: usize) -> [__m512i; 2] {
    // SAFETY: the caller's promise: four rows of a block.
    let [a, b, c, d] = unsafe {
        [
            _mm512_loadu_si512(values.cast()),
            _mm512_loadu_si512(values.add(stride).cast()),
            _mm512_loadu_si512(values.add(2 * stride).cast()),
            _mm512_loadu_si512(values.add(3 * stride).cast()),
        ]
    };
    let (two, others) = if HIGH {
        (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d))
    } else {
        (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d))
    };
    [_mm512_unpacklo_epi16(two, others), _mm512_unpackhi_epi16(two, others)]
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
