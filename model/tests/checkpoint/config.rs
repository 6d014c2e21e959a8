//! Broken and hostile configs: an error that names the key, in time.

use std::fs::{self, File};
use std::path::Path;

use crate::support::*;
use emberlm_model::Error;
use emberlm_model::checkpoint::ModelDir;
use emberlm_model::config::*;
use serde_json::{Value, json};

fn config(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name).join("config.json")).expect("config")).expect("json")
}

fn parse(json: &Value) -> emberlm_model::Result<ModelConfig> {
    ModelConfig::from_json(Path::new("config.json"), json.to_string().as_bytes())
}

/// The fixture's config with one key replaced.
fn with(name: &str, pointer: &str, value: Value) -> Value {
    let mut json = config(name);
    let (parent, key) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    json.pointer_mut(parent).expect(pointer)[key] = value;
    json
}

#[test]
fn every_bad_value_is_named() {
    let sizes = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    ];
    let linear = [
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_conv_kernel_dim",
    ];
    let wrong = || {
        [
            json!(0),
            json!(-1),
            json!(1.5),
            json!("64"),
            json!([64]),
            json!({}),
            json!(true),
            json!(1u64 << 40),
            json!(u64::MAX),
        ]
    };
    for key in sizes.into_iter().chain(linear) {
        for value in wrong() {
            let case = format!("{key} {value}");
            let error = fails(&case, key, || parse(&with("crest_k4", &format!("/{key}"), value.clone())));
            assert!(matches!(error, Error::Config { .. }), "{case}: {error:?}");
        }
    }
    for key in sizes.into_iter().chain(linear).chain(["rms_norm_eps"]) {
        if key != "num_key_value_heads" {
            fails(key, "missing or null", || parse(&with("crest_k4", &format!("/{key}"), Value::Null)));
        }
    }

    let llama = |pointer: &str, value: Value| ("leanllama", pointer.to_owned(), value);
    let llama5 = |pointer: &str, value: Value| ("leanllama_kv", pointer.to_owned(), value);
    let crest = |pointer: &str, value: Value| ("crest_k4", pointer.to_owned(), value);
    let nano = |pointer: &str, value: Value| ("nano_compact", pointer.to_owned(), value);
    let module = |key: &str, value: Value| nano(&format!("/nanollm_modules/model.layers.0.mlp.gate_proj/{key}"), value);
    let cases = [
        (llama("/num_hidden_layers", json!(1_000_000_000)), "1 to 1024"),
        (llama("/num_key_value_heads", json!(3)), "does not divide"),
        (nano("/num_attention_heads", json!(6)), "does not divide"),
        (crest("/linear_num_key_heads", json!(3)), "does not divide"),
        (llama("/rms_norm_eps", json!(0)), "rms_norm_eps"),
        (llama("/rms_norm_eps", json!(-1e-5)), "rms_norm_eps"),
        (llama("/rms_norm_eps", json!(1e-60)), "rms_norm_eps"),
        (llama("/rms_norm_eps", json!("1e-5")), "rms_norm_eps"),
        (llama("/rope_theta", json!(0)), "rope_theta"),
        (llama("/rope_theta", json!(-5)), "rope_theta"),
        (llama5("/rope_parameters/rope_theta", json!(0)), "rope_parameters.rope_theta"),
        (crest("/rope_parameters/partial_rotary_factor", json!(2)), "partial_rotary_factor"),
        (crest("/rope_parameters/partial_rotary_factor", json!(0)), "partial_rotary_factor"),
        (crest("/rope_parameters/partial_rotary_factor", json!(0.1)), "even number"),
        (llama("/rope_scaling/rope_type", json!("su")), "\"su\" is not supported"),
        (llama("/rope_scaling/rope_type", json!("mrope")), "not supported"),
        (llama("/rope_scaling/factor", json!(0)), "rope_scaling.factor"),
        (llama("/rope_scaling/factor", Value::Null), "rope_scaling.factor"),
        (llama("/rope_scaling/high_freq_factor", json!(1)), "larger than low_freq_factor"),
        (llama("/rope_scaling/original_max_position_embeddings", json!(0)), "original_max"),
        (llama("/rope_scaling", json!("llama3")), "expected an object"),
        (crest("/layer_types", json!(["full_attention"])), "has 1 entries"),
        (crest("/layer_types", json!(["x", "x", "x", "x"])), "layer_types"),
        (crest("/layer_types", json!([1, 2, 3, 4])), "only strings"),
        (crest("/layer_types", json!("full_attention")), "expected an array"),
        (nano("/layer_types", json!(vec!["linear_attention"; 4])), "not part of this model type"),
        (llama("/hidden_act", json!("gelu")), "only silu"),
        (nano("/mlp_bias", json!(true)), "mlp_bias"),
        (llama("/attention_bias", json!(1)), "attention_bias"),
        (nano("/use_sliding_window", json!(1)), "true or false"),
        (llama("/tie_word_embeddings", json!("false")), "true or false"),
        (llama("/torch_dtype", json!("int8")), "torch_dtype"),
        (llama("/quantization_config", json!({"quant_method": "gptq"})), "gptq"),
        (llama("/quantization_config", json!({"load_in_8bit": true})), "load_in_8bit"),
        (crest("/crest/num_steps", json!(0)), "crest.num_steps"),
        (crest("/crest/halt_threshold", json!(1.01)), "crest.halt_threshold"),
        (crest("/crest/step_input", json!("serial")), "parallel, refine, sequential, chained"),
        (crest("/crest/gate_hidden", json!(0)), "crest.gate_hidden"),
        (crest("/crest", json!([])), "expected an object"),
        (llama("/kv_compression/code_dim", json!(0)), "kv_compression.code_dim"),
        (llama("/kv_compression/code_dim", json!(32)), "from 1 to 31"),
        (llama("/kv_compression/layers", json!([6])), "0 to 5"),
        (llama("/kv_compression/targets", json!(["q"])), "\"k\" and \"v\""),
        (llama("/kv_compression/activation", json!("tanh")), "gelu"),
        (llama("/kv_compression/k_stage", json!("rope")), "post_rope"),
        (module("bits", json!(3)), "expected 2, 4, 6 or 8"),
        (module("prot_rows", json!(47)), "do not add up"),
        (module("prot_rows", json!(129)), "prot_rows"),
        (module("in_features", json!(0)), "in_features"),
        (module("kind", json!("int4_linear")), "truequant_linear"),
        (nano("/nanollm_modules", json!([])), "expected an object"),
    ];
    for ((name, pointer, value), word) in cases {
        let case = format!("{name}{pointer} {value}");
        let error = fails(&case, word, || parse(&with(name, &pointer, value.clone())));
        assert!(matches!(error, Error::Config { .. }), "{case}: {error:?}");
    }
}

