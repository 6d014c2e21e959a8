//! Rotary positions.

use burn::tensor::Tensor;
use burn::tensor::backend::DeviceOps;
use burn_cubecl::CubeRuntime;
use emberlm_backends::cube;
use emberlm_backends::types::RotaryShape;

use super::tensor::{Cube, buffer, float_tensor, floats, unset};
use crate::kv::Rotary;

pub(super) fn rotary<R: CubeRuntime>(x: Tensor<Cube<R>, 4>, rotary: &Rotary<Cube<R>>) -> Tensor<Cube<R>, 4>
where
    R::Device: DeviceOps,
{
    let [batch, seq, heads, head_dim] = x.dims();
    let half = rotary.cos.dims()[1];
    let (x, cos, sin) = (floats(x), floats(rotary.cos.clone()), floats(rotary.sin.clone()));
    let y = unset(&x, [batch, seq, heads, head_dim], x.dtype);
    let shape = RotaryShape { batch, seq, heads, head_dim, half };
    cube::rotary(&x.client, &buffer(&x), &buffer(&cos), &buffer(&sin), &buffer(&y), shape);
    float_tensor(y)
}
