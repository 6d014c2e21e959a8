//! `ember generate`.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::fixture::Fixture;
use crate::program::{Ended, Scratch, command, edit_config, ember, ember_reading, model};

const PROMPT: &str = "the quick brown fox";

fn args<'a>(model: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["generate", "-m", model, "-p", PROMPT];
    args.extend(flags);
    args
}

fn generate(name: &str, flags: &[&str]) -> Ended {
    let model = model(name);
    ember(args(model.to_str().expect("UTF-8"), flags))
}

fn report(name: &str, flags: &[&str]) -> Value {
    let ended = generate(name, &[flags, &["--json"]].concat()).with_code(0);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {}", ended.stdout))
}

/// The goldens' greedy tokens, from the text of their chat.
#[test]
fn chats_continue_as_the_goldens_do() {
    let mut checked = 0;
    for fixture in Fixture::all() {
        let goldens = std::fs::read_to_string(fixture.path.join("tokenizer_golden.json")).expect("the goldens");
        let goldens: Value = serde_json::from_str(&goldens).expect("JSON");
        let case = fixture.case("chat");
        let prompt = json!(case.ids()[0]);
        let chats = goldens["chats"].as_array().expect("a list");
        let Some(chat) = chats.iter().find(|chat| chat["ids"] == prompt) else { continue };
        let messages = chat["messages"].as_array().expect("a list");
        let text = |i: usize| messages[i]["content"].as_str().expect("a text");
        let (system, user) = match messages.len() {
            1 => (None, text(0)),
            2 if messages[0]["role"] == "system" => (Some(text(0)), text(1)),
            _ => continue,
        };
        let model = fixture.path.to_str().expect("UTF-8");
        let mut args = vec!["generate", "-m", model, "-p", "-", "--chat", "--greedy", "--ignore-eos", "-n", "32"];
        args.extend(["--cache-type", "f32", "--repeat-penalty", "1", "--json", "--chunk", "16"]);
        // The defaults round activations and head to 8 bits.
        args.extend(["--activations", "f32", "--quant-head", "none"]);
        args.extend(system.iter().flat_map(|system| ["--system", system]));
        if chat["kwargs"]["enable_thinking"] == json!(false) {
            args.push("--no-think");
        }
        for weights in [&[][..], &["--no-mmap"]] {
            let ended = ember_reading(user, args.iter().chain(weights)).with_code(0);
            let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
            assert_eq!(report["tokens"], json!(case.need("greedy").ids()), "{} {weights:?}", fixture.name());
            assert_eq!(report["prompt_tokens"], json!(case.ids()[0].len()), "{} {weights:?}", fixture.name());
        }
        checked += 1;
    }
    assert!(checked >= 3, "{checked} goldens are chats of one question");
}

#[test]
fn text_goes_to_stdout_and_the_rest_to_stderr() {
    let flags = ["-n", "12", "--seed", "3", "--ignore-eos"];
    let told = report("leanllama", &flags);
    let ended = generate("leanllama", &flags).with_code(0);
    assert_eq!(ended.stdout.strip_suffix('\n').expect("a line"), told["text"].as_str().expect("a text"));
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{}", ended.stderr);
    assert!(lines[0].contains("parameters") && lines[0].contains(" of f16 cache for "), "{}", lines[0]);
    assert!(
        lines[1].starts_with("sampling: temperature 0.6, top-p 0.9 (generation_config.json), top-k"),
        "{}",
        lines[1]
    );
    assert!(lines[2].contains("12 generated") && lines[2].contains("seed 3, finish: length"), "{}", lines[2]);
    assert_eq!((&told["finish"], &told["seed"], &told["depth"]), (&json!("length"), &json!(3), &Value::Null));
    assert_eq!(told["tokens"].as_array().expect("a list").len(), 12);
    assert_eq!(told["mean_steps"], Value::Null);

    let same = report("leanllama", &[&flags[..], &["--threads", "1", "--chunk", "2"]].concat());
    assert_eq!(same["text"], told["text"]);
    assert_ne!(report("leanllama", &["-n", "12", "--seed", "4", "--ignore-eos"])["text"], told["text"]);
    assert_ne!(report("leanllama", &[&flags[..], &["--greedy"]].concat())["text"], told["text"]);
    let none = report("leanllama", &["-n", "0"]);
    assert_eq!((&none["text"], &none["tokens"], &none["finish"]), (&json!(""), &json!([]), &json!("length")));
}

