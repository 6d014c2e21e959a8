//! The thread pool of the kernels: how many threads it has, and running on it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

/// Threads that a pool has at most.
pub const MAX_THREADS: usize = 1024;

static WANTED: AtomicUsize = AtomicUsize::new(0);
static POOL: OnceLock<Pool> = OnceLock::new();

struct Pool {
    /// Of the kernels; none where the system refuses even one thread.
    threads: Option<rayon::ThreadPool>,
    wanted: usize,
}

/// Sets how many threads the kernels use, [`MAX_THREADS`] at most. False, and nothing changes, once a kernel has run.
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
    pool().threads.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
}

/// Starts the threads of the kernels and tells how many there should be, where the system gives fewer (a limit on processes or
/// on memory). The kernels then work on those that there are, [`threads`], the caller's alone at worst.
pub fn refused_threads() -> Option<usize> {
    let pool = pool();
    let given = pool.threads.as_ref().map_or(0, rayon::ThreadPool::current_num_threads);
    (given < pool.wanted).then_some(pool.wanted)
}

/// Calls `f` on the pool of the kernels, which rayon's iterators inside it use too.
///
/// A kernel called from outside the pool first has to hand its work over, which costs more than the work itself when it is
/// small. A whole token computed inside one `run` pays that once.
pub fn run<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    if cfg!(miri) {
        return f();
    }
    // Work that is inside a pool stays there.
    if rayon::current_thread_index().is_some() {
        return f();
    }
    match &pool().threads {
        Some(pool) => pool.install(f),
        None => {
            work_alone();
            f()
        }
    }
}

/// Makes this thread a pool of its own, since rayon's iterators would otherwise start the global one, and panic when they cannot.
fn work_alone() {
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    // It lasts as long as the thread: a pool that is dropped does not let go of it.
    std::mem::forget(alone);
}

fn pool() -> &'static Pool {
    POOL.get_or_init(|| {
        let wanted = match WANTED.load(Ordering::Relaxed) {
            0 => usual_threads(),
            wanted => wanted,
        };
        let wanted = wanted.min(MAX_THREADS);
        let fitting = wanted.min(memory_for_threads().unwrap_or(wanted));
        let built = (fitting > 0).then(|| build(fitting).or_else(|| build_fewer(fitting))).flatten();
        Pool { threads: built, wanted }
    })
}

/// How many threads fit half of the address space that a limit (`ulimit -v`) leaves; none without a limit.
///
/// The system would give more, but a process that has used up its addresses is killed where its first stack grows.
#[cfg(target_os = "linux")]
fn memory_for_threads() -> Option<usize> {
    /// A stack of Rust's usual size, and the addresses that the allocator of glibc reserves for a thread.
    const PER_THREAD: u64 = (2 << 20) + (64 << 20);
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a struct of the type that the call fills.
    let (read, page) = unsafe { (libc::getrlimit(libc::RLIMIT_AS, &mut limit), libc::sysconf(libc::_SC_PAGESIZE)) };
    if read != 0 || limit.rlim_cur == libc::RLIM_INFINITY {
        return None;
    }
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages: u64 = pages.as_deref()?.split(' ').next()?.parse().ok()?;
    let used = pages.saturating_mul(u64::try_from(page).ok()?);
    #[allow(clippy::useless_conversion)] // 32 bits on some systems
    let limit = u64::from(limit.rlim_cur);
    usize::try_from(limit.saturating_sub(used) / 2 / PER_THREAD).ok()
}

#[cfg(not(target_os = "linux"))]
fn memory_for_threads() -> Option<usize> {
    None
}

/// As rayon counts them.
fn usual_threads() -> usize {
    let named = std::env::var("RAYON_NUM_THREADS").ok().and_then(|number| number.parse().ok());
    named.filter(|&number| number > 0).unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn build(threads: usize) -> Option<rayon::ThreadPool> {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
    builder.thread_name(|i| format!("emberlm-{i}")).build().ok()
}

/// Half of the threads, a quarter, and so on, until the system gives them and two more: what renders a chat template and what
/// waits for Ctrl-C have threads of their own.
fn build_fewer(wanted: usize) -> Option<rayon::ThreadPool> {
    /// Threads of a pool that was refused end soon, but not at once.
    const UNTIL_THEY_END: Duration = Duration::from_millis(5);
    let halves = std::iter::successors(Some(wanted / 2), |&threads| Some(threads / 2));
    halves.take_while(|&threads| threads > 0).find_map(|threads| {
        std::thread::sleep(UNTIL_THEY_END);
        let spare = [(); 2].map(|()| spare_thread());
        spare.iter().all(Option::is_some).then(|| build(threads)).flatten()
    })
}

/// A thread that waits until this is dropped.
fn spare_thread() -> Option<impl Drop> {
    struct Spare(Option<(mpsc::Sender<()>, std::thread::JoinHandle<()>)>);
    impl Drop for Spare {
        fn drop(&mut self) {
            if let Some((sender, thread)) = self.0.take() {
                drop(sender);
                let _ = thread.join();
            }
        }
    }
    let (sender, receiver) = mpsc::channel();
    let wait = move || {
        let _ = receiver.recv();
    };
    let thread = std::thread::Builder::new().spawn(wait).ok()?;
    Some(Spare(Some((sender, thread))))
}
