//! The worker team: handing one short piece of work after another to workers that spin-wait for it.
//!
//! A decoded token is a hundred regions, each well below a millisecond, with a few microseconds of the caller's own work
//! between them. A worker of the pool that finds nothing to do goes to sleep soon, and waking it can take as long as the next
//! region. So a worker that has helped once spin-waits for [`SPIN_TIME`](sync::SPIN_TIME), and returns to the pool when no work
//! comes. While it waits it prefetches the weights that it will probably read next.
//!
//! Rayon does not promise to wake a worker for a job that another worker spawns: where the two race, it leaves the job to whoever spawned it,
//! and a caller does not come back to it before its pass ends. So a worker that has not come a while after it was sent for is
//! [woken once more](Caller::remind); its pass would have a thread less otherwise.
//!
//! # The protocol
//! One caller and its workers share a [`Team`]. All that they agree on is one word, [`Team::state`]: the epoch (odd while work is
//! offered), how many workers belong to the team, and how many of them are inside the work. These hold at every moment:
//!
//! 1. *One caller.* A team belongs to the thread in whose `CALLER` it lies; during a call it is taken from there, so a call inside
//!    the work gets another team. Only the caller changes the epoch, and only the caller raises the count of members.
//! 2. *Inside means offered.* A worker enters by exchanging the whole state that it saw, with an odd epoch, for one more inside.
//!    Had the caller closed the epoch meanwhile, the epoch would differ and the exchange fail. So nobody enters a closed epoch.
//! 3. *The work outlives its users.* The caller returns, by a panic too, only after it closed the epoch and then saw nobody inside.
//!    By 2 nobody can enter any more, so no worker uses the borrowed work afterwards.
//! 4. *The work is written alone.* `work` is written before an epoch opens: then the epoch is even, and by 3 nobody is inside.
//! 5. *What was written is seen.* Opening an epoch releases, entering acquires: a worker sees the work of its epoch. Leaving
//!    releases, and the caller acquires when it sees nobody inside: it sees all that workers wrote. Every change in between is a
//!    read-modify-write, which continues the release sequence.
//! 6. *Counts do not overflow.* A team has at most `helpers` members, fewer than the threads of a pool (rayon allows 65535), each is
//!    inside at most once, and each lowers only what it raised or was raised for it.
//! 7. *No work is missed.* A worker leaves the team by exchanging the state in which it saw nothing to do; an epoch opened meanwhile
//!    makes that fail.
//!
//! The test module `loom_model` checks 2 to 5 and 7 in every order of a few threads.

use super::prefetch::{PrefetchRange, Prefetcher};
use super::sync::{self, AtomicU64, Mutex, Ordering, Reminder, SpinTimer, UnsafeCell, pause};
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, PoisonError};

/// Calls `work` here and, at the same time, on up to `helpers` other workers of this thread's pool; returns when all calls
/// have. How many there are is not promised: a worker that comes when this one is done is not waited for.
///
/// While they spin-wait afterwards, each prefetches one of the ranges; without new ranges those of the last call stay.
///
/// A panic of any of them is passed on.
pub(super) fn call(helpers: usize, prefetch: Option<Arc<[PrefetchRange]>>, work: &(dyn Fn() + Sync)) {
    // A nested call finds it taken and gets one of its own.
    let mut caller = CALLER.take().unwrap_or_default();
    if prefetch.is_some() {
        *caller.team.prefetch.lock().unwrap_or_else(PoisonError::into_inner) = prefetch;
    }
    // A second job wakes a worker that sleeps, whatever rayon took it for at the first.
    caller.remind(|| sync::spawn(|| ()));
    let result = Team::call(&caller.team, helpers, work);
    CALLER.set(Some(caller));
    result.unwrap_or_else(|panic| resume_unwind(panic));
}

thread_local! {
    static CALLER: Cell<Option<Caller>> = const { Cell::new(None) };
}

/// A thread that calls, and its team.
#[derive(Default)]
struct Caller {
    team: sync::Arc<Team>,
    /// While workers are on their way: when the pool is told of them again.
    reminder: Option<Reminder>,
}

