//! The model that is part of the program.

use serde_json::{Value, json};

use crate::program::{ember, ember_reading};

fn report<'a>(args: impl IntoIterator<Item = &'a str>) -> Value {
    let ended = ember(args).with_code(0);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {}", ended.stdout))
}

/// The README's first command.
#[test]
fn it_tells_stories_that_end() {
    for seed in ["1", "2", "3"] {
        let told = report(["generate", "-p", "Once upon a time", "--seed", seed, "--json"]);
        let story = told["text"].as_str().expect("a text");
        assert_eq!(told["finish"], json!("stop"), "{story}");
        assert!(story.starts_with(", there was a ") && story.trim_end().ends_with('.'), "{story}");
        let (words, sentences) = (story.split_whitespace().count(), story.matches(". ").count());
        assert!(words > 20 && sentences > 2, "{story}");
        let steps = told["mean_steps"].as_f64().expect("a number");
        assert!(steps > 1.0 && steps < 4.0, "{steps}");
    }
}

#[test]
fn it_chats() {
    let told = report(["generate", "-p", "What is 20+30?", "--chat", "--greedy", "--json"]);
    let answer = told["text"].as_str().expect("a text").trim();
    let digits = answer.strip_suffix('.').unwrap_or_default();
    assert!(!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()), "{answer}");
    assert_eq!(told["finish"], json!("stop"));
}

/// Text like its training text surprises it little, other text much; shallow passes are worse.
#[test]
fn it_knows_its_text() {
    let perplexity = |text: &str, flags: &[&str]| {
        let ended = ember_reading(text, ["eval", "-f", "-", "--json"].iter().chain(flags)).with_code(0);
        let told: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        told["perplexity"].as_f64().expect("a number")
    };
    // Of the generator in examples/train_tiny, from the tenth that the model was not trained on.
    let held_out = include_str!("held_out.txt");
    let known = perplexity(held_out, &[]);
    assert!(known < 2.1, "{known}");
    assert!(perplexity("Quarterly revenue exceeded analyst expectations.", &[]) > 10.0 * known);
    assert!(perplexity(held_out, &["--steps", "1"]) > known);
}

#[test]
fn every_command_takes_it() {
    assert_eq!(report(["info", "--json"])["family"], json!("crest"));
    let bench = report(["bench", "-p", "8", "-n", "4", "-r", "1", "-t", "1", "--json"]);
    assert_eq!(bench["model"], json!("demo"));
    let depth = report(["depth", "-p", "Once upon a time", "--json"]);
    assert_eq!((&depth["model"], &depth["num_steps"]), (&json!("demo"), &json!(4)));
}

#[test]
fn forced_depths_are_measured_each() {
    let bench = report(["bench", "-p", "8", "-n", "4", "-r", "2", "-t", "1", "--force-steps", "3,1", "--json"]);
    let results = bench["results"].as_array().expect("a list");
    let told: Vec<_> = results.iter().map(|result| (&result["test"], result["mean_steps"].as_f64())).collect();
    let (prompt, generation) = (&json!("pp8"), &json!("tg4"));
    assert_eq!(
        told,
        [(prompt, Some(3.0)), (generation, Some(3.0)), (prompt, Some(1.0)), (generation, Some(1.0))],
        "by depth, in the order given"
    );
    let bytes = |i: usize| results[i]["bytes_per_token"].as_f64().expect("a number");
    assert!(bytes(1) > bytes(3), "{bench}");
}

/// Repetitions begin with the context and nothing else, whether it is filled again (the demo keeps states) or stays.
#[test]
fn every_repetition_of_bench_begins_with_the_context() {
    let lean = crate::fixture::own("leanllama");
    for model in [&["-m", lean.to_str().expect("UTF-8")][..], &[]] {
        for random in [&["--random-context"][..], &[]] {
            let bytes = |repetitions: &str| {
                let flags = ["bench", "-p", "0", "-n", "40", "-t", "1", "-d", "8", "--json", "-r", repetitions];
                let ended = ember([&flags[..], model, random].concat()).with_code(0);
                let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
                report["results"][0]["cache_bytes"].as_u64().expect("a number")
            };
            assert_eq!(bytes("6"), bytes("1"), "{model:?} {random:?}");
        }
    }
}
