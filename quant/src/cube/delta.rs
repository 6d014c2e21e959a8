//! The gated delta rule.

use burn::tensor::backend::DeviceOps;
use burn::tensor::{Tensor, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use emberlm_backends::cube::{self, Buffer};
use emberlm_backends::types::{DeltaRuleInputs, DeltaRuleShape};

use super::tensor::{Cube, buffer, float_tensor, floats, own, unset, view};
use crate::ops::DeltaRule;

pub(super) fn gated_delta_rule<R: CubeRuntime>(
    rule: DeltaRule<Cube<R>>,
    state: Tensor<Cube<R>, 4>,
) -> (Tensor<Cube<R>, 4>, Tensor<Cube<R>, 4>)
where
    R::Device: DeviceOps,
{
    let (o, mut states) = gated_delta_rule_spans(rule.clone(), &[rule.q.dims()[1]], vec![state]);
    (o, states.remove(0))
}

/// Of sequences with a batch of 1, or one with any.
pub(super) fn gated_delta_rule_spans<R: CubeRuntime>(
    rule: DeltaRule<Cube<R>>,
    tokens: &[usize],
    states: Vec<Tensor<Cube<R>, 4>>,
) -> (Tensor<Cube<R>, 4>, Vec<Tensor<Cube<R>, 4>>)
where
    R::Device: DeviceOps,
{
    let shape = rule.shape();
    let DeltaRuleShape { batch, seq, value_heads, value_dim, .. } = shape;
    let [(q, q_stride), (k, k_stride)] = [rule.q, rule.k].map(rows);
    let (v, v_stride) = rows(rule.v);
    let (g, beta) = (floats(rule.g), floats(rule.beta));
    let states: Vec<_> = states.into_iter().map(|state| own(floats(state))).collect();
    let o = unset(&q, [batch, seq, value_heads, value_dim], q.dtype);
    let buffers: Vec<Buffer> = states.iter().map(buffer).collect();
    let of_each = buffers.iter().zip(tokens);
    let spans = of_each.map(|(state, &seq)| cube::DeltaSpan { state, shape: DeltaRuleShape { seq, ..shape } });
    let inputs = DeltaRuleInputs {
        q: &row_buffer(&q, q_stride),
        k: &row_buffer(&k, k_stride),
        v: &row_buffer(&v, v_stride),
        g: &buffer(&g),
        beta: &buffer(&beta),
    };
    let strides = [q_stride, k_stride, v_stride];
    cube::gated_delta_rule_spans(&q.client, inputs, &spans.collect::<Vec<_>>(), &buffer(&o), strides);
    (float_tensor(o), states.into_iter().map(float_tensor).collect())
}

/// Heads of tokens `[b, s, heads, d]` and the distance of tokens. Slices of one wider tensor are taken as they lie.
fn rows<R: CubeRuntime>(t: Tensor<Cube<R>, 4>) -> (CubeTensor<R>, usize)
where
    R::Device: DeviceOps,
{
    let [b, s, heads, d] = t.dims();
    let t = view(t);
    let strides = t.meta.strides();
    let dense = (d == 1 || strides[3] == 1) && (heads == 1 || strides[2] == d);
    let stride = match (b, s) {
        (1, 1) => heads * d,
        (_, 1) => strides[0],
        _ => strides[1],
    };
    if dense && stride >= heads * d && (b == 1 || s == 1 || strides[0] == s * stride) {
        return (t, stride);
    }
    (into_contiguous(t), heads * d)
}

/// The buffer of [`rows`]: it ends with the last head of the last token.
fn row_buffer<R: CubeRuntime>(t: &CubeTensor<R>, stride: usize) -> Buffer {
    let shape = t.shape();
    let (tokens, width) = (shape[0] * shape[1], shape[2] * shape[3]);
    Buffer::new(t.handle.clone(), tokens.saturating_sub(1) * stride + width, t.dtype)
}