#[test]
fn unknown_models_get_the_list_of_known_ones() {
    for (model_type, shown) in [(json!("mamba"), "\"mamba\""), (Value::Null, "\"\""), (json!("\u{1b}[2J"), "\\u{1b}")] {
        let json = json!({ "model_type": model_type });
        let error = fails("model_type", shown, || parse(&json));
        for supported in ["sky-crest", "qwen3_5_text", "qwen2", "llama", "NanoQwenForCausalLM"] {
            assert!(error.to_string().contains(supported), "{error}");
        }
    }
    fails("not an object", "expected an object", || parse(&json!([1])));
    fails("number", "model_type", || parse(&json!({ "model_type": 5 })));
}

#[test]
fn broken_texts_are_named() {
    let good = config("crest_k2").to_string();
    let cases = [
        ("empty", String::new(), "not valid JSON"),
        ("cut", good[..good.len() / 2].to_owned(), "not valid JSON"),
        ("byte order mark", format!("\u{feff}{good}"), "byte order mark"),
        ("same key twice", good.replacen('{', "{\"dtype\":\"float16\",", 1), "duplicate key dtype"),
        ("1e400", good.replacen("\"rms_norm_eps\":1e-6", "\"rms_norm_eps\":1e400", 1), "out of range"),
        ("NaN", good.replacen("\"rms_norm_eps\":1e-6", "\"rms_norm_eps\":NaN", 1), "not valid JSON"),
        ("deep", format!("{{\"a\":{}", "[".repeat(10_000)), "not valid JSON"),
        ("key with ESC twice", "{\"\\u001b\":1,\"\\u001b\":2}".into(), "duplicate key \\u{1b}"),
    ];
    for (case, text, word) in cases {
        assert_ne!(text, good, "{case}: the case does not change the text");
        fails(case, word, || ModelConfig::from_json(Path::new("config.json"), text.as_bytes()));
    }
    let copy = Copy::of("leanllama");
    for name in ["config.json", "generation_config.json"] {
        let kept = fs::read(copy.path().join(name)).expect("read");
        File::create(copy.path().join(name)).and_then(|file| file.set_len(100 << 20)).expect("sparse file");
        fails("100 MB", "at most", || copy.load());
        fs::write(copy.path().join(name), kept).expect("write");
    }
    fs::remove_file(copy.path().join("generation_config.json")).expect("remove");
    copy.load().expect("without generation defaults");
    fs::remove_file(copy.path().join("config.json")).expect("remove");
    fails("no config", "no config.json", || copy.load());
}

