//! Handing one short piece of work after another to threads that are still awake.
//!
//! A decoded token is a hundred regions, each well below a millisecond, with a few microseconds of the caller's own work
//! between them. A worker of the pool that finds nothing to do goes to sleep soon, and waking it can take as long as the next
//! region. So a worker that has helped once keeps listening for a moment, and returns to the pool when nothing comes. While it
//! listens it fetches what it is told to.
//!
//! # The protocol
//! One caller and its listeners share a [`Line`]. All that they agree on is one word, [`Line::state`]: the turn (odd while work is
//! offered), how many listen, and how many are inside the work. These hold at every moment:
//!
//! 1. *One caller.* A line belongs to the thread in whose `LINE` it lies; during a call it is taken from there, so a call inside the
//!    work gets another line. Only the caller changes the turn, and only the caller raises the count of listeners.
//! 2. *Inside means offered.* A worker enters by exchanging the whole state that it saw, with an odd turn, for one more inside. Had
//!    the caller closed the turn meanwhile, the turn would differ and the exchange fail. So nobody enters a closed turn.
//! 3. *The work outlives its users.* The caller returns, by a panic too, only after it closed the turn and then saw nobody inside.
//!    By 2 nobody can enter any more, so no worker uses the borrowed work afterwards.
//! 4. *The work is written alone.* `work` is written before a turn opens: then the turn is even, and by 3 nobody is inside.
//! 5. *What was written is seen.* Opening a turn releases, entering acquires: a worker sees the work of its turn. Leaving
//!    releases, and the caller acquires when it sees nobody inside: it sees all that workers wrote. Every change in between is a
//!    read-modify-write, which continues the release sequence.
//! 6. *Counts do not run over.* At most `helpers` listen, fewer than the threads of a pool (rayon allows 65535), each is inside at
//!    most once, and each lowers only what it raised or was raised for it.
//! 7. *No work is missed.* A listener leaves by exchanging the state in which it saw nothing to do; a turn opened meanwhile makes
//!    that fail.
//!
//! The test module `loom_model` checks 2 to 5 and 7 in every order of a few threads.

use crate::cpu::pool::ahead::{Ahead, Fetch};
use crate::cpu::pool::sync::{self, AtomicU64, Mutex, Ordering, Patience, UnsafeCell, pause};
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, PoisonError};

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
    let result = Line::call(&line, helpers, work);
    LINE.set(Some(line));
    result.unwrap_or_else(|panic| resume_unwind(panic));
}

thread_local! {
    static LINE: Cell<Option<sync::Arc<Line>>> = const { Cell::new(None) };
}

/// What a caller and its listeners share.
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

// SAFETY: `work` is the only field that is not `Sync`. It is written while no other thread reads it (4 above), and read while it is
// not written (2 and 3); what it refers to is `Sync`.
unsafe impl Sync for Line {}

const INSIDE: u64 = 1;
const LISTENING: u64 = 1 << 16;
const TURN: u64 = 1 << 32;

fn inside(state: u64) -> u64 {
    state % LISTENING
}

fn listening(state: u64) -> u64 {
    state % TURN / LISTENING
}

fn turn(state: u64) -> u64 {
    state / TURN
}

impl Default for Line {
    fn default() -> Self {
        Self { state: AtomicU64::new(0), work: UnsafeCell::new(None), panic: Mutex::new(None), ahead: Mutex::new(None) }
    }
}

