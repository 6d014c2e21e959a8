//! GPU kernels, written once in CubeCL for wgpu (WGSL, SPIR-V, MSL) and CUDA.
//!
//! Functions take a client and buffers, never a burn tensor. Sums are in f32 whatever the activations are.
//!
//! Kernels are launched without bounds checks of the device. What keeps them inside their arrays: a [`Buffer`] holds what it says,
//! every function checks the buffers against the shapes it computes with, and types where a kernel has a fixed one; kernels leave
//! what lies past the last element alone, and an index that comes from memory (an id, a stored row, a position) is brought into its
//! range where it is read.

// Kernels are translated by CubeCL, which knows `%` alone, and `if comptime!(..)` must stand by itself.
#![allow(clippy::manual_is_multiple_of, clippy::collapsible_if)]

mod attention;
mod bandwidth;
mod cache;
mod conv;
mod delta;
mod eight_bits;
mod gates;
mod half;
mod halting;
mod instructions;
mod launch;
mod matmul;
mod norm;
mod reduce;
mod rotary;
mod spans;
mod top_k;

pub use attention::flash::{attention, attention_spans, fits_attention};
pub use attention::latent::{HeadProjection, project_queries, project_values};
pub use attention::types::{Attention, AttentionSpan, KvRows};
pub use bandwidth::read_bandwidth;
pub use cache::{CacheBuffer, KvSide, store_kv, store_kv_spans};
pub use conv::{ConvSpan, causal_conv1d_silu, causal_conv1d_silu_spans};
pub use delta::{DeltaSpan, MAX_KEY_DIM, gated_delta_rule, gated_delta_rule_spans};
pub use gates::{activate, delta_gates, sigmoid_gate};
pub use halting::{HaltGate, HaltRows, HaltState, HaltStep, halt_step, start_halting};
pub use instructions::{Instructions, matrix_types, with_instructions};
pub use launch::{Buffer, MAX_ELEMENTS, launches, launches_of_thread};
pub use matmul::embed::embed;
pub use matmul::linear::{gated_linear, linear};
pub use matmul::linears::{LinearOfX, linears};
pub use matmul::types::{GatedLinear, Linear};
pub use matmul::weight::{BlockScales, CodeBook4, Int8, IntegerRows, Matrix, Weight};
pub use norm::{NormRows, add_rms_norm, rms_norm, rms_norm_all, rms_norm_gated};
pub use rotary::{RotaryHeads, rotary, rotary_all};
pub use top_k::{MAX_TOP_K, TopK, top_k};
