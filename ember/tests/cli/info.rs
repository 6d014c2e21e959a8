//! `ember info`.

use emberlm::quant::kv::KvFormat;
use serde_json::{Value, json};

use crate::fixture::Fixture;
use crate::program::{ember, model};

fn info(name: &str, flags: &[&str]) -> Value {
    let model = model(name);
    let mut args = vec!["info", "--json", "-m", model.to_str().expect("UTF-8")];
    args.extend(flags);
    let ended = ember(args).with_code(0);
    assert_eq!(ended.stderr, "");
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {}", ended.stdout))
}

fn option<'a>(info: &'a Value, name: &str) -> (&'a Value, &'a str) {
    let options = info["crest"]["options"].as_array().expect("options");
    let option = options.iter().find(|option| option["name"] == name).expect("the option");
    (&option["value"], option["source"].as_str().expect("a source"))
}

/// Beside quantised layers a dense head takes 8 bits, and nothing else changes.
#[test]
fn a_head_follows_the_layers() {
    let (quantized, dense) = ("crest_k4_nf4", "crest_k4");
    let head = |name: &str, flags: &[&str]| {
        let told = info(name, flags);
        let parts = told["weights"]["by_part"].as_array().expect("a table").clone();
        let bytes = |part: &Value| part["bytes"].as_u64().expect("bytes");
        let embedding = parts.iter().find(|part| part["name"] == "embedding").map(bytes).expect("an embedding");
        (embedding, parts.iter().map(bytes).sum::<u64>() - embedding)
    };
    let (auto, rest) = head(quantized, &[]);
    let (int8, _) = head(quantized, &["--quant-head", "int8"]);
    let (stored, rest_of_stored) = head(quantized, &["--quant-head", "none"]);
    assert_eq!((auto, rest), (int8, rest_of_stored));
    assert!(auto < stored, "{auto} bytes of int8, {stored} as stored");
    assert_eq!(head(dense, &[]), head(dense, &["--quant-head", "none"]));
    assert_eq!(head(dense, &["--quant", "nf4"]).0, head(dense, &["--quant-head", "int8"]).0);
}

/// On the processor the file's own bytes are the embedding. One that is the head too is read whole for every token, and is in 8 bits above.
#[test]
fn an_embedding_that_is_not_the_head_stays_as_it_is_stored() {
    let held = |part: &str, flags: &[&str]| {
        let told = info("leanllama", &[&["--quant", "nf4"], flags].concat());
        let parts = told["weights"]["by_part"].as_array().expect("a table");
        let part = parts.iter().find(|told| told["name"] == part).expect("a part");
        (part["bytes"].as_u64().expect("bytes"), part["stored_bytes"].as_u64().expect("bytes"))
    };
    let (embedding, stored) = held("embedding", &[]);
    let (head, stored_head) = held("head", &[]);
    assert!(embedding == stored && head < stored_head, "{embedding} of {stored}, {head} of {stored_head}");
    assert!(held("embedding", &["--quant-head", "int8"]).0 < stored);
    // Where weights lie changes no number.
    assert_eq!(held("embedding", &["--no-mmap"]).0, stored);
}

/// What is told without loading is what a loaded model has.
#[test]
fn info_agrees_with_the_loaded_model() {
    for fixture in Fixture::all() {
        let name = fixture.name();
        let told = info(fixture.path.to_str().expect("UTF-8"), &["--context", "100", "--quant-head", "none"]);
        let pretrained = fixture.open();
        let device = Default::default();
        let plan = pretrained.plan::<burn_ndarray::NdArray<f32>>(&device).expect("a plan");
        let loaded = fixture.load::<burn_ndarray::NdArray<f32>>(&device);
        let shapes = loaded.architecture().cache_shapes();
        for (key, format) in [("q8", KvFormat::Q8), ("f16", KvFormat::F16), ("f32", KvFormat::F32)] {
            let per_token: usize = shapes.iter().map(|shape| shape.bytes_per_token(format)).sum();
            let fixed: usize = shapes.iter().map(|shape| shape.fixed_bytes()).sum();
            assert_eq!(told["cache"]["bytes_per_token"][key], json!(per_token), "{name}");
            assert_eq!(told["cache"]["bytes_per_sequence"], json!(fixed), "{name}");
            let mut cache = loaded.new_cache(format);
            cache.reserve(256);
            assert_eq!(cache.bytes(), 256 * per_token + fixed, "{name}: an allocated cache");

            let estimate = &told["estimate"][key];
            let part = |part: &str| estimate[part].as_u64().expect("bytes");
            assert_eq!(part("cache"), (100 * per_token + fixed) as u64, "{name}");
            assert_eq!(part("weights"), plan.weight_bytes() as u64, "{name}");
            let parts = ["weights", "cache", "scratch", "tokenizer", "program"].map(part);
            assert!(parts.iter().all(|&bytes| bytes > 0), "{name}: {parts:?}");
            let loading = plan.peak_bytes() as u64 + part("tokenizer") + part("program");
            assert_eq!(part("total"), parts.iter().sum::<u64>().max(loading), "{name}");
        }
        assert_eq!(told["family"], json!(loaded.architecture().config.family.as_str()), "{name}");
        assert_eq!(told["parameters"], json!(plan.parameters()), "{name}");
        for table in ["by_storage", "by_part"] {
            let shares = told["weights"][table].as_array().expect("a table");
            let sum: u64 = shares.iter().map(|share| share["bytes"].as_u64().expect("bytes")).sum();
            assert_eq!(sum, plan.weight_bytes() as u64, "{name}: {table}");
        }
        assert_eq!(told["auto_map"], json!(true), "{name}");
        assert_eq!(told["tokenizer_error"], Value::Null, "{name}");
    }
}

