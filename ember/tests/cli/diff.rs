//! `ember diff`.

use emberlm::model::evaluate::{EvaluateOptions, evaluate};
use emberlm::model::{ForwardOptions, LogitsFor, Pretrained, Span};
use emberlm::quant::kv::KvFormat;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::program::{Ended, Scratch, edit_config, ember, ember_reading, model};

type Cpu = burn_ndarray::NdArray<f32>;

const TEXT: &str = "The quick brown fox jumps over the lazy dog. It was not amused, and said so at length.\n";
const TENSOR: &str = "model.layers.1.mlp.up_proj.weight";

fn path(path: &std::path::Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A copy of a fixture in which a tensor of F16 numbers is rounded.
fn rounded(scratch: &Scratch) -> std::path::PathBuf {
    let copy = scratch.copy_of("leanllama");
    let file = copy.join("model.safetensors");
    let mut bytes = std::fs::read(&file).expect("weights");
    let parsed = SafeTensors::deserialize(&bytes).expect("a file");
    let data = parsed.tensor(TENSOR).expect("it").data();
    let start = data.as_ptr() as usize - bytes.as_ptr() as usize;
    let range = start..start + data.len();
    for half in bytes[range].chunks_exact_mut(2) {
        // Two bits of the fraction are left.
        half[0] = 0;
    }
    std::fs::write(file, bytes).expect("written");
    copy
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {}", ended.stdout))
}

#[test]
fn a_model_is_the_same_as_itself() {
    let fixture = model("crest_k4_nf4");
    let ended = ember(["diff", path(&fixture), path(&fixture)]).with_code(0);
    assert!(ended.stdout.ends_with("the models are the same\n"), "{}", ended.stdout);
    assert_eq!(json(&ember(["diff", path(&fixture), path(&fixture), "--json"]).with_code(0))["same"], true);
    // Who wrote a file does not count.
    let scratch = Scratch::new();
    let copy = scratch.copy_of("crest_k4_nf4");
    edit_config(&copy, |config| config["transformers_version"] = "0.1".into());
    let told = ember(["diff", path(&fixture), path(&copy)]).with_code(0).stdout;
    assert!(told.contains("without effect on the numbers: transformers_version"), "{told}");
}

#[test]
fn what_differs_is_told() {
    let scratch = Scratch::new();
    let (fixture, copy) = (model("leanllama"), rounded(&scratch));
    edit_config(&copy, |config| config["rms_norm_eps"] = 1e-6.into());
    let told = ember(["diff", path(&fixture), path(&copy)]).with_code(1).stdout;
    let row = told.lines().find(|line| line.starts_with(TENSOR)).unwrap_or_else(|| panic!("{told}"));
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[1..3], ["f16", "f16"]);
    let error: f64 = cells[3].parse().expect("a number");
    assert!((0.02..0.2).contains(&error), "{row}");
    assert!(told.contains("config.json  rms_norm_eps: 0.00001 in A, 1e-6 in B"), "{told}");
    assert!(told.ends_with("the models differ\n"), "{told}");

    let report = json(&ember(["diff", path(&fixture), path(&copy), "--json", "--top", "1"]).with_code(1));
    assert_eq!((&report["same"], &report["config"]["same"]), (&false.into(), &false.into()));
    let tensors = report["tensors"].as_array().expect("a list");
    assert_eq!((tensors.len(), &tensors[0]["name"]), (1, &TENSOR.into()));
    assert!((tensors[0]["relative_error"].as_f64().expect("a number") / error - 1.0).abs() < 0.01);
    assert!(report["text"].is_null());
}

