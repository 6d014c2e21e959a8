//! Every fixture: all tensors accounted for, true shapes, discovery and options, and the numbers of quantised tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use emberlm_model::checkpoint::{Checkpoint, StorageKind, Weights};
use emberlm_model::config::*;
use emberlm_quant::host::{FloatType, HostStorage};

const FOLDERS: [&str; 7] =
    ["crest_k2", "crest_k4", "crest_k4_nf4", "leanllama", "leanllama_kv", "leanllama_nf4", "nano_compact"];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

fn load(name: &str) -> (Checkpoint, ModelConfig, Weights) {
    let checkpoint = Checkpoint::open(&fixture(name)).expect(name);
    let config = checkpoint.config().expect(name);
    let weights = Weights::resolve(&checkpoint, &config).expect(name);
    (checkpoint, config, weights)
}

/// Every canonical name of a model with its shape, from the config alone.
fn expected(
    config: &ModelConfig,
    found: Option<&DiscoveredCrest>,
    kv: Option<&KvCompression>,
) -> BTreeMap<String, Vec<usize>> {
    let (d, i, hd) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv_dim) = (config.num_attention_heads * hd, config.kv_dim());
    let mut out = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| assert!(out.insert(name, shape.to_vec()).is_none());
    add("model.embed_tokens.weight".into(), &[config.vocab_size, d]);
    add("model.norm.weight".into(), &[d]);
    if !config.tie_word_embeddings && config.family != Family::NanoCompact {
        add("lm_head.weight".into(), &[config.vocab_size, d]);
    }
    for (l, kind) in config.layer_types.iter().enumerate() {
        let mut add = |name: &str, shape: &[usize]| add(format!("model.layers.{l}.{name}"), shape);
        add("input_layernorm.weight", &[d]);
        add("post_attention_layernorm.weight", &[d]);
        match (kind, &config.linear_attention) {
            (LayerType::LinearAttention, Some(c)) => {
                let (k, v) = (c.num_key_heads * c.key_head_dim, c.num_value_heads * c.value_head_dim);
                add("linear_attn.in_proj_qkv.weight", &[2 * k + v, d]);
                add("linear_attn.in_proj_z.weight", &[v, d]);
                add("linear_attn.in_proj_a.weight", &[c.num_value_heads, d]);
                add("linear_attn.in_proj_b.weight", &[c.num_value_heads, d]);
                add("linear_attn.conv1d.weight", &[2 * k + v, 1, c.conv_kernel_dim]);
                add("linear_attn.A_log", &[c.num_value_heads]);
                add("linear_attn.dt_bias", &[c.num_value_heads]);
                add("linear_attn.norm.weight", &[c.value_head_dim]);
                add("linear_attn.out_proj.weight", &[d, v]);
            }
            _ => {
                add("self_attn.q_proj.weight", &[if config.attn_output_gate { 2 * q } else { q }, d]);
                add("self_attn.k_proj.weight", &[kv_dim, d]);
                add("self_attn.v_proj.weight", &[kv_dim, d]);
                add("self_attn.o_proj.weight", &[d, q]);
                if config.family.is_hybrid() {
                    add("self_attn.q_norm.weight", &[hd]);
                    add("self_attn.k_norm.weight", &[hd]);
                }
                if config.family.has_qkv_bias() {
                    add("self_attn.q_proj.bias", &[q]);
                    add("self_attn.k_proj.bias", &[kv_dim]);
                    add("self_attn.v_proj.bias", &[kv_dim]);
                }
            }
        }
        let mut mlp = |at: &str| {
            add(&format!("{at}.gate_proj.weight"), &[i, d]);
            add(&format!("{at}.up_proj.weight"), &[i, d]);
            add(&format!("{at}.down_proj.weight"), &[d, i]);
        };
        match found {
            None => mlp("mlp"),
            Some(found) => {
                (0..found.num_steps).for_each(|k| mlp(&format!("mlp.steps.{k}")));
                let gates: Vec<String> = match found.gate_shared {
                    true => vec!["mlp.halt_gate".into()],
                    false => (0..found.num_steps - 1).map(|k| format!("mlp.halt_gates.{k}")).collect(),
                };
                for gate in gates {
                    add(&format!("{gate}.weight"), &[1, d]);
                    add(&format!("{gate}.bias"), &[1]);
                }
            }
        }
        for (target, codec) in kv.and_then(|kv| kv.layers.get(&l)).into_iter().flatten() {
            let at = format!("self_attn.{target}_compressor");
            let h = codec.hidden_dim.expect("GELU decoders");
            add(&format!("{at}.encoder.weight"), &[codec.code_dim, kv_dim]);
            add(&format!("{at}.decoder.0.weight"), &[h, codec.code_dim]);
            add(&format!("{at}.decoder.0.bias"), &[h]);
            add(&format!("{at}.decoder.2.weight"), &[kv_dim, h]);
            add(&format!("{at}.decoder.2.bias"), &[kv_dim]);
        }
    }
    out
}

