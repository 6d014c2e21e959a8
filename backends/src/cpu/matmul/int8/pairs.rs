//! x on AVX2, in words of 32 bits: pairs of 16-bit integers, which an instruction multiplies and adds, or, beside codes of 4 or 2 bits and
//! wherever there is VNNI, quads of bytes. The weights beside them have no sign, since that takes fewer instructions: they are too large by the
//! offset of their storage.

use super::BLOCK;
use super::gemv::{Packing, StoredRows, stay_codes};
use super::round::Block;
use crate::cpu::simd::avx2::Avx2;
use crate::cpu::simd::bytes::Bytes;
use crate::cpu::simd::bytes::avx2::Instruction;
use std::arch::x86_64::*;
use std::ops::Range;

/// Pairs of a block.
pub(super) const PAIRS: usize = BLOCK / 2;
/// Quads of a block.
pub(super) const QUADS: usize = BLOCK / 4;

/// Whether x is in quads beside weights with this offset.
pub(super) fn in_quads(offset: i32, instruction: Instruction) -> bool {
    stay_codes(offset) || instruction.is_vnni()
}

/// Words of a block, which are quads or pairs.
pub(super) fn words(quads: bool) -> usize {
    if quads { QUADS } else { PAIRS }
}

/// Some rows of x, padded with zeros. With its outliers x fits 16 bits, so that pairs need no second product.
#[derive(Default)]
pub(super) struct Panel {
    /// `[block][pair or quad][token]`: two integers or four bytes each.
    pub(super) words: Vec<i32>,
    /// As `words`, what quads of outliers need besides, in units of 128; empty without outliers.
    pub(super) high: Vec<i32>,
    /// `[block]`: which of its quads have outliers in any row, the first in the lowest bit.
    pub(super) outliers: Vec<u16>,
    /// `[block][token]`: what the shift of the weights adds, less what their offset does.
    pub(super) start: Vec<i32>,
    /// `[block][token]`.
    pub(super) steps: Vec<f32>,
}

impl Panel {
    /// Fills it with at most `width` rows of `k`. Word `i` has the `N` elements, 2 or 4, whose codes
    /// [`Bytes`](crate::cpu::simd::bytes::Bytes) puts at `places(i)`.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn fill<const N: usize>(
        &mut self,
        x: &[f32],
        (k, width): (usize, usize),
        packing: Packing,
        places: impl Fn(usize) -> [usize; N],
    ) {
        let (blocks, words) = (k / BLOCK, BLOCK / N);
        let element = |place| packing.codes.element::<Avx2>(place);
        let elements: Vec<[usize; N]> = (0..words).map(|i| places(i).map(element)).collect();
        self.words = vec![0; blocks * words * width];
        self.outliers = vec![0; blocks];
        self.start = vec![0; blocks * width];
        self.steps = vec![0.0; blocks * width];
        for (token, x) in x.chunks_exact(k).enumerate() {
            let threshold = packing.detail.threshold(x);
            for (b, x) in x.chunks_exact(BLOCK).enumerate() {
                let block = Block::new(x, threshold);
                let low = |element: usize| i32::from(block.low[element]);
                let high = |element: usize| i32::from(block.high[element]);
                let at = |i: usize| (b * words + i) * width + token;
                for (i, elements) in elements.iter().enumerate() {
                    self.words[at(i)] = match N {
                        2 => word(elements, |element| (high(element) << 7) + low(element)),
                        _ => word(elements, low),
                    };
                }
                if N == 4 && block.outliers {
                    self.high.resize(self.words.len(), 0);
                    for (i, elements) in elements.iter().enumerate() {
                        let word = word(elements, high);
                        self.high[at(i)] = word;
                        self.outliers[b] |= u16::from(word != 0) << i;
                    }
                }
                self.start[b * width + token] = packing.starts(block.eights()).iter().sum();
                self.steps[b * width + token] = block.step;
            }
        }
    }
}

/// The quads of a block in two halves: of these eight sums of two products, at most 15 * 127 each, fit 16 bits.
pub(super) fn halves_of_quads() -> [Range<usize>; 2] {
    [0..QUADS / 2, QUADS / 2..QUADS]
}

/// Those of them whose bit is set.
pub(super) fn halves_of_set_quads(set: u16) -> [impl Iterator<Item = usize>; 2] {
    halves_of_quads().map(|half| set_quads(set & (((1 << half.len()) - 1) << half.start)))
}

/// The quads of a block whose bit is set.
pub(super) fn set_quads(set: u16) -> impl Iterator<Item = usize> {
    let mut left = set;
    std::iter::from_fn(move || {
        let next = (left != 0).then(|| left.trailing_zeros() as usize);
        left &= left.wrapping_sub(1);
        next
    })
}

/// What `of` says of `N` elements, in as many parts of a word, the first in the lowest bits.
#[inline(always)]
fn word<const N: usize>(elements: &[usize; N], of: impl Fn(usize) -> i32) -> i32 {
    let (bits, mask) = (32 / N, u32::MAX >> (32 - 32 / N));
    elements.iter().rev().fold(0, |word, &element| word << bits | (of(element) as u32 & mask)) as i32
}

/// What the codes of these rows stand for, and the offset.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn unsigned(w: &StoredRows) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_add_epi8(<Avx2>::table(&w.table), _mm256_set1_epi8(w.offset as i8)) }
}
