//! How x becomes integers.
//!
//! The elements of a block share a step: `x[i] ≈ step * (128 * high[i] + low[i])`. The step is 1/127 of the
//! largest element that is no outlier, so that `high` is 0 but for outliers: elements far above the average of their row. Without it
//! one channel 100 times the others would leave its neighbours a few steps. What a row becomes depends on nothing but that row, and is
//! the same for every kernel.

use crate::cpu::matmul::weight::INT8_BLOCK;

/// Elements of a matrix that share a scale, or a divisor of them.
pub(crate) const BLOCK: usize = INT8_BLOCK;

/// What a unit of `high` counts.
const HIGH: f32 = 128.0;
/// The sign of a float.
const SIGN: u32 = 1 << 31;

/// Where x comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// A norm or a mixer: about normal, but for outlier channels.
    Usual,
    /// A gate times another activation: long tails, other elements for each token.
    Gated,
    /// The last norm, on its way to logits.
    Head,
}

/// How much of x is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Detail {
    /// Multiples of the average size of a row above which an element is an outlier; with 0 every element keeps 15 bits, for twice the
    /// products.
    outlier: f32,
}

impl Detail {
    /// What a product of such an x needs.
    ///
    /// The results of a head are compared with each other, and where speed matters it is computed for one token, when reading it
    /// takes longer than twice the products. Tiles multiply outliers for 32 tokens at once, so that those at
    /// other places in each token cost most: behind a gate fewer count as outliers. Normal numbers hardly do: 5 times their average size
    /// is 4 standard deviations.
    pub(crate) fn of(input: Input) -> Detail {
        match input {
            Input::Head => Detail { outlier: 0.0 },
            Input::Usual => Detail { outlier: 5.0 },
            Input::Gated => Detail { outlier: 8.0 },
        }
    }

    /// The size above which elements of this row are outliers.
    #[inline(always)]
    pub(super) fn threshold(self, x: &[f32]) -> f32 {
        if self.outlier == 0.0 {
            return 0.0;
        }
        // In this order on every processor.
        let mut sums = [0.0f32; 16];
        for x in x.chunks_exact(16) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum += x.abs();
            }
        }
        self.outlier * sums.iter().sum::<f32>() / x.len() as f32
    }
}

/// [`BLOCK`] elements of x as integers.
pub(super) struct Block {
    pub(super) low: [i8; BLOCK],
    /// Zeros unless `outliers`.
    pub(super) high: [i8; BLOCK],
    /// NaN where an element is not finite.
    pub(super) step: f32,
    pub(super) outliers: bool,
}

impl Block {
    /// Rounds to the nearest, halves to even.
    ///
    /// # Panics
    /// If `x` is shorter than a block.
    #[inline(always)]
    pub(super) fn new(x: &[f32], threshold: f32) -> Block {
        let x = &x[..BLOCK];
        // Sizes in the order of their bits, which are compared as whole numbers: vectors do that in one instruction, NaN or not.
        let size = |x: f32| x.to_bits() & !SIGN;
        let limit = threshold.to_bits();
        let (mut largest, mut usual) = ([0u32; 8], [0u32; 8]);
        for x in x.chunks_exact(8) {
            for i in 0..8 {
                let size = size(x[i]);
                largest[i] = largest[i].max(size);
                usual[i] = usual[i].max(if size <= limit { size } else { 0 });
            }
        }
        let highest = |sizes: [u32; 8]| f32::from_bits(sizes.into_iter().fold(0, u32::max));
        let (largest, usual) = (highest(largest), highest(usual));
        let mut block = Block::empty();
        let (step, inverse, outliers) = step(largest, usual, threshold);
        block.step = if largest.is_finite() { step } else { f32::NAN };
        block.outliers = outliers;
        // Adding it leaves whole numbers in the lower bits, rounded as floats are. Numbers that are not finite become any.
        const WHOLE: f32 = (3 << 22) as f32;
        let whole = |x: f32| (x * inverse + WHOLE).to_bits().wrapping_sub(WHOLE.to_bits()) as i32;
        if !outliers {
            for (low, x) in block.low.iter_mut().zip(x) {
                *low = whole(*x) as i8;
            }
            return block;
        }
        for (i, x) in x.iter().enumerate() {
            let whole = whole(*x);
            // Halves upwards.
            let high = if whole.abs() > 127 { (whole + 64) >> 7 } else { 0 };
            block.low[i] = (whole - (high << 7)) as i8;
            block.high[i] = high as i8;
        }
        block
    }

