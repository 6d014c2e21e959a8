//! Causal convolution and the gated delta rule, one token or in chunks.
//!
//! The chunked form is that of Yang et al., "Gated Delta Networks" (2024), section 3.3: within a chunk the writes of all
//! tokens are solved for at once, between chunks the state is carried.

use burn::tensor::activation::{sigmoid, silu, softplus};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use crate::ops::{CausalConv, DeltaGates, DeltaRule};

/// Tokens per chunk.
const CHUNK: usize = 32;

/// Under the root of the l2 norm.
const L2_EPS: f64 = 1e-6;

/// See [`CompactBackend::causal_conv1d_silu`](crate::CompactBackend::causal_conv1d_silu).
pub fn causal_conv1d_silu<B: Backend>(conv: CausalConv<B>, tail: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 3>) {
    let CausalConv { u, weight } = conv;
    let [_, s, c] = u.dims();
    let [_, _, width] = weight.dims();
    let inputs = Tensor::cat(vec![tail, u], 1); // [b, width - 1 + s, c]
    let mut y = inputs.clone().slice_dim(1, 0..s) * weight.clone().slice_dim(2, 0..1).reshape([1, 1, c]);
    for j in 1..width {
        let tap = weight.clone().slice_dim(2, j..j + 1).reshape([1, 1, c]);
        y = y + inputs.clone().slice_dim(1, j..j + s) * tap;
    }
    (silu(y), inputs.slice_dim(1, s..s + width - 1))
}

/// See [`CompactBackend::delta_gates`](crate::CompactBackend::delta_gates).
pub fn delta_gates<B: Backend>(gates: DeltaGates<B>) -> (Tensor<B, 3>, Tensor<B, 3>) {
    let DeltaGates { dt, b, dt_bias, a_log } = gates;
    let dt = softplus(dt + dt_bias.unsqueeze(), 1.0);
    (a_log.exp().neg().unsqueeze() * dt, sigmoid(b))
}

/// See [`CompactBackend::gated_delta_rule`](crate::CompactBackend::gated_delta_rule).
pub fn gated_delta_rule<B: Backend>(rule: DeltaRule<B>, state: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let DeltaRule { q, k, v, g, beta } = rule;
    let [_, s, hk, dk] = q.dims();
    let [_, _, hv, _] = v.dims();
    let q = l2_norm(q) / (dk as f64).sqrt();
    let k = l2_norm(k);
    // [b, hv, s, ..]
    let q = repeat_heads(q, hv / hk).swap_dims(1, 2);
    let k = repeat_heads(k, hv / hk).swap_dims(1, 2);
    let rule = DeltaRule { q, k, v: v.swap_dims(1, 2), g: g.swap_dims(1, 2), beta: beta.swap_dims(1, 2) };
    let (o, state) = if s == 1 { one_step(rule, state) } else { chunked(rule, state) };
    (o.swap_dims(1, 2), state)
}

/// One token: `q, k [b, hv, 1, dk]`, `v [b, hv, 1, dv]`, `g, beta [b, hv, 1]`, `state [b, hv, dk, dv]`.
fn one_step<B: Backend>(rule: DeltaRule<B>, state: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let DeltaRule { q, k, v, g, beta } = rule;
    let state = state * g.exp().unsqueeze_dim(3);
    let d = (v - k.clone().matmul(state.clone())) * beta.unsqueeze_dim(3);
    let state = state + k.transpose().matmul(d);
    (q.matmul(state.clone()), state)
}

/// Many tokens, [`CHUNK`] at a time; shapes as in [`one_step`] with `s` tokens.
fn chunked<B: Backend>(rule: DeltaRule<B>, mut state: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let DeltaRule { q, k, v, g, beta } = rule;
    let s = q.dims()[2];
    let mut outputs = Vec::with_capacity(s.div_ceil(CHUNK));
    for start in (0..s).step_by(CHUNK) {
        let tokens = start..s.min(start + CHUNK);
        let [q, k, v] = [&q, &k, &v].map(|t| t.clone().slice_dim(2, tokens.clone()));
        let [g, beta] = [&g, &beta].map(|t| t.clone().slice_dim(2, tokens.clone()));
        let (o, next) = chunk(DeltaRule { q, k, v, g, beta }, state);
        outputs.push(o);
        state = next;
    }
    (Tensor::cat(outputs, 2), state)
}

