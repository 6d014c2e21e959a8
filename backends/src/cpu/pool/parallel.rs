//! Splitting work over the threads of the pool.
//!
//! What the unsafe code of the kernels relies on here: [`parallel`] runs each task once, on one thread, and returns only when all
//! of them have ended ([`team`] says how), so tasks may borrow from the caller, and two tasks never share what each owns by its
//! number.

use super::prefetch::PrefetchRange;
use super::team;
use super::threads::{run, threads};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Calls `f(task)` for every task below `tasks`, on all threads; the caller's thread alone if there is one task or thread.
///
/// Tasks are handed out one at a time, so a thread that the system interrupts takes fewer.
pub(crate) fn parallel(tasks: usize, f: impl Fn(usize) + Sync) {
    parallel_then(tasks, None, f);
}

/// [`parallel`]; workers that have ended their tasks prefetch one range each while they wait.
pub(crate) fn parallel_then(tasks: usize, prefetch: Option<Arc<[PrefetchRange]>>, f: impl Fn(usize) + Sync) {
    let helpers = threads().min(tasks).saturating_sub(1);
    if helpers == 0 {
        (0..tasks).for_each(f);
        return;
    }
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            f(task);
        }
    };
    run(|| team::call(helpers, prefetch, &work));
}

/// Calls `f(i, chunk)` for every chunk of `data`, in parallel when `work` (elements touched per chunk) is worth it.
pub(crate) fn for_each_chunk<T: Send>(data: &mut [T], chunk: usize, work: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let chunk = chunk.max(1);
    let chunks = data.len() / chunk;
    let threads = threads();
    if chunks < 2 || chunks.saturating_mul(work) < MIN_WORK || threads == 1 {
        return data.chunks_exact_mut(chunk).enumerate().for_each(|(i, chunk)| f(i, chunk));
    }
    let each = chunks.div_ceil(8 * threads);
    // Each is locked once.
    let tasks: Vec<Mutex<&mut [T]>> = data.chunks_mut(each * chunk).map(Mutex::new).collect();
    parallel(tasks.len(), |task| {
        let mut data = tasks[task].lock().unwrap_or_else(PoisonError::into_inner);
        data.chunks_exact_mut(chunk).enumerate().for_each(|(i, chunk)| f(task * each + i, chunk));
    });
}

/// Elements below which a second thread costs more than it saves.
pub(crate) const MIN_WORK: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for tasks in [0, 1, 2, 3, 100] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            parallel(tasks, |task| {
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{tasks} tasks");
        }
    }
}
