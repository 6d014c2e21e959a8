//! Rotary positions.

use burn::tensor::Tensor;
use burn::tensor::backend::DeviceOps;
use burn_cubecl::CubeRuntime;
use emberlm_backends::cube::{self, RotaryHeads};
use emberlm_backends::types::RotaryShape;

use super::tensor::{Cube, buffer, float_tensor, floats, unset};
use crate::kv::Rotary;

pub(super) fn rotary<R: CubeRuntime>(x: Tensor<Cube<R>, 4>, rotary: &Rotary<Cube<R>>) -> Tensor<Cube<R>, 4>
where
    R::Device: DeviceOps,
{
    let [y] = rotary_all([x], rotary);
    y
}

pub(super) fn rotary_all<R: CubeRuntime, const N: usize>(
    x: [Tensor<Cube<R>, 4>; N],
    rotary: &Rotary<Cube<R>>,
) -> [Tensor<Cube<R>, 4>; N]
where
    R::Device: DeviceOps,
{
    let dims = x.each_ref().map(Tensor::dims);
    let Some(&[batch, seq, heads, head_dim]) = dims.first() else { return x };
    let alike = |(x_dims, x_type): (&[usize; 4], _)| {
        [x_dims[0], x_dims[1], x_dims[3]] == [batch, seq, head_dim] && x_type == x[0].dtype()
    };
    if !dims.iter().zip(x.iter().map(Tensor::dtype)).all(alike) {
        return x.map(|x| self::rotary(x, rotary));
    }
    let half = rotary.cos.dims()[1];
    let x = x.map(floats);
    let (cos, sin) = (floats(rotary.cos.clone()), floats(rotary.sin.clone()));
    let y: [_; N] = std::array::from_fn(|i| unset(&x[i], dims[i], x[i].dtype));
    let [x_buffers, y_buffers] = [&x, &y].map(|tensors| tensors.each_ref().map(buffer));
    let of = |i: usize| RotaryHeads { x: &x_buffers[i], heads: dims[i][2], y: &y_buffers[i] };
    let shape = RotaryShape { batch, seq, heads, head_dim, half };
    let tensors: [_; N] = std::array::from_fn(of);
    cube::rotary_all(&x[0].client, &tensors, &buffer(&cos), &buffer(&sin), shape);
    y.map(float_tensor)
}
