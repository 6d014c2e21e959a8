//! x on AVX2: pairs of 16-bit integers, which an instruction multiplies and adds. The weights beside them have no sign, since that takes
//! fewer instructions: they are too large by the offset of their storage.

use super::BLOCK;
use super::gemv::{Packing, StoredRows};
use super::round::Block;
use crate::cpu::simd::avx2::Avx2;
use crate::cpu::simd::bytes::Bytes;
use std::arch::x86_64::*;

/// Pairs of a block.
pub(super) const PAIRS: usize = BLOCK / 2;

/// Some rows of x, padded with zeros. With its outliers x fits 16 bits, so that it needs no second product.
#[derive(Default)]
pub(super) struct Panel {
    /// `[block][pair][token]`: two integers each.
    pub(super) pairs: Vec<i32>,
    /// `[block][token]`: what the shift of the weights adds, less what their offset does.
    pub(super) start: Vec<i32>,
    /// `[block][token]`.
    pub(super) steps: Vec<f32>,
}

impl Panel {
    /// Fills it with at most `width` rows of `k`. Pair `i` has the elements whose codes [`Bytes`](crate::cpu::simd::bytes::Bytes) puts at
    /// `places(i)`.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn fill(
        &mut self,
        x: &[f32],
        (k, width): (usize, usize),
        packing: Packing,
        places: impl Fn(usize) -> [usize; 2],
    ) {
        let blocks = k / BLOCK;
        let elements: [[usize; 2]; PAIRS] =
            std::array::from_fn(|i| places(i).map(|place| packing.codes.element::<Avx2>(place)));
        self.pairs = vec![0; blocks * PAIRS * width];
        self.start = vec![0; blocks * width];
        self.steps = vec![0.0; blocks * width];
        for (token, x) in x.chunks_exact(k).enumerate() {
            let threshold = packing.detail.threshold(x);
            for (b, x) in x.chunks_exact(BLOCK).enumerate() {
                let block = Block::new(x, threshold);
                let integer = |element: usize| (i32::from(block.high[element]) << 7) + i32::from(block.low[element]);
                for (i, elements) in elements.iter().enumerate() {
                    let [first, second] = elements.map(integer);
                    // The first in the lower half.
                    self.pairs[(b * PAIRS + i) * width + token] = (first & 0xffff) | (second << 16);
                }
                let start = &mut self.start[b * width + token];
                block.sums::<8>(|_, sum| *start += packing.shift.of(sum) - packing.offset * sum);
                self.steps[b * width + token] = block.step;
            }
        }
    }
}

/// What the codes of these rows stand for, and the offset.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn unsigned(w: &StoredRows) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_add_epi8(Avx2::table(&w.table), _mm256_set1_epi8(w.offset as i8)) }
}

/// Signed bytes and 128.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn without_sign(bytes: __m256i) -> __m256i {
    _mm256_xor_si256(bytes, _mm256_set1_epi8(-128))
}
