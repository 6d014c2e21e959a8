//! Dense bodies in the variants that configs allow: rotary scalings and biases, against what transformers computes.

use std::fs;
use std::path::Path;

use emberlm::model::config::{CrestOverrides, Family};
use emberlm::model::{CausalLm, ForwardOptions, LogitsFor, Pretrained, WeightOptions};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;
use serde_json::Value;

use super::fixture::{Numbers, logit_tolerance, own};

/// A copy of the fixture's files with keys of the config replaced.
fn with_config(change: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let from = own("unit_rope");
    fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors")).expect("the weights");
    let mut config: Value = json(&from.join("config.json"));
    for (key, value) in change.as_object().expect("keys") {
        config[key] = value.clone();
    }
    fs::write(dir.path().join("config.json"), config.to_string()).expect("the config");
    dir
}

fn json(path: &Path) -> Value {
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
    let goldens = json(&own("unit_rope/golden.json"));
    let tolerance = logit_tolerance::<B>(Family::Llama);
    for golden in goldens.as_array().expect("a list") {
        let name = golden["name"].as_str().expect("a name");
        let ids = |key: &str| -> Vec<u32> {
            golden[key].as_array().expect(key).iter().map(|id| id.as_u64().expect("an id") as u32).collect()
        };
        let dir = with_config(&golden["config"]);
        let pretrained =
            Pretrained::open(dir.path(), &CrestOverrides::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let model: CausalLm<B> = pretrained.load(WeightOptions::default(), device, None).expect(name);
        let (prompt, generated) = (ids("ids"), ids("generated"));

        let options = ForwardOptions { logits: LogitsFor::Last, hidden: false };
        let mut cache = model.new_cache(KvFormat::F32);
        let whole = model.forward(model.ids(&[&prompt]), &mut cache, options).logits.expect("logits");
        let whole = Numbers::of(&whole.squeeze_dim::<2>(1));
        whole.assert_close(&format!("{name}: logits of the prompt at once"), &row(&golden["logits"]), tolerance);

        let mut cache = model.new_cache(KvFormat::F32);
        let mut logits = model.prefill(&[&prompt], &mut cache, 7).expect(name);
        for (step, expected) in golden["generated_logits"].as_array().expect("rows").iter().enumerate() {
            let what = format!("{name}: logits that chose token {step}");
            Numbers::of(&logits).assert_close(&what, &row(expected), tolerance);
            logits = model.decode(&generated[step..=step], &mut cache).expect(name);
        }
    }
}
