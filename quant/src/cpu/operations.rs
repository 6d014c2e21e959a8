//! One function per operation of [`CompactBackend`](crate::CompactBackend): slices out of tensors, a kernel, a tensor. Those on several
//! sequences are in [`spans`](super::spans).

use burn::module::Param;
use burn::tensor::{Bool, Int, Shape, Tensor, TensorPrimitive};
use emberlm_backends::cpu;
use emberlm_backends::types::{ConvShape, DeltaRuleInputs, DeltaRuleShape, RotaryShape, StoreKv};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::decoded::Readable;
use super::held::{HeldLinear, HeldWeight};
use super::kv::{HeldParts, PartNumbers, geometry};
pub(super) use super::spans::{cached_attention_spans, causal_conv1d_silu_spans, gated_delta_rule_spans};
use super::{HostTensors, bool_tensor, float_primitive, float_tensor, int_tensor};
use crate::activations::Activations;
use crate::halting::{HaltMode, HaltRecord, HaltState, HaltStep, HaltWeights};
use crate::kv::{CodeDecoder, KeyValue, KvStore, Rotary};
use crate::modules::{Linear, SwiGlu};
use crate::ops::{AttentionShape, CachedKv, CausalConv, DeltaGates, DeltaRule, Norm};
use crate::packed::PackedWeight;
use crate::{split, swiglu};

pub(super) fn run_pass<T: Send>(activations: Activations, f: impl FnOnce() -> T + Send) -> T {
    let precision = match activations {
        Activations::Int8 => cpu::Precision::Int8Activations,
        Activations::Bf16 => cpu::Precision::Bf16Activations,
        Activations::Auto => cpu::Precision::Auto,
        Activations::F32 | Activations::F16 => cpu::Precision::Exact,
    };
    // The kernels of a pass are started by the thread that runs it.
    cpu::run(|| cpu::with_precision(precision, f))
}

pub(super) fn reshape<B: HostTensors, const D: usize, const E: usize>(
    x: Tensor<B, D>,
    shape: [usize; E],
) -> Tensor<B, E> {
    Tensor::from_primitive(TensorPrimitive::Float(B::reshaped(float_primitive(x), Shape::from(shape))))
}

