//! `ember verify`.

use serde_json::Value;

use crate::program::{Scratch, edit_config, ember, model};

fn path(name: &str) -> String {
    model(name).to_str().expect("UTF-8").to_owned()
}

#[test]
fn a_good_model_is_clean() {
    for args in [vec!["verify".to_owned()], vec!["verify".into(), "-m".into(), path("crest_k2")]] {
        let ended = ember(&args).with_code(0);
        assert!(ended.stdout.contains("nothing is wrong ("), "{}", ended.stdout);
        // What loading would warn of is among the findings.
        assert_eq!(ended.stderr, "", "{args:?}");
    }
    let told = ember(["verify", "-m", &path("crest_k2"), "--verbose"]).with_code(0).stdout;
    assert!(told.contains("note     config  config.json: auto_map"), "{told}");
    assert!(told.contains("crest, 3 files of weights, 150 tensors (641 KiB), no hash known, 512 tokens in"), "{told}");
    let quick = ember(["verify", "-m", &path("crest_k2"), "--quick"]).with_code(0).stdout;
    assert!(quick.contains("no number read (--quick)"), "{quick}");
}

#[test]
fn damage_is_told_with_place_and_advice() {
    let scratch = Scratch::new();
    let copy = scratch.copy_of("leanllama");
    edit_config(&copy, |config| {
        config["vocab_size"] = 512.into();
        config["attention_sinks"] = 4.into();
    });
    let copy = copy.to_str().expect("UTF-8");
    let told = ember(["verify", "-m", copy]).with_code(1).stdout;
    let expected = "\
error    tensors  model.embed_tokens.weight
   found   [544, 64]
expected   [512, 64]
      do   config and weights are of two models, or a file was cut short: take both from one place
";
    assert!(told.contains(expected), "{told}");
    assert!(
        told.contains("warning  key  config.json: attention_sinks\n   found   4: emberlm does not know this key"),
        "{told}"
    );

    let ended = ember(["verify", "-m", copy, "--json"]).with_code(1);
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!((&report["family"], &report["clean"]), (&"leanllama".into(), &false.into()));
    let findings = report["findings"].as_array().expect("a list");
    let count = |severity: &str| findings.iter().filter(|finding| finding["severity"] == severity).count();
    for (key, severity) in [("errors", "error"), ("warnings", "warning"), ("notes", "note")] {
        assert_eq!(report[key], count(severity), "{key}");
    }
    assert!(count("error") >= 2 && count("warning") == 1, "{report}");
    assert_eq!(report["looked_at"]["files"], 1);
}

#[test]
fn warnings_count_unless_they_are_allowed() {
    let scratch = Scratch::new();
    let copy = scratch.copy_of("leanllama");
    edit_config(&copy, |config| config["attention_sinks"] = 4.into());
    let copy = copy.to_str().expect("UTF-8");
    let told = ember(["verify", "-m", copy, "--quick"]).with_code(1).stdout;
    assert!(told.ends_with("1 warning to look at (2 notes, shown with --verbose)\n"), "{told}");
    ember(["verify", "-m", copy, "--quick", "--allow-warnings"]).with_code(0);
}

/// Names out of a file do not steer a terminal.
#[test]
fn texts_of_files_are_escaped() {
    let scratch = Scratch::new();
    let copy = scratch.copy_of("leanllama");
    edit_config(&copy, |config| config["\u{1b}]0;title\u{7}"] = "\u{1b}[2J".into());
    let copy = copy.to_str().expect("UTF-8");
    for flags in [&[][..], &["--json"]] {
        let told = ember(["verify", "-m", copy, "--quick"].iter().chain(flags)).with_code(1).stdout;
        assert!(!told.contains('\u{1b}') && told.contains("title"), "{told:?}");
    }
}

#[test]
fn what_cannot_be_looked_at_is_another_exit_code() {
    let ended = ember(["verify", "-m", "/nowhere/model"]).with_code(2);
    assert!(ended.stderr.starts_with("error: cannot open the model /nowhere/model"), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
    let scratch = Scratch::new();
    let empty = scratch.path("empty");
    std::fs::create_dir_all(&empty).expect("a directory");
    let told = ember(["verify", "-m", empty.to_str().expect("UTF-8")]).with_code(1).stdout;
    for part in ["it is empty", "no config.json in this directory", "a model directory needs its tokenizer.json"] {
        assert!(told.contains(part), "{told}");
    }
}

/// The exit code is what a script reads, whoever reads the text.
#[test]
fn a_reader_that_is_gone_changes_no_verdict() {
    let scratch = Scratch::new();
    let copy = scratch.copy_of("leanllama");
    edit_config(&copy, |config| config["vocab_size"] = 512.into());
    let (copy, good, other) = (copy.to_str().expect("UTF-8"), path("leanllama"), path("leanllama_kv"));
    for (args, code) in [
        (&["verify", "-m", copy, "--quick"][..], 1),
        (&["verify", "-m", copy, "--quick", "--json"], 1),
        (&["verify", "-m", &good, "--quick"], 0),
        (&["diff", &good, &other], 1),
        (&["diff", &good, &other, "--json"], 1),
        (&["diff", &good, &good], 0),
    ] {
        let mut child = crate::program::command(args).spawn().expect("the program starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*stderr), (Some(code), ""), "{args:?}");
    }
}
