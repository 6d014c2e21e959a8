//! The operations on GPUs: tensors are unwrapped to handles and given to [`emberlm_backends::cube`].
//!
//! One file per group of operations; the methods below only delegate.

mod attention;
mod conv;
mod delta;
mod gates;
mod halting;
mod linear;
mod norm;
mod rotary;
mod tensor;
mod top_k;

use burn::tensor::backend::{Backend, DeviceOps};
use burn::tensor::{Bool, DType, Int, Tensor};
use burn_cubecl::{CubeBackend, CubeRuntime};

use crate::CompactBackend;
use crate::activations::Activations;
use crate::halting::{HaltRecord, HaltState, HaltStep};
use crate::kernels::kernel_operations;
use crate::kv::{KvStore, Rotary};
use crate::modules::{Linear, SwiGlu};
use crate::ops::{AttentionSpan, CachedKv, CausalConv, DeltaGates, DeltaRule, ModelSize, NewTokens, Norm};
use crate::packed::PackedWeight;

/// Any GPU that wgpu finds.
#[cfg(feature = "wgpu")]
pub type Wgpu = CubeBackend<cubecl::wgpu::WgpuRuntime, f32, i32, u32>;

/// NVIDIA cards.
#[cfg(feature = "cuda")]
pub type Cuda = CubeBackend<cubecl::cuda::CudaRuntime, f32, i32, u32>;

/// The functions that `kernel_operations` calls, out of the files of their groups.
mod operations {
    pub(super) use super::attention::{cached_attention, cached_attention_spans, store_kv};
    pub(super) use super::conv::{causal_conv1d_silu, causal_conv1d_silu_spans};
    pub(super) use super::delta::{gated_delta_rule, gated_delta_rule_spans};
    pub(super) use super::gates::{delta_gates, sigmoid_gate};
    pub(super) use super::halting::{halt_step, start_halting};
    pub(super) use super::linear::{packed_embed, packed_linear, packed_linears, swiglu_mlp};
    pub(super) use super::norm::{add_rms_norm, rms_norm, rms_norm_gated};
    pub(super) use super::rotary::rotary;
}

/// Integers are I32 and flags U32, the types that every shading language has.
impl<R: CubeRuntime> CompactBackend for CubeBackend<R, f32, i32, u32>
where
    R::Device: DeviceOps,
{
    const TOP_K_ON_DEVICE: usize = emberlm_backends::cube::MAX_TOP_K;

    fn max_buffer(device: &Self::Device) -> Option<usize> {
        Some(usize::try_from(R::client(device).properties().memory.max_page_size).unwrap_or(usize::MAX))
    }

    fn max_elements(_device: &Self::Device) -> Option<usize> {
        Some(emberlm_backends::cube::MAX_ELEMENTS)
    }

    fn limit(_device: &Self::Device, size: ModelSize) -> Option<String> {
        use emberlm_backends::cube::{MAX_KEY_DIM, fits_attention};
        match size {
            ModelSize::AttentionHead(width) if !fits_attention(width) => {
                Some("attention on a GPU takes heads of at most 1024 (512 where only 2 divides them, 256 where they are odd)".into())
            }
            ModelSize::DeltaKey(width) if width > MAX_KEY_DIM => {
                Some(format!("the delta rule on a GPU takes keys of at most {MAX_KEY_DIM}"))
            }
            _ => None,
        }
    }

    fn computes_with(device: &Self::Device, activations: Activations) -> bool {
        match activations {
            Activations::F32 => true,
            Activations::F16 | Activations::Bf16 => Self::supports_dtype(device, DType::from(activations.float())),
            Activations::Int8 | Activations::Auto => false,
        }
    }

    fn run_pass<T: Send>(_activations: Activations, f: impl FnOnce() -> T + Send) -> crate::Result<T> {
        crate::read::contained(f)
    }

    fn store_kv_spans(
        stores: Vec<[KvStore<Self>; 2]>,
        new: [Tensor<Self, 4>; 2],
        spans: &[NewTokens],
    ) -> Vec<[KvStore<Self>; 2]> {
        attention::store_kv_spans(stores, new, spans)
    }

    fn reshape<const D: usize, const E: usize>(x: Tensor<Self, D>, shape: [usize; E]) -> Tensor<Self, E> {
        tensor::reshape(x, shape)
    }

    fn rms_norm_all<const N: usize>(tensors: [(Tensor<Self, 2>, Norm<Self>); N]) -> [Tensor<Self, 2>; N] {
        norm::rms_norm_all(tensors)
    }

    fn rotary_all<const N: usize>(x: [Tensor<Self, 4>; N], rotary: &Rotary<Self>) -> [Tensor<Self, 4>; N] {
        rotary::rotary_all(x, rotary)
    }

    fn top_k(x: Tensor<Self, 2>, k: usize) -> (Tensor<Self, 2>, Tensor<Self, 2, Int>) {
        top_k::top_k(x, k)
    }

    kernel_operations!(operations);
}
