//! Compact language models on the CPU, wgpu and CUDA.
