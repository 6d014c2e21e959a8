//! CPU kernels: slices in, slices out.
//!
//! Every function checks the lengths of its arguments once and panics with the name of the argument that does not fit; the
//! code behind that border trusts them. A kernel (a struct that is launched) is made by the function of its file alone, from
//! slices whose lengths were checked there; that is what the safety comments below call checked. All arithmetic is f32 unless a
//! function or [`Precision`] says otherwise. Work is split over a rayon pool (see [`set_threads`] and [`run`]), and every kernel
//! exists for each instruction set in [`Level`].
// Loops over constant bounds index several arrays at once: that is what keeps accumulators in registers.
#![allow(clippy::needless_range_loop)]

mod attention;
mod bandwidth;
mod cache;
mod conv;
mod delta;
mod elementwise;
mod gates;
mod level;
mod matmul;
mod memory;
mod mlp;
mod norm;
pub mod plain;
mod pool;
mod precision;
mod rotary;
mod simd;
mod spans;
mod vectorized;
mod weight_buffer;

pub use attention::{
    Attention, AttentionSpan, CodeDecoder, KeyValue, Layer, attention, attention_spans, hidden_values,
};
pub use bandwidth::{read, read_bandwidth};
pub use cache::{CacheSlice, CacheSliceMut, store_kv};
pub use conv::{causal_conv1d_silu, causal_conv1d_silu_spans};
pub use delta::{gated_delta_rule, gated_delta_rule_spans};
pub use gates::{delta_gates, sigmoid_gate};
pub use level::{Level, features, level, with_level};
pub use matmul::embed::{dequantize_rows, embed};
pub use matmul::linear::{head, linear, linears};
pub use matmul::types::Product;
pub use matmul::weight::{BlockScales, CodeBook4, INT8_BLOCK, Int8, IntegerRows, Matrix, Weight};
pub use memory::{advise_large_pages, memory, release_free_memory};
pub use mlp::{Mlp, swiglu_mlp};
pub use norm::{add_rms_norm, rms_norm, rms_norm_gated};
pub use pool::{MAX_THREADS, refused_threads, run, set_threads, threads, with_threads};
pub use precision::{Precision, precision, with_precision};
pub use rotary::rotary;
pub use vectorized::{Vectorized, vectorized};
pub use weight_buffer::WeightBuffer;
