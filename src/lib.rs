//! Compact language models on the CPU, wgpu and CUDA.

pub use emberlm_model as model;
pub use emberlm_quant as quant;
