//! CREST steps and gates and cache compressors under names and layouts that the fixtures do not have.

use crate::support::*;
use emberlm_model::checkpoint::{StorageKind, Weights};
use emberlm_model::config::*;

/// A CREST layer of hidden size 64 and intermediate size 72: `steps` are the paths of the MLPs.
fn crest_layer(steps: &[&str], gates: Vec<(&str, Tensor)>) -> Tensors {
    let mut out = Tensors::new();
    for (k, step) in steps.iter().enumerate() {
        for (leaf, shape) in [("gate_proj", [72, 64]), ("up_proj", [72, 64]), ("down_proj", [64, 72])] {
            out.insert(format!("model.layers.0.{step}.{leaf}.weight"), f32s(&shape, &vec![k as f32; 72 * 64]));
        }
    }
    for (name, tensor) in gates {
        out.insert(format!("model.layers.0.{name}"), tensor);
    }
    out
}

/// Resolves a single layer with the config of `crest_k4`.
fn crest(tensors: &Tensors) -> emberlm_model::Result<Weights> {
    let copy = Copy::of("crest_k4");
    write_tensors(&copy.weights(), tensors);
    copy.load()
}

fn rows(n: usize) -> Tensor {
    f32s(&[n, 64], &(0..n * 64).map(|i| (i / 64) as f32).collect::<Vec<_>>())
}

#[test]
fn crest_layouts_that_the_fixtures_do_not_have() {
    let steps = ["mlp.m.0", "mlp.m.1", "mlp.m.2"];
    let found = |num_steps, gate_shared, gate_hidden, gate_bias| DiscoveredCrest {
        num_steps,
        gate_shared,
        gate_hidden,
        gate_bias,
    };
    let bias = |numbers: &[f32]| f32s(&[numbers.len()], numbers);
    let cases = [
        (
            "flat weight",
            vec![("mlp.g.weight", f32s(&[64], &[0.0; 64])), ("mlp.g.bias", f32s(&[], &[7.0]))],
            found(3, true, None, true),
        ),
        ("outside the mlp", vec![("halt.weight", rows(1))], found(3, true, None, false)),
        (
            "stacked K - 1",
            vec![("mlp.g.weight", rows(2)), ("mlp.g.bias", bias(&[0.0, 1.0]))],
            found(3, false, None, true),
        ),
        (
            "stacked K",
            vec![("mlp.g.weight", rows(3)), ("mlp.g.bias", bias(&[0.0, 1.0, 2.0]))],
            found(3, false, None, true),
        ),
        (
            "K gates",
            vec![("mlp.g.2.weight", rows(1)), ("mlp.g.0.weight", rows(1)), ("mlp.g.1.weight", rows(1))],
            found(3, false, None, false),
        ),
        (
            "two layers, shared",
            vec![
                ("mlp.g.0.weight", rows(8)),
                ("mlp.g.0.bias", zeros(&[8])),
                ("mlp.g.2.weight", zeros(&[1, 8])),
                ("mlp.g.2.bias", zeros(&[1])),
            ],
            found(3, true, Some(8), true),
        ),
        (
            "two layers as wide as K",
            vec![("mlp.g.fc1.weight", rows(3)), ("mlp.g.fc2.weight", zeros(&[1, 3]))],
            found(3, true, Some(3), false),
        ),
        (
            "two layers per step",
            vec![
                ("mlp.g.0.a.weight", rows(8)),
                ("mlp.g.0.b.weight", zeros(&[1, 8])),
                ("mlp.g.1.a.weight", rows(8)),
                ("mlp.g.1.b.weight", zeros(&[8])),
            ],
            found(3, false, Some(8), false),
        ),
    ];
    for (case, gates, expected) in cases {
        let weights = crest(&crest_layer(&steps, gates)).expect(case);
        assert_eq!(weights.discovered_crest(), Some(&expected), "{case}");
        for name in weights.canonical_names() {
            assert!(name.contains(".steps.") || name.contains("halt_gate"), "{case}: {name}");
        }
        let shape = |name: &str| weights.entry(name).map(|entry| entry.shape.clone());
        let (gate, other) =
            if expected.gate_shared { ("halt_gate", "halt_gates.0") } else { ("halt_gates.1", "halt_gates.2") };
        let layer = if expected.gate_hidden.is_some() { ".2" } else { "" };
        let inputs = expected.gate_hidden.unwrap_or(64);
        assert_eq!(shape(&format!("model.layers.0.mlp.{gate}{layer}.weight")), Some(vec![1, inputs]), "{case}");
        assert_eq!(
            shape(&format!("model.layers.0.mlp.{gate}{layer}.bias")),
            expected.gate_bias.then(|| vec![1]),
            "{case}"
        );
        assert_eq!(shape(&format!("model.layers.0.mlp.{other}{layer}.weight")), None, "{case}");
        if case.starts_with("stacked") {
            let row = weights.matrix("model.layers.0.mlp.halt_gates.1.weight").expect(case);
            assert_eq!((row.n, row.k, row.bytes()), (1, 64, 256), "{case}");
            assert_eq!(weights.vector("model.layers.0.mlp.halt_gates.1.weight").expect(case), [1.0; 64], "{case}");
            assert_eq!(weights.vector("model.layers.0.mlp.halt_gates.1.bias").expect(case), [1.0], "{case}");
        }
        if case == "K gates" {
            assert_eq!(weights.ignored(), ["model.layers.0.mlp.g.2.weight"]);
        }
    }
}

