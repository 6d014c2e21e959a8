//! Dense bodies in the variants that configs allow: rotary scalings and biases, against what transformers computes.

use std::fs;
use std::path::Path;

use emberlm::model::config::Family;
use emberlm::model::evaluate::{EvaluateOptions, evaluate};
use emberlm::model::generate::{GenerateOptions, Generator};
use emberlm::model::sampling::SamplingConfig;
use emberlm::model::{CausalLm, Pretrained};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::fixture::{Numbers, logit_tolerance, own};

/// A copy of the fixture's files with keys of the config replaced.
pub(super) fn with_config(change: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let from = own("unit_rope");
    fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors")).expect("the weights");
    let mut config: Value = read_json(&from.join("config.json"));
    for (key, value) in change.as_object().expect("keys") {
        config[key] = value.clone();
    }
    fs::write(dir.path().join("config.json"), config.to_string()).expect("the config");
    dir
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

fn row(value: &Value) -> Numbers {
    let values: Vec<f32> =
        value.as_array().expect("numbers").iter().map(|x| x.as_f64().expect("a number") as f32).collect();
    Numbers { shape: vec![1, values.len()], values }
}

/// Llama with all biases under every rotary scaling: a prompt at once, in chunks, and what is generated after it through the cache.
/// Prompts end before, at and beyond the length from which `dynamic` and `longrope` change.
pub fn rope_scalings_and_biases<B: CompactBackend>(device: &B::Device) {
    let goldens = read_json(&own("unit_rope/golden.json"));
    let tolerance = logit_tolerance::<B>(Family::Llama);
    // Any tokenizer that has the ids.
    let text = Pretrained::open(own("leanllama")).and_then(|p| p.text()).expect("a tokenizer");
    for golden in goldens.as_array().expect("a list") {
        let name = golden["name"].as_str().expect("a name");
        let ids = |key: &str| -> Vec<u32> {
            golden[key].as_array().expect(key).iter().map(|id| id.as_u64().expect("an id") as u32).collect()
        };
        let dir = with_config(&golden["config"]);
        let pretrained = Pretrained::open(dir.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let model: CausalLm<B> = pretrained.load(device).expect(name);
        let (prompt, generated) = (ids("ids"), ids("generated"));

        let mut cache = model.new_cache(KvFormat::F32);
        let whole = Numbers::of(&model.prefill(&prompt, &mut cache, prompt.len()).expect(name));
        whole.assert_close(&format!("{name}: logits of the prompt at once"), &row(&golden["logits"]), tolerance);

        let mut cache = model.new_cache(KvFormat::F32);
        let mut logits = model.prefill(&prompt, &mut cache, 7).expect(name);
        for (step, expected) in golden["generated_logits"].as_array().expect("rows").iter().enumerate() {
            let what = format!("{name}: logits that chose token {step}");
            Numbers::of(&logits).assert_close(&what, &row(expected), tolerance);
            logits = model.decode(generated[step], &mut cache).expect(name);
        }

        // The same by way of a generation, and probabilities of a text in chunks.
        let options = GenerateOptions {
            sampling: SamplingConfig::greedy(),
            max_tokens: generated.len(),
            chunk: 7,
            cache: KvFormat::F32,
            ..Default::default()
        };
        let mut pieces = Generator::new(&model, &text, options).expect("options").run(&prompt).expect(name);
        for piece in pieces.by_ref() {
            piece.expect(name);
        }
        assert_eq!(pieces.summary().expect("it has ended").generated, generated, "{name}: generated");
        let probabilities = |chunk: usize| {
            let options = EvaluateOptions { chunk: Some(chunk), ..Default::default() };
            let values = evaluate(&model, &prompt, &options).expect(name).log_probabilities;
            Numbers { shape: vec![values.len()], values }
        };
        let what = format!("{name}: log probabilities in chunks");
        probabilities(7).assert_close(&what, &probabilities(prompt.len()), tolerance);
    }
}

/// The fixture's tensors without those of some kinds.
fn without(dir: &Path, kinds: &[&str]) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).expect("the weights");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let kept: Vec<_> =
        file.tensors().into_iter().filter(|(name, _)| !kinds.iter().any(|kind| name.contains(kind))).collect();
    assert!(kept.len() < file.len(), "nothing is of {kinds:?}");
    let written = safetensors::serialize(kept, None).expect("a safetensors file");
    fs::write(path, written).expect("written");
}

/// Biases that the config states must be stored, and those that it does not state must not be; those of Qwen2 go by the tensors.
pub fn biases_by_config_and_tensors<B: CompactBackend>(device: &B::Device) {
    let plan = |change: &Value, left_out: &[&str]| {
        let dir = with_config(change);
        if !left_out.is_empty() {
            without(dir.path(), left_out);
        }
        let pretrained = Pretrained::open(dir.path()).expect("open");
        let notes = pretrained.notes().join("; ");
        let refused = pretrained.plan::<B>(device).err().map(|e| e.to_string());
        (pretrained.architecture().config.qkv_bias, notes, refused, dir)
    };
    let plain = [
        "q_proj.bias",
        "k_proj.bias",
        "v_proj.bias",
        "o_proj.bias",
        "gate_proj.bias",
        "up_proj.bias",
        "down_proj.bias",
    ];
    assert_eq!(plan(&json!({}), &[]).2, None);
    let none = json!({ "attention_bias": false, "mlp_bias": false });
    assert_eq!(plan(&none, &plain).2, None);
    for (change, left_out, words) in [
        (json!({ "attention_bias": false }), &[][..], ["8 unused", "q_proj.bias"]),
        (json!({ "mlp_bias": false }), &[], ["6 unused", "down_proj.bias"]),
        (json!({}), &["o_proj.bias"], ["2 missing", "o_proj.bias"]),
        (json!({}), &["up_proj.bias"], ["2 missing", "up_proj.bias"]),
        (json!({ "model_type": "qwen2", "mlp_bias": false }), &plain[4..], ["2 unused", "o_proj.bias"]),
        (
            json!({ "model_type": "qwen2", "mlp_bias": false }),
            &["1.self_attn.q_proj.bias", "o_proj.bias", "mlp"],
            ["missing", "q_proj.bias"],
        ),
    ] {
        let refused = plan(&change, left_out).2.unwrap_or_else(|| panic!("{change} without {left_out:?} is accepted"));
        assert!(words.iter().all(|word| refused.contains(word)), "{change} without {left_out:?}: {refused}");
    }

    // Qwen2 without any is Llama without any.
    let (qkv_bias, notes, refused, qwen2) =
        plan(&json!({ "model_type": "qwen2", "attention_bias": false, "mlp_bias": false }), &plain);
    assert_eq!((qkv_bias, refused), (false, None));
    assert!(notes.contains("no biases of query, key and value"), "{notes}");
    let llama = plan(&none, &plain).3;
    let logits = |dir: &Path| {
        let pretrained = Pretrained::open(dir).expect("open");
        let model: CausalLm<B> = pretrained.load(device).expect("load");
        Numbers::of(&model.prefill(&[1, 2, 3], &mut model.new_cache(KvFormat::F32), 8).expect("logits")).values
    };
    assert_eq!(logits(qwen2.path()), logits(llama.path()));
}
