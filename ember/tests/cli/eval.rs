//! `ember eval`.

use std::path::Path;

use emberlm::backends::cpu;
use emberlm::model::evaluate::{EvaluateOptions, evaluate};
use emberlm::model::text::TextProcessor;
use safetensors::{Dtype, tensor::TensorView};
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

fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("{key} is {}", report[key]))
}

/// Every family; the perplexity of random weights is near the size of the vocabulary, and depends on what is read before.
#[test]
fn every_family_has_a_perplexity() {
    let mut checked = 0;
    for fixture in Fixture::all() {
        let name = fixture.name();
        let whole = report(&name, &["--window-bos", "first"]);
        let perplexity = number(&whole, "perplexity");
        assert!(perplexity > 50.0 && perplexity.is_finite(), "{name}: {perplexity}");
        let tokens = whole["tokens"].as_u64().expect("a number");
        assert_eq!(whole["mean_steps"].is_null(), !name.starts_with("crest"), "{name}");

        let short = report(&name, &["--context", "16", "--window-bos", "first"]);
        let windows = short["windows"].as_u64().expect("a number");
        assert_eq!((windows, &short["context"]), ((tokens + 1).div_ceil(16), &json!(16)), "{name}");
        assert_eq!(short["tokens"].as_u64().expect("a number"), tokens + 1 - windows, "{name}");
        assert_ne!(short["perplexity"], whole["perplexity"], "{name}");
        checked += 1;
    }
    assert!(checked >= 6, "{checked} fixtures");
}

/// Bits of the scored tokens over bytes of the same tokens, whatever the windows leave out.
#[test]
fn bits_per_byte_are_of_the_scored_tokens() {
    for name in ["crest_k4", "leanllama"] {
        let text = TextProcessor::from_dir(&model(name)).expect("a tokenizer");
        let ids = text.encode(TEXT, false).expect("ids");
        // A character of the byte-level alphabet is a byte.
        let bytes: Vec<usize> = ids.iter().map(|&id| text.token(id).expect("a token").chars().count()).collect();
        assert_eq!(bytes.iter().sum::<usize>(), TEXT.len(), "{name}");
        for context in [2, 3, 16, 256] {
            let told = report(name, &["--context", &context.to_string(), "--window-bos", "never"]);
            let scored = (0..ids.len()).filter(|i| i % context > 0);
            let expected: usize = scored.clone().map(|i| bytes[i]).sum();
            assert_eq!(told["tokens"], json!(scored.count()), "{name}, windows of {context}");
            assert_eq!(number(&told, "bytes"), expected as f64, "{name}, windows of {context}");
            let bits = number(&told, "perplexity").log2() * number(&told, "tokens") / expected as f64;
            assert!((number(&told, "bits_per_byte") / bits - 1.0).abs() < 1e-9, "{name}: {told}, expected {bits}");
        }
    }
}

/// Tokens inside a character have the bytes that they spell, and what is normalised first counts with its own bytes.
#[test]
fn bytes_of_tokens_are_those_of_the_text() {
    let greek = "\u{1f18}ν ἀρχῇ ἦν ὁ λόγος, καὶ ὁ λόγος ἦν πρὸς τὸν θεόν. 日本語 👩\u{200d}👧 ✅ <|im_end|>";
    let combining = "cafe\u{301} e\u{301}tude";
    let mut inside = 0;
    for name in ["crest_k4", "leanllama", "nano_compact"] {
        let text = TextProcessor::from_dir(&model(name)).expect("a tokenizer");
        for sample in [greek, combining, ""] {
            let ids = text.encode(sample, false).expect("ids");
            let bytes = text.bytes_of_tokens(sample, &ids);
            let sum: f64 = bytes.iter().sum();
            assert!((sum - sample.len() as f64).abs() < 1e-9, "{name}: {sum} bytes of {sample:?}");
            assert_eq!(bytes.len(), ids.len(), "{name}");
            inside += bytes.iter().filter(|&&bytes| bytes == 1.0).count();
        }
    }
    assert!(inside > 20, "{inside} tokens of one byte");
    // Every window begins with BOS, so that every token of the text is scored.
    let model = model("leanllama");
    let args = ["eval", "-m", model.to_str().expect("UTF-8"), "-f", "-", "-c", "4", "--json"];
    let ended = ember_reading(greek, args).with_code(0);
    let told: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!((number(&told, "bytes"), &told["text_bytes"]), (greek.len() as f64, &json!(greek.len())));
}

