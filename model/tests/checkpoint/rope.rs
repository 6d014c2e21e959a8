//! Frequencies and scales of rotary embeddings against what the modules of transformers hold for the same configs.

use std::path::Path;

use crate::support::*;
use emberlm_model::RotaryEmbedding;
use emberlm_model::config::ModelConfig;
use serde_json::{Value, json};

/// The golden's keys in a config that is otherwise complete.
fn config(keys: &Value) -> Value {
    let mut config = json!({
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 64, "rms_norm_eps": 1e-6, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4
    });
    for (key, value) in keys.as_object().expect("keys") {
        config[key] = value.clone();
    }
    config
}

fn parse(config: &Value) -> emberlm_model::Result<ModelConfig> {
    ModelConfig::from_json(Path::new("config.json"), config.to_string().as_bytes())
}

#[test]
fn frequencies_are_those_of_transformers() {
    let goldens: Value = serde_json::from_str(include_str!("../data/rope.json")).expect("goldens");
    let goldens = goldens.as_array().expect("a list");
    assert!(goldens.len() > 50, "only {} goldens", goldens.len());
    for golden in goldens {
        let name = golden["name"].as_str().expect("a name");
        let number = |value: &Value| value.as_f64().expect("a number");
        let config = parse(&config(&golden["config"])).unwrap_or_else(|e| panic!("{name}: {e}"));
        let rotary = RotaryEmbedding::new(&config.rope);
        let length = golden["length"].as_u64().expect("a length") as usize;
        let ours = rotary.inverse_frequencies(length);
        let theirs: Vec<f64> = golden["inverse_frequencies"].as_array().expect("numbers").iter().map(number).collect();
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for (i, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            // Theirs are in f32, a power of one rounded to f32.
            assert!((ours - theirs).abs() <= 4e-6 * theirs.abs(), "{name}: frequency {i} is {ours}, expected {theirs}");
        }
        let (ours, theirs) = (rotary.attention_factor(), number(&golden["attention_factor"]));
        assert!((ours - theirs).abs() < 1e-9, "{name}: attention factor {ours}, expected {theirs}");
    }
}

#[test]
fn bad_parameters_are_named() {
    let scaled = |scaling: Value| {
        let keys =
            json!({ "model_type": "llama", "head_dim": 16, "max_position_embeddings": 64, "rope_scaling": scaling });
        parse(&config(&keys))
    };
    let eight = || vec![1.0; 8];
    let longrope = |key: &str, value: Value| {
        let mut scaling = json!({ "type": "longrope", "short_factor": eight(), "long_factor": eight() });
        scaling[key] = value;
        scaling
    };
    let yarn = |key: &str, value: Value| {
        let mut scaling = json!({ "type": "yarn", "factor": 2.0 });
        scaling[key] = value;
        scaling
    };
    scaled(longrope("factor", json!(2))).expect("a good one");
    scaled(yarn("beta_slow", json!(2))).expect("a good one");
    let cases = [
        (json!({ "type": "su" }), "rope_type"),
        (json!({ "type": "axial" }), "rope_type"),
        (json!({ "type": "mrope" }), "rope_type"),
        (json!({ "type": 4 }), "type"),
        (json!({ "full_attention": { "rope_type": "default" } }), "full_attention"),
        (json!({ "type": "linear" }), "factor"),
        (json!({ "type": "linear", "factor": 0.5 }), "from 1 to"),
        (json!({ "type": "linear", "factor": "2" }), "from 1 to"),
        (json!({ "type": "linear", "factor": -1 }), "from 1 to"),
        (json!({ "type": "dynamic", "factor": 0 }), "from 1 to"),
        (json!({ "type": "dynamic", "factor": null }), "missing or null"),
        (json!({ "type": "linear", "factor": 2, "partial_rotary_factor": 0.5 }), "whole heads"),
        (json!({ "type": "yarn" }), "factor"),
        (yarn("factor", json!(0.99)), "from 1 to"),
        (
            json!({ "type": "yarn", "factor": null, "original_max_position_embeddings": 128 }),
            "shorter than the original",
        ),
        (yarn("rope_theta", json!(1)), "rope_theta above 1"),
        (yarn("attention_factor", json!(-1)), "attention_factor"),
        (yarn("attention_factor", json!(0)), "attention_factor"),
        (yarn("beta_fast", json!(0.5)), "beta_fast"),
        (yarn("beta_slow", json!(-1)), "beta_slow"),
        (yarn("mscale", json!("1")), "mscale"),
        (yarn("truncate", json!(1)), "truncate"),
        (yarn("original_max_position_embeddings", json!(0)), "original_max_position_embeddings"),
        (yarn("original_max_position_embeddings", json!(1.5)), "original_max_position_embeddings"),
        (longrope("short_factor", json!([1, 1])), "has 2 numbers, expected 8"),
        (longrope("long_factor", json!([])), "has 0 numbers, expected 8"),
        (longrope("long_factor", Value::Null), "long_factor"),
        (longrope("long_factor", json!([1, 1, 1, 1, 1, 1, 1, 0])), "long_factor"),
        (longrope("long_factor", json!([1, 1, 1, 1, 1, 1, 1, "x"])), "long_factor"),
        (longrope("short_factor", json!(2)), "short_factor"),
        (longrope("factor", json!(0.5)), "from 1 to"),
        (longrope("original_max_position_embeddings", json!(1)), "at least 2"),
        (longrope("original_max_position_embeddings", json!(128)), "shorter than the original"),
    ];
    for (scaling, word) in cases {
        fails(&scaling.to_string(), word, || scaled(scaling.clone()));
    }
    let two = json!({ "model_type": "llama", "head_dim": 2, "max_position_embeddings": 64, "rope_scaling": { "type": "dynamic", "factor": 2 } });
    fails("two dimensions", "more than two", || parse(&config(&two)));
}

