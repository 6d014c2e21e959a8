//! Scratch memory that a thread keeps between kernels.

use std::cell::Cell;

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
