//! What must hold on every backend; each backend's test binary runs all of it.

pub mod kernels;
mod random;
