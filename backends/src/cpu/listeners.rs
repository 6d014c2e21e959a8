//! Handing one short piece of work after another to threads that are still awake.
//!
//! A decoded token is a hundred regions, each well below a millisecond, with a few microseconds of the caller's own work
//! between them. A worker of the pool that finds nothing to do goes to sleep soon, and waking it can take as long as the next
//! region. So a worker that has helped once keeps listening for a moment, and returns to the pool when nothing comes. While it
//! listens it fetches what it is told to.

use super::ahead::{Ahead, Fetch};
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a worker listens in vain: longer than what lies between two regions of a token, and short enough that what else
/// runs on the machine does not suffer.
const PATIENCE: Duration = Duration::from_micros(200);

/// Calls `work` here and, at the same time, on up to `helpers` other workers of this thread's pool; returns when all calls
/// have. How many there are is not promised: a worker that comes when this one is done is not waited for.
///
/// While they listen, each fetches one of what is `ahead`; where nothing is given, what was ahead before stays so.
///
/// A panic of any of them is passed on.
pub(crate) fn call(helpers: usize, ahead: Option<Arc<[Ahead]>>, work: &(dyn Fn() + Sync)) {
    // A nested call finds it taken and gets one of its own.
    let line = LINE.take().unwrap_or_default();
    if ahead.is_some() {
        *line.ahead.lock().unwrap_or_else(PoisonError::into_inner) = ahead;
    }
    let result = line.call(helpers, work);
    LINE.set(Some(line));
    result.unwrap_or_else(|panic| resume_unwind(panic));
}

thread_local! {
    static LINE: Cell<Option<Arc<Line>>> = const { Cell::new(None) };
}

/// What a caller and its listeners share.
#[derive(Default)]
struct Line {
    /// From the low bits: 16 bits of workers inside the work, 16 bits of workers that listen (or are on their way), and the
    /// turn, which is odd while work is offered.
    state: AtomicU64,
    /// Written by the caller while nothing is offered and nobody is inside, read by those inside.
    work: UnsafeCell<Option<&'static (dyn Fn() + Sync)>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// What comes after the work.
    ahead: Mutex<Option<Arc<[Ahead]>>>,
}

// SAFETY: `work` is the only field that is not `Sync`, and its comment says who uses it when.
unsafe impl Sync for Line {}

const INSIDE: u64 = 1;
const LISTENING: u64 = 1 << 16;
const TURN: u64 = 1 << 32;

/// Between two looks: after the first few, another thread that waits for this processor goes first.
fn pause(looks: u32) {
    if looks < 64 {
        (0..16).for_each(|_| std::hint::spin_loop());
    } else {
        std::thread::yield_now();
    }
}

fn inside(state: u64) -> u64 {
    state % LISTENING
}

fn listening(state: u64) -> u64 {
    state % TURN / LISTENING
}

fn turn(state: u64) -> u64 {
    state / TURN
}

impl Line {
    fn call(self: &Arc<Self>, helpers: usize, work: &(dyn Fn() + Sync)) -> Result<(), Box<dyn Any + Send>> {
        // SAFETY: nothing is offered and nobody is inside. The reference is used by those inside alone, and this function
        // does not end before they have left.
        unsafe { *self.work.get() = Some(std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(work)) };
        let before = self.state.fetch_add(TURN, Ordering::Release);
        for _ in listening(before)..helpers as u64 {
            self.state.fetch_add(LISTENING, Ordering::Relaxed);
            let line = self.clone();
            rayon::spawn(move || line.listen());
        }
        let result = catch_unwind(AssertUnwindSafe(work));
        // Nobody enters from here on.
        self.state.fetch_add(TURN, Ordering::Relaxed);
        let mut looks = 0u32;
        while inside(self.state.load(Ordering::Acquire)) > 0 {
            looks += 1;
            pause(looks);
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.and(panic.map_or(Ok(()), Err))
    }

    fn listen(&self) {
        let mut last = None;
        let mut since = Instant::now();
        let mut looks = 0u32;
        let mut fetch = Fetch::default();
        loop {
            let state = self.state.load(Ordering::Relaxed);
            if turn(state) % 2 == 1 && last != Some(turn(state)) {
                if self.replace(state, state + INSIDE) {
                    // SAFETY: work is offered, and it stays while this worker is inside.
                    let work = unsafe { *self.work.get() };
                    let result = catch_unwind(AssertUnwindSafe(|| work.inspect(|work| work())));
                    if let Err(panic) = result {
                        *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                    }
                    self.state.fetch_sub(INSIDE, Ordering::Release);
                    last = Some(turn(state));
                    fetch.turn_to(self.ahead(inside(state) as usize));
                    since = Instant::now();
                    looks = 0;
                }
            } else if since.elapsed() > PATIENCE {
                // The state has not changed, so no work is missed.
                if self.replace(state, state - LISTENING) {
                    return;
                }
            } else if !fetch.more() {
                looks += 1;
                pause(looks);
            }
        }
    }

    /// For the helper that came `place`-th.
    fn ahead(&self, place: usize) -> Option<Ahead> {
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.as_ref().and_then(|ahead| ahead.get(place)).copied()
    }

    fn replace(&self, state: u64, new: u64) -> bool {
        self.state.compare_exchange(state, new, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::with_threads;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn one_piece_of_work_after_another() {
        with_threads(3, || {
            for round in 0..2000usize {
                let left = AtomicUsize::new(round % 17);
                let done = AtomicUsize::new(0);
                call(2, None, &|| {
                    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert_eq!(done.into_inner(), round % 17);
                if round % 500 == 0 {
                    // Until the listeners have left.
                    std::thread::sleep(20 * PATIENCE);
                }
            }
        })
        .unwrap();
    }

    #[test]
    fn others_take_part() {
        // One that waits for all three cannot end unless they have come.
        with_threads(3, || {
            let barrier = std::sync::Barrier::new(3);
            for _ in 0..100 {
                call(2, None, &|| {
                    barrier.wait();
                });
            }
        })
        .unwrap();
    }

    #[test]
    fn work_within_work_and_several_callers() {
        let count = AtomicUsize::new(0);
        with_threads(2, || {
            let caller = || {
                for _ in 0..200 {
                    call(1, None, &|| {
                        call(1, None, &|| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                }
            };
            rayon::join(caller, caller);
        })
        .unwrap();
        // Each call computes at least once.
        assert!(count.into_inner() >= 400);
    }

    #[test]
    fn panics_are_passed_on() {
        with_threads(2, || {
            for helper in [false, true] {
                let caller = std::thread::current().id();
                let barrier = std::sync::Barrier::new(2);
                let result = catch_unwind(AssertUnwindSafe(|| {
                    call(1, None, &|| {
                        barrier.wait();
                        assert!((std::thread::current().id() == caller) == helper, "told to");
                    });
                }));
                let panic = result.expect_err("one of the two panicked");
                assert_eq!(panic.downcast_ref::<&str>(), Some(&"told to"), "helper {helper}");
            }
            let count = AtomicUsize::new(0);
            call(1, None, &|| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert!(count.into_inner() >= 1);
        })
        .unwrap();
    }
}