/// Windows are what the model is given: BOS where it is asked for, then a part of the text.
#[test]
fn windows_begin_with_bos_where_asked_for() {
    type Cpu = burn_ndarray::NdArray<f32>;
    let text = TextProcessor::from_dir(&model("leanllama")).expect("a tokenizer");
    let bos = text.special_tokens().bos.as_ref().and_then(|token| token.id).expect("a BOS token");
    let ids = text.encode(TEXT, false).expect("ids");
    let loaded = Fixture::all().iter().find(|f| f.name() == "leanllama").expect("it").load::<Cpu>(&Default::default());
    // Each window alone, as one text.
    let sum = |windows: &[Vec<u32>], scored_from: usize| {
        let mut nats = 0.0;
        for window in windows {
            let evaluated = evaluate(&loaded, window, &EvaluateOptions::default()).expect("an evaluation");
            let from = scored_from.max(1) - 1;
            nats -=
                evaluated.log_probabilities[from.min(window.len() - 1)..].iter().map(|&p| f64::from(p)).sum::<f64>();
        }
        nats
    };
    let parts = |ids: &[u32], n: usize, before: &[u32]| -> Vec<Vec<u32>> {
        ids.chunks(n).map(|part| [before, part].concat()).collect()
    };
    let with_bos = [&[bos], ids.as_slice()].concat();
    let cases = [
        (vec![], "always", json!([bos]), sum(&parts(&ids, 15, &[bos]), 0)),
        (vec!["--window-bos", "always"], "always", json!([bos]), sum(&parts(&ids, 15, &[bos]), 0)),
        (vec!["--window-bos", "first"], "first", json!([bos]), sum(&parts(&with_bos, 16, &[]), 0)),
        (vec!["--window-bos", "never"], "never", json!([]), sum(&parts(&ids, 16, &[]), 0)),
        (vec!["--skip", "7"], "always", json!([bos]), sum(&parts(&ids, 15, &[bos]), 8)),
    ];
    for (flags, used, prefix, nats) in cases {
        let told = report("leanllama", &[&["-c", "16"], flags.as_slice()].concat());
        assert_eq!((&told["window_bos"], &told["prefix"]), (&json!(used), &prefix), "{flags:?}");
        let got = number(&told, "perplexity").ln() * number(&told, "tokens");
        assert!((got / nats - 1.0).abs() < 1e-6, "{flags:?}: {got} nats, expected {nats}");
    }
    // This tokenizer puts nothing before a text, and has no BOS.
    assert_eq!(report("crest_k4", &[])["window_bos"], json!("never"));
    eval("crest_k4", &["--window-bos", "always"]).fails_with(&["--window-bos always", "no BOS token"]);
}

/// Every token is scored once, after at least as many tokens as a window holds beyond the stride.
#[test]
fn a_stride_gives_every_token_context() {
    let told = |flags: &[&str]| report("crest_k4", &[&["-c", "16"], flags].concat());
    let (whole, strided) = (told(&[]), told(&["--stride", "4"]));
    let tokens = number(&strided, "text_tokens");
    assert_eq!((number(&strided, "tokens"), number(&whole, "stride")), (tokens - 1.0, 16.0));
    assert_eq!(number(&strided, "windows"), ((tokens - 16.0) / 4.0).ceil() + 1.0);
    assert_ne!(strided["perplexity"], whole["perplexity"]);
    assert_eq!(told(&["--stride", "16"])["perplexity"], whole["perplexity"]);
    eval("crest_k4", &["-c", "16", "--stride", "17"]).fails_with(&["stride", "17", "1 to 16"]);
    eval("crest_k4", &["-c", "16", "--skip", "16"]).fails_with(&["skip", "16"]);
    eval("crest_k4", &["--skip", "100"]).fails_with(&["no token would be scored", "--skip 100"]);
    eval("crest_k4", &["--stride", "0"]).with_code(2);
}

