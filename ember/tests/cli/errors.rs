//! Wrong command lines and broken models: exit code, one line that says what and where.

use std::fs;
use std::path::Path;

use emberlm::model::Pretrained;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::program::{Scratch, command, edit_config, ember, model};

fn each_command(model: &Path) -> [Vec<String>; 2] {
    let model = model.to_str().expect("UTF-8").to_owned();
    let to = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect();
    [to(&["info", "-m", &model]), to(&["generate", "-m", &model, "-p", "x"])]
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    let model = model("leanllama");
    let model = model.to_str().expect("UTF-8");
    let wrong: [&[&str]; 11] = [
        &[],
        &["sing"],
        &["depth"],
        &["info", "-m", model, "--quant", "q9"],
        &["info", "-m", model, "--context", "0"],
        &["generate", "-m", model],
        &["generate", "-m", model, "-p", "x", "--device", "abacus"],
        &["generate", "-m", model, "-p", "x", "--threads", "0"],
        &["generate", "-m", model, "-p", "x", "--greedy", "--temp", "1"],
        &["generate", "-m", model, "-p", "x", "--system", "no chat"],
        &["dump", "-m", model, "--input", "x", "--out", "y", "--repeat-penalty", "1.1"],
    ];
    for args in wrong {
        let ended = ember(args).with_code(2);
        assert_eq!(ended.stdout, "", "{args:?}");
        assert!(ended.stderr.contains("Usage") || ended.stderr.contains("--help"), "{args:?}: {}", ended.stderr);
    }
    assert!(ember(wrong[6]).stderr.contains("use auto, cpu, wgpu, wgpu:N, cuda or cuda:N"));
    for args in [&["--help"][..], &["--version"], &["generate", "--help"], &["info", "--help"], &["dump", "--help"]] {
        let ended = ember(args).with_code(0);
        assert!(!ended.stdout.is_empty() && ended.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn missing_and_foreign_models_are_named() {
    let scratch = Scratch::new();
    for args in each_command(&scratch.path("nowhere")) {
        ember(args).fails_with(&["nowhere", "No such file"]);
    }
    fs::write(scratch.path("model.gguf"), b"GGUF").expect("written");
    for args in each_command(&scratch.path("model.gguf")) {
        ember(args).fails_with(&["model.gguf", "not supported", "convert the model to safetensors"]);
    }
    for args in each_command(&scratch.path("")) {
        ember(args).fails_with(&["no model.safetensors"]);
    }

    let copy = scratch.copy_of("leanllama");
    edit_config(&copy, |config| {
        config["architectures"] = json!(["Made\u{1b}[31mUp"]);
        config["model_type"] = json!("made\u{1b}]0;up");
    });
    for args in each_command(&copy) {
        let ended = ember(args);
        assert!(!ended.stderr.contains('\u{1b}'), "{:?}", ended.stderr);
        ended.fails_with(&["config.json", "model_type", "is not supported", "qwen3_5", "LeanLlamaForCausalLM"]);
    }
}

/// A stored head that is another than the embedding is used, and told, where the config ties the two.
#[test]
fn a_head_beside_a_tied_config_is_told() {
    let scratch = Scratch::new();
    let copy = scratch.copy_of("leanllama");
    let told = |model: &Path| {
        let ended = ember(["info", "-m", model.to_str().expect("UTF-8"), "--json"]).with_code(0);
        let info: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        let notes = info["notes"].as_array().expect("notes").len();
        (info["ignored_tensors"].clone(), info["tied_head"].clone(), notes, ended.stderr.contains("lm_head.weight"))
    };
    assert_eq!(told(&copy), (json!(0), json!(false), 0, false));
    edit_config(&copy, |config| config["tie_word_embeddings"] = json!(true));
    assert_eq!(told(&copy), (json!(0), json!(false), 1, true));
}

/// Links that lead out of a model directory, by every command that opens one.
#[cfg(unix)]
#[test]
fn links_are_followed_on_demand() {
    let scratch = Scratch::new();
    let copy = scratch.copy_of("leanllama");
    let elsewhere = scratch.path("elsewhere.safetensors");
    std::fs::rename(copy.join("model.safetensors"), &elsewhere).expect("moved");
    std::os::unix::fs::symlink(&elsewhere, copy.join("model.safetensors")).expect("a link");
    for args in each_command(&copy) {
        ember(&args).fails_with(&["leads out of the model directory", "--allow-links"]);
        ember(args.iter().map(String::as_str).chain(["--allow-links"])).with_code(0);
    }
    // Those of the commands that need no weights.
    let tokenizer = scratch.path("elsewhere.json");
    std::fs::rename(copy.join("tokenizer.json"), &tokenizer).expect("moved");
    std::os::unix::fs::symlink(&tokenizer, copy.join("tokenizer.json")).expect("a link");
    for weights in [true, false] {
        for command in ["tokenize", "render"] {
            let args = [command, "-m", copy.to_str().expect("UTF-8"), "-p", "x"];
            ember(args).fails_with(&["tokenizer.json", "leads out of the model directory", "--allow-links"]);
            ember(args.iter().chain(&["--allow-links"])).with_code(0);
        }
        if weights {
            std::fs::remove_file(copy.join("model.safetensors")).expect("removed");
        }
    }
}

/// What cannot be measured is refused before a model is made.
#[test]
fn a_bench_that_does_not_fit_is_refused_at_once() {
    let model = model("leanllama");
    let model = model.to_str().expect("UTF-8");
    let ended = ember(["bench", "-m", model, "-p", "100000000", "-n", "1"]);
    assert!(!ended.stderr.contains("of weights"), "{}", ended.stderr);
    ended.fails_with(&["100000000 tokens do not fit the context of"]);
    for flags in [["-t", "0"], ["-r", "0"]] {
        ember([&["bench", "-m", model, "-p", "1", "-n", "1"], &flags[..]].concat()).with_code(2);
    }
    let text = model.to_owned() + "/config.json";
    ember(["eval", "-m", model, "--text", &text, "--context", "999999"]).fails_with(&["--context 999999 is more than"]);
}

/// Loading takes minutes, and an option of the library is nothing that was typed.
#[test]
fn what_does_not_fit_a_model_is_told_before_it_is_loaded_by_its_flag() {
    let (crest, lean) = (model("crest_k4"), model("leanllama"));
    let [crest, lean] = [&crest, &lean].map(|model| model.to_str().expect("UTF-8"));
    let text = lean.to_owned() + "/config.json";
    let eval = ["eval", "-m", lean, "-f", &text];
    let bench = ["bench", "-m", crest, "-p", "1", "-n", "1", "-r", "1", "-t", "1"];
    let dense = ["bench", "-m", lean, "-p", "1", "-n", "1", "-r", "1", "-t", "1"];
    let cases: [(&[&str], &[&str], &str); 19] = [
        (&eval, &["--stride", "99999"], "--stride is 99999, expected 1 to "),
        (&eval, &["--skip", "99999"], "--skip is 99999, which leaves no token"),
        (&["eval", "-m", lean, "-f", &(lean.to_owned() + "/generation_config.json")], &["--skip", "900"], "--skip 900"),
        (&["depth", "-m", crest, "-p", ""], &[], "the prompt has no tokens"),
        (&["depth", "-m", crest, "-p", "x"], &["--steps", "9"], "--steps is 9"),
        (&["depth", "-m", crest, "-p", "x"], &["--threshold", "-0.5"], "--threshold is -0.5"),
        (&bench, &["--draft", "prompt-lookup", "--draft-acceptance", "2"], "--draft-acceptance is 2"),
        (&bench, &["--draft-acceptance", "0.5"], "--draft-acceptance is for drafts"),
        (&bench, &["--draft-steps", "9"], "--draft-steps is 9"),
        (&bench, &["--force-steps", "9"], "--force-steps is 9"),
        (&bench, &["--threshold", "-0.5"], "--threshold is -0.5"),
        (&["bench", "--shape", "crest-2b", "-p", "1", "-n", "1"], &["--force-steps", "99"], "--force-steps is 99"),
        (&dense, &["--force-steps", "2"], "error: --force-steps is for models with adaptive depth; this is leanllama"),
        (&dense, &["--threshold", "0.5"], "error: --threshold is for models with adaptive depth"),
        (
            &["bench", "--shape", "bench-1b", "-p", "1"],
            &["--threshold", "0.5"],
            "error: --threshold is for models with",
        ),
        (&["generate", "-m", lean, "-p", "x"], &["--no-halt"], "--no-halt is for models with adaptive depth"),
        (&["generate", "-m", lean, "-p", "x"], &["--steps", "2"], "--steps is for models with adaptive depth"),
        (&["bench", "-m", lean, "-t", "1"], &["-p", "0", "-n", "0"], "-p 0 and -n 0 leave nothing to measure"),
        (&["bench", "-m", lean, "-t", "1"], &["-n", "2,99999999", "-p", "0"], "99999999 tokens do not fit the context"),
    ];
    for (args, flags, message) in cases {
        let ended = ember([args, flags].concat());
        assert!(!ended.stderr.contains("of weights"), "{flags:?}: {}", ended.stderr);
        ended.fails_with(&[message]);
    }
    assert!(ember([&bench[..], &["--chunk", "0"]].concat()).with_code(2).stderr.contains("--chunk <N>"));
}

/// Half-precision activations are for GPUs.
#[test]
fn activations_that_the_processor_lacks_are_an_error() {
    let model = model("leanllama");
    let model = model.to_str().expect("UTF-8");
    let flags = ["--device", "cpu", "--activations", "f16"];
    for command in [&["generate", "-m", model, "-p", "x"][..], &["bench", "-m", model, "-p", "1", "-n", "1"]] {
        let named = "--activations f16: cpu computes with f32, bf16, int8, auto;";
        ember([command, &flags].concat()).fails_with(&[named, "another --device"]);
    }
}

#[test]
fn damaged_files_are_named() {
    let scratch = Scratch::new();
    let copy = scratch.copy_of("crest_k4");
    let weights = copy.join("model.safetensors");
    let bytes = fs::read(&weights).expect("the weights");
    fs::write(&weights, &bytes[..bytes.len() - 100]).expect("written");
    for args in each_command(&copy) {
        ember(args).fails_with(&["model.safetensors"]);
    }
    fs::write(&weights, &bytes).expect("written");
    fs::remove_file(copy.join("tokenizer.json")).expect("removed");
    let [info, generate] = each_command(&copy);
    ember(generate).fails_with(&["tokenizer.json"]);
    let ended = ember(info).with_code(0);
    assert!(ended.stdout.contains("tokenizer.json: no such file"), "{}", ended.stdout);

    let sharded = scratch.copy_of("crest_k2");
    fs::remove_file(sharded.join("model-00002-of-00003.safetensors")).expect("removed");
    for args in each_command(&sharded) {
        ember(args).fails_with(&["1 of 3 files are missing", "model-00002-of-00003"]);
    }
}

/// One error tells of all three kinds of difference.
#[test]
fn every_tensor_that_differs_is_named_at_once() {
    let scratch = Scratch::new();
    let copy = scratch.copy_of("leanllama");
    let path = copy.join("model.safetensors");
    let bytes = fs::read(&path).expect("the weights");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let (missing, mismatched) = ("model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.up_proj.weight");
    let mut tensors: Vec<(String, TensorView<'_>)> =
        file.tensors().into_iter().filter(|(name, _)| name != missing).collect();
    for (name, view) in &mut tensors {
        if name == mismatched {
            let &[n, k] = view.shape() else { panic!("a matrix") };
            *view = TensorView::new(view.dtype(), vec![k, n], view.data()).expect("the same bytes");
        }
    }
    let (_, spare) = tensors.iter().find(|(name, _)| name.ends_with("norm.weight")).expect("a norm");
    let spare = spare.clone();
    tensors.push(("model.extra_norm.weight".into(), spare));
    let written = safetensors::serialize(tensors, None).expect("safetensors");
    fs::write(&path, written).expect("written");
    for args in each_command(&copy) {
        let parts = [
            "1 missing: ",
            missing,
            "1 unused: ",
            "model.extra_norm.weight",
            "1 mismatched: ",
            mismatched,
            "[64, 128]",
        ];
        ember(args).fails_with(&parts);
    }
}

/// What contradicts the tensors is told as a config has it.
#[test]
fn values_that_the_tensors_contradict_are_spelled_as_in_a_config() {
    let scratch = Scratch::new();
    let (lean, crest) = (scratch.copy_of("leanllama"), scratch.copy_of("crest_k4"));
    let refused = |copy: &Path, object: &str, key: &str, value: Value, message: &str| {
        let before = fs::read(copy.join("config.json")).expect("a config");
        edit_config(copy, |config| config[object][key] = value.clone());
        let option = format!(" config.json: {object}.{key}");
        for args in each_command(copy) {
            ember(args).fails_with(&[&option, message, ": correct it, or leave it out"]);
        }
        fs::write(copy.join("config.json"), before).expect("written");
    };
    for (key, value, message) in [
        ("hidden_dim", json!(40), ": is stated as 40, but the tensors show 16:"),
        ("hidden_dim", Value::Null, ": is stated as null, but the tensors show 16:"),
        ("layers", json!([0, 4]), ": is stated as [0, 4], but the tensors show [1, 3, 4]:"),
        ("targets", json!(["k", "v"]), ": is stated as [\"k\", \"v\"], but the tensors show [\"v\"]:"),
        ("encoder_bias", json!(true), ": is stated as true, but the tensors show false:"),
    ] {
        refused(&lean, "kv_compression", key, value, message);
    }
    refused(&crest, "crest", "gate_hidden", json!(8), ": is stated as 8, but the tensors show null:");
    refused(&crest, "crest", "num_steps", json!(5), ": is 5, but the checkpoint holds 4 steps:");
}

/// With the file that states it, as it stands there.
#[test]
fn what_contradicts_the_tensors_is_named_with_its_file() {
    let scratch = Scratch::new();
    // One has its options beside `text_config`, the other has no such object.
    for fixture in ["crest_k2", "crest_k4"] {
        let copy = scratch.copy_of(fixture);
        let info = |parts: &[&str]| ember(["info", "-m", copy.to_str().expect("UTF-8")]).fails_with(parts);
        edit_config(&copy, |config| config["crest"]["gate_bias"] = json!(false));
        info(&[
            " config.json: crest.gate_bias: is stated as false, but the tensors show true: correct it, or leave it out",
        ]);
        // The side file wins.
        fs::write(copy.join("crest.json"), r#"{"gate_bias": true, "num_steps": 9}"#).expect("written");
        info(&[" crest.json: num_steps: is 9, but the checkpoint holds"]);
        fs::write(copy.join("crest.json"), r#"{"gate_bias": true}"#).expect("written");
        ember(["info", "-m", copy.to_str().expect("UTF-8")]).with_code(0);
        edit_config(&copy, |config| config["crest"] = json!(3));
        info(&[" config.json: crest: is 3, expected an object"]);
        fs::write(copy.join("config.json"), "[]").expect("written");
        info(&[" config.json: the top level is an array of 0, expected an object"]);
        fs::write(copy.join("config.json"), "{").expect("written");
        info(&[" config.json: is not valid JSON: "]);
    }
    let copy = scratch.copy_of("leanllama");
    let info = ["info", "-m", copy.to_str().expect("UTF-8")];
    edit_config(&copy, |config| config["kv_compression"]["targets"] = json!(["q"]));
    ember(info).fails_with(&[r#" config.json: kv_compression.targets: has "q", expected only "k" and "v""#]);
    // What is listed twice is listed.
    edit_config(&copy, |config| config["kv_compression"]["targets"] = json!(["v", "v"]));
    ember(info).with_code(0);
}

/// A directory that was given is named once, and so is what the system says of a file.
#[test]
fn errors_about_files_name_directory_and_cause_once() {
    let scratch = Scratch::new();
    let copy = scratch.copy_of("leanllama");
    edit_config(&copy, |config| config["head_dim"] = json!("wide"));
    let directory = copy.to_str().expect("UTF-8");
    for args in each_command(&copy) {
        let ended = ember(args).with_code(1);
        let told = format!("error: cannot open the model {directory}: config.json: head_dim: is the string");
        assert!(ended.stderr.contains(&told), "{}", ended.stderr);
    }
    // As a program that uses the library prints an error with its causes.
    let missing = anyhow::Error::from(Pretrained::open(scratch.path("nowhere")).expect_err("there is none"));
    let (told, plain) = (format!("{missing:#}"), missing.to_string());
    assert!(told == plain && told.matches("No such file").count() == 1, "{told}");
    #[cfg(feature = "hub")]
    {
        let error = std::io::Error::other("it burns");
        let burns = emberlm::hub::HubError::Io { path: "disk".into(), error, advice: "" };
        assert_eq!(format!("{:#}", anyhow::Error::from(emberlm::model::Error::from(burns))), "disk: it burns");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_of_its_own() {
    let flags =
        |args: Vec<String>| if args[0] == "info" { args } else { [args, vec!["-n".into(), "2".into()]].concat() };
    let asked = [&["--help"][..], &["generate", "--help"], &["--version"], &["doctor"]];
    let asked = asked.map(|args| args.iter().map(|arg| (*arg).to_owned()).collect());
    for args in each_command(&model("leanllama")).map(flags).into_iter().chain(asked) {
        let full = fs::File::options().write(true).open("/dev/full").expect("the device");
        let output = command(&args).stdout(full).output().expect("the program runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("error: cannot write to stdout: No space left on device"), "{stderr}");
    }
}

/// What kernels would obey silently: the value and what is allowed are named; an empty value is none.
#[test]
fn environment_variables_with_unknown_values_are_errors() {
    let run = |name: &str, value: &str| {
        let output = command(["generate", "-p", "x", "-n", "1", "--device", "cpu"]).env(name, value).output();
        output.expect("the program ends")
    };
    for (name, value, allowed) in [
        ("EMBERLM_CPU", "avx3", "scalar"),
        ("EMBERLM_CPU", "Scalar", "scalar"),
        ("EMBERLM_GPU", "cuda", "plain, planes, matrices"),
    ] {
        let output = run(name, value);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{name}={value}: {stderr}");
        for part in ["error: ", name, value, allowed] {
            assert!(stderr.contains(part), "{name}={value}: {stderr}");
        }
        assert!(!stderr.contains("panicked"), "{stderr}");
        let output = run(name, "");
        assert_eq!(output.status.code(), Some(0), "{name}=: {}", String::from_utf8_lossy(&output.stderr));
    }
}