pub(super) fn packed_linear<B: HostTensors>(
    x: Tensor<B, 2>,
    w: &PackedWeight<B>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 2> {
    product(x, w, bias, (B::packed_linear, cpu::linear))
}

pub(super) fn packed_head<B: HostTensors>(
    x: Tensor<B, 2>,
    w: &PackedWeight<B>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 2> {
    product(x, w, bias, (B::packed_head, cpu::head))
}

/// An operation of the backend, and its kernel.
type Operation<B> = (split::Operation<B>, fn(&[f32], usize, &cpu::Weight<'_>, Option<&[f32]>, &mut [f32]));

fn product<B: HostTensors>(
    x: Tensor<B, 2>,
    w: &PackedWeight<B>,
    bias: Option<Tensor<B, 1>>,
    (of_parts, kernel): Operation<B>,
) -> Tensor<B, 2> {
    if let PackedWeight::Split(w) = w {
        return split::linear(x, w, bias, of_parts);
    }
    let [m, _] = x.dims();
    let x = float_primitive(x);
    let bias = bias.map(float_primitive);
    HeldWeight::new(w).with(|w| {
        let mut y = vec![0.0; m * w.n];
        kernel(&B::floats(&x), m, &w, bias.as_ref().map(B::floats).as_deref(), &mut y);
        float_tensor(y, [m, w.n])
    })
}

pub(super) fn packed_linears<B: HostTensors, const N: usize>(
    x: Tensor<B, 2>,
    layers: [&Linear<B>; N],
) -> [Tensor<B, 2>; N] {
    if layers.into_iter().any(split::in_parts) {
        return layers.map(|layer| packed_linear(x.clone(), &layer.weight, layer.bias.as_ref().map(Param::val)));
    }
    let [m, _] = x.dims();
    let x = float_primitive(x);
    // Vectors, because arrays of things as large would be moved about.
    let layers: Vec<HeldLinear<B>> = layers.into_iter().map(HeldLinear::new).collect();
    let mut outputs: Vec<Vec<f32>> = layers.iter().map(|layer| vec![0.0; m * layer.outputs()]).collect();
    with_products(&layers, &mut outputs, Vec::with_capacity(N), &mut |products| {
        cpu::linears(&B::floats(&x), m, products);
    });
    std::array::from_fn(|i| float_tensor(std::mem::take(&mut outputs[i]), [m, layers[i].outputs()]))
}

/// Borrows one layer after the other, then calls `f` with all of them.
fn with_products<B: HostTensors>(
    layers: &[HeldLinear<B>],
    outputs: &mut [Vec<f32>],
    mut products: Vec<cpu::Product<'_>>,
    f: &mut dyn FnMut(&mut [cpu::Product<'_>]),
) {
    match (layers.split_first(), outputs.split_first_mut()) {
        (Some((layer, layers)), Some((y, outputs))) => layer.with(|layer| {
            let mut products = products;
            products.push(cpu::Product { weight: layer.weight, bias: layer.bias, y });
            with_products(layers, outputs, products, f);
        }),
        _ => f(&mut products),
    }
}

pub(super) fn packed_embed<B: HostTensors>(ids: Tensor<B, 1, Int>, w: &PackedWeight<B>) -> Tensor<B, 2> {
    if let PackedWeight::Split(w) = w {
        return split::embed(ids, w);
    }
    let ids = B::integers(&ids.into_primitive());
    HeldWeight::new(w).with(|w| {
        let row = |&id: &i64| usize::try_from(id).ok().filter(|&row| row < w.n);
        let rows: Vec<usize> = ids.iter().map(|id| row(id).unwrap_or(0)).collect();
        let mut y = vec![0.0; rows.len() * w.k];
        cpu::embed(&rows, &w, &mut y);
        for (id, y) in ids.iter().zip(y.chunks_exact_mut(w.k.max(1))) {
            if row(id).is_none() {
                y.fill(f32::NAN);
            }
        }
        float_tensor(y, [rows.len(), w.k])
    })
}

pub(super) fn first_unknown_id<B: HostTensors, const D: usize>(ids: &Tensor<B, D, Int>, rows: usize) -> Option<i64> {
    let known = |id: i64| usize::try_from(id).is_ok_and(|id| id < rows);
    B::integers(&ids.clone().into_primitive()).into_iter().find(|&id| !known(id))
}

pub(super) fn host_floats<B: HostTensors, const D: usize>(x: &Tensor<B, D>) -> Vec<f32> {
    B::floats(&float_primitive(x.clone())).into_owned()
}

pub(super) fn swiglu_mlp<B: HostTensors>(
    x: Tensor<B, 2>,
    mlp: &SwiGlu<B>,
    active: Option<Tensor<B, 1, Bool>>,
) -> Tensor<B, 2> {
    if swiglu::needs_layers(mlp) {
        return swiglu::by_layers(x, mlp, active);
    }
    let gate = HeldWeight::new(&mlp.gate_proj.weight);
    let up = HeldWeight::new(&mlp.up_proj.weight);
    let down = HeldWeight::new(&mlp.down_proj.weight);
    let [m, h] = x.dims();
    let x = float_primitive(x);
    let active = active.map(Tensor::into_primitive);
    gate.with(|gate| {
        up.with(|up| {
            down.with(|down| {
                let mlp = cpu::Mlp { gate, up, down };
                let mut y = vec![0.0; m * h];
                cpu::swiglu_mlp(&B::floats(&x), m, &mlp, active.as_ref().map(B::flags).as_deref(), &mut y);
                float_tensor(y, [m, h])
            })
        })
    })
}

pub(super) fn rms_norm<B: HostTensors>(x: Tensor<B, 2>, norm: Norm<B>) -> Tensor<B, 2> {
    let shape = norm.shape(x.dims());
    let (x, weight) = (float_primitive(x), float_primitive(norm.weight));
    let mut y = vec![0.0; shape.m * shape.h];
    cpu::rms_norm(&B::floats(&x), &B::floats(&weight), &shape, &mut y);
    float_tensor(y, [shape.m, shape.h])
}

pub(super) fn add_rms_norm<B: HostTensors>(
    x: Tensor<B, 2>,
    y: Tensor<B, 2>,
    norm: Norm<B>,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let dims = x.dims();
    let shape = norm.shape(dims);
    let (y, weight) = (float_primitive(y), float_primitive(norm.weight));
    let mut sum = B::into_floats(float_primitive(x));
    let mut normed = vec![0.0; shape.m * shape.h];
    cpu::add_rms_norm(&mut sum, &B::floats(&y), &B::floats(&weight), &shape, &mut normed);
    (float_tensor(sum, dims), float_tensor(normed, dims))
}

pub(super) fn sigmoid_gate<B: HostTensors>(x: Tensor<B, 2>, gate: Tensor<B, 2>) -> Tensor<B, 2> {
    let shape = x.dims();
    let gate = float_primitive(gate);
    let mut x = B::into_floats(float_primitive(x));
    cpu::sigmoid_gate(&mut x, &B::floats(&gate));
    float_tensor(x, shape)
}

pub(super) fn rms_norm_gated<B: HostTensors>(x: Tensor<B, 2>, z: Tensor<B, 2>, norm: Norm<B>) -> Tensor<B, 2> {
    let shape = norm.shape(x.dims());
    let (x, z, weight) = (float_primitive(x), float_primitive(z), float_primitive(norm.weight));
    let mut y = vec![0.0; shape.m * shape.h];
    cpu::rms_norm_gated(&B::floats(&x), &B::floats(&z), &B::floats(&weight), &shape, &mut y);
    float_tensor(y, [shape.m, shape.h])
}

pub(super) fn rotary<B: HostTensors>(x: Tensor<B, 4>, rotary: &Rotary<B>) -> Tensor<B, 4> {
    let dims @ [batch, seq, heads, head_dim] = x.dims();
    let shape = RotaryShape { batch, seq, heads, head_dim, half: rotary.cos.dims()[1] };
    let (cos, sin) = (float_primitive(rotary.cos.clone()), float_primitive(rotary.sin.clone()));
    let mut x = B::into_floats(float_primitive(x));
    cpu::rotary(&mut x, &B::floats(&cos), &B::floats(&sin), &shape);
    float_tensor(x, dims)
}

pub(super) fn store_kv<B: HostTensors>(store: KvStore<B>, new: Tensor<B, 4>, at: usize) -> KvStore<B> {
    let [batch, heads, capacity, width] = store.dims();
    let seq = new.dims()[1];
    let new = float_primitive(new);
    let shape = StoreKv { batch, seq, heads, capacity, width, at };
    match store {
        KvStore::F32(t) => {
            let mut data = B::into_floats(float_primitive(t));
            let _ = cpu::store_kv(&B::floats(&new), cpu::CacheSliceMut::F32(&mut data), &shape);
            KvStore::F32(float_tensor(data, [batch, heads, capacity, width]))
        }
        KvStore::F16(t) => {
            let mut words = B::into_words(t.into_primitive());
            let halves: &mut [u16] = bytemuck::cast_slice_mut(&mut words);
            if !cpu::store_kv(&B::floats(&new), cpu::CacheSliceMut::F16(halves), &shape) {
                let mut data = vec![0.0; halves.len()];
                halves.reinterpret_cast::<half::f16>().convert_to_f32_slice(&mut data);
                let _ = cpu::store_kv(&B::floats(&new), cpu::CacheSliceMut::F32(&mut data), &shape);
                return KvStore::F32(float_tensor(data, [batch, heads, capacity, width]));
            }
            let dims = Shape::from([batch, heads, capacity, width / 2]);
            KvStore::F16(Tensor::from_primitive(B::from_words(words, dims)))
        }
        KvStore::Q8 { codes, scales } => {
            let blocks = scales.dims()[3];
            let mut words = B::into_words(codes.into_primitive());
            let mut scales = B::into_floats(float_primitive(scales));
            let codes = bytemuck::cast_slice_mut(&mut words);
            let _ = cpu::store_kv(&B::floats(&new), cpu::CacheSliceMut::Q8 { codes, scales: &mut scales }, &shape);
            let dims = Shape::from([batch, heads, capacity, width / 4]);
            KvStore::Q8 {
                codes: Tensor::from_primitive(B::from_words(words, dims)),
                scales: float_tensor(scales, [batch, heads, capacity, blocks]),
            }
        }
    }
}

pub(super) fn cached_attention<B: HostTensors>(q: Tensor<B, 4>, kv: CachedKv<'_, B>) -> Tensor<B, 4> {
    let [batch, seq, heads, head_dim] = q.dims();
    if q.shape().num_elements() == 0 {
        return q;
    }
    let q = float_primitive(q);
    let geometry = geometry([batch, seq, heads, head_dim], &kv);
    let AttentionShape { past, kv_heads, .. } = kv.shape;
    let readable = [kv.k, kv.v].map(|kv| Readable::new(kv, past + seq, [batch, kv_heads, head_dim]));
    let [k, v] = readable.each_ref().map(Readable::key_value);
    let mut out = vec![0.0; batch * seq * heads * head_dim];
    let held = [k, v].map(|kv| HeldParts::new(kv.parts()));
    let [k_numbers, v_numbers] = held.each_ref().map(HeldParts::numbers);
    with_key_value(k, &k_numbers, |k| {
        with_key_value(v, &v_numbers, |v| cpu::attention(&B::floats(&q), &k, &v, &geometry, &mut out));
    });
    float_tensor(out, [batch, seq, heads, head_dim])
}

/// Calls `f` with the keys or values whose numbers these are.
fn with_key_value<B: HostTensors, T>(
    kv: KeyValue<'_, B>,
    numbers: &PartNumbers<'_>,
    f: impl FnOnce(cpu::KeyValue<'_>) -> T,
) -> T {
    match kv {
        KeyValue::Plain(_) => f(cpu::KeyValue::Plain(&numbers.slices())),
        KeyValue::Compressed { decoder, .. } => {
            let codes = numbers.codes();
            with_decoder(decoder, |decoder| f(cpu::KeyValue::Compressed { codes: &codes, decoder }))
        }
        KeyValue::Hidden { output, .. } => {
            let values = &numbers.slices();
            HeldLinear::new(output).with(|output| f(cpu::KeyValue::Hidden { values, output: &output }))
        }
    }
}

fn with_decoder<B: HostTensors, T>(decoder: &CodeDecoder<B>, f: impl FnOnce(&cpu::CodeDecoder<'_>) -> T) -> T {
    let activation = decoder.activation;
    HeldLinear::new(&decoder.output).with(|output| match &decoder.hidden {
        Some(hidden) => {
            HeldLinear::new(hidden).with(|hidden| f(&cpu::CodeDecoder { hidden: Some((hidden, activation)), output }))
        }
        None => f(&cpu::CodeDecoder { hidden: None, output }),
    })
}

pub(super) fn causal_conv1d_silu<B: HostTensors>(
    conv: CausalConv<B>,
    tail: Tensor<B, 3>,
) -> (Tensor<B, 3>, Tensor<B, 3>) {
    let shape = conv.shape();
    let ConvShape { batch, seq, channels, width } = shape;
    let (u, weight) = (float_primitive(conv.u), float_primitive(conv.weight));
    let mut tail = B::into_floats(float_primitive(tail));
    let mut y = vec![0.0; batch * seq * channels];
    cpu::causal_conv1d_silu(&B::floats(&u), &mut tail, &B::floats(&weight), &shape, &mut y);
    (float_tensor(y, [batch, seq, channels]), float_tensor(tail, [batch, width - 1, channels]))
}

pub(super) fn delta_gates<B: HostTensors>(gates: DeltaGates<B>) -> (Tensor<B, 3>, Tensor<B, 3>) {
    let DeltaGates { dt, b, dt_bias, a_log } = gates;
    let shape = dt.dims();
    let (dt_bias, a_log) = (float_primitive(dt_bias), float_primitive(a_log));
    let [mut g, mut beta] = [dt, b].map(|t| B::into_floats(float_primitive(t)));
    cpu::delta_gates(&mut g, &mut beta, &B::floats(&dt_bias), &B::floats(&a_log));
    (float_tensor(g, shape), float_tensor(beta, shape))
}

pub(super) fn gated_delta_rule<B: HostTensors>(
    rule: DeltaRule<B>,
    state: Tensor<B, 4>,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let shape = rule.shape();
    let DeltaRuleShape { batch, seq, value_heads, key_dim, value_dim, .. } = shape;
    let [q, k, v] = [rule.q, rule.k, rule.v].map(float_primitive);
    let [g, beta] = [rule.g, rule.beta].map(float_primitive);
    let [q, k, v, g, beta] = [&q, &k, &v, &g, &beta].map(B::floats);
    let inputs = DeltaRuleInputs { q: &*q, k: &*k, v: &*v, g: &*g, beta: &*beta };
    let mut state = B::into_floats(float_primitive(state));
    let mut o = vec![0.0; batch * seq * value_heads * value_dim];
    cpu::gated_delta_rule(inputs, &mut state, &shape, &mut o);
    (
        float_tensor(o, [batch, seq, value_heads, value_dim]),
        float_tensor(state, [batch, value_heads, key_dim, value_dim]),
    )
}

pub(super) fn start_halting<B: HostTensors>(m: usize, h: usize, _device: &B::Device) -> HaltState<B> {
    HaltState {
        active: bool_tensor(vec![true; m], [m]),
        remaining: float_tensor(vec![1.0; m], [m]),
        cumulative: float_tensor(vec![0.0; m], [m]),
        steps: int_tensor(vec![0; m], [m]),
        output: float_tensor(vec![0.0; m * h], [m, h]),
    }
}

pub(super) fn halt_step<B: HostTensors>(state: HaltState<B>, step: HaltStep<'_, B>) -> (HaltState<B>, HaltRecord<B>) {
    let HaltStep { state: step_state, logit, rule, rows } = step;
    let [m, h] = step_state.dims();
    let step_state = float_primitive(step_state);
    let logits = logit.map(|logit| B::into_floats(float_primitive(logit)));
    let mut active = B::flags(&state.active.into_primitive()).into_owned();
    let mut remaining = B::into_floats(float_primitive(state.remaining));
    let mut cumulative = B::into_floats(float_primitive(state.cumulative));
    let mut steps = B::integers(&state.steps.into_primitive());
    let mut output = B::into_floats(float_primitive(state.output));
    let (mut probability, mut weight) = (vec![0.0; m], vec![0.0; m]);
    let thresholds = rows.map(|rows| float_primitive(rows.threshold.clone()));
    let thresholds = thresholds.as_ref().map(B::floats);
    let last_steps = rows.map(|rows| B::integers(&rows.steps.clone().into_primitive()));

    let step_state = B::floats(&step_state);
    for (i, (out, s)) in output.chunks_exact_mut(h).zip(step_state.chunks_exact(h)).enumerate() {
        if !active[i] {
            continue;
        }
        let at_last = last_steps.as_ref().is_some_and(|last| steps[i] + 1 >= last[i]);
        let threshold = match &thresholds {
            Some(thresholds) => Some(thresholds[i]),
            None => rule.enabled.then_some(rule.threshold),
        };
        let gate = logits.as_ref().filter(|_| !at_last).map(|logits| 1.0 / (1.0 + (-logits[i]).exp()));
        let p = gate.unwrap_or(1.0) * remaining[i];
        let stop = match gate {
            None => true,
            Some(gate) => {
                let reached = match rule.mode {
                    HaltMode::Cumulative => cumulative[i] + p,
                    HaltMode::Step => gate,
                };
                threshold.is_some_and(|threshold| reached >= threshold)
            }
        };
        weight[i] = match rule.weights {
            HaltWeights::Remainder if stop => remaining[i],
            HaltWeights::Remainder | HaltWeights::Truncate => p,
            HaltWeights::State => f32::from(u8::from(stop)),
        };
        for (out, s) in out.iter_mut().zip(s) {
            *out += weight[i] * s;
        }
        steps[i] += 1;
        cumulative[i] += p;
        if let Some(gate) = gate {
            remaining[i] *= 1.0 - gate;
            probability[i] = gate;
        }
        active[i] = !stop;
    }
    let next = HaltState {
        active: bool_tensor(active, [m]),
        remaining: float_tensor(remaining, [m]),
        cumulative: float_tensor(cumulative, [m]),
        steps: int_tensor(steps, [m]),
        output: float_tensor(output, [m, h]),
    };
    let probability = logits.is_some().then(|| float_tensor(probability, [m]));
    (next, HaltRecord { probability, weight: float_tensor(weight, [m]) })
}
