//! x for many rows: four bytes of a token are a word, and words of all tokens follow each other.

use super::book::Shift;
use super::round::{Block, Detail};
use super::{BLOCK, OFFSET};
use std::arch::x86_64::*;

/// Most tokens per panel: two vectors.
pub(super) const PANEL: usize = 32;
/// Words of a block.
pub(super) const WORDS: usize = BLOCK / 4;

/// In which order the codes of a block leave the bytes that store them.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Order {
    /// Bytes: one after the other.
    Natural,
    /// Nibbles: the even elements, then the odd ones.
    EvenOdd,
    /// Pairs of bits: every fourth element, from the first, the second, ...
    Quarters,
}

impl Order {
    /// The element that comes to each place.
    pub(super) const fn elements(self) -> [u8; BLOCK] {
        let streams = match self {
            Order::Natural => 1,
            Order::EvenOdd => 2,
            Order::Quarters => 4,
        };
        let mut elements = [0; BLOCK];
        let mut place = 0;
        while place < BLOCK {
            elements[place] = (place % (BLOCK / streams) * streams + place / (BLOCK / streams)) as u8;
            place += 1;
        }
        elements
    }

    /// Puts the bytes of a block in this order.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    #[inline]
    pub(super) fn apply(self, bytes: &[i8; BLOCK]) -> [i8; BLOCK] {
        let (elements, mut ordered) = (self.elements(), [0; BLOCK]);
        // SAFETY: all arrays have 64 bytes.
        unsafe {
            let elements = _mm512_loadu_si512(elements.as_ptr().cast());
            let bytes = _mm512_permutexvar_epi8(elements, _mm512_loadu_si512(bytes.as_ptr().cast()));
            _mm512_storeu_si512(ordered.as_mut_ptr().cast(), bytes);
        }
        ordered
    }
}

/// Up to [`PANEL`] tokens.
pub(super) struct Panel {
    /// Tokens with those that are zeros.
    pub(super) lanes: usize,
    /// The first token, and how many there are.
    pub(super) first: usize,
    pub(super) tokens: usize,
    /// `[k / 4][token]`: four low bytes each.
    pub(super) low: Vec<i32>,
    /// `[k / 64][token]`: what the offset of the weights adds, negated.
    pub(super) start: Vec<i32>,
    /// `[k / 64][token]`.
    pub(super) steps: Vec<f32>,
    /// `[i][token]`: the high bytes of the words with outliers.
    pub(super) high: Vec<i32>,
    /// `[i]`: which word of its block each is.
    pub(super) places: Vec<u32>,
    /// `[k / 64 + 1]`: where those of each block begin.
    pub(super) begins: Vec<u32>,
}

impl Panel {
    /// A panel that is still empty, for vectors whose lanes are tokens from `first` on; `m` are left. 17 to 24 are cheaper in two panels.
    pub(super) fn vectors(first: usize, m: usize) -> Panel {
        let lanes = if m <= 24 { 16 } else { PANEL };
        let (low, start, steps) = (Vec::new(), Vec::new(), Vec::new());
        let (high, places, begins) = (Vec::new(), Vec::new(), Vec::new());
        Panel { lanes, first, tokens: lanes.min(m), low, start, steps, high, places, begins }
    }

    /// Fills it with its tokens of `x`, rows of `k`.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI and VBMI.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn fill(&mut self, x: &[f32], k: usize, order: Order, shift: Shift, detail: Detail) {
        let (lanes, blocks) = (self.lanes, k / BLOCK);
        self.low = vec![0; blocks * WORDS * lanes];
        self.start = vec![0; blocks * lanes];
        self.steps = vec![0.0; blocks * lanes];
        self.begins.push(0);
        let x = &x[self.first * k..(self.first + self.tokens) * k];
        let mut thresholds = [0.0; PANEL];
        for (threshold, x) in thresholds.iter_mut().zip(x.chunks_exact(k)) {
            *threshold = detail.threshold(x);
        }
        let elements = order.elements();
        // SAFETY: 64 bytes.
        let elements = unsafe { _mm512_loadu_si512(elements.as_ptr().cast()) };
        // The words of a block, and the sums of their bytes.
        let ordered = |bytes: &[i8; BLOCK]| {
            let (mut ordered, mut sums) = ([0i32; WORDS], [0i32; WORDS]);
            // SAFETY: all arrays have 64 bytes.
            unsafe {
                let bytes = _mm512_permutexvar_epi8(elements, _mm512_loadu_si512(bytes.as_ptr().cast()));
                _mm512_storeu_si512(ordered.as_mut_ptr().cast(), bytes);
                let sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), bytes);
                _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum);
            }
            (ordered, sums)
        };
        // High bytes of a block, and which of its words have some.
        let mut high = [[0; PANEL]; WORDS];
        for b in 0..blocks {
            let mut used = 0u32;
            for (token, (x, threshold)) in x.chunks_exact(k).zip(thresholds).enumerate() {
                let block = Block::avx512(&x[b * BLOCK..(b + 1) * BLOCK], threshold);
                let (low, mut sums) = ordered(&block.low);
                for (i, low) in low.into_iter().enumerate() {
                    self.low[(b * WORDS + i) * lanes + token] = low;
                }
                if block.outliers {
                    let (words, sums_of_high) = ordered(&block.high);
                    for (i, (to, word)) in high.iter_mut().zip(words).enumerate() {
                        to[token] = word;
                        used |= u32::from(word != 0) << i;
                    }
                    sums.iter_mut().zip(sums_of_high).for_each(|(sum, high)| *sum += high << 7);
                }
                let start = &mut self.start[b * lanes + token];
                *start = -OFFSET * sums.iter().sum::<i32>();
                if shift != Shift::NONE {
                    *start += shift.of(block.eights()).iter().sum::<i32>();
                }
                self.steps[b * lanes + token] = block.step;
            }
            for place in (0..WORDS).filter(|place| used >> place & 1 == 1) {
                self.places.push(place as u32);
                self.high.extend_from_slice(&high[place][..lanes]);
            }
            self.begins.push(self.places.len() as u32);
            if used != 0 {
                high = [[0; PANEL]; WORDS];
            }
        }
    }
}
