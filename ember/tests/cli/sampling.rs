//! How tokens are chosen: generation_config.json, flags, and what a run says about it.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::program::{Ended, Scratch, ember, model};

const PROMPT: &str = "a b c";

/// A copy of a fixture with these generation defaults.
fn with_defaults(scratch: &Scratch, name: &str, defaults: &str) -> std::path::PathBuf {
    let copy = scratch.copy_of(name);
    fs::write(copy.join("generation_config.json"), defaults).expect("written");
    copy
}

fn generate(model: &Path, flags: &[&str]) -> Ended {
    ember([&["generate", "-m", model.to_str().expect("UTF-8"), "-p", PROMPT, "--json"], flags].concat())
}

fn report(model: &Path, flags: &[&str]) -> (Value, String) {
    let ended = generate(model, flags).with_code(0);
    (serde_json::from_str(&ended.stdout).expect("JSON"), ended.stderr)
}

/// Nothing in the file is needed to run a model.
#[test]
fn a_generation_config_never_stops_a_run() {
    let scratch = Scratch::new();
    let text = scratch.path("text");
    fs::write(&text, "some words to measure").expect("written");
    let text = text.to_str().expect("UTF-8");
    for (defaults, named) in [
        ("{\"do_sample\": false,}", "not valid JSON"),
        ("", "not valid JSON"),
        ("\u{feff}{\"do_sample\": false}", "byte order mark"),
        ("// none\n{}", "not valid JSON"),
        ("[]", "top level"),
        ("{\"do_sample\": true, \"top_p\": 2}", "top_p: is 2"),
        ("{\"top_k\": -1}", "top_k: is -1"),
        ("{\"pad_token_id\": -1}", "pad_token_id: is -1"),
        ("{\"pad_token_id\": [1, 2]}", "pad_token_id: is a list"),
        ("{\"eos_token_id\": -1}", "eos_token_id: is -1"),
        ("{\"temperature\": \"0.7\"}", "temperature: is the string"),
    ] {
        let copy = with_defaults(&scratch, "leanllama", defaults);
        let copy = copy.to_str().expect("UTF-8");
        for args in [
            &["generate", "-m", copy, "-p", "x", "-n", "2"][..],
            &["generate", "-m", copy, "-p", "x", "-n", "2", "--greedy"],
            &["info", "-m", copy],
            &["eval", "-m", copy, "-f", text],
        ] {
            let ended = ember(args).with_code(0);
            let warnings: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("WARN")).collect();
            assert_eq!(warnings.len(), 1, "{defaults}, {args:?}: {}", ended.stderr);
            assert!(warnings[0].contains("generation_config.json: ") && warnings[0].contains(named), "{}", warnings[0]);
        }
    }
}

/// As in transformers, which draws only where do_sample says so.
#[test]
fn greedy_where_nothing_is_stated() {
    let scratch = Scratch::new();
    let greedy = report(&with_defaults(&scratch, "leanllama", "{}"), &["-n", "12", "--greedy"]).0["tokens"].clone();
    let line = |stderr: &str| stderr.lines().find_map(|line| line.strip_prefix("sampling: ").map(str::to_owned));
    for (defaults, told) in [
        ("{}", "greedy (no do_sample is stated)"),
        ("{\"temperature\": 0.5, \"top_p\": 0.75}", "greedy (no do_sample is stated)"),
        ("{\"do_sample\": false, \"temperature\": 1.5}", "greedy (do_sample is false in generation_config.json)"),
    ] {
        for seed in ["1", "2"] {
            let copy = with_defaults(&scratch, "leanllama", defaults);
            let (report, stderr) = report(&copy, &["-n", "12", "--seed", seed]);
            assert_eq!((&report["tokens"], line(&stderr).as_deref()), (&greedy, Some(told)), "{defaults}");
        }
    }
    let copy = with_defaults(&scratch, "leanllama", "{}");
    fs::remove_file(copy.join("generation_config.json")).expect("removed");
    assert_eq!(report(&copy, &["-n", "12"]).0["tokens"], greedy);
    let (drawn, stderr) = report(&copy, &["-n", "12", "--temp", "2", "--seed", "1"]);
    assert_ne!(drawn["tokens"], greedy);
    assert_eq!(line(&stderr).as_deref(), Some("temperature 2 (flags), top-k 50 (default)"));
    let copy = with_defaults(&scratch, "leanllama", "{\"do_sample\": true, \"temperature\": 0.5, \"top_p\": 0.75}");
    let told = line(&report(&copy, &["-n", "1"]).1);
    assert_eq!(told.as_deref(), Some("temperature 0.5, top-p 0.75 (generation_config.json), top-k 50 (default)"));
}