/// KL, agreement and perplexities are those of the logits that both models give.
#[test]
fn a_text_tells_what_the_difference_costs() {
    let scratch = Scratch::new();
    let (fixture, copy) = (model("leanllama"), rounded(&scratch));
    let flags = ["--text", "-", "--context", "16", "--json", "--device", "cpu"];
    let report = json(&ember_reading(TEXT, ["diff", path(&fixture), path(&copy)].iter().chain(&flags)).with_code(1));
    let told = &report["text"];

    let (mut kl, mut same, mut count, mut perplexities) = (0.0, 0, 0, Vec::new());
    let models = [&fixture, &copy].map(|path| {
        let pretrained = Pretrained::open(path).expect("a model");
        let loaded = pretrained.load::<Cpu>(&Default::default()).expect("loaded");
        (pretrained, loaded)
    });
    let text = models[0].0.text().expect("a tokenizer");
    let (plain, around) = (text.encode(TEXT, false).expect("ids"), text.encode(TEXT, true).expect("ids"));
    let prefix = around[..around.len() - plain.len()].to_vec();
    assert_eq!(prefix.len(), 1, "this fixture begins with BOS");
    for window in plain.chunks(15) {
        let ids = [prefix.as_slice(), window].concat();
        let logits = models.each_ref().map(|(_, model)| {
            let mut cache = model.new_cache(KvFormat::F32);
            let mut spans = [Span::new(ids.len(), &mut cache)];
            let want = ForwardOptions { logits: LogitsFor::All, hidden: false };
            let out = model.forward(model.ids(&ids).expect("ids"), &mut spans, want).expect("a pass");
            let logits = out.logits.expect("logits");
            let width = logits.dims()[1];
            let values = logits.to_data().convert::<f32>().into_vec::<f32>().expect("floats");
            values
                .chunks(width)
                .map(|row| {
                    let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                    row.iter().map(|&x| f64::from(x).exp() / sum).collect()
                })
                .collect::<Vec<Vec<f64>>>()
        });
        for (p, q) in logits[0].iter().zip(&logits[1]).take(window.len()) {
            kl += p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
            let top = |p: &[f64]| (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b]));
            same += usize::from(top(p) == top(q));
            count += 1;
        }
    }
    for (_, loaded) in &models {
        let options = EvaluateOptions { window: Some(16), prefix: prefix.clone(), ..EvaluateOptions::default() };
        perplexities.push(evaluate(loaded, &plain, &options).expect("an evaluation").perplexity());
    }
    let number = |key: &str| told[key].as_f64().unwrap_or_else(|| panic!("{key}: {told}"));
    let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-5, "{a} {b}");
    assert_eq!(told["tokens"], count);
    near(number("kl"), kl / f64::from(count));
    near(number("same_top"), same as f64 / f64::from(count));
    near(number("perplexity_a"), perplexities[0]);
    near(number("perplexity_b"), perplexities[1]);
    assert!(number("kl") > 1e-6 && number("kl_error") > 0.0 && number("kl_max") >= number("kl_99"), "{told}");
}

/// What a cache in 8 bits costs: a model beside itself, with the name that llama.cpp has for it too.
#[test]
fn a_model_beside_itself_with_another_cache() {
    let fixture = model("nano_compact");
    let kl = |flags: &[&str]| {
        let mut args = vec!["diff", path(&fixture), path(&fixture), "--json", "-f", "-", "-c", "16"];
        args.extend(flags);
        let told = json(&ember_reading(TEXT, args).with_code(0));
        told["text"]["kl"].as_f64().unwrap_or_else(|| panic!("{told}"))
    };
    assert_eq!(kl(&[]), 0.0);
    let halves = kl(&["--other-cache-type", "f16"]);
    let eighths = kl(&["--other-cache-type", "q8"]);
    assert!(halves > 0.0 && eighths > 3.0 * halves && eighths < 0.01, "{halves} and {eighths}");
    assert_eq!(kl(&["--other-cache-type", "q8_0"]), eighths);
    assert_eq!(kl(&["--cache-type", "q8"]), 0.0);
}

