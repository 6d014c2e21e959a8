//! Panics of other people's code that become errors, without the report that a panic prints.
//!
//! The process has one panic hook. To take it away for the length of a call is a race: two threads that do so at once can leave
//! the silent hook in place for good, and meanwhile the panics of every other thread are lost. So a hook is installed once, on
//! first use. It asks whether the panic is one that will be caught here, and hands every other to the hook that was there before.
//!
//! A program that installs a hook of its own later replaces this one: then nothing is lost, only printed.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

thread_local! {
    /// Calls of [`catch_quietly`] that this thread is inside.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// The last message of a panic inside them.
    static MESSAGE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Calls of [`catch_quietly_with_threads`] that are in progress.
static SCOPES: Mutex<Vec<Scope>> = Mutex::new(Vec::new());
/// What a thread panicked with while a call was in progress that did not wait for it: the caller that does will want to know.
static UNTOLD: Mutex<Option<String>> = Mutex::new(None);

struct Scope {
    /// How the names of its threads begin.
    prefix: &'static str,
    /// The thread that made the call: its place in [`SCOPES`] may change.
    caller: std::thread::ThreadId,
    /// The first panic of its threads.
    message: Option<String>,
}

/// Calls `f`; a panic inside is caught, reported nowhere, and returned as its message.
///
/// Only panics of the calling thread are meant: those of other threads, started by `f` or not, are reported as always. What `f`
/// leaves half done must not be used afterwards. Where panics abort the process they are reported.
///
/// # Errors
/// The message of the panic.
pub fn catch_quietly<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    struct Inside;
    impl Drop for Inside {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get().saturating_sub(1));
        }
    }
    install();
    if cfg!(panic = "unwind") {
        DEPTH.set(DEPTH.get().saturating_add(1));
    }
    let inside = Inside;
    let result = catch_unwind(AssertUnwindSafe(f));
    drop(inside);
    result.map_err(|payload| {
        // The hook's text is the better one: it exists for every payload. Without the hook the payload has to do.
        let noted = MESSAGE.take();
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.or(noted).unwrap_or_else(|| "a panic without a message".to_owned())
    })
}

/// As [`catch_quietly`], and quiet too are the panics of threads whose names begin with `prefix`: for a library that does its work
/// on a thread of its own, whose panic the caller only sees as an answer that does not come. Their message is what is returned, also
/// when the panic was in an earlier call that did not wait for the answer.
///
/// # Errors
/// The message of the first panic of such a thread, else that of the panic of this thread.
pub fn catch_quietly_with_threads<T>(prefix: &'static str, f: impl FnOnce() -> T) -> Result<T, String> {
    let caller = std::thread::current().id();
    scopes().push(Scope { prefix, caller, message: None });
    let result = catch_quietly(f);
    let mut scopes = scopes();
    // Nested calls of one thread end in order, so the last of the caller's is this one.
    let noted = scopes.iter().rposition(|scope| scope.caller == caller).and_then(|at| scopes.remove(at).message);
    drop(scopes);
    let mut untold = UNTOLD.lock().unwrap_or_else(PoisonError::into_inner);
    let first = untold.take().or(noted);
    match result {
        Ok(value) => {
            *untold = first;
            Ok(value)
        }
        Err(message) => Err(first.unwrap_or(message)),
    }
}

/// Nothing panics while this is held; a poisoned lock is none.
fn scopes() -> MutexGuard<'static, Vec<Scope>> {
    SCOPES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts the hook in place, once per process. A thread that is panicking may not: it goes without.
fn install() {
    static INSTALLED: Once = Once::new();
    if std::thread::panicking() {
        return;
    }
    INSTALLED.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            if !is_caught(info) {
                previous(info);
            }
        }));
    });
}

/// Whether the panic is one of [`catch_quietly`]; notes its message.
fn is_caught(info: &PanicHookInfo<'_>) -> bool {
    let text = || {
        let text = info.payload_as_str().unwrap_or("a panic without a message");
        info.location().map_or_else(|| text.to_owned(), |at| format!("{text} ({}:{})", at.file(), at.line()))
    };
    if DEPTH.get() > 0 {
        MESSAGE.replace(Some(text()));
        return true;
    }
    let current = std::thread::current();
    let Some(name) = current.name() else { return false };
    match scopes().iter_mut().find(|scope| name.starts_with(scope.prefix)) {
        Some(scope) => {
            scope.message.get_or_insert_with(text);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Panics that reached the hook which was there before ours, by their text.
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    const LOUD: &str = "a panic that is not caught here";

    fn count_loud_panics() {
        static BEFORE: Once = Once::new();
        BEFORE.call_once(|| {
            let default = take_hook();
            set_hook(Box::new(move |info| match info.payload_as_str() {
                Some(LOUD) => drop(SEEN.fetch_add(1, Ordering::Relaxed)),
                _ => default(info),
            }));
        });
    }

    /// Threads that catch panics all the time, beside one whose panics must be reported: with a hook that is swapped, reports are
    /// lost within a few rounds, and in the end for good.
    #[test]
    fn panics_of_other_threads_are_reported_meanwhile_and_afterwards() {
        count_loud_panics();
        const ROUNDS: usize = 200;
        let loud = || drop(std::thread::spawn(|| std::panic::panic_any(LOUD)).join().expect_err("it panics"));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for i in 0..ROUNDS {
                        let caught = catch_quietly(|| -> usize { panic!("quiet {i}") });
                        assert_eq!(caught, Err(format!("quiet {i}")));
                    }
                });
            }
            scope.spawn(move || (0..ROUNDS).for_each(|_| loud()));
        });
        loud();
        assert_eq!(SEEN.load(Ordering::Relaxed), ROUNDS + 1);
        assert_eq!(catch_quietly(|| 3), Ok(3));
        assert_eq!(DEPTH.get(), 0);
        // An inner panic that was caught does not end the outer call's silence.
        let nested = catch_quietly(|| {
            let _ = catch_quietly(|| panic!("inner"));
            DEPTH.get()
        });
        assert_eq!(nested, Ok(1));
    }

    #[test]
    fn a_helper_thread_that_panics_gives_its_message() {
        count_loud_panics();
        let caught = catch_quietly_with_threads("test-device-", || {
            let (sender, receiver) = std::sync::mpsc::channel::<()>();
            let thread = std::thread::Builder::new().name("test-device-0".into());
            let thread = thread.spawn(move || {
                let _sender = sender;
                panic!("no driver");
            });
            thread.expect("a thread");
            receiver.recv().expect("an answer");
        });
        let message = caught.expect_err("the thread panicked");
        assert!(message.starts_with("no driver ("), "{message}");
        assert!(scopes().iter().all(|scope| scope.prefix != "test-device-"));
    }
}
