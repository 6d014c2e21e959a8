//! Operations on several sequences at once: one parallel region for all of them.

use burn::tensor::Tensor;
use emberlm_backends::cpu;
use emberlm_backends::types::{ConvShape, DeltaRuleInputs, DeltaRuleShape};

use super::kv::{HeldParts, PartNumbers, geometry};
use super::{HostTensors, float_primitive, float_tensor};
use crate::kv::KeyValue;
use crate::ops::{AttentionSpan, CausalConv, DeltaRule, cached_attention_one_by_one};

pub(super) fn cached_attention_spans<B: HostTensors>(q: Tensor<B, 4>, spans: &[AttentionSpan<'_, B>]) -> Tensor<B, 4> {
    let is_plain = |kv: &KeyValue<'_, B>| matches!(kv, KeyValue::Plain(_));
    // What a compressed side takes most of its time for is a region of its own in any case.
    if spans.len() == 1 || !spans.iter().all(|span| is_plain(&span.kv.k) && is_plain(&span.kv.v)) {
        return cached_attention_one_by_one(q, spans);
    }
    let held = spans.iter().map(|span| [span.kv.k, span.kv.v].map(|kv| HeldParts::<B>::new(kv.parts())));
    let held: Vec<[HeldParts<B>; 2]> = held.collect();
    let numbers: Vec<[PartNumbers; 2]> = held.iter().map(|held| held.each_ref().map(HeldParts::numbers)).collect();
    let slices = numbers.iter().map(|numbers| numbers.each_ref().map(PartNumbers::slices));
    let slices: Vec<[Vec<cpu::CacheSlice>; 2]> = slices.collect();
    let [_, n, heads, head_dim] = q.dims();
    let q = float_primitive(q);
    let q = B::floats(&q);
    let mut out = vec![0.0; n * heads * head_dim];
    let (mut q, mut rest) = (&q[..], &mut out[..]);
    let calls = spans.iter().zip(&slices).map(|(span, [k, v])| {
        let own = span.tokens * heads * head_dim;
        let (own_q, after) = q.split_at(own);
        let (own_out, out_after) = std::mem::take(&mut rest).split_at_mut(own);
        (q, rest) = (after, out_after);
        let shape = geometry([1, span.tokens, heads, head_dim], &span.kv);
        cpu::AttentionSpan { q: own_q, k: cpu::KeyValue::Plain(k), v: cpu::KeyValue::Plain(v), shape, out: own_out }
    });
    cpu::attention_spans(&mut calls.collect::<Vec<_>>());
    float_tensor(out, [1, n, heads, head_dim])
}

/// The numbers of each tensor, its own buffer where nothing else holds it.
fn owned<B: HostTensors, const D: usize>(tensors: Vec<Tensor<B, D>>) -> Vec<Vec<f32>> {
    tensors.into_iter().map(|t| B::into_floats(float_primitive(t))).collect()
}

fn slices(values: &mut [Vec<f32>]) -> Vec<&mut [f32]> {
    values.iter_mut().map(Vec::as_mut_slice).collect()
}

pub(super) fn causal_conv1d_silu_spans<B: HostTensors>(
    conv: CausalConv<B>,
    tokens: &[usize],
    tails: Vec<Tensor<B, 3>>,
) -> (Tensor<B, 3>, Vec<Tensor<B, 3>>) {
    let shape = conv.shape();
    let ConvShape { seq, channels, width, .. } = shape;
    let (u, weight) = (float_primitive(conv.u), float_primitive(conv.weight));
    let mut tails = owned(tails);
    let mut y = vec![0.0; seq * channels];
    cpu::causal_conv1d_silu_spans(&B::floats(&u), tokens, &mut slices(&mut tails), &B::floats(&weight), &shape, &mut y);
    let tail = |tail| float_tensor(tail, [1, width - 1, channels]);
    (float_tensor(y, [1, seq, channels]), tails.into_iter().map(tail).collect())
}

pub(super) fn gated_delta_rule_spans<B: HostTensors>(
    rule: DeltaRule<B>,
    tokens: &[usize],
    states: Vec<Tensor<B, 4>>,
) -> (Tensor<B, 4>, Vec<Tensor<B, 4>>) {
    let shape = rule.shape();
    let DeltaRuleShape { seq, value_heads, key_dim, value_dim, .. } = shape;
    let [q, k, v] = [rule.q, rule.k, rule.v].map(float_primitive);
    let [g, beta] = [rule.g, rule.beta].map(float_primitive);
    let [q, k, v, g, beta] = [&q, &k, &v, &g, &beta].map(B::floats);
    let inputs = DeltaRuleInputs { q: &*q, k: &*k, v: &*v, g: &*g, beta: &*beta };
    let mut states = owned(states);
    let mut o = vec![0.0; seq * value_heads * value_dim];
    cpu::gated_delta_rule_spans(inputs, tokens, &mut slices(&mut states), &shape, &mut o);
    let state = |state| float_tensor(state, [1, value_heads, key_dim, value_dim]);
    (float_tensor(o, [1, seq, value_heads, value_dim]), states.into_iter().map(state).collect())
}
