//! GPU kernels, written once in CubeCL for wgpu (WGSL, SPIR-V, MSL) and CUDA.
//!
//! Functions take a client and handles, never a burn tensor. Sums are in f32 whatever the activations are.

mod launch;
mod norm;
mod reduce;

pub use launch::Buffer;
pub use norm::{RmsNorm, rms_norm, rms_norm_gated};
