//! The causal convolution of DeltaNet.

use burn::tensor::Tensor;
use burn::tensor::backend::DeviceOps;
use burn_cubecl::CubeRuntime;
use emberlm_backends::cube;
use emberlm_backends::types::ConvShape;

use super::tensor::{Cube, buffer, float_tensor, floats, unset};
use crate::ops::CausalConv;

pub(super) fn causal_conv1d_silu<R: CubeRuntime>(
    conv: CausalConv<Cube<R>>,
    tail: Tensor<Cube<R>, 3>,
) -> (Tensor<Cube<R>, 3>, Tensor<Cube<R>, 3>)
where
    R::Device: DeviceOps,
{
    let tokens = conv.u.dims()[1];
    let (y, mut tails) = causal_conv1d_silu_spans(conv, &[tokens], vec![tail]);
    (y, tails.remove(0))
}

/// Of sequences with a batch of 1, or one with any.
pub(super) fn causal_conv1d_silu_spans<R: CubeRuntime>(
    conv: CausalConv<Cube<R>>,
    tokens: &[usize],
    tails: Vec<Tensor<Cube<R>, 3>>,
) -> (Tensor<Cube<R>, 3>, Vec<Tensor<Cube<R>, 3>>)
where
    R::Device: DeviceOps,
{
    let shape = conv.shape();
    let ConvShape { batch, seq, channels, width } = shape;
    let (u, weight) = (floats(conv.u), floats(conv.weight));
    let tails: Vec<_> = tails.into_iter().map(floats).collect();
    let y = unset(&u, [batch, seq, channels], u.dtype);
    let next: Vec<_> = tails.iter().map(|tail| unset(tail, [batch, width - 1, channels], tail.dtype)).collect();
    let [tail_buffers, next_buffers] = [&tails, &next].map(|tails| tails.iter().map(buffer).collect::<Vec<_>>());
    let spans = tail_buffers.iter().zip(&next_buffers).zip(tokens).map(|((tail, next_tail), &seq)| cube::ConvSpan {
        tail,
        next_tail,
        shape: ConvShape { seq, ..shape },
    });
    let spans: Vec<_> = spans.collect();
    cube::causal_conv1d_silu_spans(&u.client, &buffer(&u), &spans, &buffer(&weight), &buffer(&y));
    (float_tensor(y), next.into_iter().map(float_tensor).collect())
}
