//! What is prefetched while something else is computed.

use crate::cpu::simd::Simd;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Lines to prefetch while a tile is computed: the rest of the keys of each head in the next tile.
pub(super) struct Ahead {
    /// The next one.
    at: *const u8,
    /// Lines of a head, those that are left of this one, and of all.
    lines: usize,
    left_of_head: usize,
    left: usize,
    /// From the last line of a head to the first of the next.
    skip: usize,
    /// Lines of a step.
    share: usize,
}

impl Ahead {
    pub(super) fn nothing() -> Ahead {
        Ahead { at: std::ptr::null(), lines: 0, left_of_head: 0, left: 0, skip: 0, share: 0 }
    }

    /// Each of `heads` heads has `bytes` at `first` and every `head_step` bytes after it.
    pub(super) fn new(first: *const u8, bytes: usize, head_step: usize, heads: usize) -> Ahead {
        let lines = bytes / LINE;
        let skip = head_step.wrapping_sub(lines.wrapping_sub(1).wrapping_mul(LINE));
        Ahead { at: first, lines, left_of_head: lines, left: heads * lines, skip, share: 0 }
    }

    /// Makes of all lines as many shares.
    pub(super) fn spread(&mut self, steps: usize) {
        self.share = self.left.div_ceil(steps.max(1));
    }

    /// Fetches the next share.
    #[inline(always)]
    pub(super) unsafe fn step<S: Simd>(&mut self) {
        for _ in 0..self.share.min(self.left) {
            // SAFETY: `S` is enabled; the address need not be readable.
            unsafe { S::prefetch(self.at) };
            self.left -= 1;
            self.left_of_head -= 1;
            if self.left_of_head == 0 {
                self.at = self.at.wrapping_add(self.skip);
                self.left_of_head = self.lines;
            } else {
                self.at = self.at.wrapping_add(LINE);
            }
        }
    }
}

/// What is prefetched while the scores or the weighted sum of a tile are computed: some bytes for each of its positions.
#[derive(Clone, Copy)]
pub(super) struct Next {
    pub(super) at: *const u8,
    /// What comes as long after it, for a cache that is farther away.
    pub(super) far: *const u8,
    pub(super) bytes: usize,
}

impl Next {
    /// What belongs to positions from `i` on.
    #[inline(always)]
    pub(super) fn skip(self, i: usize) -> Next {
        let skip = |at: *const u8| at.wrapping_add(i * self.bytes);
        Next { at: skip(self.at), far: skip(self.far), ..self }
    }

    /// Part `i` of `of` equal parts of what belongs to so many positions, by as many bytes for each.
    #[inline(always)]
    pub(super) fn share(self, i: usize, of: usize, positions: usize) -> Next {
        let bytes = self.bytes / of;
        let skip = |at: *const u8| at.wrapping_add(i * positions * bytes);
        Next { at: skip(self.at), far: skip(self.far), bytes }
    }
}
