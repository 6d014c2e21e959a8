//! Linear layers, embeddings and the SwiGLU block.

use burn::module::Param;
use burn::tensor::backend::DeviceOps;
use burn::tensor::{Bool, Int, Tensor, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use emberlm_backends::cube;

use super::tensor::{Cube, buffer, flags, float_tensor, floats, ints, unset};
use crate::modules::{Linear, SwiGlu};
use crate::packed::PackedWeight;
use crate::stored::stored;
use crate::{split, swiglu};

pub(super) fn packed_linear<R: CubeRuntime>(
    x: Tensor<Cube<R>, 2>,
    w: &PackedWeight<Cube<R>>,
    bias: Option<Tensor<Cube<R>, 1>>,
) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    if let PackedWeight::Split(w) = w {
        return split::linear(x, w, bias, packed_linear);
    }
    let [m, _] = x.dims();
    let (x, w) = (floats(x), weight(w));
    let bias = bias.map(|bias| buffer(&floats(bias)));
    let y = unset(&x, [m, w.n], x.dtype);
    let p = cube::Linear { bias: bias.as_ref(), active: None };
    cube::linear(&x.client, &buffer(&x), m, &w, &buffer(&y), p);
    float_tensor(y)
}

pub(super) fn packed_linears<R: CubeRuntime, const N: usize>(
    x: Tensor<Cube<R>, 2>,
    layers: [&Linear<Cube<R>>; N],
) -> [Tensor<Cube<R>, 2>; N]
where
    R::Device: DeviceOps,
{
    if layers.into_iter().any(split::in_parts) {
        return layers.map(|layer| packed_linear(x.clone(), &layer.weight, layer.bias.as_ref().map(Param::val)));
    }
    let [m, _] = x.dims();
    let x = floats(x);
    let weights = layers.map(|layer| weight(&layer.weight));
    let biases = layers.map(|layer| layer.bias.as_ref().map(|bias| buffer(&floats(bias.val()))));
    let outputs = weights.each_ref().map(|w| unset(&x, [m, w.n], x.dtype));
    let buffers = outputs.each_ref().map(buffer);
    let of = |i: usize| cube::LinearOfX { weight: &weights[i], bias: biases[i].as_ref(), y: &buffers[i] };
    cube::linears(&x.client, &buffer(&x), m, &std::array::from_fn::<_, N, _>(of));
    outputs.map(float_tensor)
}

pub(super) fn packed_embed<R: CubeRuntime>(
    ids: Tensor<Cube<R>, 1, Int>,
    w: &PackedWeight<Cube<R>>,
) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    if let PackedWeight::Split(w) = w {
        return split::embed(ids, w);
    }
    let (ids, w) = (ints(ids), weight(w));
    let y = unset(&ids, [ids.shape()[0], w.k], burn::tensor::DType::F32);
    cube::embed(&ids.client, &buffer(&ids), &w, &buffer(&y));
    float_tensor(y)
}

pub(super) fn swiglu_mlp<R: CubeRuntime>(
    x: Tensor<Cube<R>, 2>,
    mlp: &SwiGlu<Cube<R>>,
    active: Option<Tensor<Cube<R>, 1, Bool>>,
) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    let SwiGlu { gate_proj, up_proj, down_proj } = mlp;
    if swiglu::needs_layers(mlp) {
        return swiglu::by_layers(x, mlp, active);
    }
    let [m, h] = x.dims();
    let x = floats(x);
    let [gate, up, down] = [gate_proj, up_proj, down_proj].map(|layer| weight(&layer.weight));
    let active = active.map(flags);
    let active = active.as_ref().map(buffer);
    let inner = unset(&x, [m, gate.n], x.dtype);
    let layers = cube::GatedLinear { gate: &gate, up: &up, active: active.as_ref() };
    cube::gated_linear(&x.client, &buffer(&x), m, layers, &buffer(&inner));
    let y = unset(&x, [m, h], x.dtype);
    let p = cube::Linear { bias: None, active: active.as_ref() };
    cube::linear(&x.client, &buffer(&inner), m, &down, &buffer(&y), p);
    float_tensor(y)
}

/// What the kernels take of a weight.
fn weight<R: CubeRuntime>(w: &PackedWeight<Cube<R>>) -> cube::Weight
where
    R::Device: DeviceOps,
{
    stored(w, |floats| buffer(&into_contiguous(floats)), |words| buffer(&into_contiguous(words)))
}
