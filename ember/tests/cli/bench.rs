//! `ember bench` with random weights of a shape.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::program::{Scratch, ember, model};

/// A model that is mostly its vocabulary, with a head of its own.
fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "intermediate_size": 512,
        "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 256, "tie_word_embeddings": false, "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
    })
}

const VOCABULARY: usize = 120_000;

/// A checkpoint of it whose numbers are zeros: its file is a hole.
fn write_checkpoint(to: &Path) {
    std::fs::create_dir_all(to).expect("created");
    std::fs::write(to.join("config.json"), config().to_string()).expect("written");
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, 512]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, 512]),
        ("model.norm.weight".to_owned(), vec![512]),
        (layer("input_layernorm"), vec![512]),
        (layer("post_attention_layernorm"), vec![512]),
    ];
    let projections = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
    for name in projections.into_iter().chain(["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]) {
        shapes.push((layer(name), vec![512, 512]));
    }
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in shapes {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    }
    // Weights that begin at a multiple of their size are read in place.
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let path = to.join("model.safetensors");
    std::fs::write(&path, &file).expect("written");
    let whole = std::fs::OpenOptions::new().write(true).open(path).expect("opened");
    whole.set_len((file.len() + end) as u64).expect("a hole");
}

/// The embedding of a checkpoint stays in its file, but for the rows that are read, where it is not the head.
#[test]
fn a_random_shape_takes_the_memory_of_a_checkpoint() {
    let scratch = Scratch::new();
    let (shape, checkpoint) = (scratch.path("shape.json"), scratch.path("checkpoint"));
    std::fs::write(&shape, config().to_string()).expect("written");
    write_checkpoint(&checkpoint);
    let (shape, checkpoint) = (["--shape", text(&shape)], ["-m", text(&checkpoint)]);
    let report = |source: [&str; 2], quant: &str, head: &str| {
        // A few rows: around each of them the system may map as much as it likes.
        let flags = ["bench", "-p", "1", "-n", "2", "-r", "1", "-t", "1", "--json", "--quant", quant];
        let ended = ember([&flags[..], &source, &["--quant-head", head]].concat()).with_code(0);
        let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        ["peak_rss_bytes", "weight_bytes"].map(|key| report[key].as_f64().expect("a number"))
    };
    let rows = VOCABULARY as f64;
    // As it is stored: a head that is read, and an embedding of which a few rows are.
    let ([made, told], [read, expected]) = (report(shape, "none", "auto"), report(checkpoint, "none", "auto"));
    println!("{made} and {read} bytes at most, {told} and {expected} of weights");
    assert_eq!(told, expected);
    assert!((made - read).abs() < 0.3 * rows * 2.0 * 512.0, "{made} and {read} bytes");
    // An embedding in int8 is made as a whole.
    let ([stored, _], [int8, _]) = (report(shape, "int8", "auto"), report(shape, "int8", "int8"));
    println!("{stored} bytes at most, {int8} with an embedding in int8");
    assert!(stored + 0.7 * rows * 512.0 < int8, "{stored} and {int8} bytes");
}

/// A table of speeds says of what caches they are.
#[test]
fn the_cache_of_a_measurement_is_told() {
    let lean = model("leanllama");
    let flags = ["bench", "-m", text(&lean), "-p", "4", "-n", "0", "-r", "1", "-t", "1"];
    for (more, format, hidden, told) in [
        (&[][..], "f16", false, ", f16 cache, cpu ("),
        (&["--cache-type", "q8", "--cache-hidden"], "q8", true, ", q8 cache with hidden values, cpu ("),
    ] {
        let table = ember([&flags[..], more].concat()).with_code(0).stdout;
        assert!(table.lines().last().is_some_and(|line| line.contains(told)), "{table}");
        let ended = ember([&flags[..], more, &["--json"]].concat()).with_code(0);
        let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        assert_eq!((&report["results"][0]["cache_type"], &report["cache_hidden"]), (&json!(format), &json!(hidden)));
    }
}

/// Lists, as llama-bench has them: every depth, and every format of the cache once, whatever else alternates.
#[test]
fn depths_and_caches_are_lists() {
    let lists = ["-d", "3,0", "--cache-type", "f16,q8,f16", "-n", "2,1", "-p", "4", "-r", "1", "-t", "1"];
    let lean = model("leanllama");
    let table = ember([&["bench", "-m", text(&lean)], &lists[..]].concat()).with_code(0).stdout;
    let names: Vec<&str> =
        table.lines().filter(|line| line.starts_with(['p', 't']) && !line.starts_with("test")).collect();
    let wanted = ["pp4 @ d3", "tg2 @ d3", "tg1 @ d3", "pp4", "tg2", "tg1"];
    let wanted: Vec<String> =
        ["f16", "q8"].iter().flat_map(|format| wanted.map(|name| format!("{name} {format} "))).collect();
    assert_eq!(names.iter().filter(|line| !line.starts_with("plain")).count(), wanted.len(), "{table}");
    for (line, wanted) in names.iter().zip(&wanted) {
        assert!(line.starts_with(wanted.as_str()), "{wanted}: {table}");
    }
    assert!(table.lines().last().is_some_and(|line| line.contains(", f16 and q8 cache, cpu (")), "{table}");

    let crest = model("crest_k4");
    let none = ["bench", "-m", text(&crest), "--force-steps", "0,2"];
    ember(none).fails_with(&["--force-steps is 0, expected numbers from 1 on"]);
    let steps = ["bench", "-m", text(&crest), "--force-steps", "1,2", "--json"];
    let ended = ember([&steps[..], &lists].concat()).with_code(0);
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let of = |result: &Value| (result["cache_type"].clone(), result["mean_steps"].as_f64(), result["n_depth"].clone());
    let results: Vec<_> = report["results"].as_array().expect("a list").iter().map(of).collect();
    let mut wanted = Vec::new();
    for (format, steps) in [("f16", 1.0), ("f16", 2.0), ("q8", 1.0), ("q8", 2.0)] {
        for depth in [3, 3, 3, 0, 0, 0] {
            wanted.push((json!(format), Some(steps), json!(depth)));
        }
    }
    assert_eq!(results, wanted);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
