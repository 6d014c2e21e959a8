//! Prefetching the weights of the next region while a worker spin-waits for it.
//!
//! Every token reads the same weights in the same order. Between two regions one thread prepares the next one and memory is idle,
//! so the calling thread records which region followed which, and a waiting worker prefetches the start of the task that it will
//! probably get. A wrong prediction costs the bandwidth of the prefetch and nothing else.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes that one thread prefetches at most: they must still be in its cache when they are read.
const MAX_BYTES: usize = 384 << 10;
/// Bytes prefetched between two checks for work.
const STEP_BYTES: usize = 1 << 10;
/// Bytes of a cache line.
const CACHE_LINE: usize = 64;
/// Regions that a thread remembers at most; a model has a few hundred.
const MAX_REGIONS: usize = 1 << 14;

/// The start of what a task reads. The memory may be freed by the time it is prefetched: a prefetch of any address is allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PrefetchRange {
    start: usize,
    /// Bytes from the start of one stream to the start of the next.
    stride: usize,
    streams: usize,
    /// Bytes of each stream.
    len: usize,
}

impl PrefetchRange {
    /// A task of `rows` rows of `row_bytes` at `start`, read in `streams` sequential streams.
    pub(super) fn new(start: usize, rows: usize, row_bytes: usize, streams: usize) -> PrefetchRange {
        let stride = rows / streams * row_bytes;
        PrefetchRange { start, stride, streams, len: stride.min(MAX_BYTES / streams) }
    }
}

/// A worker's progress in prefetching one range.
#[derive(Default)]
pub(super) struct Prefetcher {
    range: Option<PrefetchRange>,
    /// Bytes done of each stream.
    done: usize,
}

impl Prefetcher {
    /// Starts on this range, unless it is the one prefetched before.
    pub(super) fn set_range(&mut self, range: Option<PrefetchRange>) {
        if self.range != range {
            *self = Prefetcher { range, done: 0 };
        }
    }

    /// Prefetches the next [`STEP_BYTES`]; false when nothing is left.
    pub(super) fn step(&mut self) -> bool {
        self.lines(prefetch)
    }

    fn lines(&mut self, mut fetch: impl FnMut(usize)) -> bool {
        let Some(PrefetchRange { start, stride, streams, len }) = self.range.filter(|range| self.done < range.len)
        else {
            return false;
        };
        let end = (self.done + (STEP_BYTES / streams).max(CACHE_LINE)).min(len);
        for at in (self.done..end).step_by(CACHE_LINE) {
            for stream in 0..streams {
                fetch(start.wrapping_add(stream * stride + at));
            }
        }
        self.done = end;
        true
    }
}

/// Prefetches a cache line into L2; the address need not be mapped.
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
    static HISTORY: RefCell<RegionHistory> = RefCell::default();
}

/// The regions that a thread has run, each identified by the address of its first weights.
#[derive(Default)]
struct RegionHistory {
    last: usize,
    regions: HashMap<usize, RegionRecord>,
}

struct RegionRecord {
    /// What each helper reads first.
    starts: Arc<[PrefetchRange]>,
    /// The region that followed it the last time.
    next: usize,
}

/// Records that this thread runs the region whose first weights are at `region`, and predicts what each helper will read first in
/// the region that follows it; none when it has no record of what followed.
pub(super) fn predict_next(
    region: usize,
    starts: impl FnOnce() -> Arc<[PrefetchRange]>,
) -> Option<Arc<[PrefetchRange]>> {
    HISTORY.with_borrow_mut(|history| history.predict_next(region, starts))
}

impl RegionHistory {
    fn predict_next(
        &mut self,
        region: usize,
        starts: impl FnOnce() -> Arc<[PrefetchRange]>,
    ) -> Option<Arc<[PrefetchRange]>> {
        if self.regions.len() > MAX_REGIONS {
            self.regions.clear();
        }
        let last = std::mem::replace(&mut self.last, region);
        if let Some(last) = self.regions.get_mut(&last) {
            last.next = region;
        }
        let next = self.regions.entry(region).or_insert_with(|| RegionRecord { starts: starts(), next: 0 }).next;
        self.regions.get(&next).map(|next| next.starts.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_next_is_expected_next() {
        let mut history = RegionHistory::default();
        let mut predict = |region: usize| {
            let ranges = history.predict_next(region, || [PrefetchRange::new(region, 8, 100, 4)].into());
            ranges.map(|ranges| ranges[0].start)
        };
        assert_eq!([1, 2, 3].map(&mut predict), [None; 3]);
        assert_eq!([1, 2].map(&mut predict), [Some(2), Some(3)]);
        // Another way from 2 on.
        assert_eq!([4, 1, 2, 4].map(&mut predict), [None, Some(2), Some(4), Some(1)]);
    }

    #[test]
    fn every_line_of_every_stream_is_fetched_once() {
        let mut fetch = Prefetcher::default();
        assert!(!fetch.step());
        // 1000 rows each for four streams, and three left over.
        let range = PrefetchRange::new(64, 4 * 1000 + 3, 64, 4);
        fetch.set_range(Some(range));
        let mut lines = Vec::new();
        while fetch.lines(|line| lines.push(line)) {}
        lines.sort_unstable();
        assert_eq!(lines, (1..=4000).map(|line| 64 * line).collect::<Vec<_>>());
        fetch.set_range(Some(range));
        assert!(!fetch.step(), "once is enough");
        fetch.set_range(Some(PrefetchRange::new(64, 3, 64, 4)));
        assert!(!fetch.step(), "too few rows");
        let long = PrefetchRange::new(0, 4 * 3, 2 * MAX_BYTES, 4);
        fetch.set_range(Some(long));
        let mut lines = Vec::new();
        while fetch.lines(|line| lines.push(line)) {}
        assert_eq!(lines.len(), MAX_BYTES / CACHE_LINE, "no more than stays in a cache");
        assert!(lines.iter().all(|line| line % (6 * MAX_BYTES) < MAX_BYTES / 4), "the start of each stream");
    }
}
