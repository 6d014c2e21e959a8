//! `ember probe`, and the side file that it writes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::program::{Ended, Scratch, edit_config, ember, ember_reading, model};

const TEXT: &str = include_str!("held_out.txt");

/// A copy of the trained demo model that does not state these options.
fn demo_without(scratch: &Scratch, keys: &[&str]) -> PathBuf {
    let copy = scratch.path("model");
    fs::create_dir_all(&copy).expect("a directory");
    for entry in fs::read_dir(model("").join("../../demo")).expect("the demo model") {
        let from = entry.expect("an entry").path();
        fs::copy(&from, copy.join(from.file_name().expect("a name"))).expect("a copy");
    }
    edit_config(&copy, |config| {
        let crest = config["crest"].as_object_mut().expect("options");
        crest.retain(|key, _| !keys.contains(&key.as_str()));
    });
    copy
}

fn probe(model: &Path, flags: &[&str]) -> Ended {
    let model = model.to_str().expect("UTF-8");
    ember_reading(TEXT, ["probe", "-m", model, "-f", "-", "--threads", "2"].iter().chain(flags))
}

fn report(model: &Path, flags: &[&str]) -> Value {
    let ended = probe(model, &[flags, &["--json"]].concat()).with_code(0);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {}", ended.stdout))
}

/// An option of adaptive depth and where it comes from.
fn option(model: &Path, name: &str, flags: &[&str]) -> (Value, Value) {
    let ended = ember(["info", "--json", "-m", model.to_str().expect("UTF-8")].iter().chain(flags)).with_code(0);
    let info: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let options = info["crest"]["options"].as_array().expect("options");
    let option = options.iter().find(|option| option["name"] == name).expect("the option");
    (option["value"].clone(), option["source"].clone())
}

fn greedy(model: Option<&Path>) -> String {
    let of = model.map_or(vec![], |model| vec!["-m", model.to_str().expect("UTF-8")]);
    let args = ["generate", "-p", "Once upon a time", "-n", "24", "--greedy", "--activations", "f32"];
    ember(args.iter().chain(&of)).with_code(0).stdout
}

fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).expect("the directory").map(|entry| entry.expect("an entry"));
    let read = |entry: fs::DirEntry| {
        (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a file"))
    };
    entries.map(read).collect()
}

/// The whole way: hidden, found, stated in a file of our own, picked up by what loads the model, told by `info`.
#[test]
fn what_is_found_is_stated_for_later_loads() {
    let scratch = Scratch::new();
    let copy = demo_without(&scratch, &["step_input"]);
    let before = contents(&copy);
    let truth = greedy(None);
    assert_ne!(greedy(Some(&copy)), truth, "the default is another");

    let found = report(&copy, &["--write"]);
    let first = &found["candidates"][0];
    assert_eq!((&first["options"], &first["verdict"]), (&json!({"step_input": "refine"}), &json!("first")));
    let others = found["candidates"].as_array().expect("a list").iter().skip(1);
    assert!(others.clone().count() == 3, "{found}");
    for other in others {
        assert!(other["verdict"] == "dropped" || other["verdict"] == "worse", "{other}");
        assert!(other["difference"].as_f64().expect("a number") > 3.0 * other["error"].as_f64().expect("a number"));
    }
    let conclusion =
        json!({"option": "step_input", "value": "refine", "as_good": [], "default": false, "decided": true});
    assert_eq!(found["conclusions"], json!([conclusion]));
    assert_eq!(found["written"], json!(copy.join("ember.json")));

    let mut after = contents(&copy);
    let written = after.remove("ember.json").expect("the side file");
    let written: Value = serde_json::from_slice(&written).expect("JSON");
    assert_eq!(written, json!({"crest": {"step_input": "refine"}}));
    assert_eq!(after, before, "no other file is touched");
    assert_eq!(greedy(Some(&copy)), truth);
    assert_eq!(option(&copy, "step_input", &[]), (json!("refine"), json!("ember.json")));

    // What the side file states is ours to find again; without a better answer it stays.
    let stated = contents(&copy);
    assert_eq!(report(&copy, &["--write"])["candidates"][0]["options"], first["options"]);
    assert_eq!(contents(&copy), stated);
}

