//! Root mean square norms.

use burn::tensor::Tensor;
use burn::tensor::backend::DeviceOps;
use burn_cubecl::CubeRuntime;
use emberlm_backends::cube;

use super::tensor::{Cube, buffer, float_tensor, floats, unset};

pub(super) fn rms_norm<R: CubeRuntime>(
    x: Tensor<Cube<R>, 2>,
    weight: Tensor<Cube<R>, 1>,
    eps: f64,
    unit_offset: bool,
) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    let [m, h] = x.dims();
    let (x, weight) = (floats(x), floats(weight));
    let y = unset(&x, [m, h], x.dtype);
    let shape = cube::RmsNorm { m, h, eps: eps as f32, unit_offset };
    cube::rms_norm(&x.client, &buffer(&x), &buffer(&weight), &buffer(&y), shape);
    float_tensor(y)
}

pub(super) fn add_rms_norm<R: CubeRuntime>(
    x: Tensor<Cube<R>, 2>,
    z: Tensor<Cube<R>, 2>,
    weight: Tensor<Cube<R>, 1>,
    eps: f64,
    unit_offset: bool,
) -> (Tensor<Cube<R>, 2>, Tensor<Cube<R>, 2>)
where
    R::Device: DeviceOps,
{
    let [m, h] = x.dims();
    let (x, z, weight) = (floats(x), floats(z), floats(weight));
    let [sum, y] = [(); 2].map(|()| unset(&x, [m, h], x.dtype));
    let shape = cube::RmsNorm { m, h, eps: eps as f32, unit_offset };
    let [sum_buffer, y_buffer] = [&sum, &y].map(buffer);
    cube::add_rms_norm(&x.client, &buffer(&x), &buffer(&z), &buffer(&weight), &sum_buffer, &y_buffer, shape);
    (float_tensor(sum), float_tensor(y))
}

pub(super) fn rms_norm_gated<R: CubeRuntime>(
    x: Tensor<Cube<R>, 2>,
    z: Tensor<Cube<R>, 2>,
    weight: Tensor<Cube<R>, 1>,
    eps: f64,
) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    let [m, h] = x.dims();
    let (x, z, weight) = (floats(x), floats(z), floats(weight));
    let y = unset(&x, [m, h], x.dtype);
    let shape = cube::RmsNorm { m, h, eps: eps as f32, unit_offset: false };
    cube::rms_norm_gated(&x.client, &buffer(&x), &buffer(&z), &buffer(&weight), &buffer(&y), shape);
    float_tensor(y)
}
