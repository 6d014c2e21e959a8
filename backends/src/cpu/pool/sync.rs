//! What the worker team synchronises with: the standard library and rayon, or loom, which runs a test in every order in which its
//! threads can meet (`--cfg loom`). The protocol itself, [`super::team`], is the same code in both.

#[cfg(not(loom))]
mod real {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
    pub(crate) use std::sync::{Arc, Mutex};

    use std::time::{Duration, Instant};

    /// A cell that is shared between threads; who uses it when is the affair of its owner.
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        /// Calls `f` with a pointer to read through.
        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        /// Calls `f` with a pointer to write through.
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }

    /// Runs `f` on a worker of this thread's pool, when one is free.
    pub(crate) fn spawn(f: impl FnOnce() + Send + 'static) {
        rayon::spawn(f);
    }

    /// Between two checks of a spin-wait, of which there were `spins`: after the first 64 it yields to other threads that want this
    /// processor.
    pub(crate) fn pause(spins: u32) {
        if spins < 64 {
            (0..16).for_each(|_| std::hint::spin_loop());
        } else {
            std::thread::yield_now();
        }
    }

    /// How long a worker spin-waits without work: longer than what lies between two regions of a token, and short enough that what else
    /// runs on the machine does not suffer.
    pub(crate) const SPIN_TIME: Duration = Duration::from_micros(200);

    /// Runs out after [`SPIN_TIME`].
    pub(crate) struct SpinTimer(Instant);

    impl SpinTimer {
        pub(crate) fn new() -> Self {
            Self(Instant::now())
        }

        pub(crate) fn is_over(&mut self) -> bool {
            self.0.elapsed() > SPIN_TIME
        }
    }

    /// When to remind the pool of workers that do not come: after a millisecond, and then ever later, since they may be at other work.
    pub(crate) struct Reminder {
        since: Instant,
        wait: Duration,
    }

    impl Reminder {
        pub(crate) fn new() -> Self {
            Self { since: Instant::now(), wait: Duration::from_millis(1) }
        }

        /// Whether it is time, once.
        pub(crate) fn is_due(&mut self) -> bool {
            let due = self.since.elapsed() > self.wait;
            if due {
                *self = Self { since: Instant::now(), wait: 2 * self.wait };
            }
            due
        }
    }
}

#[cfg(loom)]
mod model {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(crate) use loom::sync::{Arc, Mutex};

    pub(crate) fn spawn(f: impl FnOnce() + Send + 'static) {
        loom::thread::spawn(f);
    }

    pub(crate) fn pause(_spins: u32) {
        loom::thread::yield_now();
    }

    /// Time does not pass in a model: a worker gives up after two checks.
    pub(crate) struct SpinTimer(u32);

    impl SpinTimer {
        pub(crate) fn new() -> Self {
            Self(0)
        }

        pub(crate) fn is_over(&mut self) -> bool {
            self.0 += 1;
            self.0 > 2
        }
    }

    /// In a model everything that is spawned runs.
    pub(crate) struct Reminder;

    impl Reminder {
        pub(crate) fn new() -> Self {
            Self
        }

        pub(crate) fn is_due(&mut self) -> bool {
            false
        }
    }
}

#[cfg(loom)]
pub(super) use model::*;
#[cfg(not(loom))]
pub(super) use real::*;
