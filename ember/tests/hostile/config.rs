//! config.json and what stands beside it.

use serde_json::{Value, json};

use super::model::Place;
use super::table::*;

const FILE: &str = "config.json";

/// A value in place of another; the error names the file and the key.
fn value(pointer: &'static str, value: Value) -> Case {
    case(format!("{pointer} {value:.60}"), Fail(&[]), move |place| place.set(FILE, pointer, value.clone()))
}

/// The error of every case names the file and the last part of what its name begins with.
fn run_naming_the_key(fixture: &str, cases: Vec<Case>) {
    let mut wrong = Vec::new();
    for (name, _, change) in &cases {
        let key = name.split(' ').next().and_then(|pointer| pointer.rsplit('/').next()).expect("a key");
        let place = Place::with(fixture);
        change(&place);
        for command in INFO_AND_GENERATE {
            let told = check(&place, &on_model(&place, command), Fail(&[" config.json"])).and_then(|ended| {
                let error = ended.error()?;
                if error.contains(key) { Ok(()) } else { Err(format!("{key} is not in: {error}")) }
            });
            if let Err(message) = told {
                wrong.push(format!("{name} ({}): {message}", command[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn sizes() {
    let keys = [
        "/hidden_size",
        "/intermediate_size",
        "/num_hidden_layers",
        "/num_attention_heads",
        "/num_key_value_heads",
        "/head_dim",
        "/vocab_size",
        "/max_position_embeddings",
        "/linear_num_key_heads",
        "/linear_num_value_heads",
        "/linear_key_head_dim",
        "/linear_value_head_dim",
        "/linear_conv_kernel_dim",
    ];
    let wrong =
        [json!(0), json!(-1), json!(1.5), json!("64"), json!([64]), json!(true), json!(1u64 << 40), json!(u64::MAX)];
    let mut cases: Vec<Case> = Vec::new();
    for (at, key) in keys.into_iter().enumerate() {
        // Two of them for every key in turn: the reader is one, and its own tests try all.
        cases.extend([0, 3].map(|step| value(key, wrong[(at + step) % wrong.len()].clone())));
        cases.push(value(key, json!(1e30)));
    }
    cases.extend([
        value("/num_hidden_layers", json!(1_000_000_000)),
        value("/vocab_size", json!(1u64 << 40)),
        value("/num_key_value_heads", json!(3)),
        value("/linear_num_key_heads", json!(3)),
        value("/rms_norm_eps", json!(0)),
        value("/rms_norm_eps", json!(-1e-6)),
        value("/rms_norm_eps", json!("1e-6")),
        value("/rms_norm_eps", json!(1e-60)),
        value("/rms_norm_eps", json!(2)),
        value("/rope_parameters/rope_theta", json!(0)),
        value("/rope_parameters/rope_theta", json!(-1)),
        value("/rope_parameters/rope_theta", json!("1e4")),
        value("/rope_parameters/partial_rotary_factor", json!(2)),
        value("/rope_parameters/partial_rotary_factor", json!(-0.25)),
        value("/rope_parameters/partial_rotary_factor", json!(0.1)),
        value("/layer_types", json!(["full_attention"])),
        value("/layer_types", json!(["x", "x", "x", "x"])),
        value("/layer_types", json!([1, 2, 3, 4])),
        value("/layer_types", json!("full_attention")),
        value("/model_type", json!(5)),
        value("/tie_word_embeddings", json!("false")),
        value("/crest", json!([])),
        value("/crest/num_steps", json!(0)),
        value("/crest/num_steps", json!(1u64 << 40)),
        value("/crest/halt_threshold", json!(1.01)),
        value("/crest/halt_threshold", json!(-0.01)),
        value("/crest/halt_threshold", json!("0.5")),
        value("/crest/step_input", json!("serial")),
        value("/crest/gate_hidden", json!(0)),
    ]);
    run_naming_the_key("crest_k4", cases);
}

#[test]
fn sizes_that_are_not_those_of_the_tensors() {
    // In range, and far from what the file holds: nothing may be allocated for them.
    let set = |pairs: &'static [(&'static str, u64)]| {
        case(format!("{pairs:?}"), Fail(&["/model"]), move |place| {
            for (key, value) in pairs {
                place.edit(FILE, |json| json[key] = json!(value));
            }
        })
    };
    let cases = vec![
        set(&[("hidden_size", 1 << 22)]),
        set(&[("intermediate_size", 1 << 22)]),
        set(&[("vocab_size", 1 << 24)]),
        set(&[("num_hidden_layers", 1024)]),
        set(&[("num_hidden_layers", 1)]),
        set(&[("head_dim", 4096), ("num_attention_heads", 4096)]),
        set(&[("hidden_size", 1 << 22), ("intermediate_size", 1 << 22), ("vocab_size", 1 << 24)]),
    ];
    run("nano_compact", INFO_AND_GENERATE, cases);
    let hybrid = |key: &'static str, value: u64| {
        case(format!("{key} {value}"), Fail(&["/"]), move |place| place.edit(FILE, |json| json[key] = json!(value)))
    };
    let cases = vec![
        hybrid("linear_num_value_heads", 4096),
        hybrid("linear_key_head_dim", 4096),
        hybrid("linear_value_head_dim", 4096),
        hybrid("linear_conv_kernel_dim", 3),
        hybrid("head_dim", 1024),
    ];
    run("crest_k4", INFO_AND_GENERATE, cases);
    // A context as long as any takes no memory before it is used.
    run(
        "leanllama",
        INFO_AND_GENERATE,
        vec![case("context of 2^28", Work, |place| {
            place.edit(FILE, |json| json["max_position_embeddings"] = json!(1u64 << 28));
        })],
    );
}

#[test]
fn texts() {
    let text = |name: &str, must: Must, change: fn(String) -> Vec<u8>| {
        case(name, must, move |place| {
            let text = String::from_utf8(place.read(FILE)).expect("UTF-8");
            place.write(FILE, change(text));
        })
    };
    const NAMED: Must = Fail(&[" config.json"]);
    let cases = vec![
        text("empty", NAMED, |_| Vec::new()),
        text("white space", NAMED, |_| b" \n".into()),
        text("NUL bytes", NAMED, |_| vec![0; 4096]),
        text("half", NAMED, |text| text[..text.len() / 2].into()),
        text("not UTF-8", NAMED, |text| {
            text.replacen("silu", "\u{1}", 1).into_bytes().iter().map(|&b| if b == 1 { 0xff } else { b }).collect()
        }),
        text("UTF-16", NAMED, |text| text.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        // What other readers accept may be accepted.
        text("byte order mark", WorkOrFail(&[" config.json", "byte order mark"]), |text| {
            format!("\u{feff}{text}").into()
        }),
        text("a key twice", Fail(&[" config.json", "model_type"]), |text| {
            text.replacen('{', r#"{"model_type":"llama","#, 1).into()
        }),
        text("1e400", NAMED, |text| text.replacen("1e-05", "1e400", 1).into()),
        text("-1e400", NAMED, |text| text.replacen("1e-05", "-1e400", 1).into()),
        text("NaN", NAMED, |text| text.replacen("1e-05", "NaN", 1).into()),
        text("Infinity", NAMED, |text| text.replacen("1e-05", "Infinity", 1).into()),
        text("a number of 100,000 digits", NAMED, |text| text.replacen("544", &"5".repeat(100_000), 1).into()),
        text("brackets 10,000 deep", NAMED, |text| {
            text.replacen('{', &format!("{{\"a\":{}", "[".repeat(10_000)), 1).into()
        }),
        text("a list", NAMED, |_| b"[]".into()),
        text("null", NAMED, |_| b"null".into()),
        text("a text with an escape sequence", NAMED, |_| b"\"\\u001b[31m\"".into()),
        case("100 MB", NAMED, |place| place.write_sparse(FILE, 100 << 20)),
        text("white space that makes it too long", NAMED, |text| (text + &" ".repeat(5 << 20)).into()),
        case("none", Fail(&["/model", "config.json"]), |place| place.remove(FILE)),
        case("unknown model", Fail(&[" config.json", "mamba", "qwen3_5"]), |place| {
            place.write(FILE, r#"{"model_type":"mamba"}"#);
        }),
        case("unknown model with escape sequences", Fail(&[" config.json", "model_type"]), |place| {
            place.write(FILE, r#"{"model_type":"\u001b]0;x\u0007\u009b2J"}"#);
        }),
        case("Python code", Work, |place| {
            place.edit(FILE, |json| json["auto_map"] = json!({"AutoConfig": "../outside/evil.Config"}));
        }),
        case("a head that is tied and is not there", WorkOrFail(&["/model", "lm_head.weight"]), |place| {
            place.edit(FILE, |json| json["tie_word_embeddings"] = json!(true));
            place.tensors(|tensors| drop(tensors.remove("lm_head.weight")));
        }),
        case("neither head nor embedding", Fail(&["/model", "embed_tokens"]), |place| {
            place.edit(FILE, |json| json["tie_word_embeddings"] = json!(true));
            place.tensors(|tensors| {
                tensors.retain(|name, _| !matches!(&**name, "lm_head.weight" | "model.embed_tokens.weight"))
            });
        }),
    ];
    run("leanllama", INFO_AND_GENERATE, cases);
}

#[test]
fn generation_configs() {
    const FILE: &str = "generation_config.json";
    let put = |name: &str, text: String| {
        case(name, WorkOrFail(&[" generation_config.json"]), move |place| place.write(FILE, &text))
    };
    let cases = vec![
        put("empty", String::new()),
        put("a list", "[]".into()),
        put("cut", r#"{"temperature": 0."#.into()),
        put("deep", format!(r#"{{"a":{}"#, "[".repeat(10_000))),
        put("a temperature of 1e400", r#"{"temperature": 1e400, "do_sample": true}"#.into()),
        put("a temperature of NaN", r#"{"temperature": NaN, "do_sample": true}"#.into()),
        put("a negative temperature", r#"{"temperature": -1, "do_sample": true}"#.into()),
        put("top_k 2^63", r#"{"top_k": 9223372036854775808, "do_sample": true}"#.into()),
        put("a penalty of 0", r#"{"repetition_penalty": 0}"#.into()),
        put("an end token of -1", r#"{"eos_token_id": [-1, 4294967296, 1e9, "x", null]}"#.into()),
        put("a million end tokens", format!(r#"{{"eos_token_id": [{}1]}}"#, "1,".repeat(999_999))),
        case("100 MB", WorkOrFail(&[" generation_config.json"]), |place| place.write_sparse(FILE, 100 << 20)),
    ];
    run("leanllama", INFO_AND_GENERATE, cases);
}

#[test]
fn compression_and_side_files() {
    let cases = vec![
        value("/kv_compression", json!("yes")),
        value("/kv_compression/code_dim", json!(0)),
        value("/kv_compression/code_dim", json!(32)),
        value("/kv_compression/code_dim", json!(1u64 << 40)),
        value("/kv_compression/hidden_dim", json!(-1)),
        value("/kv_compression/layers", json!([6])),
        value("/kv_compression/layers", json!([-1])),
        value("/kv_compression/layers", json!("1")),
        value("/kv_compression/targets", json!(["q"])),
        value("/kv_compression/activation", json!("tanh")),
        value("/kv_compression/k_stage", json!("rope")),
    ];
    run_naming_the_key("leanllama", cases);
    let contradiction = |key: &'static str, value: Value, word: &'static [&'static str]| {
        case(format!("{key} {value}"), Fail(word), move |place| {
            place.edit(FILE, |json| json["kv_compression"][key] = value.clone());
        })
    };
    let cases = vec![
        contradiction("code_dim", json!(5), &["kv_compression.code_dim"]),
        contradiction("layers", json!([1, 3]), &["kv_compression.layers"]),
        contradiction("targets", json!(["k", "v"]), &["kv_compression.targets"]),
        contradiction("encoder_bias", json!(true), &["kv_compression.encoder_bias"]),
        case("a projector on its side", Fail(&["/model", "v_compressor"]), |place| {
            place.tensors(|tensors| {
                let tensor = tensors.get_mut("model.layers.3.self_attn.v_compressor.encoder.weight").expect("it");
                tensor.1.reverse();
            });
        }),
        case("a decoder without its second layer", Fail(&["/model", "v_compressor"]), |place| {
            place.tensors(|t| drop(t.remove("model.layers.3.self_attn.v_compressor.decoder.2.weight")));
        }),
    ];
    run("leanllama", INFO_AND_GENERATE, cases);
    let side =
        |name: &str, must: Must, text: &'static str| case(name, must, move |place| place.write("crest.json", text));
    let ours = |name: &str, must: Must, text: &str| {
        let text = text.to_owned();
        case(format!("ember.json: {name}"), must, move |place| place.write("ember.json", &text))
    };
    let cases = vec![
        side("a typing mistake", Fail(&[" crest.json", "halt_treshold"]), r#"{"halt_treshold": 0.5}"#),
        side("cut", Fail(&[" crest.json"]), r#"{"halt_threshold": 0."#),
        side("a threshold above 1", Fail(&[" crest.json", "halt_threshold"]), r#"{"halt_threshold": 1.5}"#),
        side("more steps than are stored", Fail(&["num_steps", "4"]), r#"{"num_steps": 5}"#),
        side("a list", Fail(&[" crest.json"]), "[]"),
        case("100 MB", Fail(&[" crest.json"]), |place| place.write_sparse("crest.json", 100 << 20)),
        ours(
            "a typing mistake",
            Fail(&[" ember.json", "crest.step_inputs"]),
            r#"{"crest": {"step_inputs": "chained"}}"#,
        ),
        ours("of another family", Fail(&[" ember.json", "kv_compression", "crest"]), r#"{"kv_compression": {}}"#),
        ours(
            "another than config.json",
            Fail(&[" ember.json", "step_input"]),
            r#"{"crest": {"step_input": "refine"}}"#,
        ),
        ours("twice", Fail(&[" ember.json"]), r#"{"crest": {"num_steps": 4, "num_steps": 2}}"#),
        ours("deep", Fail(&[" ember.json"]), &"[".repeat(10_000)),
        ours("nothing", Work, "{}"),
        case("100 MB of ours", Fail(&[" ember.json"]), |place| place.write_sparse("ember.json", 100 << 20)),
        case("ours as a link out", Fail(&[" ember.json", "leads out"]), |place| {
            std::os::unix::fs::symlink("../outside/config.json", place.path("ember.json")).expect("a link");
        }),
        case("one MLP of the last step missing", Fail(&["mlp", "steps.3"]), |place| {
            place.tensors(|t| drop(t.remove("model.layers.2.mlp.steps.3.up_proj.weight")));
        }),
        case("one step missing in one layer", Fail(&["layer"]), |place| {
            place.tensors(|t| t.retain(|name, _| !name.starts_with("model.layers.2.mlp.steps.3.")));
        }),
    ];
    run("crest_k4", INFO_AND_GENERATE, cases);
    let spec = |name: &str, must: Must, text: Vec<u8>| {
        case(name, must, move |place| {
            place.edit(FILE, |json| json["nanollm_modules"] = Value::Null);
            place.write("nano_compact_spec.json", &text);
        })
    };
    const SPEC: Must = Fail(&[" nano_compact_spec.json"]);
    let mut cases = vec![
        spec("a list", SPEC, b"[]".into()),
        spec("cut", SPEC, b"{\"nanollm_modules\": {".into()),
        spec("modules a list", SPEC, b"{\"nanollm_modules\": []}".into()),
        spec("no modules", Fail(&["nanollm_modules"]), b"{}".into()),
        spec("deep", SPEC, "[".repeat(10_000).into()),
    ];
    let module = |name: &str, key: &'static str, value: Value| {
        case(name, Fail(&[" config.json", "model.layers.0.mlp.gate_proj"]), move |place| {
            place.edit(FILE, |json| json["nanollm_modules"]["model.layers.0.mlp.gate_proj"][key] = value.clone());
        })
    };
    cases.extend([
        module("3 bits", "bits", json!(3)),
        module("0 bits", "bits", json!(0)),
        module("rows that do not add up", "prot_rows", json!(47)),
        module("rows that wrap", "prot_rows", json!(u64::MAX)),
        module("no inputs", "in_features", json!(0)),
        module("2^40 inputs", "in_features", json!(1u64 << 40)),
        module("unknown kind", "kind", json!("int4_linear")),
        case("100,000 modules", Fail(&["/"]), |place| {
            place.edit(FILE, |json| {
                let one = json["nanollm_modules"]["model.layers.0.mlp.gate_proj"].clone();
                for i in 0..20_000 {
                    json["nanollm_modules"][format!("model.layers.0.mlp.m{i}")] = one.clone();
                }
            });
        }),
    ]);
    run("nano_compact", INFO_AND_GENERATE, cases);
}