#[test]
fn what_is_assumed_or_not_used_is_noted() {
    let notes = |keys: Value| -> Vec<String> { parse(&config(&keys)).expect("config").notes.iter().cloned().collect() };
    let llama = |rope: Value| {
        let mut keys = json!({ "model_type": "llama", "head_dim": 16, "max_position_embeddings": 64 });
        for (key, value) in rope.as_object().expect("keys") {
            keys[key] = value.clone();
        }
        notes(keys)
    };
    assert_eq!(llama(json!({ "rope_theta": 1e4 })), [""; 0]);
    assert_eq!(llama(json!({ "rope_theta": 1e4, "rope_parameters": { "rope_theta": 1e4 } })), [""; 0]);
    for (rope, word) in [
        (json!({}), "rope_theta is not stated: 10000 is assumed"),
        (
            json!({ "rope_theta": 1e4, "rope_parameters": { "rope_theta": 1e6 } }),
            "the 1000000 in the rope parameters is used, not 10000",
        ),
        (
            json!({ "rope_theta": 1e4, "rope_parameters": { "rope_theta": 1e6 }, "rope_scaling": { "type": "linear", "factor": 2 } }),
            "rope_scaling takes their place",
        ),
        (json!({ "rope_theta": 1e4, "partial_rotary_factor": 0.5 }), "rotates whole heads"),
    ] {
        let notes = llama(rope.clone());
        assert!(notes.len() == 1 && notes[0].contains(word), "{rope}: {notes:?}");
    }
    let hybrid = json!({ "model_type": "qwen3_5_text", "head_dim": 32, "max_position_embeddings": 64 });
    let notes = notes(hybrid);
    assert!(notes.len() == 1 && notes[0].contains("rope_theta is not stated: 10000"), "{notes:?}");
    // A theta beside a nested text config is not the text model's.
    let mut outer = config(&json!({ "model_type": "qwen3_5", "rope_theta": 5e6 }));
    outer["text_config"] =
        config(&json!({ "model_type": "qwen3_5_text", "head_dim": 32, "max_position_embeddings": 64 }));
    let parsed = parse(&outer).expect("config");
    assert_eq!(parsed.rope.theta, 1e4);
    assert!(parsed.notes.unused.iter().any(|note| note.contains("beside text_config")), "{:?}", parsed.notes);
}