#[test]
fn stop_strings_and_end_tokens_end_the_text() {
    let flags = ["-n", "40", "--greedy", "--ignore-eos"];
    let whole = report("nano_compact", &flags);
    let text = whole["text"].as_str().expect("a text");
    let stop: String = text.chars().skip(10).take(3).collect();
    let before = text.split(&stop).next().expect("a beginning");
    let stopped = report("nano_compact", &[&flags[..], &["--stop", &stop]].concat());
    assert_eq!((&stopped["text"], &stopped["finish"]), (&json!(before), &json!("stop")));
    assert!(stopped["tokens"].as_array().expect("a list").len() < 40);
}

#[test]
fn a_trace_shows_the_depth_of_every_token() {
    let flags = ["-n", "5", "--greedy", "--ignore-eos", "--trace"];
    let told = report("crest_k4", &flags);
    let depth = told["depth"].as_array().expect("a list");
    assert_eq!(depth.len(), 5);
    let steps: Vec<u64> =
        depth.iter().flat_map(|token| token["steps"].as_array().expect("steps")).filter_map(Value::as_u64).collect();
    assert_eq!(steps.len(), 20);
    let mean = steps.iter().sum::<u64>() as f64 / 20.0;
    assert!((told["mean_steps"].as_f64().expect("a number") - mean).abs() < 1e-6, "{}", told["mean_steps"]);
    assert_eq!(depth[0]["halt"][0].as_array().expect("gates").len(), 3);
    let ended = generate("crest_k4", &flags).with_code(0);
    assert_eq!(ended.stderr.lines().filter(|line| line.contains("steps: ")).count(), 5, "{}", ended.stderr);

    let no_halt = report("crest_k4", &["-n", "5", "--ignore-eos", "--no-halt"]);
    assert_eq!((&no_halt["mean_steps"], &no_halt["depth"]), (&json!(4.0), &Value::Null));
    assert_eq!(report("crest_k4", &["-n", "5", "--ignore-eos", "--steps", "1"])["mean_steps"], json!(1.0));
    assert_eq!(report("crest_k4", &["-n", "5", "--ignore-eos", "--threshold", "0"])["mean_steps"], json!(1.0));
    generate("leanllama", &["--trace"]).fails_with(&["--trace", "adaptive depth"]);
}

/// What is most likely is no draw, and has no seed.
#[test]
fn a_seed_is_told_where_something_is_drawn() {
    for (flags, seed) in [
        (&["--greedy", "--seed", "3"][..], Value::Null),
        (&["--temp", "0", "--seed", "3"], Value::Null),
        (&["--temp", "1", "--seed", "3"], json!(3)),
        (&["--temp", "1", "--seed", "3", "-n", "0"], Value::Null),
    ] {
        let tokens: &[&str] = if flags.contains(&"-n") { &[] } else { &["-n", "2"] };
        let flags = [flags, tokens].concat();
        assert_eq!(report("leanllama", &flags)["seed"], seed, "{flags:?}");
        let told = generate("leanllama", &flags).with_code(0).stderr;
        assert_eq!(told.contains(", seed "), !seed.is_null(), "{flags:?}: {told}");
    }
    assert!(report("leanllama", &["-n", "1", "--temp", "1"])["seed"].is_u64());
}

#[test]
fn a_prompt_from_stdin_loses_its_last_line_break() {
    let model = model("leanllama");
    let args =
        |prompt| ["generate", "-m", model.to_str().expect("UTF-8"), "-p", prompt, "-n", "4", "--greedy", "--json"];
    let tokens = |ended: Ended| -> (Value, Value) {
        let report: Value = serde_json::from_str(&ended.with_code(0).stdout).expect("JSON");
        (report["prompt_tokens"].clone(), report["tokens"].clone())
    };
    let given = tokens(ember(args(PROMPT)));
    assert_eq!(tokens(ember_reading(&format!("{PROMPT}\n"), args("-"))), given);
    assert_ne!(tokens(ember_reading(&format!("{PROMPT}\n\n"), args("-"))), given);
}