#[test]
fn crest_steps_are_ordered_by_number() {
    let first = |tensors: &Tensors, k: usize| {
        let weights = crest(tensors).expect("resolve");
        weights.vector(&format!("model.layers.0.mlp.steps.{k}.up_proj.weight")).expect("step")[0]
    };
    let names: Vec<String> = (0..12).map(|k| format!("mlp.m.{k}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let tensors = crest_layer(&names, vec![("mlp.g.weight", rows(1))]);
    assert_eq!((first(&tensors, 2), first(&tensors, 10)), (2.0, 10.0));
    let base_first = crest_layer(&["mlp", "mlp.extra.0", "mlp.extra.1"], vec![("mlp.halt.weight", rows(1))]);
    assert_eq!((first(&base_first, 0), first(&base_first, 2)), (0.0, 2.0));
    let renamed = crest_layer(&["x1", "x2"], vec![("g.weight", rows(1))])
        .into_iter()
        .map(|(name, t)| (name.replace("gate_proj", "w1").replace("up_proj", "w3").replace("down_proj", "w2"), t))
        .collect();
    assert_eq!((first(&renamed, 0), first(&renamed, 1)), (0.0, 1.0));
    // One MLP and no gate: a dense model.
    let dense = crest(&crest_layer(&["mlp"], vec![])).expect("dense");
    assert_eq!(dense.discovered_crest().map(|found| found.num_steps), Some(1));
}

#[test]
fn ambiguous_crest_layers_are_refused() {
    let steps = ["mlp.m.0", "mlp.m.1", "mlp.m.2"];
    let one = || vec![("mlp.g.weight", rows(1))];
    let with = |extra: (&'static str, Tensor)| crest_layer(&steps, one().into_iter().chain([extra]).collect());
    let without = |name: &str| {
        let mut tensors = crest_layer(&steps, one());
        tensors.remove(&format!("model.layers.0.{name}")).expect(name);
        tensors
    };
    let cases = [
        ("no steps", "no MLP", crest_layer(&[], one())),
        ("half a step", "not the gate, up and down", without("mlp.m.1.up_proj.weight")),
        ("no gates", "0 gates", without("mlp.g.weight")),
        ("two kinds of gates", "which of these", with(("mlp.h.weight", rows(1)))),
        (
            "too many gates",
            "5 gates",
            crest_layer(
                &steps,
                ["g.0.weight", "g.1.weight", "g.2.weight", "g.3.weight", "g.4.weight"].map(|n| (n, rows(1))).into(),
            ),
        ),
        ("a stranger", "neither a step nor a gate", with(("mlp.x.weight", zeros(&[5, 5])))),
        ("a stranger without weight", "neither a step nor a gate", with(("mlp.x.scale", zeros(&[64])))),
        ("a stranger beside the gate", "neither a step nor a gate", with(("mlp.g.scale", zeros(&[64])))),
        ("a wrong bias", "not the bias", with(("mlp.g.bias", zeros(&[2])))),
        (
            "a bias at one gate of two",
            "some layers of gates have a bias",
            crest_layer(
                &steps,
                vec![("mlp.g.0.weight", rows(1)), ("mlp.g.0.bias", zeros(&[1])), ("mlp.g.1.weight", rows(1))],
            ),
        ),
        ("steps without numbers", "no number tells", crest_layer(&["mlp.a", "mlp.b"], one())),
        ("a transposed projection", "not the gate, up and down", {
            let mut tensors = without("mlp.m.1.up_proj.weight");
            tensors.insert("model.layers.0.mlp.m.1.up_proj.weight".into(), zeros(&[64, 72]));
            tensors
        }),
        ("layers that differ", "layers before", {
            let mut tensors = crest_layer(&steps, one());
            for (name, tensor) in crest_layer(&steps[..2], one()) {
                tensors.insert(name.replace("layers.0", "layers.1"), tensor);
            }
            tensors
        }),
    ];
    for (case, word, tensors) in cases {
        fails(case, word, || crest(&tensors));
    }
}

/// Names within a layer and shapes.
type Parts<'a> = &'a [(&'a str, &'a [usize])];

/// A value compressor in layer 0 of `leanllama` (width 32, heads of 16).
fn compressor(parts: Parts) -> emberlm_model::Result<Weights> {
    let copy = Copy::of("leanllama");
    let tensors = parts.iter().map(|(name, shape)| (format!("model.layers.0.{name}"), zeros(shape))).collect();
    write_tensors(&copy.weights(), &tensors);
    copy.load()
}

#[test]
fn compressor_layouts_that_the_fixtures_do_not_have() {
    let codec = |hidden_dim, encoder_bias, decoder_bias| KvCodec {
        code_dim: 4,
        width: 32,
        hidden_dim,
        encoder_bias,
        decoder_bias,
    };
    let cases: [(&str, KvTarget, KvCodec, Parts); 6] = [
        (
            "linear",
            KvTarget::Value,
            codec(None, false, false),
            &[("self_attn.v_enc.weight", &[4, 32]), ("self_attn.v_dec.weight", &[32, 4])],
        ),
        (
            "linear with biases",
            KvTarget::Key,
            codec(None, true, true),
            &[
                ("self_attn.key.down.weight", &[4, 32]),
                ("self_attn.key.down.bias", &[4]),
                ("self_attn.key.up.weight", &[32, 4]),
                ("self_attn.key.up.bias", &[32]),
            ],
        ),
        (
            "hidden as wide as the output",
            KvTarget::Value,
            codec(Some(32), false, false),
            &[
                ("self_attn.vcomp_a.weight", &[4, 32]),
                ("self_attn.vcomp_b.weight", &[32, 4]),
                ("self_attn.vcomp_c.weight", &[32, 32]),
            ],
        ),
        (
            "hidden as wide as the code",
            KvTarget::Value,
            codec(Some(4), false, false),
            &[("kv_ae.v.e.weight", &[4, 32]), ("kv_ae.v.d.0.weight", &[4, 4]), ("kv_ae.v.d.2.weight", &[32, 4])],
        ),
        (
            "per head",
            KvTarget::Value,
            KvCodec { width: 16, ..codec(Some(24), false, false) },
            &[
                ("self_attn.value.e.weight", &[4, 16]),
                ("self_attn.value.d.0.weight", &[24, 4]),
                ("self_attn.value.d.2.weight", &[16, 24]),
            ],
        ),
        (
            "encoder bias",
            KvTarget::Value,
            codec(Some(24), true, false),
            &[
                ("v_ae.e.weight", &[4, 32]),
                ("v_ae.e.bias", &[4]),
                ("v_ae.d.0.weight", &[24, 4]),
                ("v_ae.d.2.weight", &[32, 24]),
            ],
        ),
    ];
    for (case, target, codec, parts) in cases {
        let weights = compressor(parts).expect(case);
        let found = weights.discovered_kv_compression().expect(case);
        assert_eq!(found.layers[&0][&target], codec, "{case}");
        let at = format!("model.layers.0.self_attn.{target}_compressor");
        let names: Vec<&str> = weights.canonical_names().collect();
        assert_eq!(names.len(), parts.len(), "{case}");
        let decoder = if codec.hidden_dim.is_some() { "decoder.2" } else { "decoder" };
        for (name, shape) in [("encoder", [4, codec.width]), (decoder, [codec.width, codec.hidden_dim.unwrap_or(4)])] {
            let entry = weights.entry(&format!("{at}.{name}.weight")).expect(case);
            assert_eq!(entry.shape, shape, "{case} {names:?}");
        }
    }
    // Several heads wide or one head wide: both would fit.
    fails("ambiguous", "several readings", || {
        compressor(&[("v.a.weight", &[16, 32]), ("v.b.weight", &[4, 16]), ("v.c.weight", &[32, 4])])
    });
}

#[test]
fn broken_compressors_are_refused() {
    let cases: [(&str, &str, Parts); 9] = [
        (
            "no target in the name",
            "keys or values",
            &[("self_attn.comp.e.weight", &[4, 32]), ("self_attn.comp.d.weight", &[32, 4])],
        ),
        ("both targets in the name", "keys or values", &[("self_attn.k_v.e.weight", &[4, 32])]),
        ("code as wide as the vector", "no encoder", &[("v.e.weight", &[32, 32]), ("v.d.weight", &[32, 32])]),
        ("code of nothing", "no encoder", &[("v.e.weight", &[0, 32]), ("v.d.weight", &[32, 0])]),
        (
            "transposed encoder",
            "no encoder",
            &[("v.e.weight", &[32, 4]), ("v.d.0.weight", &[24, 4]), ("v.d.2.weight", &[32, 24])],
        ),
        ("no decoder", "no encoder", &[("v.e.weight", &[4, 32])]),
        ("wrong bias", "not the bias", &[("v.e.weight", &[4, 32]), ("v.e.bias", &[5]), ("v.d.weight", &[32, 4])]),
        (
            "half a bias",
            "the other has none",
            &[("v.e.weight", &[4, 32]), ("v.d.0.weight", &[24, 4]), ("v.d.0.bias", &[24]), ("v.d.2.weight", &[32, 24])],
        ),
        (
            "a stranger",
            "belongs to no layer",
            &[("v.e.weight", &[4, 32]), ("v.d.weight", &[32, 4]), ("v.norm.weight", &[4])],
        ),
    ];
    for (case, word, parts) in cases {
        fails(case, word, || compressor(parts));
    }
}

#[test]
fn quantised_gates_are_found_by_their_true_shape() {
    let copy = Copy::of("crest_k4_nf4");
    let (numbers, sides) =
        ("model.layers.0.linear_attn.in_proj_a.weight", ["absmax", "quant_map", "quant_state.bitsandbytes__nf4"]);
    let plain = copy.load().expect("load").vector(numbers).expect("numbers");
    // A [2, 88] matrix in place of the gates of each layer, which then has three steps.
    copy.change_tensors(|t| {
        for layer in 0..4 {
            for k in 0..3 {
                t.remove(&format!("model.layers.{layer}.mlp.gates.{k}.weight")).expect("gate");
                t.remove(&format!("model.layers.{layer}.mlp.gates.{k}.bias")).expect("bias");
            }
            let gone = format!("model.layers.{layer}.mlp.ffns.3.");
            t.retain(|name, _| !name.starts_with(&gone));
            let gate = format!("model.layers.{layer}.mlp.gates.weight");
            for side in sides {
                let copy = t[&format!("{numbers}.{side}")].clone();
                t.insert(format!("{gate}.{side}"), copy);
            }
            let copy = t[numbers].clone();
            t.insert(gate, copy);
        }
    });
    let weights = copy.load().expect("load");
    let expected = DiscoveredCrest { num_steps: 3, gate_shared: false, gate_hidden: None, gate_bias: false };
    assert_eq!(weights.discovered_crest(), Some(&expected));
    for k in 0..2 {
        let name = format!("model.layers.2.mlp.halt_gates.{k}.weight");
        let entry = weights.entry(&name).expect("gate");
        assert_eq!((entry.shape.as_slice(), entry.storage), (&[1, 88][..], StorageKind::Nf4 { double: false }));
        assert_eq!(weights.vector(&name).expect("gate"), plain[88 * k..88 * (k + 1)]);
        assert_eq!(weights.matrix(&name).expect("gate").bytes(), 88 * 4);
    }
}
