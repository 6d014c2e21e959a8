//! Row ranges of several matrices, computed in one hand-over to the threads.
//!
//! What the unsafe code of the kernels relies on here: the ranges of a part cover its rows without overlap, and each is run once,
//! by one thread, before [`Region::run`] returns. So a kernel that writes the outputs of its rows alone shares none of them.

use super::parallel::{MIN_WORK, parallel_then};
use super::prefetch::{PrefetchRange, predict_next};
use super::threads::threads;
use std::sync::Arc;

/// Bytes below which a task is not worth handing out: each should read long runs of rows.
const TASK_BYTES: usize = 16 << 10;

/// Sequential streams in which kernels read the rows of a task, unless they say so.
const STREAMS: usize = 4;

/// Work to be split by rows, collected first and then run at once.
#[derive(Default)]
pub(crate) struct Region<'a> {
    parts: Vec<Part<'a>>,
}

struct Part<'a> {
    /// The address of its rows.
    data: usize,
    rows: usize,
    row_bytes: usize,
    /// Streams in which the rows of a task are read.
    streams: usize,
    /// Rows of which a task has a multiple.
    multiple: usize,
    /// Elements touched per row.
    work: usize,
    run: Box<dyn Fn(usize, usize) + Sync + 'a>,
}

impl<'a> Region<'a> {
    /// Adds `rows` rows of `row_bytes` that lie at `data`, each of which touches `work` elements: `run(first, last)` computes a
    /// range.
    pub(crate) fn add(
        &mut self,
        data: *const u8,
        (rows, row_bytes): (usize, usize),
        work: usize,
        run: impl Fn(usize, usize) + Sync + 'a,
    ) {
        let (data, row_bytes) = (data as usize, row_bytes.max(1));
        let run = Box::new(run);
        self.parts.push(Part { data, rows, row_bytes, streams: STREAMS, multiple: STREAMS, work, run });
    }

    /// [`add`](Self::add) of a kernel that reads the rows of a range one after the other, best a multiple of `height`.
    pub(crate) fn add_tiles(
        &mut self,
        height: usize,
        (data, row_bytes): (*const u8, usize),
        rows: usize,
        work: usize,
        run: impl Fn(usize, usize) + Sync + 'a,
    ) {
        let (data, row_bytes) = (data as usize, row_bytes.max(1));
        self.parts.push(Part { data, rows, row_bytes, streams: 1, multiple: height, work, run: Box::new(run) });
    }

    /// Computes everything that was added.
    pub(crate) fn run(self) {
        let work = self.parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.rows.saturating_mul(part.work)));
        let threads = threads();
        if work < MIN_WORK || threads == 1 {
            return self.parts.iter().for_each(|part| (part.run)(0, part.rows));
        }
        let tasks = self.tasks(threads);
        // The caller takes the first task, its helpers those after it.
        let start = |&(part, first, last): &(&Part, usize, usize)| {
            PrefetchRange::new(part.data + first * part.row_bytes, last - first, part.row_bytes, part.streams)
        };
        let starts = || tasks.iter().skip(1).take(threads - 1).map(start).collect::<Arc<[_]>>();
        let prefetch = predict_next(self.parts[0].data, starts);
        parallel_then(tasks.len(), prefetch, |task| {
            let (part, first, last) = tasks[task];
            (part.run)(first, last);
        });
    }

    /// Rows `first..last` of parts: large tasks first, which read long runs, then ever smaller ones, so that the threads end
    /// together.
    fn tasks(&self, threads: usize) -> Vec<(&Part<'a>, usize, usize)> {
        let mut left: usize = self.parts.iter().map(|part| part.rows * part.row_bytes).sum();
        let mut tasks = Vec::new();
        for part in &self.parts {
            let mut first = 0;
            while first < part.rows {
                let bytes = (left / (2 * threads)).max(TASK_BYTES);
                let rows = (bytes / part.row_bytes).max(1).next_multiple_of(part.multiple).min(part.rows - first);
                tasks.push((part, first, first + rows));
                first += rows;
                left -= rows * part.row_bytes;
            }
        }
        tasks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_row_of_every_part_runs_once() {
        for sizes in [vec![0], vec![1, 5000], vec![4096, 3, 1030]] {
            let counts: Vec<Vec<AtomicUsize>> =
                sizes.iter().map(|&n| (0..n).map(|_| AtomicUsize::new(0)).collect()).collect();
            let mut region = Region::default();
            for counts in &counts {
                region.add(counts.as_ptr().cast(), (counts.len(), 100), 1000, |first, last| {
                    counts[first..last].iter().for_each(|count| {
                        count.fetch_add(1, Ordering::Relaxed);
                    });
                });
            }
            region.run();
            assert!(counts.iter().flatten().all(|count| count.load(Ordering::Relaxed) == 1), "{sizes:?}");
        }
    }
}
