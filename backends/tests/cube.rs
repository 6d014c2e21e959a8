//! The GPU kernels against their plain twins: on whatever device wgpu finds, WGSL with feature `wgpu` and SPIR-V with `vulkan`,
//! or on an NVIDIA card with `cuda` alone.
//!
//! A kernel that does not compile leaves zeros or stale memory behind and no error, so every output starts as NaN.

#![cfg(any(feature = "wgpu", feature = "cuda"))]

#[path = "cube/attention.rs"]
mod attention;
#[path = "cube/border.rs"]
mod border;
#[path = "cube/cmma.rs"]
mod cmma;
mod common;
#[path = "cube/decoder.rs"]
mod decoder;
#[path = "cube/delta.rs"]
mod delta;
#[path = "cube/device.rs"]
mod device;
#[path = "cube/halting.rs"]
mod halting;
#[path = "cube/linear.rs"]
mod linear;
#[path = "cube/norm.rs"]
mod norm;
#[path = "cube/sequence.rs"]
mod sequence;
#[path = "cube/spans.rs"]
mod spans;
#[path = "cube/together.rs"]
mod together;
#[path = "cube/top_k.rs"]
mod top_k;
