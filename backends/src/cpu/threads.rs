//! The thread pool of the kernels and how work is split over it.
//!
//! What the unsafe code of the kernels relies on here: [`parallel`] runs each task once, on one thread, and returns only when all
//! of them have ended (`listeners` says how), so tasks may borrow from the caller, and two tasks never share what each owns by its
//! number.

use super::ahead::Ahead;
use super::listeners;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

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

/// Calls `f` with kernels that use exactly this many threads, whatever the pool has.
///
/// # Errors
/// When the system refuses the threads.
pub fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> Result<T, rayon::ThreadPoolBuildError> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build()?.install(f))
}

/// How many threads the kernels use.
pub fn threads() -> usize {
    // Under Miri one: the pool's own structures are not what is looked at.
    if cfg!(miri) {
        return 1;
    }
    if rayon::current_thread_index().is_some() {
        return rayon::current_num_threads();
    }
    pool().map_or_else(rayon::current_num_threads, rayon::ThreadPool::current_num_threads)
}

/// Calls `f` on the pool of the kernels.
///
/// A kernel called from outside the pool first has to hand its work over, which costs more than the work itself when it is
/// small. A whole token computed inside one `run` pays that once.
pub fn run<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    if cfg!(miri) {
        return f();
    }
    match pool() {
        // Work that is inside a pool stays there.
        Some(pool) if rayon::current_thread_index().is_none() => pool.install(f),
        _ => f(),
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

/// Calls `f(task)` for every task below `tasks`, on all threads; the caller's thread alone if there is one task or thread.
///
/// Tasks are handed out one at a time, so a thread that the system interrupts takes fewer.
pub(crate) fn parallel(tasks: usize, f: impl Fn(usize) + Sync) {
    parallel_then(tasks, None, f);
}

/// [`parallel`], after which threads that wait fetch what is `ahead`.
pub(crate) fn parallel_then(tasks: usize, ahead: Option<Arc<[Ahead]>>, f: impl Fn(usize) + Sync) {
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
    run(|| listeners::call(helpers, ahead, &work));
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

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Calls `f` with `len` floats of any value, from memory that the thread keeps.
pub(crate) fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    // A nested call finds it taken and starts from an empty one; the larger is kept.
    let mut scratch = SCRATCH.take();
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    let result = f(&mut scratch[..len]);
    let other = SCRATCH.take();
    SCRATCH.set(if other.len() > scratch.len() { other } else { scratch });
    result
}

/// A matrix `[m, n]` of which every task writes its own columns (or rows).
#[derive(Clone, Copy)]
pub(crate) struct Output<'a> {
    data: *mut f32,
    n: usize,
    borrow: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: it is an exclusive borrow of floats that is shared out among tasks: nothing is read or written through it but by `set`,
// `row` and pointers of `at`, all of whose users promise that no other task uses the same element meanwhile.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// Rows of `n` floats.
    pub(crate) fn new(data: &'a mut [f32], n: usize) -> Output<'a> {
        Output { data: data.as_mut_ptr(), n, borrow: std::marker::PhantomData }
    }

    /// The same rows, with column `first` as column 0.
    pub(crate) fn columns_from(&self, first: usize) -> Output<'a> {
        Output { data: self.data.wrapping_add(first), ..*self }
    }

    /// Writes row `i`, column `j`.
    ///
    /// # Safety
    /// Inside the matrix, and no other task uses this element.
    #[inline(always)]
    pub(crate) unsafe fn set(&self, i: usize, j: usize, value: f32) {
        // SAFETY: the caller's promise; `data` points to the whole matrix, which is borrowed for `'a`.
        unsafe { *self.data.add(i * self.n + j) = value }
    }

    /// Where row `i`, column `j` lies; the pointer may reach the whole matrix.
    #[inline(always)]
    pub(crate) fn at(&self, i: usize, j: usize) -> *mut f32 {
        self.data.wrapping_add(i.wrapping_mul(self.n).wrapping_add(j))
    }

    /// The part of row `i` that starts at column `j`.
    ///
    /// # Safety
    /// Inside the matrix, and no other task uses these elements while the slice lives.
    #[inline(always)]
    pub(crate) unsafe fn row(&self, i: usize, j: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: as for `set`.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(i * self.n + j), len) }
    }
}

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
