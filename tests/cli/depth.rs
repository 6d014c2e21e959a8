//! `ember depth`.

use serde_json::{Value, json};

use crate::program::{Ended, Scratch, ember, ember_reading, model};

const PROMPT: &str = "the quick brown fox";

fn depth(name: &str, flags: &[&str]) -> Ended {
    let model = model(name);
    let args = ["depth", "-m", model.to_str().expect("UTF-8"), "-p", PROMPT];
    ember(args.iter().chain(flags))
}

fn report(flags: &[&str]) -> Value {
    let ended = depth("crest_k4", &[flags, &["--json"]].concat()).with_code(0);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {}", ended.stdout))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The depths are those of the passes that `ember generate --trace` shows when it makes the same text.
#[test]
fn depth_is_that_of_generation() {
    let model = model("crest_k4");
    let model = model.to_str().expect("UTF-8");
    let flags = ["--greedy", "--ignore-eos", "--trace", "--json", "--cache-type", "f32", "-n", "6"];
    let ended = ember(["generate", "-m", model, "-p", PROMPT].iter().chain(&flags)).with_code(0);
    let generated: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let told = report(&[]);
    // The pass after the prompt chose the first token.
    assert_eq!(told["next"]["steps"], generated["depth"][0]["steps"]);
    assert_eq!(list(&told["tokens"]).len(), generated["prompt_tokens"].as_u64().expect("a number") as usize);
}

#[test]
fn numbers_agree_with_each_other() {
    let told = report(&[]);
    let tokens = list(&told["tokens"]);
    let text: String = tokens.iter().map(|token| token["text"].as_str().expect("a text")).collect();
    assert_eq!(text, PROMPT);
    assert_eq!((&told["layers"], &told["num_steps"]), (&json!(4), &json!(4)));
    assert_eq!((&tokens[0]["steps"], &tokens[0]["log_probability"]), (&Value::Null, &Value::Null));
    let (mut sum, mut nats) = (0.0, 0.0);
    for token in &tokens[1..] {
        let steps: Vec<u64> = list(&token["steps"]).iter().filter_map(Value::as_u64).collect();
        assert!(steps.len() == 4 && steps.iter().all(|steps| (1..=4).contains(steps)), "{steps:?}");
        let mean = steps.iter().sum::<u64>() as f64 / 4.0;
        assert_eq!(token["mean_steps"].as_f64(), Some(mean));
        // Probabilities of halting are given up to the step at which the token halted.
        for (halt, &steps) in list(&token["halt"]).iter().zip(&steps) {
            assert_eq!(list(halt).iter().filter(|h| h.as_f64() > Some(0.0)).count(), (steps as usize).min(3));
        }
        sum += mean;
        nats -= token["log_probability"].as_f64().expect("a number");
    }
    let n = (tokens.len() - 1) as f64;
    assert!((told["mean_steps"].as_f64().expect("a number") - sum / n).abs() < 1e-9);
    assert!((told["perplexity"].as_f64().expect("a number").ln() - nats / n).abs() < 1e-5);
    assert_eq!(report(&["--no-halt"])["mean_steps"], json!(4.0));
    assert_eq!(report(&["--threshold", "0"])["mean_steps"], json!(1.0));
    assert_eq!(report(&["--steps", "2"])["num_steps"], json!(2));
}

#[test]
fn the_terminal_gets_the_colours_asked_for() {
    let shown = |flags: &[&str]| depth("crest_k4", flags).with_code(0).stdout;
    let plain = shown(&[]);
    assert!(!plain.contains('\x1b') && plain.starts_with(&format!("{PROMPT}\n\n")), "{plain}");
    assert_eq!(plain, shown(&["--color", "none"]));
    let (full, indexed) = (shown(&["--color", "truecolor"]), shown(&["--color", "256"]));
    assert!(full.contains("\x1b[48;2;") && !full.contains("48;5;"), "{full}");
    assert!(indexed.contains("\x1b[48;5;") && !indexed.contains("48;2;"), "{indexed}");
    // A row per layer in every block; a narrow terminal has more blocks and no longer lines.
    let rows = |shown: &str| shown.lines().filter(|line| line.starts_with(" 3  ")).count();
    let narrow = shown(&["--width", "30"]);
    assert!(rows(&narrow) > rows(&plain), "{narrow}");
    let map: Vec<&str> = narrow.lines().skip(2).take_while(|line| !line.starts_with("steps per layer")).collect();
    assert!(map.iter().all(|line| line.trim_end().chars().count() <= 30), "{narrow}");
    // The digits of the map are the steps.
    let told = report(&[]);
    let steps: Vec<String> = list(&told["tokens"]).iter().skip(1).map(|token| token["steps"][0].to_string()).collect();
    let first = narrow.lines().find(|line| line.starts_with(" 0  ")).expect("layer 0");
    let digits: Vec<&str> = first.split_whitespace().skip(2).collect();
    assert_eq!(digits, steps[..digits.len()], "{narrow}");
}

#[test]
fn pictures_are_whole_and_need_nothing_else() {
    let scratch = Scratch::new();
    let (svg, html) = (scratch.path("a.svg"), scratch.path("a.html"));
    let model = model("crest_k4");
    let args = ["depth", "-m", model.to_str().expect("UTF-8"), "-p", "-", "--sweep"];
    let files = ["--svg", svg.to_str().expect("UTF-8"), "--html", html.to_str().expect("UTF-8")];
    ember_reading("a < b && \"c\" > d\n", args.iter().chain(&files)).with_code(0);
    let (svg, html) =
        (std::fs::read_to_string(svg).expect("a picture"), std::fs::read_to_string(html).expect("a page"));
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert!(svg.contains("&lt;") && svg.contains("&amp;") && svg.contains("prefers-color-scheme: dark"));
    for (text, what) in [(&svg, "picture"), (&html, "page")] {
        for reference in ["href", "src=", "url(", "<script", "@import"] {
            assert!(!text.contains(reference), "{what}: {reference}");
        }
        let (opened, closed) = (text.matches("<g>").count(), text.matches("</g>").count());
        assert!(opened == closed && opened > 8, "{what}: {opened} groups, {closed} closed");
    }
    assert!(html.contains("<tr><td>0.999</td>"), "the table of thresholds");
}

#[test]
fn a_sweep_goes_from_shallow_to_deep() {
    let told = report(&["--sweep"]);
    let sweep = list(&told["sweep"]);
    let column = |key: &str| -> Vec<f64> { sweep.iter().filter_map(|row| row[key].as_f64()).collect() };
    let (thresholds, steps) = (column("threshold"), column("mean_steps"));
    assert_eq!((thresholds.len(), steps.len()), (9, 9));
    assert!(thresholds.is_sorted() && steps.is_sorted() && steps[0] < steps[8], "{steps:?}");
    assert!(column("milliseconds_per_token").iter().all(|&ms| ms > 0.0));
    assert_eq!(told["halt_threshold"].as_f64().map(|t| t as f32), Some(0.85));
    let table = depth("crest_k4", &["--sweep"]).with_code(0).stdout;
    assert!(table.lines().last().expect("a line").trim_start().starts_with("0.999 "), "{table}");
}

#[test]
fn what_has_no_depth_is_refused() {
    depth("leanllama", &[]).fails_with(&["adaptive depth", "leanllama"]);
    let model = model("crest_k4");
    let model = model.to_str().expect("UTF-8");
    ember(["depth", "-m", model, "-p", ""]).fails_with(&["prompt", "no tokens"]);
    depth("crest_k4", &["--svg", "/nowhere/a.svg"]).fails_with(&["cannot write", "/nowhere/a.svg"]);
}
