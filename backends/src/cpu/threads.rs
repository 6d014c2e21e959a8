//! The thread pool of the kernels and how work is split over it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

static WANTED: AtomicUsize = AtomicUsize::new(0);
static POOL: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();

/// Sets how many threads the kernels use. False, and nothing changes, once a kernel has run.
///
/// Without it the pool has `RAYON_NUM_THREADS` threads, or as many as the machine runs at once.
pub fn set_threads(threads: usize) -> bool {
    if POOL.get().is_some() {
        return false;
    }
    WANTED.store(threads, Ordering::Relaxed);
    true
}

/// How many threads the kernels use.
pub fn threads() -> usize {
    pool().map_or_else(
        rayon::current_num_threads,
        rayon::ThreadPool::current_num_threads,
    )
}

/// Calls `f` on the pool of the kernels.
///
/// A kernel called from outside the pool first has to hand its work over, which costs more than the work itself when it is
/// small. A whole token computed inside one `run` pays that once.
pub fn run<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    match pool() {
        Some(pool) => pool.install(f),
        None => f(),
    }
}

/// The kernels' own pool; `None` (then rayon's global pool serves) if the system refuses the threads.
fn pool() -> Option<&'static rayon::ThreadPool> {
    POOL.get_or_init(|| {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(WANTED.load(Ordering::Relaxed));
        builder.thread_name(|i| format!("emberlm-{i}")).build().ok()
    })
    .as_ref()
}

/// Calls `f(i, chunk)` for every chunk of `data`, in parallel when `work` (elements touched per chunk) is worth it.
pub(crate) fn for_each_chunk<T: Send>(
    data: &mut [T],
    chunk: usize,
    work: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    use rayon::prelude::*;
    let chunks = data.len() / chunk.max(1);
    if chunks < 2 || chunks * work < MIN_WORK {
        data.chunks_exact_mut(chunk.max(1))
            .enumerate()
            .for_each(|(i, chunk)| f(i, chunk));
    } else {
        run(|| {
            data.par_chunks_exact_mut(chunk)
                .enumerate()
                .for_each(|(i, chunk)| f(i, chunk))
        });
    }
}

/// Elements below which a second thread costs more than it saves.
const MIN_WORK: usize = 1 << 14;
