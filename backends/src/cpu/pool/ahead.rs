//! What is read next, so that a thread that waits can fetch it.
//!
//! Every token reads the same weights in the same order. Between two regions one thread prepares the next one, and the memory
//! would have nothing to do; so the regions remember which of them came after which, and a thread that listens brings the
//! start of its share into its cache. A wrong guess costs nothing but the reading.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// Streams in which kernels read the rows of a task: that many rows far apart are in flight.
const STREAMS: usize = 4;
/// What one thread fetches at most: it must still be in its cache when it is read.
const MOST: usize = 384 << 10;
/// Bytes fetched between two looks at whether there is work.
const AT_ONCE: usize = 1 << 10;
const LINE: usize = 64;
/// Regions that are remembered; a model has a few hundred.
const REGIONS: usize = 1 << 14;

/// The start of what a task reads: addresses, which may be gone by the time they are fetched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ahead {
    start: usize,
    /// From one stream to the next.
    apart: usize,
    /// Bytes of each stream.
    len: usize,
}

impl Ahead {
    /// A task of `rows` rows of `row_bytes` at `start`.
    pub(crate) fn new(start: usize, rows: usize, row_bytes: usize) -> Ahead {
        let apart = rows / STREAMS * row_bytes;
        Ahead { start, apart, len: apart.min(MOST / STREAMS) }
    }
}

/// A thread's progress in fetching.
#[derive(Default)]
pub(crate) struct Fetch {
    ahead: Option<Ahead>,
    done: usize,
}

impl Fetch {
    /// Turns to this, unless it is what was fetched before.
    pub(crate) fn turn_to(&mut self, ahead: Option<Ahead>) {
        if self.ahead != ahead {
            *self = Fetch { ahead, done: 0 };
        }
    }

    /// Fetches a little more; false when there is nothing left.
    pub(crate) fn more(&mut self) -> bool {
        self.lines(prefetch)
    }

    fn lines(&mut self, mut fetch: impl FnMut(usize)) -> bool {
        let Some(Ahead { start, apart, len }) = self.ahead.filter(|ahead| self.done < ahead.len) else {
            return false;
        };
        let end = (self.done + AT_ONCE / STREAMS).min(len);
        for at in (self.done..end).step_by(LINE) {
            for stream in 0..STREAMS {
                fetch(start.wrapping_add(stream * apart + at));
            }
        }
        self.done = end;
        true
    }
}

/// Asks for a cache line for later; the address need not exist.
fn prefetch(at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has it, and it is a hint, no access.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at as *const i8);
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint, no access.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{at}]", at = in(reg) at, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

thread_local! {
    static ORDER: RefCell<Order> = RefCell::default();
}

/// The regions of a thread.
#[derive(Default)]
struct Order {
    last: usize,
    known: HashMap<usize, Known>,
}

struct Known {
    /// What its helpers read first.
    starts: Arc<[Ahead]>,
    /// The region that came after it the last time.
    next: usize,
}

/// Notes that this thread has come to the region whose first weights are at `region`, and tells what the helpers of the one
/// after it will probably read first.
pub(crate) fn after(region: usize, starts: impl FnOnce() -> Arc<[Ahead]>) -> Option<Arc<[Ahead]>> {
    ORDER.with_borrow_mut(|order| order.after(region, starts))
}

impl Order {
    fn after(&mut self, region: usize, starts: impl FnOnce() -> Arc<[Ahead]>) -> Option<Arc<[Ahead]>> {
        if self.known.len() > REGIONS {
            self.known.clear();
        }
        let last = std::mem::replace(&mut self.last, region);
        if let Some(last) = self.known.get_mut(&last) {
            last.next = region;
        }
        let next = self.known.entry(region).or_insert_with(|| Known { starts: starts(), next: 0 }).next;
        self.known.get(&next).map(|next| next.starts.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_next_is_expected_next() {
        let mut order = Order::default();
        let mut after = |region: usize| {
            let ahead = order.after(region, || [Ahead::new(region, 8, 100)].into());
            ahead.map(|ahead| ahead[0].start)
        };
        assert_eq!([1, 2, 3].map(&mut after), [None; 3]);
        assert_eq!([1, 2].map(&mut after), [Some(2), Some(3)]);
        // Another way from 2 on.
        assert_eq!([4, 1, 2, 4].map(&mut after), [None, Some(2), Some(4), Some(1)]);
    }

    #[test]
    fn every_line_of_every_stream_is_fetched_once() {
        let mut fetch = Fetch::default();
        assert!(!fetch.more());
        // 1000 rows each for four streams, and three left over.
        let ahead = Ahead::new(64, 4 * 1000 + 3, 64);
        fetch.turn_to(Some(ahead));
        let mut lines = Vec::new();
        while fetch.lines(|line| lines.push(line)) {}
        lines.sort_unstable();
        assert_eq!(lines, (1..=4000).map(|line| 64 * line).collect::<Vec<_>>());
        fetch.turn_to(Some(ahead));
        assert!(!fetch.more(), "once is enough");
        fetch.turn_to(Some(Ahead::new(64, 3, 64)));
        assert!(!fetch.more(), "too few rows");
        let long = Ahead::new(0, 4 * 3, 2 * MOST);
        fetch.turn_to(Some(long));
        let mut lines = Vec::new();
        while fetch.lines(|line| lines.push(line)) {}
        assert_eq!(lines.len(), MOST / LINE, "no more than stays in a cache");
        assert!(lines.iter().all(|line| line % (6 * MOST) < MOST / STREAMS), "the start of each stream");
    }
}
