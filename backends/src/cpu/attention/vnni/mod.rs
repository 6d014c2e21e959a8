//! Attention over keys and values in 8 bits with AVX-512 VNNI: sums of whole numbers, 64 at a time.
//!
//! A query keeps 15 bits and a weight 16, each as two bytes: a score is off by about 1e-5 of the products in it, some hundredths of what the 8
//! bits of a key cost. Keys are made unsigned, 128 too large, because the instruction multiplies unsigned by signed bytes; the sum of a
//! query's bytes takes that back. Positions are the lanes of scores, numbers of a head those of weighted sums, so that no sum runs over the
//! lanes of a vector.
//!
//! Bytes are put in order between the multiply-adds, a few at a time, from where they are stored: in passes of their own over a tile, both would
//! take their time one after the other.

mod scores;
mod weigh;

use crate::cpu::attention::ahead::{LINE, Next};
use crate::cpu::attention::q8::Q8Rows;
use crate::types::KV_BLOCK;
pub(super) use scores::{IntQueries, scores};
use std::arch::x86_64::*;
pub(super) use weigh::weigh;

/// Numbers of a head that share a scale: a vector of codes.
const BLOCK: usize = 64;
const _: () = assert!(KV_BLOCK == BLOCK);
/// Positions in a vector of scores.
const LANES: usize = 16;
/// Queries whose sums are in registers at the same time.
const ROWS: usize = 4;

/// Whether this processor can.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

impl Q8Rows<'_> {
    /// Codes of a block from `position` on.
    ///
    /// # Safety
    /// There is such a position.
    #[inline(always)]
    unsafe fn codes_at(&self, position: usize, block: usize) -> *const i8 {
        // SAFETY: the caller's promise.
        unsafe { self.codes.as_ptr().add(position * self.width + block * BLOCK) }
    }

    /// Codes of a block of the last positions from `position` on, fewer than `P`, and zeros.
    fn tail<const P: usize>(&self, position: usize, block: usize) -> [[i8; BLOCK]; P] {
        let mut tail = [[0; BLOCK]; P];
        let rows = self.codes.chunks_exact(self.width).skip(position);
        for (to, row) in tail.iter_mut().zip(rows) {
            to.copy_from_slice(&row[block * BLOCK..][..BLOCK]);
        }
        tail
    }

    /// Scales of a block at 16 positions; beyond the last 0.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn scales_at(&self, position: usize, block: usize) -> __m512 {
        let blocks = self.width / BLOCK;
        let left = self.count().saturating_sub(position).min(LANES);
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let at = self.scales.as_ptr().wrapping_add(position * blocks);
        // SAFETY: the features are enabled; what the masks leave lies in the scales, `blocks` of each position.
        unsafe {
            match blocks {
                1 => _mm512_maskz_loadu_ps(first_lanes(left), at),
                2 => {
                    // Every other number of two vectors.
                    let low = _mm512_maskz_loadu_ps(first_lanes((2 * left).min(LANES)), at);
                    let high =
                        _mm512_maskz_loadu_ps(first_lanes((2 * left).saturating_sub(LANES)), at.wrapping_add(LANES));
                    let places = _mm512_add_epi32(_mm512_add_epi32(lanes, lanes), _mm512_set1_epi32(block as i32));
                    _mm512_permutex2var_ps(low, places, high)
                }
                _ => {
                    let places = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(blocks as i32));
                    let (zeros, at) = (_mm512_setzero_ps(), at.wrapping_add(block));
                    _mm512_mask_i32gather_ps::<4>(zeros, first_lanes(left), places, at)
                }
            }
        }
    }
}

/// The mask of the first `count` of 16 lanes.
fn first_lanes(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

/// What is prefetched: two lines at each step, first into L2, once more a tile later into L1. Of prefetches that are asked for once, the processor
/// drops so many that a token over a long cache takes half as long again.
#[derive(Clone, Copy)]
struct Fetch {
    /// For L1, and for L2.
    near: *const u8,
    far: *const u8,
}

impl Fetch {
    /// From here on; what is at hand anyway where nothing comes next.
    fn new(next: Option<Next>, idle: &[i8]) -> Fetch {
        let idle = idle.as_ptr().cast();
        next.map_or(Fetch { near: idle, far: idle }, |next| Fetch { near: next.at, far: next.far })
    }

    /// What comes after `bytes` bytes.
    fn skip(self, bytes: usize) -> Fetch {
        Fetch { near: self.near.wrapping_add(bytes), far: self.far.wrapping_add(bytes) }
    }

    /// Asks for the two lines of step `i`.
    #[inline(always)]
    fn step(self, i: usize) {
        for line in 2 * i..2 * i + 2 {
            // SAFETY: every x86-64 processor has the instruction; the address need not be readable.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(self.near.wrapping_add(line * LINE).cast());
                _mm_prefetch::<_MM_HINT_T1>(self.far.wrapping_add(line * LINE).cast());
            }
        }
    }
}
