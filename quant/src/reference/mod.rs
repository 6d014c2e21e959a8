//! Every operation in plain burn operations: slow, differentiable, right on any backend.

mod attention;
mod delta;
mod halting;
mod linear;
mod norm;
mod top_k;
mod unpack;

#[cfg(any(feature = "flex", feature = "ndarray"))]
pub(crate) use attention::read;
#[cfg(all(test, feature = "ndarray"))]
pub(crate) use attention::rows;
pub use attention::{attention, store_kv};
#[cfg(feature = "cube")]
pub(crate) use attention::{gathered, read_store};
pub use delta::{causal_conv1d_silu, delta_gates, gated_delta_rule};
pub use halting::halt_step;
pub use linear::{embed, linear, swiglu_mlp};
pub use norm::{add_rms_norm, rms_norm, rms_norm_gated, rotary, sigmoid_gate};
pub use top_k::top_k;
pub use unpack::{dequantize, unpack_f16, unpack_i8};
