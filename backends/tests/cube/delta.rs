//! The gated delta rule.

use emberlm_backends::cpu::plain;
use emberlm_backends::cube::{self, Buffer};
use emberlm_backends::types::{DeltaRuleInputs, DeltaRuleShape};

use crate::common::{Rng, close};
use crate::device::{Client, Float, download, with_all_instructions};

/// `[batch, seq, key_heads, value_heads, key_dim, value_dim]`
type Dims = [usize; 6];

struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    g: Vec<f32>,
    beta: Vec<f32>,
    state: Vec<f32>,
}

fn inputs(rng: &mut Rng, float: Float, [b, s, hk, hv, dk, dv]: Dims) -> Inputs {
    Inputs {
        q: float.rounded(&rng.floats(b * s * hk * dk, 2.0)),
        k: float.rounded(&rng.floats(b * s * hk * dk, 2.0)),
        v: float.rounded(&rng.floats(b * s * hv * dv, 2.0)),
        g: rng.floats(b * s * hv, 1.0).iter().map(|g| g - 1.0).collect(),
        beta: rng.floats(b * s * hv, 0.5).iter().map(|beta| beta + 0.5).collect(),
        state: rng.floats(b * hv * dk * dv, 0.5),
    }
}

fn twin(x: &Inputs, dims: Dims) -> (Vec<f32>, Vec<f32>) {
    let shape = shape(dims);
    let (mut o, mut state) = (vec![0.0; x.v.len()], x.state.clone());
    let rule = DeltaRuleInputs { q: &x.q[..], k: &x.k, v: &x.v, g: &x.g, beta: &x.beta };
    plain::gated_delta_rule(rule, &mut state, &shape, &mut o);
    (o, state)
}

fn shape([batch, seq, key_heads, value_heads, key_dim, value_dim]: Dims) -> DeltaRuleShape {
    DeltaRuleShape { batch, seq, key_heads, value_heads, key_dim, value_dim }
}

fn run(
    client: &Client,
    float: Float,
    x: &Inputs,
    [q, k, v]: [&Buffer; 3],
    (p, token_strides): (DeltaRuleShape, [usize; 3]),
) -> [Vec<f32>; 2] {
    let [g, beta, state] = [&x.g, &x.beta, &x.state].map(|values| Float::F32.upload(client, values));
    let o = float.unwritten(client, x.v.len());
    let rule = DeltaRuleInputs { q, k, v, g: &g, beta: &beta };
    cube::gated_delta_rule(client, rule, &state, &o, p, token_strides);
    [download(client, &o), download(client, &state)]
}

#[test]
fn delta_rule_matches_its_twin() {
    with_all_instructions(|client| {
        let mut rng = Rng(17);
        for float in Float::available(client) {
            for dims in [
                [1, 1, 1, 1, 1, 1],
                [1, 1, 2, 4, 128, 128],
                [2, 3, 2, 2, 64, 80],
                [1, 17, 1, 3, 80, 33],
                [2, 9, 1, 2, 30, 7],
                [1, 129, 1, 2, 128, 64],
                [1, 8, 1, 1, 256, 100],
                [1, 5, 1, 1, 1000, 3],
            ] {
                let x = inputs(&mut rng, float, dims);
                let (want, want_state) = twin(&x, dims);
                let on_device = [&x.q, &x.k, &x.v].map(|values| float.upload(client, values));
                let [o, state] =
                    run(client, float, &x, on_device.each_ref(), (shape(dims), shape(dims).dense_strides()));
                close(&format!("{dims:?} of {float:?}"), &o, &want, float.bound(5e-6));
                close(&format!("state of {dims:?} of {float:?}"), &state, &want_state, 5e-6);
            }
        }
    });
}

#[test]
fn delta_rule_reads_views_into_one_tensor() {
    with_all_instructions(|client| {
        let mut rng = Rng(18);
        let dims @ [b, s, hk, hv, dk, dv] = [2, 5, 2, 4, 64, 32];
        let x = inputs(&mut rng, Float::F32, dims);
        let (want, want_state) = twin(&x, dims);
        let (keys, values) = (hk * dk, hv * dv);
        let mut joined = Vec::new();
        for t in 0..b * s {
            joined.extend_from_slice(&x.q[t * keys..][..keys]);
            joined.extend_from_slice(&x.k[t * keys..][..keys]);
            joined.extend_from_slice(&x.v[t * values..][..values]);
        }
        let whole = Float::F32.upload(client, &joined);
        let view = |from: usize| {
            let handle = whole.handle().clone().offset_start(4 * from as u64);
            Buffer::new(handle, whole.len() - from, whole.dtype())
        };
        let views = [whole.clone(), view(keys), view(2 * keys)];
        let p = (shape(dims), [2 * keys + values; 3]);
        let [o, state] = run(client, Float::F32, &x, views.each_ref(), p);
        close("o of views", &o, &want, 5e-6);
        close("state of views", &state, &want_state, 5e-6);
    });
}