#[test]
fn every_tensor_is_mapped_or_ignored_and_has_its_true_shape() {
    for name in FOLDERS {
        let (checkpoint, config, weights) = load(name);
        let kv =
            KvCompression::resolve(config.kv_compression.as_ref(), weights.discovered_kv_compression()).expect(name);
        let expected = expected(&config, weights.discovered_crest(), kv.as_ref());
        let found: BTreeMap<String, Vec<usize>> =
            weights.canonical_names().map(|n| (n.to_owned(), weights.entry(n).expect(n).shape.clone())).collect();
        assert_eq!(found, expected, "{name}");

        let mut used = BTreeSet::new();
        for canonical in weights.canonical_names() {
            for source in &weights.entry(canonical).expect(canonical).tensors {
                assert!(used.insert(source.clone()), "{name}: {source} is used twice");
            }
        }
        used.extend(weights.ignored().iter().cloned());
        let all: BTreeSet<String> = checkpoint.names().map(String::from).collect();
        assert_eq!(used, all, "{name}");
        let ignored: &[&str] =
            if name == "crest_k2" { &["model.visual.patch_embed.proj.bias", "mtp.norm.weight"] } else { &[] };
        assert_eq!(weights.ignored(), ignored, "{name}");

        let bytes: usize = weights.canonical_names().map(|n| weights.entry(n).map_or(0, |e| e.bytes)).sum();
        let ignored: usize = weights.ignored().iter().filter_map(|n| checkpoint.info(n)).map(|i| i.bytes).sum();
        assert_eq!(bytes + ignored, checkpoint.total_bytes(), "{name}");
    }
}

#[test]
fn every_parameter_can_be_read() {
    for name in FOLDERS {
        let (_, _, weights) = load(name);
        for canonical in weights.canonical_names() {
            let entry = weights.entry(canonical).expect(canonical);
            let numbers = weights.vector(canonical).expect(canonical);
            assert_eq!(numbers.len(), entry.shape.iter().product::<usize>(), "{name} {canonical}");
            if entry.shape.len() == 2 {
                let matrix = weights.matrix(canonical).expect(canonical);
                assert_eq!([matrix.n, matrix.k], entry.shape[..], "{name} {canonical}");
            }
            weights.release(canonical);
            assert_eq!(weights.vector(canonical).expect(canonical), numbers, "{name} {canonical} after release");
        }
    }
}

#[test]
fn families_and_storages() {
    let storage = |weights: &Weights, name: &str| weights.entry(name).expect(name).storage;
    let q = "model.layers.3.self_attn.q_proj.weight";
    for (name, family, expected) in [
        ("crest_k2", Family::Crest, StorageKind::Bf16),
        ("crest_k4", Family::Crest, StorageKind::Bf16),
        ("crest_k4_nf4", Family::Crest, StorageKind::Nf4 { double: false }),
        ("leanllama", Family::LeanLlama, StorageKind::F16),
        ("leanllama_kv", Family::LeanLlama, StorageKind::F16),
        ("leanllama_nf4", Family::LeanLlama, StorageKind::Nf4 { double: true }),
        ("nano_compact", Family::NanoCompact, StorageKind::F16),
    ] {
        let (_, config, weights) = load(name);
        assert_eq!(config.family, family, "{name}");
        assert_eq!(storage(&weights, q), expected, "{name}");
        assert!(config.auto_map, "{name}");
        assert_eq!(config.quantization.is_some(), name.ends_with("nf4"), "{name}");
        let dtype = if family == Family::Crest { FloatType::Bf16 } else { FloatType::F16 };
        assert_eq!(config.dtype, Some(dtype), "{name}");
    }
    let (_, _, crest) = load("crest_k2");
    assert_eq!(storage(&crest, "model.layers.0.linear_attn.A_log"), StorageKind::F32);
    let (_, _, nano) = load("nano_compact");
    for (name, expected) in [
        ("model.embed_tokens.weight", StorageKind::Int8Rows),
        ("model.layers.0.mlp.gate_proj.weight", StorageKind::MixedRows { bits: 2 }),
        ("model.layers.0.mlp.up_proj.weight", StorageKind::MixedRows { bits: 4 }),
        ("model.layers.0.mlp.down_proj.weight", StorageKind::Int8Rows),
        ("model.layers.1.mlp.gate_proj.weight", StorageKind::Int8Rows),
        ("model.layers.3.mlp.down_proj.weight", StorageKind::F16),
    ] {
        assert_eq!(storage(&nano, name), expected, "{name}");
    }
}

