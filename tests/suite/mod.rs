//! What must hold on every backend; each backend's test binary runs all of it.

mod fixture;
pub mod golden;
pub mod invariants;
pub mod kernels;
mod random;
pub mod units;