fn chunk<B: Backend>(rule: DeltaRule<B>, state: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let DeltaRule { q, k, v, g, beta } = rule;
    let [b, hv, c, _] = q.dims();
    let device = q.device();
    // causal[i][j] = 1 for j <= i
    let causal = Tensor::<B, 2>::ones([c, c], (&device, DType::F32)).tril(0);
    let until = g.unsqueeze_dim::<4>(2).matmul(causal.clone().transpose().unsqueeze()).reshape([b, hv, c, 1]);
    // decay[i][j] = exp(G_i - G_j) for j <= i; the exponent of the other half would overflow, so it is cleared first
    let gap = (until.clone() - until.clone().transpose()) * causal.clone().unsqueeze();
    let decay = gap.exp() * causal.unsqueeze();

    let beta = beta.unsqueeze_dim::<4>(3);
    let k_beta = k.clone() * beta.clone();
    let v_beta = v * beta;
    let solve = inverse_of_unit_lower((k_beta.clone().matmul(k.clone().transpose()) * decay.clone()).tril(-1));
    let writes = solve.clone().matmul(v_beta);
    let reads = solve.matmul(k_beta * until.clone().exp());
    let d = writes - reads.matmul(state.clone());

    let o = (q.clone() * until.clone().exp()).matmul(state.clone())
        + (q.matmul(k.clone().transpose()) * decay).matmul(d.clone());
    let total = until.clone().slice_dim(2, c - 1..c); // [b, hv, 1, 1]
    let k_left = k * (total.clone() - until).exp();
    (o, state * total.exp() + k_left.transpose().matmul(d))
}

/// `(1 + L)^-1` of a strictly lower `L [b, hv, c, c]`. The inverses of diagonal blocks are joined in pairs, twice as large each
/// time: `[[A, 0], [C, B]]^-1 = [[A^-1, 0], [-B^-1 C A^-1, B^-1]]`. A product of powers would take fewer operations but cancels
/// catastrophically when keys repeat; row by row takes as many operations as rows.
fn inverse_of_unit_lower<B: Backend>(lower: Tensor<B, 4>) -> Tensor<B, 4> {
    let [b, hv, c, _] = lower.dims();
    let device = lower.device();
    let mut solved = Tensor::<B, 2>::eye(c, &device).reshape([1, 1, c, c]).expand([b, hv, c, c]);
    let mut block = 1;
    while block < c {
        // 1 where the row is in the second block of a pair and the column in the first.
        let joins =
            (0..c * c).map(|i| (i / c / block, i % c / block)).map(|(row, column)| row % 2 == 1 && row == column + 1);
        let joins = TensorData::new(joins.map(|join| f32::from(u8::from(join))).collect::<Vec<_>>(), [1, 1, c, c]);
        let joins = Tensor::<B, 4>::from_data(joins, (&device, DType::F32));
        let between = lower.clone() * joins;
        solved = solved.clone() - solved.clone().matmul(between).matmul(solved);
        block *= 2;
    }
    solved
}

fn l2_norm<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    let norm = (x.clone().square().sum_dim(3) + L2_EPS).sqrt();
    x / norm
}

/// `[b, s, hk, d] -> [b, s, hk * times, d]`, each head `times` times in a row.
fn repeat_heads<B: Backend>(x: Tensor<B, 4>, times: usize) -> Tensor<B, 4> {
    if times == 1 {
        return x;
    }
    let [b, s, heads, d] = x.dims();
    x.unsqueeze_dim::<5>(3).expand([b, s, heads, times, d]).reshape([b, s, heads * times, d])
}
