//! Norms, gates, rotary positions, convolution and the delta rule.

use burn::tensor::backend::DeviceOps;
use burn::tensor::{DType, Tensor, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use emberlm_backends::cube::{self, Buffer};

use super::tensor::{Cube, buffer, float_tensor, floats, own, unset, view};
use crate::kv::Rotary;
use crate::ops::DeltaRule;

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

pub(super) fn sigmoid_gate<R: CubeRuntime>(x: Tensor<Cube<R>, 2>, gate: Tensor<Cube<R>, 2>) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    let shape = x.dims();
    let (x, gate) = (floats(x), floats(gate));
    let y = unset(&x, shape, x.dtype);
    cube::sigmoid_gate(&x.client, &buffer(&x), &buffer(&gate), &buffer(&y));
    float_tensor(y)
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

pub(super) fn rotary<R: CubeRuntime>(x: Tensor<Cube<R>, 4>, rotary: &Rotary<Cube<R>>) -> Tensor<Cube<R>, 4>
where
    R::Device: DeviceOps,
{
    let [batch, seq, heads, head_dim] = x.dims();
    let half = rotary.cos.dims()[1];
    let (x, cos, sin) = (floats(x), floats(rotary.cos.clone()), floats(rotary.sin.clone()));
    let y = unset(&x, [batch, seq, heads, head_dim], x.dtype);
    let shape = cube::Rotary { batch, seq, heads, head_dim, half };
    cube::rotary(&x.client, &buffer(&x), &buffer(&cos), &buffer(&sin), &buffer(&y), shape);
    float_tensor(y)
}

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

pub(super) fn delta_gates<R: CubeRuntime>(
    dt: Tensor<Cube<R>, 3>,
    b: Tensor<Cube<R>, 3>,
    dt_bias: Tensor<Cube<R>, 1>,
    a_log: Tensor<Cube<R>, 1>,
) -> (Tensor<Cube<R>, 3>, Tensor<Cube<R>, 3>)
where
    R::Device: DeviceOps,
{
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

pub(super) fn gated_delta_rule<R: CubeRuntime>(
    rule: DeltaRule<Cube<R>>,
    state: Tensor<Cube<R>, 4>,
) -> (Tensor<Cube<R>, 4>, Tensor<Cube<R>, 4>)
where
    R::Device: DeviceOps,
{
    let [batch, seq, key_heads, key_dim] = rule.q.dims();
    let [_, _, value_heads, value_dim] = rule.v.dims();
    let [(q, q_stride), (k, k_stride)] = [rule.q, rule.k].map(tokens);
    let (v, v_stride) = tokens(rule.v);
    let (g, beta, state) = (floats(rule.g), floats(rule.beta), own(floats(state)));
    let o = unset(&q, [batch, seq, value_heads, value_dim], q.dtype);
    let token_strides = [q_stride, k_stride, v_stride];
    let shape = cube::DeltaRule { batch, seq, key_heads, value_heads, key_dim, value_dim, token_strides };
    cube::gated_delta_rule(
        &q.client,
        &row_buffer(&q, q_stride),
        &row_buffer(&k, k_stride),
        &row_buffer(&v, v_stride),
        &buffer(&g),
        &buffer(&beta),
        &buffer(&state),
        &buffer(&o),
        shape,
    );
    (float_tensor(o), float_tensor(state))
}

/// Heads of tokens `[b, s, heads, d]` and the distance of tokens. Slices of one wider tensor are taken as they lie.
fn tokens<R: CubeRuntime>(t: Tensor<Cube<R>, 4>) -> (CubeTensor<R>, usize)
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

/// The buffer of [`tokens`]: it ends with the last head of the last token.
fn row_buffer<R: CubeRuntime>(t: &CubeTensor<R>, stride: usize) -> Buffer {
    let shape = t.shape();
    let (tokens, width) = (shape[0] * shape[1], shape[2] * shape[3]);
    Buffer::new(t.handle.clone(), tokens.saturating_sub(1) * stride + width, t.dtype)
}
