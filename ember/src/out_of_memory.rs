//! What happens when the system refuses memory: one line that says so, and the exit code of an error.
//!
//! Rust aborts by default, with the name of a signal and, from a debug build, a trace: to a user that is a crash. Nothing can go on
//! without memory (a tensor cannot be half there), so the program ends here too, but in order. Most systems promise more memory
//! than they have and kill a process later; there, nothing can be told.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: Reporting = Reporting;

/// The system's allocator; where it has no memory, the program ends.
struct Reporting;

// SAFETY: every call goes to the system's allocator as it came, and what it returns is handed on; a null pointer is not.
unsafe impl GlobalAlloc for Reporting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of the system's allocator.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.realloc(pointer, layout, size) }, size)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[inline]
fn given(pointer: *mut u8, size: usize) -> *mut u8 {
    if pointer.is_null() {
        end(size);
    }
    pointer
}

/// Allocates nothing: stderr has no buffer, and numbers are formatted on the stack. Threads that find no memory at the same time tell it once.
#[cold]
fn end(size: usize) -> ! {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if TOLD.swap(true, Ordering::Relaxed) {
        // The first is about to end the program.
        std::thread::sleep(Duration::from_secs(1));
    } else {
        let _ = writeln!(
            std::io::stderr(),
            "error: out of memory: the system refuses {size} more bytes; use a shorter text or --max-tokens, --cache-type q8, --quant, or a \
             machine or a limit with more memory"
        );
    }
    exit()
}

/// Ends the program. What is to be done at the end of one is not: it may allocate, and would come here again.
#[cfg(unix)]
fn exit() -> ! {
    // SAFETY: it takes any number, and touches nothing of the program.
    unsafe { libc::_exit(1) }
}

#[cfg(not(unix))]
fn exit() -> ! {
    std::process::exit(1)
}
