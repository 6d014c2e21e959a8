//! GPU kernels, written once in CubeCL for wgpu (WGSL, SPIR-V, MSL) and CUDA.
//!
//! Functions take a client and handles, never a burn tensor. Sums are in f32 whatever the activations are.
