//! Products with weights in every storage: dispatch, and the kernels of each arithmetic.

pub(super) mod bf16;
pub(super) mod dense;
pub(super) mod dequantize;
pub(super) mod embed;
pub(super) mod gemm;
pub(super) mod int8;
pub(super) mod linear;
mod memo;
pub(super) mod packed;
pub(super) mod types;
pub(super) mod weight;
