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
use crate::halting::{HaltRecord, HaltRows, HaltRule, HaltState};
use crate::kv::{KeyValue, KvStore, Rotary};
use crate::modules::SwiGlu;
use crate::ops::{AttentionShape, AttentionSpan, DeltaRule, ModelSize, NewTokens};
use crate::packed::PackedWeight;

/// Any GPU that wgpu finds.
#[cfg(feature = "wgpu")]
pub type Wgpu = CubeBackend<cubecl::wgpu::WgpuRuntime, f32, i32, u32>;

/// NVIDIA cards.
#[cfg(feature = "cuda")]
pub type Cuda = CubeBackend<cubecl::cuda::CudaRuntime, f32, i32, u32>;

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

    fn packed_linear(x: Tensor<Self, 2>, w: &PackedWeight<Self>, bias: Option<Tensor<Self, 1>>) -> Tensor<Self, 2> {
        linear::packed_linear(x, w, bias)
    }

    fn packed_embed(ids: Tensor<Self, 1, Int>, w: &PackedWeight<Self>) -> Tensor<Self, 2> {
        linear::packed_embed(ids, w)
    }

    fn swiglu_mlp(x: Tensor<Self, 2>, mlp: &SwiGlu<Self>, active: Option<Tensor<Self, 1, Bool>>) -> Tensor<Self, 2> {
        linear::swiglu_mlp(x, mlp, active)
    }

    fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, eps: f64, unit_offset: bool) -> Tensor<Self, 2> {
        norm::rms_norm(x, weight, eps, unit_offset)
    }

    fn add_rms_norm(
        x: Tensor<Self, 2>,
        y: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        eps: f64,
        unit_offset: bool,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        norm::add_rms_norm(x, y, weight, eps, unit_offset)
    }

    fn sigmoid_gate(x: Tensor<Self, 2>, gate: Tensor<Self, 2>) -> Tensor<Self, 2> {
        gates::sigmoid_gate(x, gate)
    }

    fn rms_norm_gated(x: Tensor<Self, 2>, z: Tensor<Self, 2>, weight: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 2> {
        norm::rms_norm_gated(x, z, weight, eps)
    }

    fn rotary(x: Tensor<Self, 4>, rotary: &Rotary<Self>) -> Tensor<Self, 4> {
        rotary::rotary(x, rotary)
    }

    fn store_kv(store: KvStore<Self>, new: Tensor<Self, 4>, at: usize) -> KvStore<Self> {
        attention::store_kv(store, new, at)
    }

    fn store_kv_spans(
        stores: Vec<[KvStore<Self>; 2]>,
        new: [Tensor<Self, 4>; 2],
        spans: &[NewTokens],
    ) -> Vec<[KvStore<Self>; 2]> {
        attention::store_kv_spans(stores, new, spans)
    }

    fn cached_attention(
        q: Tensor<Self, 4>,
        k: KeyValue<'_, Self>,
        v: KeyValue<'_, Self>,
        shape: AttentionShape,
    ) -> Tensor<Self, 4> {
        attention::cached_attention(q, k, v, shape)
    }

    fn cached_attention_spans(q: Tensor<Self, 4>, spans: &[AttentionSpan<'_, Self>]) -> Tensor<Self, 4> {
        attention::cached_attention_spans(q, spans)
    }

    fn causal_conv1d_silu(
        u: Tensor<Self, 3>,
        tail: Tensor<Self, 3>,
        weight: Tensor<Self, 3>,
    ) -> (Tensor<Self, 3>, Tensor<Self, 3>) {
        conv::causal_conv1d_silu(u, tail, weight)
    }

    fn causal_conv1d_silu_spans(
        u: Tensor<Self, 3>,
        tokens: &[usize],
        tails: Vec<Tensor<Self, 3>>,
        weight: Tensor<Self, 3>,
    ) -> (Tensor<Self, 3>, Vec<Tensor<Self, 3>>) {
        conv::causal_conv1d_silu_spans(u, tokens, tails, weight)
    }

    fn delta_gates(
        dt: Tensor<Self, 3>,
        b: Tensor<Self, 3>,
        dt_bias: Tensor<Self, 1>,
        a_log: Tensor<Self, 1>,
    ) -> (Tensor<Self, 3>, Tensor<Self, 3>) {
        gates::delta_gates(dt, b, dt_bias, a_log)
    }

    fn gated_delta_rule(rule: DeltaRule<Self>, state: Tensor<Self, 4>) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        delta::gated_delta_rule(rule, state)
    }

    fn gated_delta_rule_spans(
        rule: DeltaRule<Self>,
        tokens: &[usize],
        states: Vec<Tensor<Self, 4>>,
    ) -> (Tensor<Self, 4>, Vec<Tensor<Self, 4>>) {
        delta::gated_delta_rule_spans(rule, tokens, states)
    }

    fn start_halting(m: usize, h: usize, device: &Self::Device) -> HaltState<Self> {
        halting::start_halting(m, h, device)
    }

    fn halt_step(
        state: HaltState<Self>,
        step_state: Tensor<Self, 2>,
        halt_logit: Option<Tensor<Self, 1>>,
        rule: HaltRule,
        rows: Option<&HaltRows<Self>>,
    ) -> (HaltState<Self>, HaltRecord<Self>) {
        halting::halt_step(state, step_state, halt_logit, rule, rows)
    }

    fn top_k(x: Tensor<Self, 2>, k: usize) -> (Tensor<Self, 2>, Tensor<Self, 2, Int>) {
        top_k::top_k(x, k)
    }
}
