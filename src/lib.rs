//! Compact language models on the CPU, wgpu and CUDA.

pub use emberlm_quant as quant;