#[test]
fn options_out_of_range_are_refused_before_loading() {
    let refused = |flags: &[&str], parts: &[&str]| {
        let ended = generate("crest_k4", flags);
        assert!(!ended.stderr.contains("of weights"), "{}", ended.stderr);
        ended.fails_with(parts);
    };
    // As they were typed.
    refused(&["--temp", "-1"], &["error: --temp -1 is not allowed"]);
    refused(&["--temp", "NaN"], &["error: --temp NaN is not allowed"]);
    refused(&["--top-p", "2"], &["error: --top-p 2 is not allowed"]);
    refused(&["--min-p", "1.5"], &["error: --min-p 1.5 is not allowed"]);
    refused(&["--repeat-penalty", "0"], &["error: --repeat-penalty 0 is not allowed"]);
    refused(&["--stop", ""], &["error: --stop is an empty string"]);
    // Once.
    let name = model("crest_k4");
    let told = |of_flag: &str| format!("error: cannot open the model {}: {of_flag}", name.display());
    refused(&["--steps", "0"], &[&told("--steps is 0, but the checkpoint holds 4 steps")]);
    refused(&["--threshold", "1.5"], &[&told("--threshold is 1.5, expected a number from 0 to 1")]);
    let model = model("crest_k4");
    let model = model.to_str().expect("UTF-8");
    ember(["generate", "-m", model, "-p", ""]).fails_with(&["prompt", "no tokens"]);
    ember_reading(&"a ".repeat(40_000), ["generate", "-m", model, "-p", "-"]).fails_with(&["prompt", "32768"]);
}

/// As in other programs.
#[test]
fn minus_one_is_no_limit() {
    let scratch = Scratch::new();
    let copy = scratch.copy_of("leanllama");
    edit_config(&copy, |config| config["max_position_embeddings"] = 12.into());
    let run = |flags: &[&str]| {
        let model = copy.to_str().expect("UTF-8");
        let all = [&["generate", "-m", model, "-p", "a b c", "--json", "--ignore-eos", "--seed", "3"], flags].concat();
        let report: Value = serde_json::from_str(&ember(all).with_code(0).stdout).expect("JSON");
        let prompt = report["prompt_tokens"].as_u64().expect("a count") as usize;
        (prompt, report["tokens"].as_array().expect("tokens").clone())
    };
    let (prompt, tokens) = run(&["-n", "-1", "--top-k", "-1"]);
    // The last token is not fed back.
    assert_eq!(prompt + tokens.len(), 13);
    assert_eq!(run(&["-n", "5", "--top-k", "0"]).1, tokens[..5]);
    let model = copy.to_str().expect("UTF-8");
    for flags in [["-n", "-2"], ["--top-k", "-2"], ["--seed", "-2"]] {
        let ended = ember([&["generate", "-m", model, "-p", "x"], &flags[..]].concat()).with_code(2);
        assert!(ended.stderr.contains(&format!("invalid value '{}'", flags[1])), "{}", ended.stderr);
    }
}

/// A reader that stops early, as `head` does, is no error.
#[test]
fn a_closed_pipe_is_no_error() {
    let model = model("crest_k2");
    let model = model.to_str().expect("UTF-8");
    for args in
        [vec!["info", "-m", model], vec!["info", "-m", model, "--json"], args(model, &["-n", "2000", "--ignore-eos"])]
    {
        let mut child = command(&args).spawn().expect("the program starts");
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("UTF-8");
        assert_eq!(child.wait().expect("an end").code(), Some(0), "{args:?}: {stderr}");
        assert!(!stderr.contains("error") && !stderr.contains("panic"), "{args:?}: {stderr}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_text_and_keeps_the_summary() {
    let model = model("crest_k2");
    let args =
        args(model.to_str().expect("UTF-8"), &["-n", "30000", "--ignore-eos", "--json", "--trace", "--seed", "1"]);
    // Without --json the pieces show that the generation has begun.
    let args: Vec<&str> = args.into_iter().filter(|arg| *arg != "--json").collect();
    let mut child = command(&args).stdin(Stdio::null()).spawn().expect("the program starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("steps: ") {
        line.clear();
        assert!(stderr.read_line(&mut line).expect("UTF-8") > 0, "the program ended early");
    }
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.expect("kill runs").success());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).expect("UTF-8");
    let mut stdout = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut stdout).expect("UTF-8");
    assert_eq!(child.wait().expect("an end").code(), Some(130), "{rest}");
    assert!(rest.trim_end().ends_with("finish: cancelled"), "{rest}");
    assert!(stdout.len() > 1);
}

