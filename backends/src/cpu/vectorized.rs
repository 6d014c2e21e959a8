//! Plain Rust whose loops the compiler makes vectors of, once per instruction set.
//!
//! For code that is no product and needs no instruction spelled out, as what turns weights into another format on load: the operations
//! and their order are those of the source on every level, so are the bits.

use super::Level;
use super::simd::{Kernel, Simd, launch};

/// A computation over slices that is compiled for every [`Level`].
pub trait Vectorized {
    /// Its result.
    type Output;
    /// Computes it. This and all that it calls in a loop must be `#[inline(always)]`: what stays a call is compiled for no level.
    fn call(self) -> Self::Output;
}

/// Runs `computation` as it is compiled for `level`.
///
/// # Panics
/// If the machine lacks the level.
pub fn vectorized<V: Vectorized>(level: Level, computation: V) -> V::Output {
    assert!(level.is_available(), "this machine has no {}", level.name());
    launch(level, Plain(computation))
}

struct Plain<V>(V);

impl<V: Vectorized> Kernel for Plain<V> {
    type Output = V::Output;

    #[inline(always)]
    unsafe fn call<S: Simd>(self) -> V::Output {
        self.0.call()
    }
}