#[test]
fn info_tells_where_options_come_from() {
    let stated = info("crest_k4", &["--threshold", "0.5", "--steps", "3"]);
    assert_eq!(stated["crest"]["steps_in_checkpoint"], json!(4));
    assert_eq!(option(&stated, "num_steps"), (&json!(3), "overridden"));
    assert_eq!(option(&stated, "halt_threshold"), (&json!(0.5), "overridden"));
    assert_eq!(option(&stated, "step_input"), (&json!("chained"), "stated"));
    assert_eq!(option(&stated, "halt_enabled"), (&json!(true), "default"));
    let silent = info("crest_k4_nf4", &[]);
    assert_eq!(option(&silent, "num_steps"), (&json!(4), "found"));
    assert_eq!(option(&silent, "gate_shared"), (&json!(false), "found"));
    assert_eq!(option(&silent, "halt_threshold"), (&json!(0.9), "default"));
    assert_eq!(info("leanllama", &[])["crest"], Value::Null);

    let compressors = info("leanllama", &[])["kv_compression"]["compressors"].clone();
    let layers: Vec<&Value> = compressors.as_array().expect("a list").iter().map(|c| &c["layer"]).collect();
    assert_eq!(layers, [1, 3, 4].map(|l| json!(l)).iter().collect::<Vec<_>>());
    assert_eq!(compressors[0]["target"], json!("v"));
    assert_eq!(info("crest_k2", &[])["ignored_tensors"], json!(2));
    let stops = info("nano_compact", &[])["stop_tokens"].clone();
    assert_eq!(stops, json!([{"id": 553, "text": "<|endoftext|>"}, {"id": 555, "text": "<|im_end|>"}]));
}

#[test]
fn info_counts_what_quantising_saves() {
    let plain = info("leanllama", &[]);
    let quantised = info("leanllama", &["--quant", "nf4-dq"]);
    let bytes = |info: &Value| info["weights"]["bytes"].as_u64().expect("bytes");
    assert_eq!(plain["weights"]["stored_bytes"], quantised["weights"]["stored_bytes"]);
    assert!(bytes(&quantised) < bytes(&plain) * 6 / 10, "{} of {}", bytes(&quantised), bytes(&plain));
}

/// Storages are those that the weights will have in memory, not those of the file.
#[test]
fn storages_are_those_in_memory() {
    let held = |name: &str, flags: &[&str]| -> Vec<String> {
        let told = info(name, flags);
        let shares = told["weights"]["by_storage"].as_array().expect("a table").clone();
        let mut names: Vec<String> = shares.iter().filter_map(|s| s["name"].as_str().map(str::to_owned)).collect();
        names.sort();
        names
    };
    assert_eq!(held("leanllama", &[]), ["f16", "f32"]);
    assert_eq!(held("leanllama", &["--quant", "int8"]), ["f16", "f32", "int8"], "compressors stay as they are");
    assert_eq!(held("crest_k4", &["--quant", "nf4-dq"]), ["bf16", "f32", "int8", "nf4-dq"], "the gates stay");
    assert_eq!(held("crest_k4", &["--quant", "nf4", "--quant-head", "nf4"]), ["bf16", "f32", "nf4"]);
    assert_eq!(held("crest_k4", &["--quant-head", "int8"]), ["bf16", "f32", "int8"]);
    assert_eq!(held("crest_k4_nf4", &[]), held("crest_k4_nf4", &["--quant-head", "int8"]));
    let stored = model("crest_k4_nf4");
    let args = ["info", "-m", stored.to_str().expect("UTF-8"), "--quant", "int8"];
    let ended = ember(args).with_code(0);
    assert!(ended.stdout.contains("as nf4") && ended.stderr.contains("stay as they are"), "{}", ended.stderr);
    // Norms are stored in 16 bits and held in 32.
    let told = info("leanllama", &[]);
    let norms = told["weights"]["by_storage"].as_array().expect("a table").iter().find(|s| s["name"] == "f32").cloned();
    let norms = norms.expect("norms");
    assert_eq!(norms["bytes"].as_u64(), norms["stored_bytes"].as_u64().map(|bytes| 2 * bytes));
}

#[test]
fn info_as_text_names_the_same_facts() {
    let text = |name: &str| {
        let model = model(name);
        ember(["info", "-m", model.to_str().expect("UTF-8")]).with_code(0).stdout
    };
    let crest = text("crest_k4");
    for part in
        ["crest", "SkyCRESTForCausalLM", "auto_map", "halt_threshold", "0.85 (stated)", "\"<|im_end|>\"", "bf16"]
    {
        assert!(crest.contains(part), "{part:?} is not in {crest}");
    }
    let lean = text("leanllama_kv");
    assert!(lean.contains("k: 32 numbers to 4"), "{lean}");
    for part in ["memory  ", "tokens with an f16 cache", "  scratch  ", "  tokenizer  ", "  program  "] {
        assert!(lean.contains(part), "{part:?} is not in {lean}");
    }
    assert!(crest.lines().all(|line| !line.contains('\x1b')));
}
