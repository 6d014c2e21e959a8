//! What emberlm runs on a device: CPU kernels over slices, GPU kernels over buffers, and device discovery.
//!
//! The kernels in [`cpu`] know no tensor library: slices in, slices out, shapes as numbers. Every public function checks the
//! lengths of what it is given against the shapes, once and in arithmetic that does not wrap, and panics with the name of what
//! does not fit. The unsafe code behind that border relies on it, so no safe call reaches memory that is not its own. What a file
//! may get wrong is found before, by the types that it is read into: a panic here is a fault of the caller.

mod check;
pub mod cpu;
#[cfg(feature = "cube")]
pub mod cube;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub mod device;
pub mod environment;
pub mod panics;
pub mod random;
pub mod types;
mod variable;
