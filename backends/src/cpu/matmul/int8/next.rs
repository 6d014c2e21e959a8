//! What is prefetched while a block is multiplied: a part of the rows that come after those at work, in the order in which they lie. That
//! is how memory is read fastest.

use super::gemv::{Gemv, WeightScales};
use crate::cpu::matmul::weight::BlockScales;
use std::arch::x86_64::*;

/// Bytes of a cache line.
const LINE: usize = 64;

/// What is to be prefetched for every block that is multiplied. Only hints.
#[derive(Clone, Copy)]
pub(super) struct Next {
    pub(super) codes: *const u8,
    /// Bytes for each block.
    pub(super) code_bytes: usize,
    pub(super) scales: *const u8,
    pub(super) scale_bytes: usize,
}

impl Next {
    /// Prefetches what belongs to a block into L2: a few lines at a time, because more than a processor can wait for stop it.
    #[inline(always)]
    pub(super) fn prefetch(self, block: usize) {
        // SAFETY: hints, no accesses.
        unsafe {
            for line in (0..self.code_bytes).step_by(LINE) {
                _mm_prefetch::<_MM_HINT_T1>(self.codes.wrapping_add(block * self.code_bytes + line).cast());
            }
            _mm_prefetch::<_MM_HINT_T1>(self.scales.wrapping_add(block * self.scale_bytes).cast());
        }
    }
}

impl<X> Gemv<'_, X> {
    /// `rows` rows from `row` on, which need not exist, and their scales.
    pub(super) fn next(&self, row: usize, rows: usize) -> Next {
        let blocks = self.k / super::BLOCK;
        let scales = |data: *const u8, size: usize| (data.wrapping_add(row.wrapping_mul(blocks * size)), rows * size);
        let (scales, scale_bytes) = match &self.w.scales {
            WeightScales::Int8(w) => scales(w.scales.as_ptr().cast(), 2),
            WeightScales::CodeBook(w, _) if w.block == super::BLOCK => match w.scales {
                BlockScales::Single(single) => scales(single.as_ptr().cast(), 4),
                BlockScales::Double { codes, .. } => scales(codes.as_ptr(), 1),
            },
            _ => (std::ptr::null(), 0),
        };
        let codes = self.w.data.as_ptr().wrapping_add(row.wrapping_mul(self.w.stride));
        Next { codes, code_bytes: rows * self.w.codes.block_bytes(), scales, scale_bytes }
    }
}