#[test]
fn crest_discovery_and_options() {
    let base = CrestOptions::default();
    for (name, num_steps, gate_shared, options) in [
        ("crest_k2", 2, true, CrestOptions { halt_mode: HaltMode::Step, halt_threshold: 0.5, ..base.clone() }),
        ("crest_k4", 4, true, CrestOptions { step_input: StepInput::Chained, halt_threshold: 0.85, ..base.clone() }),
        ("crest_k4_nf4", 4, false, base.clone()),
    ] {
        let (_, config, weights) = load(name);
        let found = weights.discovered_crest().expect(name);
        assert_eq!(*found, DiscoveredCrest { num_steps, gate_shared, gate_hidden: None, gate_bias: true }, "{name}");
        let stated = config.crest.as_ref().expect(name);
        let resolved = CrestOptions::resolve(stated, found, &CrestOverrides::default()).expect(name);
        assert_eq!(resolved, CrestOptions { num_steps, gate_shared, ..options }, "{name}");

        let two = CrestOverrides { num_steps: Some(2), halt_enabled: Some(false), ..Default::default() };
        let resolved = CrestOptions::resolve(stated, found, &two).expect(name);
        assert_eq!((resolved.num_steps, resolved.halt_enabled), (2, false));
        for bad in [
            CrestOverrides { num_steps: Some(0), ..Default::default() },
            CrestOverrides { num_steps: Some(num_steps + 1), ..Default::default() },
            CrestOverrides { halt_threshold: Some(1.5), ..Default::default() },
            CrestOverrides { halt_threshold: Some(f32::NAN), ..Default::default() },
        ] {
            CrestOptions::resolve(stated, found, &bad).expect_err(name);
        }
    }
}

#[test]
fn compressors_of_the_fixtures() {
    for (name, layers, targets, hidden) in [
        ("leanllama", &[1, 3, 4][..], &[KvTarget::Value][..], 16),
        ("leanllama_kv", &[1, 2, 3], &[KvTarget::Key, KvTarget::Value], 24),
        ("leanllama_nf4", &[0, 2], &[KvTarget::Value], 16),
    ] {
        let (_, config, weights) = load(name);
        let codec = KvCodec {
            code_dim: 4,
            width: config.kv_dim(),
            hidden_dim: Some(hidden),
            encoder_bias: false,
            decoder_bias: true,
        };
        let codecs: BTreeMap<_, _> = targets.iter().map(|t| (*t, codec)).collect();
        let layers: BTreeMap<_, _> = layers.iter().map(|l| (*l, codecs.clone())).collect();
        let resolved =
            KvCompression::resolve(config.kv_compression.as_ref(), weights.discovered_kv_compression()).expect(name);
        let expected =
            KvCompression { layers, activation: CodeActivation::Gelu, k_stage: KStage::PostRope, cache_hidden: false };
        assert_eq!(resolved, Some(expected), "{name}");
        // A config without the object finds the same.
        let silent = KvCompression::resolve(None, weights.discovered_kv_compression()).expect(name);
        assert_eq!(silent, resolved, "{name}");
    }
}

#[test]
fn configs_of_the_fixtures() {
    let (_, crest, _) = load("crest_k2");
    assert_eq!(crest.rope, RopeConfig { theta: 1e7, rotary_dim: 8, scaling: None });
    assert_eq!(crest.eos_token_ids, [505]);
    assert_eq!(crest.layer_types.iter().filter(|t| **t == LayerType::FullAttention).count(), 2);
    let scaling = Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 128,
    };
    for name in ["leanllama", "leanllama_kv"] {
        let (_, lean, _) = load(name);
        let scaling = Some(RopeScaling::Llama3(scaling.clone()));
        assert_eq!(lean.rope, RopeConfig { theta: 5e5, rotary_dim: 16, scaling }, "{name}");
        assert_eq!(lean.eos_token_ids, [523, 527, 528]);
    }
    let (checkpoint, nano, _) = load("nano_compact");
    assert_eq!((nano.head_dim, nano.nanollm_modules.len(), nano.sliding_window), (16, 15, Some(32768)));
    let generation = checkpoint.generation_config().expect("generation config");
    assert_eq!(generation.eos_token_ids, [555, 553]);
    assert_eq!(
        (generation.defaults.repetition_penalty, generation.defaults.top_k, generation.defaults.do_sample),
        (Some(1.05), Some(20), Some(true))
    );
}