#[test]
fn the_table_says_what_was_tried_and_what_is_told() {
    let scratch = Scratch::new();
    let copy = demo_without(&scratch, &["step_input", "halt_threshold"]);
    let ended = probe(&copy, &["--threshold", "0.9"]).with_code(0);
    for part in [
        "rank  step_input",
        "perplexity  difference (nats/token)  blocks  verdict",
        "  first\n",
        "  dropped after ",
        "step_input      refine      every other value is worse\n",
        "halt_threshold  0.9         given by a flag, not tried\n",
        "gate_input      input       stated by the model's files, not tried\n",
        "4 candidates, ",
    ] {
        assert!(ended.stdout.contains(part), "{part:?} is not in {}", ended.stdout);
    }
    for part in ["not stated: step_input; at most ", "--write states what is decided in ember.json"] {
        assert!(ended.stderr.contains(part), "{part:?} is not in {}", ended.stderr);
    }
    assert!(!copy.join("ember.json").exists());
    // What files state is tried on request alone.
    let ended = probe(&model("leanllama_kv"), &[]).with_code(0);
    assert!(ended.stdout.starts_with("no option is open:\nactivation      gelu  "), "{}", ended.stdout);
    let all = report(&model("leanllama_kv"), &["--all", "--block", "16", "--blocks", "8"]);
    assert_eq!(all["candidates"].as_array().expect("a list").len(), 8);
    probe(&model("nano_compact"), &[]).fails_with(&["nothing to probe", "nano-compact"]);
    // A text that is not there is an error where nothing would have been read of it, too.
    ember(["probe", "-m", model("leanllama_kv").to_str().unwrap(), "-f", "none.txt"]).fails_with(&["none.txt"]);
}

#[test]
fn too_little_text_is_told_before_anything_is_loaded() {
    let scratch = Scratch::new();
    let copy = demo_without(&scratch, &["step_input"]);
    let model = copy.to_str().expect("UTF-8");
    for (text, tokens) in [("", "0 tokens"), ("Once upon a time there was a dog.", "tokens, which are 0 blocks of 32")]
    {
        let ended = ember_reading(text, ["probe", "-m", model, "-f", "-", "--write"]);
        assert!(!ended.stderr.contains("of weights"), "{}", ended.stderr);
        ended.fails_with(&["nothing can be told from", tokens, "at least 8 blocks (256 tokens)", "a longer text"]);
    }
    assert_eq!(scratch.files(), ["model"]);
    assert!(!contents(&copy).contains_key("ember.json"));
}

