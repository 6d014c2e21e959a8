//! The clients that people use, in Python: `.ci/clients` installs them and runs this, with the model in the program, and with a trained one
//! where `EMBERLM_REAL_MODEL` names its GGUF file (`.ci/real-model` downloads it).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Instant;

use serde_json::Value;

use crate::client::{Server, program};
use crate::gguf;

/// The exact settings of `ember eval`.
const EXACT: [&str; 6] = ["--activations", "f32", "--cache-type", "f32", "--quant-head", "none"];

const KEY: &str = "sesame";

/// Directories of models; none is the one in the program.
static MODELS: LazyLock<Vec<Option<PathBuf>>> = LazyLock::new(|| {
    let trained = std::env::var_os("EMBERLM_REAL_MODEL").map(|file| {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("real-model-serve");
        std::fs::create_dir_all(&to).unwrap();
        gguf::convert(Path::new(&file), &to);
        to
    });
    [None].into_iter().chain(trained.map(Some)).collect()
});

/// Flags that choose a model.
fn of_model(model: &Option<PathBuf>) -> Vec<&str> {
    model.iter().flat_map(|path| ["-m", path.to_str().unwrap()]).collect()
}

/// Runs a script of this directory against a server.
fn run(script: &str, server: &Server, more: &[&str]) {
    let python = std::env::var("EMBERLM_CLIENTS_PYTHON").expect("EMBERLM_CLIENTS_PYTHON: run .ci/clients");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/serve").join(script);
    let began = Instant::now();
    let out =
        Command::new(python).arg(path).arg(format!("http://{}", server.address)).arg(KEY).args(more).output().unwrap();
    let (shown, wrong) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{shown}{wrong}\n{}", server.log());
    println!("{shown}{script}: {:.1} s", began.elapsed().as_secs_f64());
}

fn all(script: &str) {
    for model in &*MODELS {
        let flags = [&of_model(model)[..], &["--alias", "demo", "--api-key", KEY]].concat();
        println!(
            "{}",
            model.as_ref().map_or_else(|| "the model in the program".into(), |path| path.display().to_string())
        );
        run(script, &Server::start(&flags), &[]);
    }
}

#[test]
#[ignore = "needs Python packages: .ci/run runs it through .ci/clients where they can be installed"]
fn official_clients_are_answered() {
    all("clients.py");
}

#[test]
#[ignore = "needs Python packages: .ci/run runs it through .ci/clients where they can be installed"]
fn langchain_is_answered() {
    all("clients_langchain.py");
}

#[test]
#[ignore = "needs Python packages: .ci/run runs it through .ci/clients where they can be installed"]
fn lm_eval_measures_what_eval_does() {
    let text = "Once upon a time there was a small boy. He had a red boat, and the boat was fast. One day he went to the sea.\n";
    for model in &*MODELS {
        let chosen = of_model(model);
        let server = Server::start(&[&chosen[..], &EXACT, &["--alias", "demo", "--api-key", KEY]].concat());
        let info = server.send("GET", "/tokenizer_info", &[("x-api-key", KEY)], "").json();
        // lm-eval puts this token before a text, so that its first token has a probability too.
        let first = info["bos_token"].as_str().or(info["eos_token"].as_str()).expect("a token that begins a text");
        let directory = tempfile::tempdir().unwrap();
        let (plain, begun) = (directory.path().join("plain.txt"), directory.path().join("begun.txt"));
        std::fs::write(&plain, text).unwrap();
        std::fs::write(&begun, format!("{first}{text}")).unwrap();
        let out = Command::new(program())
            .args(["eval", "--device", "cpu", "--window-bos", "never", "--json", "-f"])
            .arg(begun)
            .args(chosen)
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{out:?}"));
        assert_eq!(report["bytes"].as_f64(), Some(text.len() as f64), "{report}");
        run("clients_lm_eval.py", &server, &[plain.to_str().unwrap(), &report["bits_per_byte"].to_string()]);
    }
}
