//! Panics of the tokenizer library, which some crafted files and texts cause, as errors.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::{Error, Result};

thread_local! {
    /// Whether this thread is inside [`contain`].
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics that become errors from printing a message and a backtrace; all others are reported as before.
///
/// A panic is reported by the hook of the whole process, before it can be caught. A library has no right to replace that hook,
/// so this is for programs to call, once, at their start and after setting a hook of their own. The hook that is installed asks
/// a flag of the thread that panics and otherwise passes on to the hook that was there; it is never taken away again, so threads
/// cannot race for it.
pub fn silence_contained_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // A thread whose locals are gone is not inside.
            if !CONTAINED.try_with(Cell::get).unwrap_or(false) {
                previous(info);
            }
        }));
    });
}

/// Marks the thread until it is dropped, by a panic too.
struct Mark {
    outer: bool,
}

impl Mark {
    fn new() -> Self {
        Self { outer: CONTAINED.replace(true) }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        CONTAINED.set(self.outer);
    }
}

/// Runs the tokenizer library and turns a panic into an error.
pub(super) fn contain<T>(run: impl FnOnce() -> std::result::Result<T, tokenizers::Error>) -> Result<T> {
    let mark = Mark::new();
    // The tokenizer is only read (or just being made) here, so no half-changed state survives a panic.
    let result = catch_unwind(AssertUnwindSafe(run));
    drop(mark);
    match result {
        Ok(result) => result.map_err(|e| Error::Tokenizer(e.to_string())),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(Error::Tokenizer(format!(
                "the tokenizer library failed on this file or text ({message}); tokenizer.json is probably damaged"
            )))
        }
    }
}
