//! Gates: the output gate of attention, and decay and writing strength of the delta rule.

use burn::tensor::backend::DeviceOps;
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeRuntime;
use emberlm_backends::cube;

use super::tensor::{Cube, buffer, float_tensor, floats, row_buffer, rows, unset};
use crate::ops::DeltaGates;

pub(super) fn sigmoid_gate<R: CubeRuntime>(x: Tensor<Cube<R>, 2>, gate: Tensor<Cube<R>, 2>) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    let shape = x.dims();
    let (x, (gate, gate_stride)) = (floats(x), rows(gate));
    let y = unset(&x, shape, x.dtype);
    let gate = row_buffer(&gate, gate_stride);
    cube::sigmoid_gate(&x.client, &buffer(&x), &gate, &buffer(&y), shape, gate_stride);
    float_tensor(y)
}

pub(super) fn delta_gates<R: CubeRuntime>(gates: DeltaGates<Cube<R>>) -> (Tensor<Cube<R>, 3>, Tensor<Cube<R>, 3>)
where
    R::Device: DeviceOps,
{
    let DeltaGates { dt, b, dt_bias, a_log } = gates;
    let shape = dt.dims();
    let ([dt, b], [dt_bias, a_log]) = ([dt, b].map(floats), [dt_bias, a_log].map(floats));
    let [g, beta] = [(); 2].map(|()| unset(&dt, shape, DType::F32));
    cube::delta_gates(
        &dt.client,
        &buffer(&dt),
        &buffer(&b),
        &buffer(&dt_bias),
        &buffer(&a_log),
        &buffer(&g),
        &buffer(&beta),
        shape[2],
    );
    (float_tensor(g), float_tensor(beta))
}
