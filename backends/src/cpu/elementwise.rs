//! Functions of two slices, element by element, on all threads where there are enough of them.

use super::Level;
use super::simd::{Kernel, Simd, launch, math};
use crate::cpu::pool::for_each_chunk;

/// Elements of a task.
const CHUNK: usize = 4096;

/// `a[i] = f(a[i], b[i])`.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn zip<F: math::Binary + Sync>(level: Level, a: &mut [f32], b: &[f32], f: F) {
    assert!(a.len() == b.len(), "{} elements and {}", a.len(), b.len());
    let whole = a.len() / CHUNK * CHUNK;
    let (chunks, rest) = a.split_at_mut(whole);
    for_each_chunk(chunks, CHUNK, CHUNK, |i, a| {
        launch(level, Zip { a, b: &b[i * CHUNK..(i + 1) * CHUNK], f });
    });
    launch(level, Zip { a: rest, b: &b[whole..], f });
}

struct Zip<'a, F> {
    a: &'a mut [f32],
    b: &'a [f32],
    f: F,
}

impl<F: math::Binary> Kernel for Zip<'_, F> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // SAFETY: `S` is enabled.
        unsafe { math::zip::<S, F>(self.a, self.b, self.f) }
    }
}