/// What hidden values in the cache cost: nothing but another order of sums where they are exact. The models are the same, and their caches are told.
#[test]
fn a_model_beside_itself_with_hidden_values_in_the_cache() {
    let fixture = model("leanllama_kv");
    let run = |flags: &[&str]| {
        let mut args = vec!["diff", path(&fixture), path(&fixture), "-f", "-", "-c", "32"];
        args.extend(flags);
        ember_reading(TEXT, args).with_code(0)
    };
    let told = |flags: &[&str]| json(&run(&[flags, &["--json"]].concat()))["text"].clone();
    let kl = |flags: &[&str]| told(flags)["kl"].as_f64().expect("a number");
    let exact = kl(&["--other-cache-hidden"]);
    assert!((0.0..1e-9).contains(&exact), "{exact}");
    let rounded = kl(&["--other-cache-hidden", "--other-cache-type", "q8"]);
    assert!(rounded > 1e-9 && rounded < 0.01, "{rounded}");
    assert_eq!(kl(&["--cache-hidden"]), 0.0);
    let caches = told(&["--other-cache-hidden", "--cache-type", "f16"]);
    let keys = ["cache_type_a", "cache_type_b", "cache_hidden_a", "cache_hidden_b"].map(|key| caches[key].clone());
    assert_eq!(serde_json::json!(keys), serde_json::json!(["f16", "f16", false, true]));

    let last = |flags: &[&str]| run(flags).stdout.lines().last().expect("a line").to_owned();
    let differ = "the models are the same; they read the text with caches that differ: ";
    for (flags, told) in [
        (&["--other-cache-hidden"][..], format!("{differ}f32 cache in A, f32 cache with hidden values in B")),
        (&["--other-cache-type", "f16"], format!("{differ}f32 cache in A, f16 cache in B")),
        (&["--cache-type", "f16", "--cache-hidden"], "the models are the same".to_owned()),
    ] {
        assert_eq!(last(flags), told, "{flags:?}");
    }

    // The flag that was given is named.
    let other = model("crest_k4");
    for flag in ["--cache-hidden", "--other-cache-hidden"] {
        let ended = ember(["diff", path(&other), path(&other), "-f", "-", flag]).with_code(2);
        assert!(ended.stderr.contains(&format!("error: {flag} is for models whose cache")), "{}", ended.stderr);
        assert!(ember(["diff", path(&fixture), path(&fixture), flag]).with_code(2).stderr.contains("--text"));
    }
}

/// Two models in one program.
#[test]
fn memory_of_both_models_has_the_program_once() {
    let fixture = model("leanllama");
    let told = ember_reading(TEXT, ["diff", path(&fixture), path(&fixture), "-f", "-"]).with_code(0).stderr;
    // In MiB, of which one decimal is told.
    let size = |words: Option<&str>| words.and_then(|words| words.trim().parse::<f64>().ok()).expect("a size");
    let before = |mark: &str| size(told.split(mark).next().and_then(|text| text.rsplit(' ').next()));
    let after = |mark: &str| size(told.split(mark).nth(1).and_then(|text| text.split(' ').next()));
    let (program, one, both) = (before(" MiB of program"), after(" = about "), after("both models: about "));
    assert!((both - (2.0 * one - program)).abs() < 0.3, "{told}");
}

#[test]
fn what_cannot_be_compared_is_another_exit_code() {
    let fixture = model("leanllama");
    let ended = ember(["diff", path(&fixture), "/nowhere/model"]).with_code(2);
    assert!(ended.stderr.contains("error: cannot open the model /nowhere/model"), "{}", ended.stderr);
    // Tokens of two tokenizers do not compare.
    let other = model("crest_k4");
    let ended = ember_reading(TEXT, ["diff", path(&fixture), path(&other), "-f", "-"]).with_code(2);
    assert!(ended.stderr.contains("as different tokens"), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
    // Their tensors do.
    let told = ember(["diff", path(&fixture), path(&other)]).with_code(1).stdout;
    assert!(told.contains("only in B: model.layers.0.linear_attn"), "{told}");
}