#[test]
fn contexts_are_stretched_where_the_scaling_says_so() {
    let context = |scaling: Value| {
        let keys =
            json!({ "model_type": "llama", "head_dim": 16, "max_position_embeddings": 64, "rope_scaling": scaling });
        parse(&config(&keys)).expect("config").max_position_embeddings
    };
    assert_eq!(context(Value::Null), 64);
    assert_eq!(context(json!({ "type": "linear", "factor": 4 })), 256);
    assert_eq!(context(json!({ "type": "dynamic", "factor": 1.5 })), 96);
    assert_eq!(context(json!({ "type": "yarn", "factor": 4, "original_max_position_embeddings": 32 })), 128);
    assert_eq!(context(json!({ "type": "yarn", "factor": 4, "original_max_position_embeddings": 8 })), 64);
    assert_eq!(context(json!({ "type": "linear", "factor": 1e6 })), 64_000_000);
}

/// Whatever a config says: an error, or numbers that a model can compute with.
#[test]
fn random_parameters_never_panic_and_give_finite_numbers() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % below
    };
    let kinds = ["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "mrope", "su", ""];
    let numbers: Vec<Value> = [0.0, 1.0, -1.0, 0.5, 1.5, 2.0, 8.0, 32.0, 1e-9, 1e6, 1e12, 1e300, 1e-300]
        .into_iter()
        .map(Value::from)
        .chain([json!(0), json!(1), json!(2), json!(16), json!(64), json!(1u64 << 28), json!(u64::MAX), json!(-3)])
        .chain([Value::Null, json!("2"), json!(true), json!([]), json!({})])
        .collect();
    let keys = [
        "factor",
        "rope_theta",
        "partial_rotary_factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "low_freq_factor",
        "high_freq_factor",
    ];
    let mut accepted = 0;
    for _ in 0..8_000 {
        let mut scaling = json!({ "rope_type": kinds[random(kinds.len())], "factor": 4.0 });
        // One or two odd values beside usual ones: all odd would hardly ever be accepted.
        for (key, usual) in [("low_freq_factor", 1.0), ("high_freq_factor", 4.0)] {
            scaling[key] = json!(usual);
        }
        for key in ["short_factor", "long_factor"] {
            let divisor = numbers[random(13)].clone();
            let divisor = if random(2) == 0 { json!(2.0) } else { divisor };
            scaling[key] = Value::Array(vec![divisor; if random(8) == 0 { random(20) } else { 8 }]);
        }
        for _ in 0..random(4) {
            scaling[keys[random(keys.len())]] = numbers[random(numbers.len())].clone();
        }
        let hybrid = random(4) == 0;
        let model_type = if hybrid { "qwen3_5_text" } else { "llama" };
        let head_dim = if hybrid { 64 } else { [2, 16, 16, 16, 15, 4][random(6)] };
        let max = [1, 2, 64, 64, 4096, 1 << 28][random(6)];
        let mut beside = json!({ "model_type": model_type, "head_dim": head_dim, "max_position_embeddings": max });
        beside[if random(2) == 0 { "rope_scaling" } else { "rope_parameters" }] = scaling;
        if random(4) == 0 {
            beside[keys[1 + random(3)]] = numbers[random(numbers.len())].clone();
        }
        let Ok(config) = parse(&config(&beside)) else { continue };
        accepted += 1;
        let rotary = RotaryEmbedding::new(&config.rope);
        let max = config.max_position_embeddings;
        assert!((1..=1 << 28).contains(&max), "{beside}: a context of {max}");
        for length in [1, max / 2, max] {
            let frequencies = rotary.inverse_frequencies(length);
            assert_eq!(2 * frequencies.len(), config.rope.rotary_dim, "{beside}");
            assert!(frequencies.iter().all(|f| f.is_finite() && *f >= 0.0), "{beside}: {frequencies:?}");
        }
        assert!(rotary.attention_factor().is_finite() && rotary.attention_factor() > 0.0, "{beside}");
    }
    assert!(accepted > 800, "only {accepted} of 8000 were accepted");
}