/// BF16 activations are for every processor; the program chooses them by itself only where they are faster.
#[test]
fn activations_in_bf16_are_for_bf16_weights() {
    let told = |name: &str, activations: &str| {
        let told = report(name, &["--activations", activations]);
        (told["activations"].clone(), told["perplexity"].clone())
    };
    let (exact, rounded) = (told("crest_k4", "f32"), told("crest_k4", "bf16"));
    assert_eq!((&exact.0, &rounded.0), (&json!("exact"), &json!("bf16")));
    assert_ne!(rounded.1, exact.1, "nothing is rounded");
    let chosen = told("crest_k4", "auto");
    assert_eq!(chosen.0, if cpu::level().multiplies_bf16() { "bf16" } else { "exact" });
    assert_eq!(chosen.1 != exact.1, cpu::level().multiplies_bf16(), "{chosen:?}");
    assert_eq!(told("crest_k4", "int8").1, exact.1, "BF16 weights stay exact");
    assert_eq!(told("leanllama_nf4", "bf16").1, told("leanllama_nf4", "f32").1, "NF4 stays exact");
}

/// Nothing is approximated unless it is asked for; then the report says so.
#[test]
fn measuring_is_exact_unless_asked_otherwise() {
    let told = |flags: &[&str]| report("crest_k4_nf4", flags);
    let exact = told(&["--activations", "f32", "--quant-head", "none", "--cache-type", "f32"]);
    let usual = told(&[]);
    assert_eq!(usual["perplexity"], exact["perplexity"]);
    assert_eq!((&usual["activations"], &usual["cache_type"]), (&json!("exact"), &json!("f32")));
    assert_ne!(told(&["--quant-head", "int8"])["perplexity"], exact["perplexity"]);
    let halves = told(&["--cache-type", "f16"]);
    assert_ne!(halves["perplexity"], exact["perplexity"]);
    assert_eq!(halves["cache_type"], json!("f16"));
    assert_eq!(told(&["--cache-type", "q8_0"])["cache_type"], json!("q8"));
    let rounded = told(&["--activations", "int8"]);
    assert_eq!(rounded["activations"] == "int8", rounded["perplexity"] != exact["perplexity"], "{rounded}");
    let line = eval("crest_k4_nf4", &[]).with_code(0).stdout;
    assert!(
        line.contains("exact arithmetic, f32 cache") && line.contains("1 window of") && line.contains("no BOS"),
        "{line}"
    );
}

/// The sum that `ember depth` shows token by token.
#[test]
fn perplexity_is_that_of_the_tokens() {
    let model = model("crest_k2");
    let model = model.to_str().expect("UTF-8");
    // As `eval` computes.
    let ended = ember(["depth", "-m", model, "-p", TEXT, "--activations", "f32", "--json"]).with_code(0);
    let depth: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let told = report("crest_k2", &[]);
    let close =
        |key: &str| (told[key].as_f64().expect("a number") / depth[key].as_f64().expect("a number") - 1.0).abs();
    assert!(close("perplexity") < 1e-6, "{} and {}", told["perplexity"], depth["perplexity"]);
    let line = eval("crest_k2", &[]).with_code(0).stdout;
    assert!(line.starts_with("perplexity ") && line.contains("steps per layer"), "{line}");
    assert_ne!(report("crest_k2", &["--steps", "1"])["perplexity"], told["perplexity"]);
}

