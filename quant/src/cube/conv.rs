//! The causal convolution of DeltaNet.

use burn::tensor::Tensor;
use burn::tensor::backend::DeviceOps;
use burn_cubecl::CubeRuntime;
use emberlm_backends::cube;

use super::tensor::{Cube, buffer, float_tensor, floats, unset};

pub(super) fn causal_conv1d_silu<R: CubeRuntime>(
    u: Tensor<Cube<R>, 3>,
    tail: Tensor<Cube<R>, 3>,
    weight: Tensor<Cube<R>, 3>,
) -> (Tensor<Cube<R>, 3>, Tensor<Cube<R>, 3>)
where
    R::Device: DeviceOps,
{
    let [batch, seq, channels] = u.dims();
    let [_, _, width] = weight.dims();
    let (u, tail, weight) = (floats(u), floats(tail), floats(weight));
    let y = unset(&u, [batch, seq, channels], u.dtype);
    let next = unset(&tail, [batch, width - 1, channels], tail.dtype);
    let shape = cube::CausalConv1d { batch, seq, channels, width };
    cube::causal_conv1d_silu(
        &u.client,
        &buffer(&u),
        &buffer(&tail),
        &buffer(&weight),
        &buffer(&y),
        &buffer(&next),
        shape,
    );
    (float_tensor(y), float_tensor(next))
}
