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
    let (y, mut tails) = causal_conv1d_silu_spans(u.clone(), &[u.dims()[1]], vec![tail], weight);
    (y, tails.remove(0))
}

/// Of sequences with a batch of 1, or one with any.
pub(super) fn causal_conv1d_silu_spans<R: CubeRuntime>(
    u: Tensor<Cube<R>, 3>,
    tokens: &[usize],
    tails: Vec<Tensor<Cube<R>, 3>>,
    weight: Tensor<Cube<R>, 3>,
) -> (Tensor<Cube<R>, 3>, Vec<Tensor<Cube<R>, 3>>)
where
    R::Device: DeviceOps,
{
    let [batch, seq, channels] = u.dims();
    let [_, _, width] = weight.dims();
    let (u, weight) = (floats(u), floats(weight));
    let tails: Vec<_> = tails.into_iter().map(floats).collect();
    let y = unset(&u, [batch, seq, channels], u.dtype);
    let next: Vec<_> = tails.iter().map(|tail| unset(tail, [batch, width - 1, channels], tail.dtype)).collect();
    let [tail_buffers, next_buffers] = [&tails, &next].map(|tails| tails.iter().map(buffer).collect::<Vec<_>>());
    let spans = tail_buffers.iter().zip(&next_buffers).zip(tokens).map(|((tail, next_tail), &seq)| {
        let shape = cube::CausalConv1d { batch, seq, channels, width };
        cube::ConvSpan { tail, next_tail, shape }
    });
    let spans: Vec<_> = spans.collect();
    cube::causal_conv1d_silu_spans(&u.client, &buffer(&u), &spans, &buffer(&weight), &buffer(&y));
    (float_tensor(y), next.into_iter().map(float_tensor).collect())
}