/// The rules are obeyed; what is not supported is named, unless it changes nothing.
#[test]
fn keys_that_change_the_text_are_obeyed_or_named() {
    let scratch = Scratch::new();
    let run = |defaults: &str| report(&with_defaults(&scratch, "leanllama", defaults), &["-n", "10", "--ignore-eos"]);
    let plain = run("{}").0["tokens"].clone();
    let first = &plain[0];
    for (rule, name) in [
        (json!({"suppress_tokens": [first]}), "suppress_tokens"),
        (json!({"begin_suppress_tokens": [first]}), "begin_suppress_tokens"),
        (json!({"bad_words_ids": [[first]]}), "bad_words_ids"),
        (json!({"sequence_bias": [[[first], -1e9]]}), "sequence_bias"),
    ] {
        let (report, stderr) = run(&rule.to_string());
        assert_ne!(&report["tokens"][0], first, "{name}");
        assert!(stderr.contains(&format!("; {name} (generation_config.json)")), "{stderr}");
    }
    let once = run("{\"no_repeat_ngram_size\": 1}").0["tokens"].clone();
    let mut ids: Vec<u64> = once.as_array().expect("a list").iter().filter_map(Value::as_u64).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 10, "{once}");

    let (report, stderr) =
        run("{\"num_beams\": 4, \"forced_eos_token_id\": 3, \"typical_p\": 0.5, \"guidance_scale\": 1}");
    assert_eq!(report["tokens"], plain);
    let warning = stderr.lines().find(|line| line.starts_with("warning: ")).expect("a warning");
    assert!(warning.contains("num_beams, forced_eos_token_id of generation_config.json"), "{warning}");
    assert!(!stderr.contains("typical_p") && !stderr.contains("guidance_scale"), "{stderr}");
    let drawn = with_defaults(&scratch, "leanllama", "{\"do_sample\": true, \"typical_p\": 0.5}");
    assert!(generate(&drawn, &["-n", "1"]).stderr.contains("typical_p of generation_config.json"));
}

#[test]
fn lengths_and_stop_strings_of_the_author_hold_where_no_flag_says_otherwise() {
    let scratch = Scratch::new();
    let run = |defaults: &str, flags: &[&str]| report(&with_defaults(&scratch, "leanllama", defaults), flags).0;
    let count = |report: Value| report["tokens"].as_array().expect("a list").len() as u64;
    let eternal = ["--ignore-eos"];
    assert_eq!(count(run("{\"max_new_tokens\": 7}", &eternal)), 7);
    assert_eq!(count(run("{\"max_new_tokens\": 7}", &["--ignore-eos", "-n", "9"])), 9);
    let prompt = run("{}", &["-n", "1"])["prompt_tokens"].as_u64().expect("a count");
    assert_eq!(count(run(&format!("{{\"max_length\": {}}}", prompt + 4), &eternal)), 4);
    assert_eq!(count(run(&format!("{{\"max_length\": {prompt}}}"), &["--ignore-eos", "-n", "3"])), 3);
    assert_eq!(count(run(&format!("{{\"max_length\": {prompt}}}"), &eternal)), 256);
    let whole = run("{}", &["-n", "30", "--ignore-eos"]);
    let text = whole["text"].as_str().expect("a text");
    let stop: String = text.chars().skip(8).take(3).collect();
    let stopped = run(&json!({"stop_strings": [stop]}).to_string(), &["-n", "30", "--ignore-eos"]);
    let before = text.split(&stop).next();
    assert_eq!((stopped["text"].as_str(), &stopped["finish"]), (before, &json!("stop")));
}

/// A model that writes given tokens, each once: `a`, a special token, `b`, another special token, `c`.
#[test]
fn a_special_token_as_stop_string_ends_the_text() {
    let scratch = Scratch::new();
    let info = ember(["info", "-m", model("nano_compact").to_str().expect("UTF-8"), "--json"]).with_code(0);
    assert!(!info.stdout.contains("<|fim_prefix|>"), "it is no end token: {}", info.stdout);
    let tokenizer = fs::read(model("nano_compact").join("tokenizer.json")).expect("a tokenizer");
    let tokenizer: Value = serde_json::from_slice(&tokenizer).expect("JSON");
    let id = |name: &str| {
        let added = tokenizer["added_tokens"].as_array().expect("a list");
        let added = added.iter().find(|token| token["content"] == name).map(|token| token["id"].clone());
        added.unwrap_or_else(|| tokenizer["model"]["vocab"][name].clone())
    };
    let written = ["x", "<|fim_prefix|>", "y", "<|fim_suffix|>", "z"].map(id);
    // The first has the largest bias, and no token comes twice.
    let biases: Vec<Value> =
        written.iter().enumerate().map(|(i, id)| json!([[id], 5000.0 - 500.0 * i as f64])).collect();
    let defaults = json!({"sequence_bias": biases, "no_repeat_ngram_size": 1}).to_string();
    let copy = with_defaults(&scratch, "nano_compact", &defaults);
    let run = |stop: &str| {
        let report = report(&copy, &["-n", "5", "--ignore-eos", "--stop", stop]).0;
        (report["text"].as_str().expect("a text").to_owned(), report["finish"].as_str() == Some("stop"))
    };
    assert_eq!(report(&copy, &["-n", "5", "--ignore-eos"]).0["tokens"], json!(written));
    for (stop, text) in [
        ("<|fim_prefix|>", "x"),
        ("x<|fim_prefix|>", ""),
        ("<|fim_prefix|>y", "x"),
        ("<|fim_suffix|>", "xy"),
        ("y", "x"),
    ] {
        assert_eq!(run(stop), (text.to_owned(), true), "{stop}");
    }
    assert_eq!(run("xy"), ("xyz".to_owned(), false));
}