#[test]
fn spellings_and_families() {
    let family = |json: &Value| parse(json).expect("config").family;
    assert_eq!(family(&with("leanllama", "/architectures", json!(["LlamaForCausalLM"]))), Family::LeanLlama);
    let mut llama = with("leanllama", "/architectures", json!(["LlamaForCausalLM"]));
    llama["kv_compression"] = Value::Null;
    assert_eq!(family(&llama), Family::Llama);
    let mut qwen2 = with("nano_compact", "/architectures", json!(["Qwen2ForCausalLM"]));
    qwen2["nanollm_modules"] = Value::Null;
    assert_eq!(family(&qwen2), Family::Qwen2);
    for model_type in ["qwen3_5", "qwen3_5_text"] {
        let mut qwen = with("crest_k4_nf4", "/architectures", json!(["Qwen3_5ForCausalLM"]));
        qwen["model_type"] = json!(model_type);
        assert_eq!(family(&qwen), Family::Qwen3_5);
        qwen["crest"] = json!({});
        assert_eq!(family(&qwen), Family::Crest);
    }
    for name in Family::ALL {
        assert_eq!(name.to_string().parse::<Family>().expect("own spelling"), *name);
    }

    // Layers from the interval are those that are spelled out.
    let listed = parse(&config("crest_k2")).expect("config");
    let mut json = config("crest_k2");
    json["text_config"]["layer_types"] = Value::Null;
    assert_eq!(parse(&json).expect("config"), listed);

    let mrope = with("crest_k4", "/rope_parameters/rope_type", json!("mrope"));
    assert_eq!(
        parse(&mrope).expect("mrope is plain rope for text").rope,
        parse(&config("crest_k4")).expect("config").rope
    );
    assert_eq!(parse(&with("leanllama", "/eos_token_id", Value::Null)).expect("config").eos_token_ids, [0u32; 0]);
}

/// A text can do without these ids: what is none is left out, and noted.
#[test]
fn token_ids_that_are_none_stop_nothing() {
    let ids = json!([1, "x", -1, null, 4_294_967_296_u64, 2]);
    for (key, value, end) in [
        ("eos_token_id", json!(-1), vec![]),
        ("eos_token_id", ids, vec![1, 2]),
        ("bos_token_id", json!(-1), vec![523, 527, 528]),
        ("bos_token_id", json!([1, 2]), vec![523, 527, 528]),
    ] {
        let config = parse(&with("leanllama", &format!("/{key}"), value.clone())).expect("config");
        assert_eq!(config.eos_token_ids, end, "{key} {value}");
        assert!(config.notes.unused.iter().any(|note| note.contains(key)), "{key} {value}: {:?}", config.notes);
        assert!(key != "bos_token_id" || config.bos_token_id.is_none(), "{value}");
    }
}

/// What transformers has a default for may be missing, and is noted; null is no value.
#[test]
fn missing_values_are_the_defaults_of_transformers() {
    let without = |name: &str, key: &str| {
        let mut json = config(name);
        json.as_object_mut().expect("an object").remove(key).unwrap_or_else(|| panic!("{name} has no {key}"));
        parse(&json)
    };
    for (name, positions) in [("leanllama", 2048), ("nano_compact", 32768), ("crest_k4", 32768)] {
        let parsed = without(name, "max_position_embeddings").expect(name);
        assert_eq!(parsed.max_position_embeddings, positions, "{name}");
        assert!(parsed.notes.iter().any(|note| note.contains("max_position_embeddings")), "{:?}", parsed.notes);
        let parsed = without(name, "rms_norm_eps").expect(name);
        assert_eq!(parsed.rms_norm_eps, 1e-6, "{name}");
        assert!(
            parsed.notes.iter().any(|note| note.contains("rms_norm_eps is not stated: 1e-6")),
            "{:?}",
            parsed.notes
        );
        assert_eq!(parse(&config(name)).expect(name).notes, Notes::default(), "{name}");
    }
    assert_eq!(without("crest_k4", "head_dim").expect("default").head_dim, 256);
    let linear = without("crest_k4", "linear_value_head_dim").expect("default").linear_attention;
    assert_eq!(linear.map(|linear| linear.value_head_dim), Some(128));
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
        fails(key, "missing or null", || without("crest_k4", key));
    }
}

