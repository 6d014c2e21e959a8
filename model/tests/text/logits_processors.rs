//! Rules of `generation_config.json` about single tokens, beside transformers.
//!
//! `data/logits_processors.json` holds logits before and after the processors that transformers' `generate` makes of a rule.

use std::path::Path;

use emberlm_model::Error;
use emberlm_model::config::GenerationConfig;
use emberlm_model::sampling::{LogitsProcessors, Sampler, SamplingConfig};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Goldens {
    eos_token_id: Vec<u32>,
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Value,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    generated: Vec<u32>,
    before: Vec<f32>,
    /// `null` is -Inf.
    after: Vec<Option<f32>>,
}

/// After that many tokens of output.
fn sampler(config: &GenerationConfig, end: &[u32], generated: usize) -> Sampler {
    let mut sampler = Sampler::new(&config.sampling()).unwrap().with_processors(config.processors.clone(), end);
    for _ in 0..generated {
        sampler.sample(&mut [0.0; 64], &[]).unwrap();
    }
    sampler
}

#[test]
fn logits_are_those_of_transformers() {
    let goldens: Goldens = serde_json::from_str(include_str!("../data/logits_processors.json")).unwrap();
    let mut changed = 0;
    for Group { rules, cases } in &goldens.groups {
        let config = GenerationConfig::from_json(Path::new("generation_config.json"), rules.to_string().as_bytes());
        assert!(!config.processors.is_neutral(), "{rules}");
        for case in cases {
            let seen = [case.prompt.as_slice(), &case.generated].concat();
            let mut logits = case.before.clone();
            let result = sampler(&config, &goldens.eos_token_id, case.generated.len()).sample(&mut logits, &seen);
            for (id, (got, want)) in logits.iter().zip(&case.after).enumerate() {
                let want = want.unwrap_or(f32::NEG_INFINITY);
                assert!(
                    *got == want || (got - want).abs() <= 1e-6 * want.abs(),
                    "{rules}, {seen:?}, token {id}: {got}, not {want}"
                );
            }
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(logits[result.unwrap() as usize], largest, "{rules}, {seen:?}");
            changed += usize::from(logits != case.before);
        }
    }
    assert!(changed > 100, "{changed}");
}

/// By the formula of OpenAI's API: over the output, not the prompt.
#[test]
fn frequency_and_presence_penalties_count_the_output() {
    let processors = LogitsProcessors { frequency_penalty: 0.5, presence_penalty: 0.25, ..LogitsProcessors::default() };
    assert_eq!(processors.names(), ["frequency_penalty", "presence_penalty"]);
    let mut sampler = Sampler::new(&SamplingConfig::greedy()).unwrap().with_processors(processors, &[]);
    let mut seen = vec![0, 3];
    for (expected, chosen) in [([4.0, 3.9, 3.0, 1.0], 0), ([3.25, 3.9, 3.0, 1.0], 1), ([3.25, 3.15, 3.0, 1.0], 0)] {
        let mut logits = [4.0, 3.9, 3.0, 1.0];
        assert_eq!(sampler.sample(&mut logits, &seen).unwrap(), chosen);
        assert_eq!(logits, expected, "{seen:?}");
        seen.push(chosen);
    }
    let mut logits = [4.0; 4];
    sampler.sample(&mut logits, &seen).unwrap();
    assert_eq!(logits, [2.75, 3.25, 4.0, 4.0], "0 twice, 1 once");
}

/// A rule must not hide that something is wrong, nor leave no token without an error.
#[test]
fn banned_tokens_do_not_hide_nan_and_not_all_can_be_banned() {
    let processors = LogitsProcessors { suppress_tokens: vec![0, 1, 2], ..LogitsProcessors::default() };
    let sample = |mut logits: [f32; 4]| {
        let sampler = Sampler::new(&SamplingConfig::greedy()).unwrap();
        sampler.with_processors(processors.clone(), &[]).sample(&mut logits, &[])
    };
    assert_eq!(sample([9.0, 8.0, 7.0, -6.0]).unwrap(), 3);
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(matches!(sample([1.0, bad, 2.0, 3.0]), Err(Error::NonFinite { step: 0, .. })), "{bad}");
    }
    let error = sample([1.0, 2.0, 3.0, f32::NEG_INFINITY]).unwrap_err().to_string();
    assert!(error.contains("no token is possible") && error.contains("generation_config.json"), "{error}");
}

/// They would make logits useless, for which the weights would be blamed.
#[test]
fn numbers_that_are_none_are_refused() {
    let none = LogitsProcessors::default();
    assert!(
        LogitsProcessors { sequence_bias: vec![(vec![1], f32::NEG_INFINITY), (vec![2], -3.5)], ..none.clone() }
            .validate()
            .is_ok()
    );
    for (option, bad) in [
        ("frequency_penalty", LogitsProcessors { frequency_penalty: f32::NAN, ..none.clone() }),
        ("presence_penalty", LogitsProcessors { presence_penalty: f32::INFINITY, ..none.clone() }),
        ("sequence_bias", LogitsProcessors { sequence_bias: vec![(vec![7], f32::INFINITY)], ..none.clone() }),
        ("sequence_bias", LogitsProcessors { sequence_bias: vec![(vec![7], f32::NAN)], ..none.clone() }),
        (
            "exponential_decay_length_penalty",
            LogitsProcessors { exponential_decay_length_penalty: Some((3, f64::NAN)), ..none.clone() },
        ),
    ] {
        let error = bad.validate().unwrap_err();
        assert!(matches!(&error, Error::Option { option: named, .. } if named == option), "{error}");
    }
}

/// JavaScript, jq and others read numbers as doubles.
#[test]
fn a_drawn_seed_is_exact_as_a_double() {
    for _ in 0..100 {
        let seed = Sampler::new(&SamplingConfig::default()).unwrap().seed();
        assert!(seed < 1 << 53, "{seed}");
    }
}