    fn empty() -> Block {
        Block { low: [0; BLOCK], high: [0; BLOCK], step: 0.0, outliers: false }
    }

    /// The same with AVX-512.
    ///
    /// # Panics
    /// If `x` is shorter than a block.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    pub(super) fn avx512(x: &[f32], threshold: f32) -> Block {
        use std::arch::x86_64::*;
        let x = &x[..BLOCK];
        /// Quiet NaN, both infinities, signalling NaN.
        const NOT_FINITE: i32 = 0x01 | 0x08 | 0x10 | 0x80;
        let mut block = Block::empty();
        let mut parts = [_mm512_setzero_ps(); 4];
        for (part, x) in parts.iter_mut().zip(x.chunks_exact(16)) {
            // SAFETY: 16 floats.
            *part = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        }
        let highest =
            |[a, b, c, d]: [__m512; 4]| _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d)));
        let sizes = parts.map(|x| _mm512_abs_ps(x));
        let largest = highest(sizes);
        let mut usual = largest;
        if largest > threshold {
            let limit = _mm512_set1_ps(threshold);
            usual = highest(sizes.map(|x| _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(x, limit), x)));
        }
        let finite = parts.map(|x| _mm512_fpclass_ps_mask::<NOT_FINITE>(x)) == [0; 4];
        let (step, inverse, outliers) = step(largest, usual, threshold);
        block.step = if finite { step } else { f32::NAN };
        block.outliers = outliers;
        let inverse = _mm512_set1_ps(inverse);
        for (i, x) in parts.into_iter().enumerate() {
            let mut whole = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
            if outliers {
                let large = _mm512_cmpgt_epi32_mask(_mm512_abs_epi32(whole), _mm512_set1_epi32(127));
                let high = _mm512_srai_epi32::<7>(_mm512_add_epi32(whole, _mm512_set1_epi32(64)));
                let high = _mm512_maskz_mov_epi32(large, high);
                whole = _mm512_sub_epi32(whole, _mm512_slli_epi32::<7>(high));
                // SAFETY: 16 of the bytes of a block, from a multiple of 16 on.
                unsafe { _mm_storeu_si128(block.high.as_mut_ptr().add(16 * i).cast(), _mm512_cvtepi32_epi8(high)) };
            }
            // SAFETY: as above.
            unsafe { _mm_storeu_si128(block.low.as_mut_ptr().add(16 * i).cast(), _mm512_cvtepi32_epi8(whole)) };
        }
        block
    }

    /// The sums of every 8 elements.
    #[inline(always)]
    pub(super) fn eights(&self) -> [i32; BLOCK / 8] {
        let mut sums = eights(&self.low);
        if self.outliers {
            sums.iter_mut().zip(eights(&self.high)).for_each(|(sum, high)| *sum += high << 7);
        }
        sums
    }
}

/// The sums of every 8 bytes, which are added as parts of one number.
#[inline(always)]
fn eights(bytes: &[i8; BLOCK]) -> [i32; BLOCK / 8] {
    const SIGNS: u64 = 0x8080_8080_8080_8080;
    let (bytes, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|i| {
        // Each byte is 128 larger, so that there are no signs.
        let fours = u64::from_le_bytes(bytes[i].map(|byte| byte as u8)) ^ SIGNS;
        let twos = (fours & 0x00ff_00ff_00ff_00ff) + ((fours >> 8) & 0x00ff_00ff_00ff_00ff);
        let ones = (twos & 0x0000_ffff_0000_ffff) + ((twos >> 16) & 0x0000_ffff_0000_ffff);
        (ones as u32 + (ones >> 32) as u32) as i32 - 8 * 128
    })
}