/// Windows matter where a layer has one that is shorter than the context.
#[test]
fn sliding_windows_that_no_layer_uses_load() {
    let layers = |kind: &str| json!(vec![kind; 4]);
    let qwen2 = |changes: &[(&str, Value)]| {
        let mut json = config("nano_compact");
        for key in ["use_sliding_window", "sliding_window", "max_window_layers", "layer_types"] {
            json.as_object_mut().expect("an object").remove(key);
        }
        for (key, value) in changes {
            json[key] = value.clone();
        }
        parse(&json)
    };
    let on = || ("use_sliding_window", json!(true));
    let good: [&[(&str, Value)]; 10] = [
        &[],
        &[("sliding_window", json!(16))],
        &[("use_sliding_window", json!(false)), ("sliding_window", json!(16)), ("max_window_layers", json!(0))],
        // 28 layers come before the first window where nothing is stated.
        &[on(), ("sliding_window", json!(16))],
        &[on(), ("sliding_window", json!(16)), ("max_window_layers", json!(4))],
        &[on(), ("sliding_window", json!(16)), ("layer_types", layers("full_attention"))],
        &[on(), ("sliding_window", json!(16)), ("layer_types", layers("attention"))],
        &[on(), ("sliding_window", json!(32768)), ("max_window_layers", json!(0))],
        &[on(), ("sliding_window", json!(32768)), ("layer_types", layers("sliding_attention"))],
        &[on(), ("sliding_window", Value::Null), ("max_window_layers", json!(0))],
    ];
    for changes in good {
        let parsed = qwen2(changes).unwrap_or_else(|e| panic!("{changes:?}: {e}"));
        assert_eq!(parsed.layer_types, [LayerType::FullAttention; 4], "{changes:?}");
    }
    let bad: [(&[(&str, Value)], &str); 5] = [
        (&[on(), ("sliding_window", json!(16)), ("max_window_layers", json!(3))], "use_sliding_window"),
        (&[on(), ("max_window_layers", json!(0))], "window of 4096"),
        (&[on(), ("sliding_window", json!(16)), ("layer_types", layers("sliding_attention"))], "layer_types"),
        (
            &[("sliding_window", json!(16)), ("layer_types", layers("sliding_attention"))],
            "no sliding_window is in force",
        ),
        (&[on(), ("sliding_window", json!(-1)), ("max_window_layers", json!(0))], "sliding_window"),
    ];
    for (changes, word) in bad {
        fails(&format!("{changes:?}"), word, || qwen2(changes));
    }

    // Llama has no such keys, but its cache in transformers slides where a window is stated.
    let llama = |changes: &[(&str, Value)]| {
        let mut json = config("leanllama");
        for (key, value) in changes {
            json[key] = value.clone();
        }
        parse(&json).map(drop)
    };
    llama(&[("sliding_window", Value::Null)]).expect("none");
    llama(&[("sliding_window", json!(4)), ("use_sliding_window", json!(false))]).expect("turned off");
    llama(&[("sliding_window", json!(4)), ("layer_types", json!(vec!["full_attention"; 6]))]).expect("no layer");
    fails("llama", "sliding_window", || llama(&[("sliding_window", json!(4))]));
}

#[test]
fn biases_are_those_that_the_config_states() {
    let biases = |name: &str, attention: bool, mlp: bool| {
        let mut json = config(name);
        json["attention_bias"] = json!(attention);
        json["mlp_bias"] = json!(mlp);
        let parsed = parse(&json).expect(name);
        (parsed.qkv_bias, parsed.o_bias, parsed.mlp_bias)
    };
    assert_eq!(biases("leanllama", false, false), (false, false, false));
    assert_eq!(biases("leanllama", true, false), (true, true, false));
    assert_eq!(biases("leanllama", false, true), (false, false, true));
    assert_eq!(biases("crest_k4", true, false), (true, true, false));
    // No key of Qwen2, which always has those of query, key and value.
    assert_eq!(biases("nano_compact", false, false), (true, false, false));
    assert_eq!(biases("nano_compact", true, false), (true, false, false));
}

