//! Linear layers, embeddings and the SwiGLU block over a dequantised weight.

use burn::module::Param;
use burn::tensor::activation::silu;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Int, Tensor};

use super::dequantize;
use crate::modules::{Linear, SwiGlu};
use crate::packed::PackedWeight;

/// See [`CompactBackend::packed_linear`](crate::CompactBackend::packed_linear).
pub fn linear<B: Backend>(x: Tensor<B, 2>, w: &PackedWeight<B>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
    let y = x.matmul(dequantize(w).transpose());
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// See [`CompactBackend::packed_embed`](crate::CompactBackend::packed_embed).
pub fn embed<B: Backend>(ids: Tensor<B, 1, Int>, w: &PackedWeight<B>) -> Tensor<B, 2> {
    let table = dequantize(w);
    let ([m], [n, k]) = (ids.dims(), table.dims());
    let known = ids.clone().clamp(0, n as i64 - 1);
    let unknown = ids.not_equal(known.clone()).unsqueeze_dim::<2>(1).expand([m, k]);
    table.select(0, known).mask_fill(unknown, f32::NAN)
}

/// See [`CompactBackend::swiglu_mlp`](crate::CompactBackend::swiglu_mlp).
pub fn swiglu_mlp<B: Backend>(x: Tensor<B, 2>, mlp: &SwiGlu<B>, active: Option<Tensor<B, 1, Bool>>) -> Tensor<B, 2> {
    let apply = |layer: &Linear<B>, x| linear(x, &layer.weight, layer.bias.as_ref().map(Param::val));
    let gate = apply(&mlp.gate_proj, x.clone());
    let up = apply(&mlp.up_proj, x);
    let y = apply(&mlp.down_proj, silu(gate) * up);
    match active {
        Some(active) => y * active.float().unsqueeze_dim(1),
        None => y,
    }
}