/// Step, its reciprocal and whether there are outliers, from the largest element, and the largest that is no outlier.
#[inline(always)]
fn step(largest: f32, usual: f32, threshold: f32) -> (f32, f32, bool) {
    let outliers = largest > threshold;
    // `high` is 127 at the most.
    let top = if outliers { usual.max(largest / HIGH) } else { largest };
    // Below this the reciprocal is not finite; such a block is 0.
    if top > 1e-30 { (top / 127.0, 127.0 / top, outliers) } else { (0.0, 0.0, false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Normal numbers with an outlier here and there.
    fn row(seed: u64, k: usize) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..k)
            .map(|i| {
                let x = (0..12).map(|_| uniform()).sum::<f32>();
                if i % 41 == 7 { x * 10f32.powi(i as i32 % 5) } else { x }
            })
            .collect()
    }

    #[test]
    fn every_element_is_within_half_a_step_and_steps_follow_the_usual_elements() {
        for (seed, k) in [(1, 64), (2, 192), (3, 1024)] {
            let x = row(seed, k);
            for outlier in [5.0, 8.0, 0.0] {
                let threshold = Detail { outlier }.threshold(&x);
                for x in x.chunks_exact(BLOCK) {
                    let block = Block::new(x, threshold);
                    for (i, x) in x.iter().enumerate() {
                        let step = block.step;
                        let got = step * (128.0 * f32::from(block.high[i]) + f32::from(block.low[i]));
                        assert!((got - x).abs() <= 0.50001 * step, "{x} became {got} in steps of {step}");
                    }
                    let largest = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                    assert!(block.step <= (threshold / 127.0).max(largest / (127.0 * 128.0)) * 1.0001);
                }
            }
        }
    }

    #[test]
    fn blocks_are_what_their_definition_says() {
        for seed in 0..50 {
            let mut x = row(seed, 256);
            match seed % 4 {
                1 => x[..64].fill(0.0),
                2 => x[64..].fill(1e-38),
                3 => x.iter_mut().for_each(|x| *x = (*x * 4.0).round() / 4.0),
                _ => {}
            }
            for threshold in [Detail { outlier: 5.0 }.threshold(&x), 0.0] {
                for x in x.chunks_exact(BLOCK) {
                    let block = Block::new(x, threshold);
                    let largest_of = |keep: &dyn Fn(f32) -> bool| {
                        x.iter().map(|x| x.abs()).filter(|&size| keep(size)).fold(0.0, f32::max)
                    };
                    let (largest, usual) = (largest_of(&|_| true), largest_of(&|size| size <= threshold));
                    let (step, inverse, outliers) = step(largest, usual, threshold);
                    assert_eq!((block.step.to_bits(), block.outliers), (step.to_bits(), outliers));
                    for (i, x) in x.iter().enumerate() {
                        let whole = (x * inverse).round_ties_even() as i32;
                        let high = if outliers && whole.abs() > 127 { (whole + 64) >> 7 } else { 0 };
                        assert_eq!((i32::from(block.low[i]), i32::from(block.high[i])), (whole - 128 * high, high));
                    }
                }
            }
        }
    }

    #[test]
    fn eights_are_sums_of_low_and_high_bytes() {
        let fill = |of: fn(usize) -> i8| std::array::from_fn(of);
        for (low, high) in [
            (fill(|_| -128), fill(|_| 127)),
            (fill(|_| 127), fill(|_| -128)),
            (fill(|i| (i * 37) as i8), fill(|i| (i * 91 + 3) as i8)),
        ] {
            for outliers in [false, true] {
                let block = Block { low, high, step: 1.0, outliers };
                let element = |i: usize| i32::from(low[i]) + if outliers { 128 * i32::from(high[i]) } else { 0 };
                let expected: [i32; 8] = std::array::from_fn(|eight| (8 * eight..8 * eight + 8).map(element).sum());
                assert_eq!(block.eights(), expected);
            }
        }
    }

    #[test]
    fn a_block_with_a_number_that_is_not_finite_has_no_step() {
        for x in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 37, 63] {
                let mut block = [1.0; BLOCK];
                block[at] = x;
                for threshold in [5.0, 0.0, f32::INFINITY, f32::NAN] {
                    assert!(Block::new(&block, threshold).step.is_nan(), "{x} at {at}, {threshold}");
                }
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn avx512_rounds_as_portable_code_does() {
        if !(is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512dq")) {
            return;
        }
        for seed in 0..200 {
            let mut x = row(seed, 128);
            match seed % 5 {
                1 => x[3] = f32::INFINITY,
                2 => x.fill(0.0),
                3 => x[64..].fill(1e-38),
                4 => x.iter_mut().for_each(|x| *x = (*x * 4.0).round() / 4.0),
                _ => {}
            }
            for threshold in [Detail { outlier: 5.0 }.threshold(&x), 0.0] {
                for x in x.chunks_exact(BLOCK) {
                    // SAFETY: the features were detected; AVX-512 F and VL come with them.
                    let (fast, plain) = (unsafe { Block::avx512(x, threshold) }, Block::new(x, threshold));
                    assert_eq!(fast.step.to_bits(), plain.step.to_bits());
                    if fast.step.is_finite() {
                        assert_eq!((fast.low, fast.high), (plain.low, plain.high));
                        assert_eq!(fast.outliers, plain.outliers);
                    }
                }
            }
        }
    }
}