/// Keys that change the numbers of other model types change nothing here, as in transformers, but are not passed over in silence.
#[test]
fn keys_of_other_families_are_noted() {
    let notes = |key: &str, value: Value| parse(&with("leanllama", &format!("/{key}"), value)).expect(key).notes.unused;
    for (key, value) in [
        ("attn_logit_softcapping", json!(50.0)),
        ("logit_scale", json!(0.0625)),
        ("residual_multiplier", json!(0.22)),
        ("rope_interleaved", json!(true)),
        ("hidden_activation", json!("gelu_pytorch_tanh")),
        ("no_rope_layers", json!([1, 0])),
    ] {
        let notes = notes(key, value);
        assert!(notes.len() == 1 && notes[0].starts_with(&format!("{key} is not used")), "{notes:?}");
    }
    for (key, value) in [
        ("attn_logit_softcapping", Value::Null),
        ("logit_scale", json!(1.0)),
        ("logit_scale", json!(1)),
        ("rope_interleaved", json!(false)),
        ("hidden_activation", json!("silu")),
        ("no_rope_layers", json!([])),
        ("attention_dropout", json!(0.1)),
        ("pretraining_tp", json!(2)),
        ("initializer_range", json!("x")),
        ("use_cache", json!(false)),
        ("pad_token_id", json!(-1)),
        ("pad_token_id", json!([1, 2])),
    ] {
        assert_eq!(notes(key, value), [""; 0], "{key}");
    }
}

#[test]
fn a_known_architecture_needs_the_body_it_is_made_of() {
    for (name, model_type) in
        [("leanllama", "mistral"), ("nano_compact", "llama"), ("crest_k4", "qwen3"), ("leanllama", "qwen2")]
    {
        fails(model_type, "model_type", || parse(&with(name, "/model_type", json!(model_type))));
    }
    let parsed = parse(&with("leanllama", "/model_type", Value::Null)).expect("the architecture says it");
    assert_eq!(parsed.family, Family::LeanLlama);
    assert!(parsed.notes.iter().any(|note| note.contains("model_type is not stated")), "{:?}", parsed.notes);
}

#[test]
fn other_quantisations_are_refused_by_name() {
    let quantized = |value: Value| parse(&with("leanllama_nf4", "/quantization_config", value));
    for method in ["gptq", "awq", "fp8", "compressed-tensors", "hqq", "mxfp4", "torchao", "quanto", "eetq"] {
        fails(method, method, || quantized(json!({ "quant_method": method, "bits": 4 })));
    }
    // GPTQ of old, MLX.
    fails("no method", "quant_method", || quantized(json!({ "bits": 4, "group_size": 128 })));
    assert!(quantized(json!({ "load_in_4bit": true })).expect("as in transformers").quantization.is_some());
}

