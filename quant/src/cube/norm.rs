//! Root mean square norms.

use burn::tensor::Tensor;
use burn::tensor::backend::DeviceOps;
use burn_cubecl::CubeRuntime;
use emberlm_backends::cube;
use emberlm_backends::types::RmsNorm;

use super::tensor::{Cube, buffer, float_tensor, floats, row_buffer, rows, unset};
use crate::ops::Norm;

/// Rows, and their norm.
type RowsOfNorm<R> = (Tensor<Cube<R>, 2>, Norm<Cube<R>>);

pub(super) fn rms_norm<R: CubeRuntime>(x: Tensor<Cube<R>, 2>, norm: Norm<Cube<R>>) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    let [y] = rms_norm_all([(x, norm)]);
    y
}

pub(super) fn rms_norm_all<R: CubeRuntime, const N: usize>(tensors: [RowsOfNorm<R>; N]) -> [Tensor<Cube<R>, 2>; N]
where
    R::Device: DeviceOps,
{
    let shapes = tensors.each_ref().map(|(x, norm)| norm.shape(x.dims()));
    let types = tensors.each_ref().map(|(x, norm)| (x.dtype(), norm.weight.dtype()));
    let alike = |i: usize| types[i] == types[0] && shapes[i] == RmsNorm { m: shapes[i].m, ..shapes[0] };
    if !(0..N).all(alike) {
        return tensors.map(|(x, norm)| rms_norm(x, norm));
    }
    let Some(&shape) = shapes.first() else { return tensors.map(|(x, _)| x) };
    let tensors = tensors.map(|(x, norm)| (rows(x), floats(norm.weight)));
    let y: [_; N] = std::array::from_fn(|i| {
        let ((x, _), _) = &tensors[i];
        unset(x, [shapes[i].m, shape.h], x.dtype)
    });
    let buffers = tensors.each_ref().map(|((x, stride), weight)| (row_buffer(x, *stride), buffer(weight)));
    let y_buffers = y.each_ref().map(buffer);
    let of = |i: usize| {
        let ((_, stride), (x, weight)) = (&tensors[i].0, &buffers[i]);
        cube::NormRows { x, m: shapes[i].m, stride: *stride, weight, y: &y_buffers[i] }
    };
    let ((first, _), _) = &tensors[0];
    cube::rms_norm_all(&first.client, &std::array::from_fn::<_, N, _>(of), shape);
    y.map(float_tensor)
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