/// Keys a power of two larger and queries as much smaller give the same scores, in F32 exactly; so do values and the projection
/// of what is read.
#[test]
fn keys_and_values_beyond_the_range_of_a_half_precision_cache() {
    for (what, large, small) in [("keys", "k_proj", "q_proj"), ("values", "v_proj", "o_proj")] {
        beyond_half_precision(what, large, small);
    }
}

fn beyond_half_precision(what: &str, large: &str, small: &str) {
    let scratch = Scratch::new();
    let copy = scratch.copy_of("leanllama");
    scale(&copy, &format!("layers.2.self_attn.{large}.weight"), 131_072.0);
    scale(&copy, &format!("layers.2.self_attn.{small}.weight"), 1.0 / 131_072.0);
    let flags = |cache| ["-n", "12", "--greedy", "--ignore-eos", "--cache-type", cache, "--chunk", "2"];
    let wanted = report(&model("leanllama"), &flags("f32")).0["tokens"].clone();
    assert_eq!(report(&copy, &flags("f32")).0["tokens"], wanted);
    let (got, stderr) = report(&copy, &flags("f16"));
    assert_eq!(got["tokens"], wanted);
    let warnings: Vec<&str> = stderr.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{stderr}");
    let named = [&format!("layer 2: {what}"), "65504", "--cache-type f32"];
    assert!(named.iter().all(|part| warnings[0].contains(part)), "{stderr}");
    // 8 bits hold them too: their scale is a float.
    let (got, stderr) = report(&copy, &flags("q8"));
    assert_eq!(got["tokens"], report(&model("leanllama"), &flags("q8")).0["tokens"]);
    assert!(!stderr.contains("WARN"), "{stderr}");
}

#[test]
fn numbers_that_are_none_name_step_and_layer() {
    let scratch = Scratch::new();
    let copy = scratch.copy_of("leanllama");
    scale(&copy, "layers.1.mlp.down_proj.weight", 1e36);
    scale(&copy, "layers.1.mlp.up_proj.weight", 1e36);
    let text = scratch.path("text");
    fs::write(&text, "some words to measure").expect("written");
    let [text, broken] = [&text, &copy].map(|path| path.to_str().expect("UTF-8"));
    ember(["eval", "-m", broken, "-f", text])
        .fails_with(&["not finite", "they come from layer 1, at position 0 (token "]);
    let keys = scratch.path("keys");
    fs::create_dir_all(&keys).expect("a directory");
    for entry in fs::read_dir(model("leanllama")).expect("the fixture") {
        let from = entry.expect("an entry").path();
        fs::copy(&from, keys.join(from.file_name().expect("a name"))).expect("a copy");
    }
    // Infinite by themselves, so another cache would not help.
    scale(&keys, "layers.3.self_attn.k_proj.weight", 3e38);
    for cache in ["q8", "f16", "f32"] {
        let run = |model| generate(model, &["-n", "4", "--greedy", "--cache-type", cache]);
        let step = "logits of generated token 0 are not finite";
        run(&copy).fails_with(&[step, "they come from layer 1, at position 0 (token "]);
        assert!(!run(&keys).stderr.lines().any(|line| line.starts_with("error: ") && line.contains("--cache-type")));
        run(&keys).fails_with(&[step, "they come from layer 3, at position", ": its keys are not finite"]);
    }
}

/// Writes a tensor of a checkpoint as F32, multiplied by a factor.
fn scale(model: &Path, name: &str, factor: f32) {
    let path = model.join("model.safetensors");
    let bytes = fs::read(&path).expect("the weights");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors: Vec<(String, TensorView<'_>)> = file.tensors().into_iter().collect();
    let (_, view) = tensors.iter_mut().find(|(other, _)| other.ends_with(name)).expect("the tensor");
    let scaled: Vec<u8> = match view.dtype() {
        Dtype::F16 => {
            let halves = view.data().as_chunks::<2>().0.iter().map(|&half| half::f16::from_le_bytes(half).to_f32());
            halves.flat_map(|x| (x * factor).to_le_bytes()).collect()
        }
        other => panic!("{name} is {other:?}"),
    };
    *view = TensorView::new(Dtype::F32, view.shape().to_vec(), &scaled).expect("four bytes each");
    let written = safetensors::serialize(tensors, None).expect("safetensors");
    fs::write(&path, written).expect("written");
}