/// Drafts are guesses: the text is the same, and the summary says how many were right.
#[test]
fn drafts_do_not_change_the_text() {
    for (name, flags) in [
        ("leanllama", &["--draft", "prompt-lookup"][..]),
        ("crest_k4", &["--draft", "prompt-lookup", "--draft-max", "3"]),
        ("crest_k4", &["--draft-steps", "1"]),
    ] {
        let exact = ["--activations", "f32", "--quant-head", "none", "--cache-type", "f32", "-n", "60", "--ignore-eos"];
        for sampling in [&["--greedy"][..], &["--temp", "0.7", "--seed", "5"]] {
            let [plain, drafted] =
                [&[][..], flags].map(|drafts| report(name, &[&exact[..], sampling, drafts].concat()));
            assert_eq!(drafted["tokens"], plain["tokens"], "{name} {flags:?} {sampling:?}");
            assert_eq!(plain["drafted_tokens"], json!(0));
            let [of, right] = ["drafted_tokens", "accepted_tokens"].map(|key| drafted[key].as_u64().expect("a count"));
            assert!(of >= right && (of > 0 || sampling.len() > 1), "{name} {flags:?} {sampling:?}: {right} of {of}");
        }
    }
    let ended = generate("leanllama", &["--draft-steps", "1"]).with_code(1);
    assert!(ended.stderr.contains("--draft-steps is 1") && ended.stderr.contains("adaptive depth"), "{}", ended.stderr);
    let ended = generate("crest_k4", &["--draft-steps", "4"]).with_code(1);
    assert!(ended.stderr.contains("expected 1 to 3"), "{}", ended.stderr);
    let ended = generate("crest_k4", &["--draft-steps", "1", "--draft", "prompt-lookup"]).with_code(2);
    assert!(ended.stderr.contains("cannot be used with"), "{}", ended.stderr);
}

/// Hidden values are what codes become: the same text, from a larger cache; not of a model without codes.
#[test]
fn hidden_values_in_the_cache() {
    let exact =
        ["--activations", "f32", "--quant-head", "none", "--cache-type", "f32", "-n", "60", "--ignore-eos", "--greedy"];
    for name in ["leanllama", "leanllama_kv"] {
        let [codes, hidden] = [&[][..], &["--cache-hidden"]].map(|flags| report(name, &[&exact[..], flags].concat()));
        assert_eq!(hidden["tokens"], codes["tokens"], "{name}");
        let per_token = |flags: &[&str]| {
            let model = model(name);
            let ended = ember(["info", model.to_str().expect("UTF-8"), "--json"].iter().chain(flags)).with_code(0);
            let told: Value = serde_json::from_str(&ended.stdout).expect("JSON");
            told["cache"]["bytes_per_token"]["f16"].as_u64().expect("bytes")
        };
        let [codes, hidden] = [&[][..], &["--cache-hidden"]].map(per_token);
        assert!(hidden > codes, "{name}: {hidden} bytes, with codes {codes}");
        let model = model(name);
        let ended = ember(["info", model.to_str().expect("UTF-8"), "--cache-hidden"]).with_code(0);
        assert!(ended.stdout.contains(" (cached), biases of the decoder"), "{name}: {}", ended.stdout);
        let ended = generate(name, &["--cache-hidden", "--cache-type", "q8", "-n", "1"]).with_code(0);
        assert!(ended.stderr.contains(" of q8 cache with hidden values for "), "{name}: {}", ended.stderr);
    }
    for command in ["generate", "bench"] {
        let prompt = if command == "generate" { &["-p", "x"][..] } else { &[] };
        let ended = ember([command, "--cache-hidden"].iter().chain(prompt)).with_code(1);
        assert!(
            ended.stderr.contains("--cache-hidden is for models whose cache is compressed (LeanLlama); this is crest"),
            "{}",
            ended.stderr
        );
    }
}

/// A limit of drafts that are not made would do nothing.
#[test]
fn a_limit_of_drafts_needs_drafts() {
    for command in ["generate", "chat", "bench"] {
        let prompt = if command == "generate" { &["-p", "x"][..] } else { &[] };
        let ended = ember([command, "--draft-max", "4"].iter().chain(prompt)).with_code(2);
        assert!(
            ended.stderr.contains("--draft <SOURCE>") && ended.stderr.contains("--draft-steps"),
            "{}",
            ended.stderr
        );
    }
    let drafts = ["--draft-max", "4", "--draft", "prompt-lookup"];
    ember(["generate", "-p", "x", "-n", "1", "--device", "cpu"].iter().chain(&drafts)).with_code(0);
    ember(["generate", "-p", "x", "--draft", "prompt-lookup", "--draft-steps", "1"]).with_code(2);
}
