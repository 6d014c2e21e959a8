//! Probabilities of texts, as evaluation harnesses ask for them.

use std::process::Command;

use serde_json::{Value, json};

use crate::client::{Server, program};

/// The exact settings of `ember eval`.
const EXACT: [&str; 4] = ["--activations", "f32", "--cache-type", "f32"];

fn logprobs(answer: &Value, choice: usize) -> Vec<Option<f64>> {
    let list = answer["choices"][choice]["logprobs"]["token_logprobs"].as_array().unwrap();
    list.iter().map(Value::as_f64).collect()
}

#[test]
fn echoed_log_probabilities_are_those_of_eval() {
    let text = "Once upon a time there was a small boy. He had a red boat, and the boat was fast.";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let out =
        Command::new(program()).args(["eval", "--device", "cpu", "--json", "-f"]).arg(file.path()).output().unwrap();
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let server = Server::start(&EXACT);
    for stream_of_passes in [json!(text), server.ok("/tokenize", &json!({ "prompt": text }))["tokens"].clone()] {
        for most in [0, 1] {
            let body =
                json!({"prompt": stream_of_passes, "echo": true, "logprobs": 1, "max_tokens": most, "temperature": 0});
            let answer = server.ok("/v1/completions", &body);
            let scored = logprobs(&answer, 0);
            let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
            assert_eq!(scored.len(), prompt + most);
            assert_eq!(scored[0], None);
            let known: Vec<f64> = scored[1..prompt].iter().map(|x| x.unwrap()).collect();
            assert_eq!(known.len() as u64, report["tokens"].as_u64().unwrap());
            let perplexity = (-known.iter().sum::<f64>() / known.len() as f64).exp();
            let wanted = report["perplexity"].as_f64().unwrap();
            assert!((perplexity / wanted - 1.0).abs() < 1e-5, "{perplexity} and {wanted}");
            let told = answer["choices"][0]["text"].as_str().unwrap();
            assert!(told.starts_with(text) && (most > 0 || told == text), "{told:?}");
            let logprobs = &answer["choices"][0]["logprobs"];
            let tokens: String = logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
            assert_eq!(tokens, told);
            let offsets: Vec<u64> =
                logprobs["text_offset"].as_array().unwrap().iter().map(|o| o.as_u64().unwrap()).collect();
            assert!(offsets.is_sorted() && offsets[0] == 0);
            // The token itself is among the most probable ones that are told.
            for (token, top) in
                logprobs["tokens"].as_array().unwrap().iter().zip(logprobs["top_logprobs"].as_array().unwrap()).skip(1)
            {
                assert!(top.get(token.as_str().unwrap()).is_some(), "{token} {top}");
            }
        }
    }
}

#[test]
fn texts_are_scored_alike_alone_and_together_with_others() {
    let server = Server::start(&EXACT);
    let texts = ["Once upon a time", "The fox ran to the red house and sat down", "2+2=4", "a"];
    let body =
        |prompt: Value| json!({"prompt": prompt, "echo": true, "logprobs": 0, "max_tokens": 1, "temperature": 0});
    let together = server.ok("/v1/completions", &body(json!(texts)));
    // One that generates shares the passes.
    let beside = server.begin("/v1/completions", &json!({"prompt": "The", "max_tokens": 200, "ignore_eos": true}));
    for (i, text) in texts.iter().enumerate() {
        let alone = logprobs(&server.ok("/v1/completions", &body(json!(text))), 0);
        let among = logprobs(&together, i);
        assert_eq!(alone.len(), among.len());
        for (a, b) in alone.iter().zip(&among).skip(1) {
            let (a, b) = (a.unwrap(), b.unwrap());
            assert!((a - b).abs() < 1e-4, "{text}: {a} and {b}");
        }
    }
    drop(beside);
}