impl Line {
    fn call(line: &sync::Arc<Self>, helpers: usize, work: &(dyn Fn() + Sync)) -> Result<(), Box<dyn Any + Send>> {
        // SAFETY: only the lifetime changes. The reference is used by those inside alone, and this function does not end before they
        // have left (3).
        let work_of_others = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(work) };
        // SAFETY: nothing is offered and nobody is inside (4).
        line.work.with_mut(|work| unsafe { *work = Some(work_of_others) });
        let before = line.state.fetch_add(TURN, Ordering::Release);
        // From here on the turn is open: whatever panics, it is closed and waited for below.
        let result = catch_unwind(AssertUnwindSafe(|| {
            for _ in listening(before)..helpers as u64 {
                line.state.fetch_add(LISTENING, Ordering::Relaxed);
                let line = line.clone();
                sync::spawn(move || line.listen());
            }
            work();
        }));
        // Nobody enters from here on.
        line.state.fetch_add(TURN, Ordering::Relaxed);
        let mut looks = 0u32;
        while inside(line.state.load(Ordering::Acquire)) > 0 {
            looks = looks.saturating_add(1);
            pause(looks);
        }
        let panic = line.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.and(panic.map_or(Ok(()), Err))
    }

    fn listen(&self) {
        let mut last = None;
        let mut patience = Patience::new();
        let mut looks = 0u32;
        let mut fetch = Fetch::default();
        loop {
            let state = self.state.load(Ordering::Relaxed);
            if turn(state) % 2 == 1 && last != Some(turn(state)) {
                if self.replace(state, state + INSIDE) {
                    // SAFETY: work is offered, and it is neither written nor gone while this worker is inside (2, 3).
                    let work = self.work.with(|work| unsafe { *work });
                    let result = catch_unwind(AssertUnwindSafe(|| work.inspect(|work| work())));
                    if let Err(panic) = result {
                        *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                    }
                    self.state.fetch_sub(INSIDE, Ordering::Release);
                    last = Some(turn(state));
                    fetch.turn_to(self.ahead(inside(state) as usize));
                    patience = Patience::new();
                    looks = 0;
                }
            } else if patience.is_over() {
                // The state has not changed, so no work is missed.
                if self.replace(state, state - LISTENING) {
                    return;
                }
            } else if !fetch.more() {
                looks = looks.saturating_add(1);
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::sync::PATIENCE;
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

    /// Tasks that call for help themselves, from two callers at once: each task of each call is taken once, by somebody, before the
    /// call ends. A nested call that took the line of the outer one would end its turn or mix up its work.
    #[test]
    fn work_within_work_and_several_callers() {
        const CALLS: usize = 200;
        const OUTER: usize = 5;
        const INNER: usize = 3;
        let take =
            |left: &AtomicUsize| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
        with_threads(2, || {
            let caller = || {
                for _ in 0..CALLS {
                    let outer = AtomicUsize::new(OUTER);
                    let done = AtomicUsize::new(0);
                    call(1, None, &|| {
                        while take(&outer) {
                            let inner = AtomicUsize::new(INNER);
                            let done_here = AtomicUsize::new(0);
                            call(1, None, &|| {
                                while take(&inner) {
                                    done_here.fetch_add(1, Ordering::Relaxed);
                                }
                            });
                            assert_eq!(done_here.into_inner(), INNER);
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    assert_eq!(done.into_inner(), OUTER);
                }
            };
            rayon::join(caller, caller);
        })
        .unwrap();
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

/// `RUSTFLAGS="--cfg loom" cargo test -p emberlm-backends --lib loom_`
#[cfg(all(test, loom))]
mod loom_model {
    use super::*;
    use loom::sync::atomic::AtomicUsize;

    /// Runs `f` in every order with at most so many changes of thread that no thread asked for.
    fn explore(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(f);
    }

    /// Places of which each user takes its own and writes there without synchronisation: that the caller may read them afterwards,
    /// and drop them, is what the protocol promises.
    struct Places {
        next: AtomicUsize,
        places: Vec<loom::cell::UnsafeCell<u32>>,
    }

    // SAFETY: who takes a place writes it alone, and loom finds every use that is not ordered.
    unsafe impl Sync for Places {}

    impl Places {
        fn new(count: usize) -> Self {
            Self { next: AtomicUsize::new(0), places: (0..count).map(|_| loom::cell::UnsafeCell::new(0)).collect() }
        }

        fn write(&self, value: u32) {
            let place = self.next.fetch_add(1, Ordering::Relaxed);
            // SAFETY: this place is this user's.
            self.places[place].with_mut(|at| unsafe { *at = value });
        }

        /// How many took part; all of them wrote `value`.
        fn read(&self, value: u32) -> usize {
            // SAFETY: the call has returned.
            let values: Vec<u32> = self.places.iter().map(|place| place.with(|at| unsafe { *at })).collect();
            let used = values.iter().filter(|&&v| v == value).count();
            assert!(values.iter().all(|&v| v == 0 || v == value), "work of another turn: {values:?}");
            used
        }
    }

    fn turns(helpers: usize, turns: u32) {
        let line = sync::Arc::new(Line::default());
        for turn in 1..=turns {
            let places = Places::new(helpers + 1);
            let result = Line::call(&line, helpers, &|| places.write(turn));
            assert!(result.is_ok(), "a worker found what it must not see");
            assert!((1..=helpers + 1).contains(&places.read(turn)));
        }
    }

    #[test]
    fn loom_one_helper_in_three_turns() {
        explore(3, || turns(1, 3));
    }

    #[test]
    fn loom_two_helpers() {
        explore(2, || turns(2, 1));
    }

    #[test]
    fn loom_two_helpers_in_two_turns() {
        explore(1, || turns(2, 2));
    }

    /// A panic, of the caller or of a helper, ends no turn early.
    #[test]
    fn loom_a_panic_is_passed_on_when_all_have_left() {
        explore(3, || {
            let line = sync::Arc::new(Line::default());
            let places = Places::new(2);
            let first = AtomicUsize::new(0);
            let result = Line::call(&line, 1, &|| {
                if first.fetch_add(1, Ordering::Relaxed) == 0 {
                    resume_unwind(Box::new("the first"));
                }
                places.write(7);
            });
            let panic = result.expect_err("one of them panicked");
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"the first"));
            assert!(places.read(7) <= 1);
            let places = Places::new(2);
            assert!(Line::call(&line, 1, &|| places.write(8)).is_ok());
            assert!(places.read(8) >= 1);
        });
    }
}
