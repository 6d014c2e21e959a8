//! The suite on wgpu: WGSL with feature `wgpu`, SPIR-V with feature `vulkan`.

#[macro_use]
mod suite;

type Backend = emberlm::quant::cube::Wgpu;

whole_suite!();
