//! Attention of a few queries over keys and values in 8 bits on registers of 256 bits: sums of whole numbers.
//!
//! Bytes become words of 16 bits, as many in a register again as floats, and pairs of their products are added in an instruction, or two
//! without VNNI. A query keeps 16 bits and a weight 15: a score is off by about 1e-5 of the products in it, some hundredths of what the 8 bits
//! of a key cost.

mod scores;
mod weigh;

use crate::cpu::attention::ahead::{LINE, Next};
use crate::types::KV_BLOCK;
pub(super) use scores::{WordQueries, scores};
use std::arch::x86_64::*;
pub(super) use weigh::weigh;

/// Queries up to which they are rounded; more take floats of a tile, which are made once for all of them.
pub(super) const MAX_ROWS: usize = 11;

/// Numbers of a head that share a scale.
const BLOCK: usize = KV_BLOCK;
/// Words in a register, and whole numbers of 32 bits or floats.
const WORDS: usize = 16;
const LANES: usize = 8;
/// The largest whole number of a query or of a weight.
const STEPS: f32 = 32767.0;
/// What is smaller is 0: its products are below every other rounding.
const SMALLEST: f32 = 1e-30;

/// The step that rounds numbers up to `largest` to at most `STEPS`, and its inverse.
fn step(largest: f32) -> (f32, f32) {
    if largest > SMALLEST { (largest / STEPS, STEPS / largest) } else { (0.0, 0.0) }
}

/// The lines of `positions` positions from `first` on.
#[inline(always)]
fn prefetch(next: Option<Next>, first: usize, positions: usize) {
    let Some(next) = next else { return };
    for line in 0..positions * next.bytes / LINE {
        // SAFETY: every x86-64 processor has the instruction; the address need not be readable.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(next.skip(first).at.wrapping_add(line * LINE).cast()) };
    }
}
