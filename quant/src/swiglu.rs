//! A SwiGLU block put together from its layers, for blocks that no kernel takes whole.

use burn::module::Param;
use burn::tensor::activation::silu;
use burn::tensor::{Bool, Tensor};

use crate::CompactBackend;
use crate::modules::{Linear, SwiGlu};
use crate::split;

/// Whether the block has biases, or a matrix in parts. No published family has biases here, and few devices have buffers too small
/// for these matrices.
pub(crate) fn needs_layers<B: CompactBackend>(mlp: &SwiGlu<B>) -> bool {
    let layers = [&mlp.gate_proj, &mlp.up_proj, &mlp.down_proj];
    layers.into_iter().any(|layer| layer.bias.is_some() || split::in_parts(layer))
}

/// See [`CompactBackend::swiglu_mlp`]; every row is computed.
pub(crate) fn by_layers<B: CompactBackend>(
    x: Tensor<B, 2>,
    mlp: &SwiGlu<B>,
    active: Option<Tensor<B, 1, Bool>>,
) -> Tensor<B, 2> {
    let apply = |layer: &Linear<B>, x| B::packed_linear(x, &layer.weight, layer.bias.as_ref().map(Param::val));
    let inner = silu(apply(&mlp.gate_proj, x.clone())) * apply(&mlp.up_proj, x);
    let y = apply(&mlp.down_proj, inner);
    match active {
        Some(active) => {
            let active = active.float().cast(y.dtype());
            y * active.unsqueeze_dim(1)
        }
        None => y,
    }
}