/// What is said of memory before loading is near what is used at most: of a small model, and of one whose tokenizer takes most.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_told_before_loading() {
    let near = |told: &Value| {
        let (said, measured) = (number(told, "estimated_bytes"), number(told, "peak_rss_bytes"));
        println!("{said} bytes said, {measured} measured");
        assert!((said / measured - 1.0).abs() < 0.1, "{said} bytes said, {measured} measured");
    };
    let run = |args: &[&str]| -> Value {
        let ended = ember_reading(TEXT, ["eval", "-f", "-", "--json"].iter().chain(args)).with_code(0);
        assert!(ended.stderr.contains("tokenizer") && ended.stderr.contains("program"), "{}", ended.stderr);
        serde_json::from_str(&ended.stdout).expect("JSON")
    };
    near(&run(&[]));
    let scratch = Scratch::new();
    let large = scratch.path("large");
    large_vocabulary(&large, 60_000);
    let told = run(&["-m", large.to_str().expect("UTF-8"), "-c", "8"]);
    near(&told);
    assert!(number(&told, "estimated_bytes") > 60e6, "{told}");
    // Of every token of a long text a model with adaptive depth leaves nothing but numbers.
    let (long, crest) = ("the river and the hill ".repeat(4000), model("crest_k4"));
    let args = ["eval", "-f", "-", "--json", "-c", "4096", "-m", crest.to_str().expect("UTF-8")];
    let told = serde_json::from_str(&ember_reading(&long, args).with_code(0).stdout).expect("JSON");
    assert!(number(&told, "text_tokens") > 25_000.0, "{told}");
    near(&told);
}

/// A model whose tokenizer has `tokens` tokens, all pairs and triples of letters and their merges.
fn large_vocabulary(to: &Path, tokens: usize) {
    let letters: Vec<String> = ('a'..='z').chain('A'..='Z').map(String::from).collect();
    let base: Vec<String> = TEXT
        .chars()
        .map(|c| {
            if c == ' ' {
                'Ġ'
            } else if c == '\n' {
                'Ċ'
            } else {
                c
            }
            .to_string()
        })
        .collect();
    let mut vocabulary: Vec<String> = letters.iter().cloned().chain(base).collect();
    vocabulary.sort();
    vocabulary.dedup();
    let mut merges = Vec::new();
    let mut last = letters.clone();
    while vocabulary.len() < tokens {
        let longer: Vec<(String, String)> =
            last.iter().flat_map(|a| letters.iter().map(|b| (a.clone(), b.clone()))).collect();
        last = longer.iter().map(|(a, b)| format!("{a}{b}")).collect();
        let room = tokens - vocabulary.len();
        vocabulary.extend(last.iter().take(room).cloned());
        merges.extend(longer.into_iter().take(room));
    }
    let ids: serde_json::Map<String, Value> =
        vocabulary.iter().enumerate().map(|(i, t)| (t.clone(), json!(i))).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": ids, "merges": merges}
    });
    std::fs::create_dir_all(to).expect("a directory");
    std::fs::write(to.join("tokenizer.json"), tokenizer.to_string()).expect("written");
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": tokens,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "tie_word_embeddings": true, "rope_theta": 10000.0
    });
    std::fs::write(to.join("config.json"), config.to_string()).expect("written");
    let shapes = [
        ("model.embed_tokens.weight", vec![tokens, 16]),
        ("model.norm.weight", vec![16]),
        ("model.layers.0.input_layernorm.weight", vec![16]),
        ("model.layers.0.post_attention_layernorm.weight", vec![16]),
        ("model.layers.0.self_attn.q_proj.weight", vec![16, 16]),
        ("model.layers.0.self_attn.k_proj.weight", vec![16, 16]),
        ("model.layers.0.self_attn.v_proj.weight", vec![16, 16]),
        ("model.layers.0.self_attn.o_proj.weight", vec![16, 16]),
        ("model.layers.0.mlp.gate_proj.weight", vec![32, 16]),
        ("model.layers.0.mlp.up_proj.weight", vec![32, 16]),
        ("model.layers.0.mlp.down_proj.weight", vec![16, 32]),
    ];
    let data: Vec<Vec<u8>> = shapes.iter().map(|(_, shape)| [0x80, 0x3c].repeat(shape.iter().product())).collect();
    let views = shapes
        .iter()
        .zip(&data)
        .map(|((name, shape), data)| (*name, TensorView::new(Dtype::BF16, shape.clone(), data).expect("a tensor")));
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).expect("written");
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
