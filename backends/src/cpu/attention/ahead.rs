//! What is prefetched while something else is computed.

use crate::cpu::simd::Simd;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Lines to prefetch while a tile is computed: the rest of the keys of each head in the next tile.
pub(super) struct Ahead {
    /// Those of the first head.
    first: *const u8,
    /// Bytes from one head to the next.
    head_step: usize,
    /// Lines of a head, at least 1, and of all heads.
    lines: usize,
    all: usize,
    done: usize,
}

impl Ahead {
    pub(super) fn nothing() -> Ahead {
        Ahead { first: std::ptr::null(), head_step: 0, lines: 1, all: 0, done: 0 }
    }

    /// Each of `heads` heads has `bytes` at `first` and every `head_step` bytes after it.
    pub(super) fn new(first: *const u8, bytes: usize, head_step: usize, heads: usize) -> Ahead {
        let lines = bytes / LINE;
        Ahead { first, head_step, lines: lines.max(1), all: heads * lines, done: 0 }
    }

    /// Fetches a share of the lines, in `steps` steps all of them.
    #[inline(always)]
    pub(super) unsafe fn step<S: Simd>(&mut self, steps: usize) {
        let end = self.all.min(self.done + self.all.div_ceil(steps.max(1)));
        for line in self.done..end {
            let at = line / self.lines * self.head_step + line % self.lines * LINE;
            // SAFETY: `S` is enabled; the address need not be readable.
            unsafe { S::prefetch(self.first.wrapping_add(at)) };
        }
        self.done = end;
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
}
