//! What emberlm runs on a device: CPU kernels over slices, GPU kernels over buffers, and device discovery.
//!
//! The kernels in [`cpu`] know no tensor library: slices in, slices out, shapes as numbers. They trust what they are given
//! once the lengths were checked at the public border, so weights that come from a file are validated by the caller's types
//! (block sizes, row indices, code widths) before they arrive here.

pub mod cpu;
#[cfg(feature = "cube")]
pub mod cube;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub mod device;
pub mod panics;
