//! Root mean square norms.

use burn::tensor::Tensor;
use burn::tensor::backend::DeviceOps;
use burn_cubecl::CubeRuntime;
use emberlm_backends::cube;

use super::tensor::{Cube, buffer, float_tensor, floats, unset};
use crate::ops::Norm;

pub(super) fn rms_norm<R: CubeRuntime>(x: Tensor<Cube<R>, 2>, norm: Norm<Cube<R>>) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    let shape = norm.shape(x.dims());
    let (x, weight) = (floats(x), floats(norm.weight));
    let y = unset(&x, [shape.m, shape.h], x.dtype);
    cube::rms_norm(&x.client, &buffer(&x), &buffer(&weight), &buffer(&y), shape);
    float_tensor(y)
}

pub(super) fn add_rms_norm<R: CubeRuntime>(
    x: Tensor<Cube<R>, 2>,
    z: Tensor<Cube<R>, 2>,
    norm: Norm<Cube<R>>,
) -> (Tensor<Cube<R>, 2>, Tensor<Cube<R>, 2>)
where
    R::Device: DeviceOps,
{
    let shape = norm.shape(x.dims());
    let (x, z, weight) = (floats(x), floats(z), floats(norm.weight));
    let [sum, y] = [(); 2].map(|()| unset(&x, [shape.m, shape.h], x.dtype));
    let [sum_buffer, y_buffer] = [&sum, &y].map(buffer);
    cube::add_rms_norm(&x.client, &buffer(&x), &buffer(&z), &buffer(&weight), &sum_buffer, &y_buffer, shape);
    (float_tensor(sum), float_tensor(y))
}

pub(super) fn rms_norm_gated<R: CubeRuntime>(
    x: Tensor<Cube<R>, 2>,
    z: Tensor<Cube<R>, 2>,
    norm: Norm<Cube<R>>,
) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    let shape = norm.shape(x.dims());
    let (x, z, weight) = (floats(x), floats(z), floats(norm.weight));
    let y = unset(&x, [shape.m, shape.h], x.dtype);
    cube::rms_norm_gated(&x.client, &buffer(&x), &buffer(&z), &buffer(&weight), &buffer(&y), shape);
    float_tensor(y)
}