#[test]
fn flags_win_over_the_side_file() {
    let scratch = Scratch::new();
    let copy = demo_without(&scratch, &["halt_threshold", "halt_enabled"]);
    fs::write(copy.join("ember.json"), r#"{"crest": {"halt_threshold": 0.5, "num_steps": 4}}"#).expect("written");
    assert_eq!(option(&copy, "halt_threshold", &[]), (json!(0.5), json!("ember.json")));
    assert_eq!(option(&copy, "halt_threshold", &["--threshold", "0.7"]), (json!(0.7), json!("overridden")));
    // Stated by both, and the same.
    assert_eq!(option(&copy, "num_steps", &[]), (json!(4), json!("stated")));
    assert_eq!(option(&copy, "halt_enabled", &[]), (json!(true), json!("default")));

    let lean = scratch.copy_of("leanllama_kv");
    edit_config(&lean, |config| {
        config["kv_compression"].as_object_mut().expect("options").remove("activation");
    });
    fs::write(lean.join("ember.json"), r#"{"kv_compression": {"activation": "silu"}}"#).expect("written");
    let text = ember(["info", "-m", lean.to_str().expect("UTF-8")]).with_code(0).stdout;
    assert!(text.contains("activation silu (stated in ember.json), keys post_rope (stated)"), "{text}");
}

/// A side file that is not for this model is an error that names it, whatever command loads the model.
#[test]
fn side_files_that_do_not_fit_are_named() {
    let cases: [(&str, &str, &[&str]); 11] = [
        (
            "crest_k4",
            r#"{"crest": {"step_inputs": "chained"}}"#,
            &["crest.step_inputs", "is not an option", "step_input"],
        ),
        ("crest_k4", r#"{"depth": {}}"#, &["depth: is not an option", "crest, kv_compression"]),
        ("crest_k4", r#"{"crest": {"gate_shared": true}}"#, &["crest.gate_shared", "is not an option"]),
        (
            "crest_k4",
            r#"{"crest": {"step_input": "parallel"}}"#,
            &["crest.step_input", "parallel", "chained", "another file"],
        ),
        ("crest_k4", r#"{"crest": {"halt_threshold": 2}}"#, &["crest.halt_threshold", "from 0 to 1"]),
        (
            "crest_k4_nf4",
            r#"{"crest": {"num_steps": 9}}"#,
            &["crest.num_steps", "is 9", "holds 4 steps", "remove the file"],
        ),
        ("crest_k4", r#"{"kv_compression": {"k_stage": "pre_rope"}}"#, &["kv_compression", "this is crest"]),
        ("leanllama", r#"{"crest": {}}"#, &["crest", "this is leanllama", "no adaptive depth"]),
        ("leanllama", r#"{"kv_compression": {"code_dim": 4}}"#, &["kv_compression.code_dim", "is not an option"]),
        ("leanllama", r#"{"kv_compression": {"activation": "relu"}}"#, &["activation", "\"relu\"", "states \"gelu\""]),
        ("leanllama", r#"{"kv_compression": "#, &["is not valid JSON"]),
    ];
    for (fixture, side_file, parts) in cases {
        let scratch = Scratch::new();
        let copy = scratch.copy_of(fixture);
        fs::write(copy.join("ember.json"), side_file).expect("written");
        let model = copy.to_str().expect("UTF-8");
        let parts = [&["ember.json"], parts].concat();
        ember(["info", "-m", model]).fails_with(&parts);
        ember(["generate", "-m", model, "-p", "x"]).fails_with(&parts);
    }
}

/// A directory that cannot be written in is told before the work, not after it.
#[cfg(unix)]
#[test]
fn an_unwritable_directory_is_told_before_the_work() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;

    let scratch = Scratch::new();
    let copy = demo_without(&scratch, &["step_input"]);
    let text = scratch.path("text.txt");
    fs::write(&text, TEXT).expect("written");
    let as_user = |args: &[&str]| {
        let mut command = crate::program::command(args);
        // The permissions of a directory do not bind root.
        if fs::metadata(&text).expect("a file").uid() == 0 {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    };
    if !as_user(&["--version"]).output().is_ok_and(|output| output.status.success()) {
        eprintln!("left out: only root reaches the program");
        return;
    }
    let permit = |mode| fs::set_permissions(&copy, fs::Permissions::from_mode(mode)).expect("permissions");
    permit(0o555);
    let (model, text) = (copy.to_str().expect("UTF-8"), text.to_str().expect("UTF-8"));
    let output = as_user(&["probe", "-m", model, "-f", text, "--write"]).output().expect("it runs");
    permit(0o755);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &[][..]), "{stderr}");
    assert!(stderr.starts_with("error: --write: ") && stderr.contains("cannot be written in"), "{stderr}");
    assert!(stderr.contains("Permission denied") && stderr.lines().count() == 1, "{stderr}");
}

/// A model of random weights says nothing of a text, and a text that says nothing of its options is no reason to state any.
#[test]
fn what_a_text_does_not_decide_is_not_written() {
    let scratch = Scratch::new();
    let copy = scratch.copy_of("crest_k4");
    edit_config(&copy, |config| {
        let crest = config["crest"].as_object_mut().expect("options");
        crest.retain(|key, _| !["step_input", "halt_weights"].contains(&key.as_str()));
    });
    let before = contents(&copy);
    let flags = ["--write", "--block", "16", "--blocks", "8"];
    let ended = probe(&copy, &flags).with_code(0);
    assert!(ended.stdout.contains("This text tells nothing apart"), "{}", ended.stdout);
    assert!(ended.stderr.contains("nothing is written: the text decides no option"), "{}", ended.stderr);
    assert_eq!(contents(&copy), before);
    // What an earlier text has decided stays.
    fs::write(copy.join("ember.json"), r#"{"crest": {"step_input": "refine"}}"#).expect("written");
    let stated = contents(&copy);
    probe(&copy, &flags).with_code(0);
    assert_eq!(contents(&copy), stated);
}

/// Nothing is advised that would be refused, and what is not done is told.
#[test]
fn what_write_does_not_do_is_told() {
    let fixture = model("leanllama_kv");
    let ended = probe(&fixture, &["--all", "--block", "16", "--blocks", "8"]).with_code(0);
    assert!(!ended.stderr.contains("--write"), "{}", ended.stderr);
    let ended = probe(&fixture, &["--write"]).with_code(0);
    assert!(ended.stderr.contains("nothing is written: no option is open"), "{}", ended.stderr);
    assert!(!contents(&fixture).contains_key("ember.json"));
}
