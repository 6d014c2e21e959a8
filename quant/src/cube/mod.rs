//! The operations on GPUs: tensors are unwrapped to handles and given to [`emberlm_backends::cube`].
//!
//! One file per group of operations; the methods below only delegate.

use burn::tensor::backend::DeviceOps;
use burn_cubecl::{CubeBackend, CubeRuntime};

use crate::CompactBackend;

/// Any GPU that wgpu finds.
#[cfg(feature = "wgpu")]
pub type Wgpu = CubeBackend<cubecl::wgpu::WgpuRuntime, f32, i32, u32>;

/// NVIDIA cards.
#[cfg(feature = "cuda")]
pub type Cuda = CubeBackend<cubecl::cuda::CudaRuntime, f32, i32, u32>;

/// Integers are I32 and flags U32, the types that every shading language has.
impl<R: CubeRuntime> CompactBackend for CubeBackend<R, f32, i32, u32> where R::Device: DeviceOps {}