/// The number formats against the reference: every value is one f32 product, hence equal.
#[test]
fn quantised_units_are_exact() {
    let file = fixture("unit_quant").join("cases.safetensors");
    let cases = std::fs::read(fixture("unit_quant").join("cases.json")).expect("cases");
    let cases: serde_json::Value = serde_json::from_slice(&cases).expect("cases");
    let cases = cases.as_array().expect("a list");
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("nano_compact/config.json")).expect("config")).expect("config");
    json["nanollm_modules"] = cases
        .iter()
        .filter(|case| case.get("spec").is_some())
        .map(|case| (case["name"].as_str().expect("name").to_owned(), case["spec"].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let config = ModelConfig::from_json(&file, json.to_string().as_bytes()).expect("config");
    let checkpoint = Checkpoint::open(&file).expect("open");
    let weights = Weights::resolve(&checkpoint, &config).expect("resolve");
    let mut mixed = 0;
    for case in cases {
        let name = case["name"].as_str().expect("name");
        let base = name.strip_suffix(".weight").unwrap_or(name);
        let ours = weights.vector(&format!("{base}.weight")).expect(name);
        let reference = [format!("{base}.dequant_f32"), format!("{name}.dequant_f32")];
        let reference = reference.iter().find(|n| weights.entry(n).is_some()).expect(name);
        assert_eq!(ours, weights.vector(reference).expect(name), "{name}");
        let HostStorage::Rows(rows) = weights.matrix(&format!("{base}.weight")).expect(name).storage else {
            continue;
        };
        if let Some(slots) = rows.slots {
            mixed += 1;
            let section = |wide: bool| slots.iter().filter(move |s| ((**s as usize) < rows.wide_rows) == wide);
            assert!(section(true).is_sorted() && section(false).is_sorted(), "{name}: rows are not read forwards");
        }
    }
    assert!(mixed >= 3, "only {mixed} cases with slots");
}

/// The list of an architecture's tensors is what its checkpoint holds, and a checkpoint with more steps than are run is no other model.
#[test]
fn the_list_of_tensors_is_the_checkpoints() {
    for name in FOLDERS {
        let pretrained = emberlm_model::Pretrained::open(fixture(name)).expect(name);
        let weights = pretrained.weights();
        let mut listed = BTreeMap::new();
        for tensor in pretrained.architecture().tensors() {
            let stored = weights.entry(&tensor.name).map(|entry| entry.shape.clone());
            assert_eq!(
                stored.as_ref(),
                Some(&tensor.shape).filter(|_| stored.is_some() || !tensor.optional),
                "{name}: {}",
                tensor.name
            );
            assert!(listed.insert(tensor.name.clone(), tensor.role).is_none(), "{name}: {} twice", tensor.name);
        }
        for stored in weights.canonical_names() {
            assert!(listed.contains_key(stored), "{name}: {stored} is not listed");
            assert!(!pretrained.architecture().leaves_out(stored), "{name}: {stored} is left out");
        }
        if pretrained.architecture().crest.is_none() {
            continue;
        }
        let one = CrestOverrides { num_steps: Some(1), ..Default::default() };
        let one = pretrained.depth(&one).expect("one step");
        let fewer: BTreeSet<String> = one.architecture().tensors().into_iter().map(|tensor| tensor.name).collect();
        assert!(fewer.len() < listed.len(), "{name}");
        for tensor in listed.keys() {
            assert_ne!(fewer.contains(tensor), one.architecture().leaves_out(tensor), "{name}: {tensor}");
        }
    }
}

/// In a log a model of gigabytes is a line, not its bytes.
#[test]
fn what_is_open_is_shown_without_its_bytes() {
    let path = fixture("crest_k4");
    let pretrained = emberlm_model::Pretrained::open(&path).expect("a model");
    let bytes = std::fs::metadata(path.join("model.safetensors")).expect("a file").len();
    let shown = format!("{pretrained:?}");
    assert!(shown.contains("Shard { mapped: true, bytes: "), "{shown}");
    assert!((shown.len() as u64) < bytes / 4, "{} of {bytes}", shown.len());
}
