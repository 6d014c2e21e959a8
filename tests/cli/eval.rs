//! `ember eval`.

use serde_json::{Value, json};

use crate::fixture::Fixture;
use crate::program::{Ended, Scratch, ember, ember_reading, model};

const TEXT: &str = "The quick brown fox jumps over the lazy dog. It was not amused, and said so at length.\n";

fn eval(name: &str, flags: &[&str]) -> Ended {
    let model = model(name);
    ember_reading(TEXT, ["eval", "-m", model.to_str().expect("UTF-8"), "-f", "-"].iter().chain(flags))
}

fn report(name: &str, flags: &[&str]) -> Value {
    let ended = eval(name, &[flags, &["--json"]].concat()).with_code(0);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {}", ended.stdout))
}

/// Every family; the perplexity of random weights is near the size of the vocabulary, and depends on what is read before.
#[test]
fn every_family_has_a_perplexity() {
    let mut checked = 0;
    for fixture in Fixture::all() {
        let name = fixture.name();
        let whole = report(&name, &[]);
        let perplexity = whole["perplexity"].as_f64().expect("a number");
        assert!(perplexity > 50.0 && perplexity.is_finite(), "{name}: {perplexity}");
        let tokens = whole["tokens"].as_u64().expect("a number");
        let bits = whole["bits_per_byte"].as_f64().expect("a number");
        let expected = perplexity.log2() * tokens as f64 / TEXT.len() as f64;
        assert!((bits / expected - 1.0).abs() < 1e-4, "{name}: {bits} bits per byte, expected {expected}");
        assert_eq!(whole["mean_steps"].is_null(), !name.starts_with("crest"), "{name}");

        let short = report(&name, &["--context", "16"]);
        let windows = short["windows"].as_u64().expect("a number");
        assert_eq!((windows, &short["context"]), ((tokens + 1).div_ceil(16), &json!(16)), "{name}");
        assert_eq!(short["tokens"].as_u64().expect("a number"), tokens + 1 - windows, "{name}");
        assert_ne!(short["perplexity"], whole["perplexity"], "{name}");
        checked += 1;
    }
    assert!(checked >= 6, "{checked} fixtures");
}

/// The sum that `ember depth` shows token by token.
#[test]
fn perplexity_is_that_of_the_tokens() {
    let model = model("crest_k2");
    let ended = ember(["depth", "-m", model.to_str().expect("UTF-8"), "-p", TEXT, "--json"]).with_code(0);
    let depth: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let told = report("crest_k2", &[]);
    let close =
        |key: &str| (told[key].as_f64().expect("a number") / depth[key].as_f64().expect("a number") - 1.0).abs();
    assert!(close("perplexity") < 1e-6, "{} and {}", told["perplexity"], depth["perplexity"]);
    let line = eval("crest_k2", &[]).with_code(0).stdout;
    assert!(line.starts_with("perplexity ") && line.contains("steps per layer"), "{line}");
    assert_ne!(report("crest_k2", &["--steps", "1"])["perplexity"], told["perplexity"]);
}

#[test]
fn texts_that_cannot_be_used_are_refused() {
    let scratch = Scratch::new();
    let file = scratch.path("text");
    let refused = |contents: &[u8], parts: &[&str]| {
        std::fs::write(&file, contents).expect("written");
        let model = model("crest_k2");
        ember(["eval", "-m", model.to_str().expect("UTF-8"), "-f", file.to_str().expect("UTF-8")]).fails_with(parts);
    };
    refused(b"", &["0 tokens", "at least 2"]);
    refused(b"\xff\xfe", &["text", "UTF-8"]);
    let model = model("crest_k2");
    ember(["eval", "-m", model.to_str().expect("UTF-8"), "-f", "/nowhere/text"])
        .fails_with(&["cannot open /nowhere/text"]);
    eval("crest_k2", &["--context", "1"]).with_code(2);
}