#[test]
fn side_files_of_crest_and_nano() {
    let copy = Copy::of("crest_k4");
    let side = copy.path().join("crest.json");
    let read = || ModelConfig::from_dir(&ModelDir::open(copy.path())?);
    fs::write(&side, r#"{"halt_threshold": 0.25, "gate_bias": true}"#).expect("write");
    let crest = read().expect("config").crest.expect("crest");
    assert_eq!(
        (crest.halt_threshold, crest.gate_bias, crest.step_input),
        (Some(0.25), Some(true), Some(StepInput::Chained))
    );
    assert_eq!(crest.gate_hidden, Some(None));
    fs::write(&side, r#"{"halt_treshold": 0.25}"#).expect("write");
    fails("typing mistake", "halt_treshold", read);
    fs::write(&side, r#"{"halt_threshold": 0.25"#).expect("write");
    fails("cut", "crest.json", read);
    fs::remove_file(&side).expect("remove");
    copy.change_config(|json| json["crest"]["mystery"] = json!(1));
    assert_eq!(read().expect("config").crest.expect("crest").ignored, ["mystery"]);

    let copy = Copy::of("nano_compact");
    let listed = ModelConfig::from_dir(&ModelDir::open(copy.path()).expect("open")).expect("config");
    copy.change_config(|json| json["nanollm_modules"] = Value::Null);
    let from_spec = ModelConfig::from_dir(&ModelDir::open(copy.path()).expect("open")).expect("spec");
    assert_eq!(from_spec, listed);
    fs::remove_file(copy.path().join("nano_compact_spec.json")).expect("remove");
    fails("no list", "nanollm_modules", || copy.load());
}

#[test]
fn stated_options_that_contradict_the_tensors_are_named() {
    let cases = [
        ("crest_k4", "/crest/num_steps", json!(5), "holds 4 steps"),
        ("crest_k4", "/crest/gate_shared", json!(false), "crest.gate_shared"),
        ("crest_k4", "/crest/gate_hidden", json!(8), "crest.gate_hidden"),
        ("crest_k4", "/crest/gate_bias", json!(false), "crest.gate_bias"),
        ("leanllama", "/kv_compression/layers", json!([1, 3]), "kv_compression.layers"),
        ("leanllama", "/kv_compression/targets", json!(["k", "v"]), "kv_compression.targets"),
        ("leanllama", "/kv_compression/code_dim", json!(5), "kv_compression.code_dim"),
        ("leanllama", "/kv_compression/hidden_dim", Value::Null, "kv_compression.hidden_dim"),
        ("leanllama", "/kv_compression/encoder_bias", json!(true), "kv_compression.encoder_bias"),
        ("leanllama", "/kv_compression/decoder_bias", json!(false), "kv_compression.decoder_bias"),
    ];
    for (name, pointer, value, word) in cases {
        let weights = load(&fixture(name)).expect(name);
        let config = parse(&with(name, pointer, value)).expect(pointer);
        fails(pointer, word, || match (&config.crest, weights.discovered_crest()) {
            (Some(stated), Some(found)) => CrestOptions::resolve(stated, found, &CrestOverrides::default()).map(drop),
            _ => KvCompression::resolve(config.kv_compression.as_ref(), weights.discovered_kv_compression()).map(drop),
        });
    }
    // Two steps have one gate, shared or not.
    let weights = load(&fixture("crest_k2")).expect("load");
    let stated = CrestConfig { gate_shared: Some(false), ..Default::default() };
    let found = weights.discovered_crest().expect("found");
    CrestOptions::resolve(&stated, found, &CrestOverrides::default()).expect("either is right");
}

/// Sizes that are fine one by one: a file of some megabytes can hold the matrices of a state of hundreds of gigabytes when the
/// hidden size is 1.
#[test]
fn what_a_sequence_keeps_is_bounded() {
    let changed = |name: &str, changes: &[(&str, usize)]| {
        let mut json = config(name);
        for (key, value) in changes {
            json[key] = json!(value);
        }
        json
    };
    let crest = |changes: &[(&str, usize)]| changed("crest_k4", changes);
    let mut wide_head =
        changed("leanllama", &[("hidden_size", 8192), ("num_attention_heads", 1), ("num_key_value_heads", 1)]);
    wide_head["head_dim"] = Value::Null;
    let state = [("linear_num_value_heads", 4096), ("linear_num_key_heads", 1), ("linear_key_head_dim", 4096)];
    for (json, field, message) in [
        (wide_head, "num_attention_heads", "makes heads of 8192"),
        (crest(&[&state[..], &[("linear_value_head_dim", 1024)]].concat()), "linear_num_value_heads", "would keep"),
        (crest(&[&state[..], &[("linear_value_head_dim", 4096)]].concat()), "linear_num_value_heads", "wide, at most"),
        (
            crest(&[("linear_num_key_heads", 4096), ("linear_key_head_dim", 4096), ("linear_num_value_heads", 4096)]),
            "linear_num_key_heads",
            "wide, at most",
        ),
        (crest(&[("num_attention_heads", 4096), ("head_dim", 4096)]), "num_attention_heads", "wide, at most"),
        (
            changed("leanllama", &[("num_attention_heads", 4096), ("num_key_value_heads", 4096), ("head_dim", 1024)]),
            "num_key_value_heads",
            "bytes of keys and values",
        ),
    ] {
        match parse(&json) {
            Err(Error::Config { field: found, message: text, .. }) => {
                assert!(found.ends_with(field) && text.contains(message), "{found}: {text}");
            }
            other => panic!("{field}: {:?}", other.map(|_| "accepted")),
        }
    }
    // Eight times the largest published model.
    let large = [("linear_num_value_heads", 128), ("linear_key_head_dim", 256), ("linear_value_head_dim", 256)];
    parse(&crest(&large)).expect("in proportion");
}