impl Caller {
    /// Calls `wake` where workers that were sent for have not come for a while.
    fn remind(&mut self, wake: impl FnOnce()) {
        if self.team.coming.load(Ordering::Relaxed) == 0 {
            self.reminder = None;
        } else if self.reminder.get_or_insert_with(Reminder::new).is_due() {
            wake();
        }
    }
}

/// What a caller and its workers share.
struct Team {
    /// From the low bits: 16 bits of workers inside the work, 16 bits of members (workers that spin-wait, work or are on their
    /// way), and 32 bits of the epoch, which is odd while work is offered.
    state: AtomicU64,
    /// Members that were sent for and have not come yet.
    coming: AtomicU64,
    /// Written by the caller while nothing is offered and nobody is inside, read by those inside.
    work: UnsafeCell<Option<&'static (dyn Fn() + Sync)>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// What each worker prefetches after the work.
    prefetch: Mutex<Option<Arc<[PrefetchRange]>>>,
}

// SAFETY: `work` is the only field that is not `Sync`. It is written while no other thread reads it (4 above), and read while it is
// not written (2 and 3); what it refers to is `Sync`.
unsafe impl Sync for Team {}

const INSIDE: u64 = 1;
const MEMBER: u64 = 1 << 16;
const EPOCH: u64 = 1 << 32;

fn inside(state: u64) -> u64 {
    state % MEMBER
}

fn members(state: u64) -> u64 {
    state % EPOCH / MEMBER
}

fn epoch(state: u64) -> u64 {
    state / EPOCH
}

impl Default for Team {
    fn default() -> Self {
        Self {
            state: AtomicU64::new(0),
            coming: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            panic: Mutex::new(None),
            prefetch: Mutex::new(None),
        }
    }
}

impl Team {
    fn call(team: &sync::Arc<Self>, helpers: usize, work: &(dyn Fn() + Sync)) -> Result<(), Box<dyn Any + Send>> {
        // SAFETY: only the lifetime changes. The reference is used by those inside alone, and this function does not end before they
        // have left (3).
        let work_of_others = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(work) };
        // SAFETY: nothing is offered and nobody is inside (4).
        team.work.with_mut(|work| unsafe { *work = Some(work_of_others) });
        let before = team.state.fetch_add(EPOCH, Ordering::Release);
        // From here on the epoch is open: whatever panics, it is closed and waited for below.
        let result = catch_unwind(AssertUnwindSafe(|| {
            for _ in members(before)..helpers as u64 {
                team.state.fetch_add(MEMBER, Ordering::Relaxed);
                team.coming.fetch_add(1, Ordering::Relaxed);
                let team = team.clone();
                sync::spawn(move || {
                    team.coming.fetch_sub(1, Ordering::Relaxed);
                    team.serve();
                });
            }
            work();
        }));
        // Nobody enters from here on.
        team.state.fetch_add(EPOCH, Ordering::Relaxed);
        let mut spins = 0u32;
        while inside(team.state.load(Ordering::Acquire)) > 0 {
            spins = spins.saturating_add(1);
            pause(spins);
        }
        let panic = team.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.and(panic.map_or(Ok(()), Err))
    }

    /// A worker's loop: enters every epoch once, spin-waits and prefetches in between, and ends when no work has come for a while.
    fn serve(&self) {
        let mut last = None;
        let mut timer = SpinTimer::new();
        let mut spins = 0u32;
        let mut prefetcher = Prefetcher::default();
        loop {
            let state = self.state.load(Ordering::Relaxed);
            if epoch(state) % 2 == 1 && last != Some(epoch(state)) {
                if self.replace(state, state + INSIDE) {
                    // SAFETY: work is offered, and it is neither written nor gone while this worker is inside (2, 3).
                    let work = self.work.with(|work| unsafe { *work });
                    let result = catch_unwind(AssertUnwindSafe(|| work.inspect(|work| work())));
                    if let Err(panic) = result {
                        *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                    }
                    self.state.fetch_sub(INSIDE, Ordering::Release);
                    last = Some(epoch(state));
                    prefetcher.set_range(self.range_of(inside(state) as usize));
                    timer = SpinTimer::new();
                    spins = 0;
                }
            } else if timer.is_over() {
                // The state has not changed, so no work is missed.
                if self.replace(state, state - MEMBER) {
                    return;
                }
            } else if !prefetcher.step() {
                spins = spins.saturating_add(1);
                pause(spins);
            }
        }
    }

    /// What the worker that entered `place`-th prefetches.
    fn range_of(&self, place: usize) -> Option<PrefetchRange> {
        let ranges = self.prefetch.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.as_ref().and_then(|ranges| ranges.get(place)).copied()
    }

    fn replace(&self, state: u64, new: u64) -> bool {
        self.state.compare_exchange(state, new, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::sync::SPIN_TIME;
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

    /// Runs `f` in a pool of so many threads.
    fn with_threads(threads: usize, f: impl FnOnce() + Send) {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads").install(f);
    }

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
                    // Until the workers have left the team.
                    std::thread::sleep(20 * SPIN_TIME);
                }
            }
        });
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
        });
    }

    /// Tasks that call for help themselves, from two callers at once: each task of each call is taken once, by somebody, before the
    /// call ends. A nested call that took the team of the outer one would end its epoch or mix up its work.
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
        });
    }

    /// Rayon may leave a job to the worker that spawned it, here a caller that does not come back to it: work would go on without others.
    #[test]
    fn a_worker_that_does_not_come_is_sent_for_again() {
        let mut caller = Caller::default();
        let reminds = |caller: &mut Caller| {
            let mut reminded = false;
            caller.remind(|| reminded = true);
            reminded
        };
        assert!(!reminds(&mut caller), "nobody was sent for");
        caller.team.coming.fetch_add(1, Ordering::Relaxed);
        // A machine that pauses this thread for so long has waited long enough.
        let mut since = Instant::now();
        assert!(!reminds(&mut caller) || since.elapsed() > Duration::from_millis(1), "it may be on its way");
        std::thread::sleep(20 * SPIN_TIME);
        since = Instant::now();
        assert!(reminds(&mut caller), "it has not come for a while");
        assert!(!reminds(&mut caller) || since.elapsed() > Duration::from_millis(2), "once");
        caller.team.coming.fetch_sub(1, Ordering::Relaxed);
        assert!(!reminds(&mut caller), "it has come");
        // Whoever is sent for is counted, until it comes.
        with_threads(3, || {
            let barrier = std::sync::Barrier::new(3);
            call(2, None, &|| {
                barrier.wait();
            });
            let caller = CALLER.take().expect("of the call");
            assert_eq!(caller.team.coming.load(Ordering::Relaxed), 0, "both have come");
            CALLER.set(Some(caller));
        });
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
        });
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
            assert!(values.iter().all(|&v| v == 0 || v == value), "work of another epoch: {values:?}");
            used
        }
    }

    fn epochs(helpers: usize, epochs: u32) {
        let team = sync::Arc::new(Team::default());
        for epoch in 1..=epochs {
            let places = Places::new(helpers + 1);
            let result = Team::call(&team, helpers, &|| places.write(epoch));
            assert!(result.is_ok(), "a worker found what it must not see");
            assert!((1..=helpers + 1).contains(&places.read(epoch)));
        }
    }

    #[test]
    fn loom_one_helper_in_three_epochs() {
        explore(3, || epochs(1, 3));
    }

    #[test]
    fn loom_two_helpers() {
        explore(2, || epochs(2, 1));
    }

    #[test]
    fn loom_two_helpers_in_two_epochs() {
        explore(1, || epochs(2, 2));
    }

    /// A panic, of the caller or of a helper, ends no epoch early.
    #[test]
    fn loom_a_panic_is_passed_on_when_all_have_left() {
        explore(3, || {
            let team = sync::Arc::new(Team::default());
            let places = Places::new(2);
            let first = AtomicUsize::new(0);
            let result = Team::call(&team, 1, &|| {
                if first.fetch_add(1, Ordering::Relaxed) == 0 {
                    resume_unwind(Box::new("the first"));
                }
                places.write(7);
            });
            let panic = result.expect_err("one of them panicked");
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"the first"));
            assert!(places.read(7) <= 1);
            let places = Places::new(2);
            assert!(Team::call(&team, 1, &|| places.write(8)).is_ok());
            assert!(places.read(8) >= 1);
        });
    }
}
