//! `ember quantize` and `ember convert`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use emberlm::model::Pretrained;
use serde_json::{Value, json};

use crate::files::files;
use crate::program::{Ended, Scratch, command, ember, model};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn quantize(from: &Path, to: &Path, flags: &[&str]) -> Ended {
    ember(["quantize", "-m", text(from), "--to", text(to)].iter().chain(flags))
}

fn perplexity(folder: &Path, flags: &[&str]) -> f64 {
    let held_out = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/held_out.txt");
    let args = ["eval", "-m", text(folder), "-f", held_out, "--context", "64", "--json", "--device", "cpu"];
    let ended = ember(args.iter().chain(flags)).with_code(0);
    serde_json::from_str::<Value>(&ended.stdout).expect("JSON")["perplexity"].as_f64().expect("a number")
}

/// The folder predicts a text exactly as quantisation at load does.
#[test]
fn a_quantised_folder_is_used_like_any_other() {
    let scratch = Scratch::new();
    let from = model("leanllama");
    for format in ["nf4", "nf4-dq", "int8"] {
        let to = scratch.path(format);
        let ended = quantize(&from, &to, &["--format", format, "--head", "int8"]).with_code(0);
        assert!(ended.stdout.starts_with(text(&to)) && ended.stdout.contains(" in 1 file, "), "{}", ended.stdout);
        let count = if format == "int8" { 44 } else { 42 };
        let matrices = format!("{count} matrices f16 -> {format}: ");
        for part in [matrices.as_str(), "reads ", ", holds ", " are free"] {
            assert!(ended.stderr.contains(part), "{part:?} is not in {}", ended.stderr);
        }
        let at_load = perplexity(&from, &["--quant", format, "--quant-head", "int8"]);
        assert_eq!(perplexity(&to, &[]), at_load, "{format}");
        let again = scratch.path("dense");
        let args = ["convert", "-m", text(&to), "--to", text(&again), "--dtype", "f32"];
        ember(args).with_code(0);
        assert!((perplexity(&again, &[]) / at_load - 1.0).abs() < 1e-5, "{format}");
        fs::remove_dir_all(again).expect("removed");
    }
    assert_eq!(scratch.files(), ["int8", "nf4", "nf4-dq"]);
}

/// What one command has written is nothing that the other warns of.
#[test]
fn every_written_format_verifies_clean() {
    let scratch = Scratch::new();
    for name in ["leanllama", "crest_k2"] {
        for format in ["none", "nf4", "nf4-dq", "int8", "nano"] {
            for head in [None, Some("nf4"), Some("nf4-dq"), Some("int8"), Some("int8-rows")] {
                // Nothing would be written; and choosing rows takes long.
                if matches!((format, head), ("none", None) | ("nano", Some(_))) {
                    continue;
                }
                let to = scratch.path("written");
                let flags = ["--format", format].into_iter().chain(head.iter().flat_map(|&head| ["--head", head]));
                quantize(&model(name), &to, &flags.collect::<Vec<_>>()).with_code(0);
                let verified = ember(["verify", "-m", text(&to), "--json"]).with_code(0);
                let verified: Value = serde_json::from_str(&verified.stdout).expect("JSON");
                assert_eq!(verified["clean"], json!(true), "{name}, {format}, {head:?}: {verified}");
                fs::remove_dir_all(to).expect("removed");
            }
        }
    }
}

/// A record of burn-store is a model directory, and becomes safetensors again.
#[test]
fn records_of_burn_store_go_out_and_in() {
    let scratch = Scratch::new();
    for name in ["crest_k4_nf4", "leanllama_kv"] {
        let (from, record, back) = (model(name), scratch.path("record"), scratch.path("back"));
        let convert = |from: &Path, to: &Path, flags: &[&str]| {
            ember(["convert", "-m", text(from), "--to", text(to), "--dtype", "f32"].iter().chain(flags))
        };
        let ended = convert(&from, &record, &["--format", "burnpack"]).with_code(0);
        assert!(ended.stdout.starts_with(text(&record)) && ended.stdout.contains(" in 1 file, "), "{}", ended.stdout);
        let names: Vec<String> = files(&record).into_iter().map(|(name, _)| name).collect();
        assert!(names.contains(&"model.bpk".to_owned()) && !names.iter().any(|name| name.contains("safetensors")));
        let found = perplexity(&record, &[]);
        assert!((found / perplexity(&from, &[]) - 1.0).abs() < 1e-5, "{name}");
        let verified = ember(["verify", "-m", text(&record), "--json"]).with_code(0);
        let verified: Value = serde_json::from_str(&verified.stdout).expect("JSON");
        assert_eq!((&verified["clean"], &verified["warnings"]), (&json!(true), &json!(0)), "{verified}");
        convert(&record, &back, &[]).with_code(0);
        assert_eq!(perplexity(&back, &[]), found, "{name}");
        convert(&back, &record, &["--format", "burnpack"]).fails_with(&["record", "nothing is overwritten"]);
        // By the name of the file.
        assert_eq!(perplexity(&record.join("model.bpk"), &[]), found, "{name}");
        fs::remove_dir_all(record).expect("removed");
        fs::remove_dir_all(back).expect("removed");
    }
}

#[test]
fn modules_are_chosen_by_pattern() {
    let scratch = Scratch::new();
    let from = model("leanllama");
    let to = scratch.path("mixed");
    let flags =
        ["--format", "nf4", "--skip", "layers.0", "--rule", "mlp.down_proj=int8", "--rule", "layers.5.mlp.*=int8-rows"];
    let ended = quantize(&from, &to, &flags).with_code(0);
    for part in ["f16 -> nf4: ", "f16 -> int8: ", "f16 -> int8-rows: ", "f16, kept: "] {
        assert!(ended.stderr.contains(part), "{part:?} is not in {}", ended.stderr);
    }
    let weights = |name: &str| {
        let pretrained = Pretrained::open(&to).expect("the folder");
        pretrained.weights().entry(&format!("model.layers.{name}.weight")).expect("a matrix").storage.to_string()
    };
    let found =
        ["0.mlp.up_proj", "0.mlp.down_proj", "1.mlp.up_proj", "1.mlp.down_proj", "5.mlp.down_proj"].map(weights);
    assert_eq!(found, ["f16", "int8", "nf4", "int8", "int8-rows"]);
    perplexity(&to, &[]);

    let nothing = scratch.path("nothing");
    for (flags, parts) in [
        (
            &["--format", "nf4", "--only", "mlp.dwn_proj"][..],
            &["--only mlp.dwn_proj matches no matrix", "names are as model.layers.0."][..],
        ),
        (&["--format", "nf4", "--rule", "v_compressor=int8"], &["--rule v_compressor matches no matrix"]),
        (&["--format", "none"], &["nothing to do", "leave every matrix as it is stored"]),
    ] {
        quantize(&from, &nothing, flags).fails_with(parts);
    }
    quantize(&model("leanllama_nf4"), &nothing, &["--format", "nf4"]).fails_with(&["nothing to do", "ember convert"]);
    for (flags, word) in [
        (&["--format", "nf5"][..], "possible values"),
        (&["--format", "nf4", "--rule", "down_proj"], "PATTERN=FORMAT"),
        (&["--format", "nf4", "--rule", "down_proj=q4"], "is no format, expected one of none, nf4"),
        (&["--format", "nf4", "--only", "a..b"], "parts of a module's path"),
        (&["--format", "nf4", "--shard-size", "big"], "is no size"),
    ] {
        let ended = quantize(&from, &nothing, flags).with_code(2);
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
    quantize(&from, &nothing, &["--format", "nf4", "--dry-run"]).with_code(0);
    quantize(&from, &to, &["--format", "nf4"]).fails_with(&["mixed", "nothing is overwritten"]);
    assert_eq!(scratch.files(), ["mixed"]);
}

/// Fewer steps, stated in the config, are those that `--steps` runs.
#[test]
fn steps_are_left_out() {
    let scratch = Scratch::new();
    let (from, to) = (model("crest_k4"), scratch.path("two"));
    let ended = quantize(&from, &to, &["--format", "none", "--steps", "2"]).with_code(0);
    assert!(
        ended.stderr.contains("24 tensors left out, the model has no use for them: model.layers.0.mlp.steps.2."),
        "{}",
        ended.stderr
    );
    assert_eq!(perplexity(&to, &[]), perplexity(&from, &["--steps", "2"]));
    quantize(&from, &scratch.path("five"), &["--format", "nf4", "--steps", "5"])
        .fails_with(&["--steps is 5", "holds 4 steps"]);
}

/// A line for each module, and rows that load.
#[test]
fn rows_are_chosen_and_reported() {
    let scratch = Scratch::new();
    let (prompts, to) = (scratch.path("prompts"), scratch.path("rows"));
    fs::write(&prompts, "Once upon a time\nThe answer is\n").expect("written");
    let flags = [
        "--format",
        "nano",
        "--prompts",
        text(&prompts),
        "--min-cosine",
        "0.98",
        "--only",
        "mlp",
        "--only",
        "embed_tokens",
    ];
    let ended = quantize(&model("leanllama_kv"), &to, &flags).with_code(0);
    let lines: Vec<Vec<&str>> = ended.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["module", "shape", "bits", "rows", "of", "8", "cosine"]);
    // Embedding, three projections in each of four layers, the last line.
    assert_eq!(lines.len(), 1 + 1 + 12 + 1, "{}", ended.stdout);
    assert_eq!(lines[1][..4], ["model.embed_tokens.weight", "544", "x", "64"]);
    for line in &lines[1..14] {
        let cosine: f64 = line.last().expect("a cosine").parse().expect("a number");
        assert!((0.98..=1.0).contains(&cosine), "{line:?}");
    }
    assert!(lines[2..14].iter().any(|line| line[4] == "4" || line[4] == "2"), "{}", ended.stdout);
    perplexity(&to, &[]);
    fs::write(&prompts, "\n\n").expect("written");
    quantize(&model("leanllama_kv"), &scratch.path("none"), &flags[..4]).fails_with(&["holds no prompt"]);
}

/// A Llama of random weights that takes a while to quantise.
fn large(scratch: &Scratch) -> PathBuf {
    const H: usize = 256;
    let folder = scratch.path("large");
    fs::create_dir(&folder).expect("made");
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": H, "intermediate_size": 2 * H, "num_hidden_layers": 8,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "dtype": "bfloat16",
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
    let mut tensors =
        vec![("model.embed_tokens.weight".to_owned(), vec![64, H]), ("model.norm.weight".into(), vec![H])];
    for layer in 0..8 {
        let name = |leaf: &str| format!("model.layers.{layer}.{leaf}.weight");
        tensors.extend(["input_layernorm", "post_attention_layernorm"].map(|leaf| (name(leaf), vec![H])));
        let square = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        tensors.extend(square.map(|leaf| (name(leaf), vec![H, H])));
        tensors.extend(["mlp.gate_proj", "mlp.up_proj"].map(|leaf| (name(leaf), vec![2 * H, H])));
        tensors.push((name("mlp.down_proj"), vec![H, 2 * H]));
    }
    let (mut header, mut data, mut state) = (serde_json::Map::new(), Vec::new(), 1u32);
    for (name, shape) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = half::bf16::from_f32((state >> 8) as f32 / (1 << 24) as f32 - 0.5);
            data.extend(value.to_le_bytes());
        }
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()] }));
    }
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    fs::write(folder.join("model.safetensors"), file).expect("written");
    folder
}

/// Killed in the middle, however early or late, a run leaves nothing at the name, and the next one ends in the same bytes.
#[test]
fn killed_runs_go_on() {
    let scratch = Scratch::new();
    let from = large(&scratch);
    let whole = scratch.path("whole");
    let flags = ["--format", "nf4-dq", "--shard-size", "300KB", "--threads", "1"];
    quantize(&from, &whole, &flags).with_code(0);
    let expected = files(&whole);
    assert!(expected.len() > 8, "{} files", expected.len());
    let mut resumed = 0;
    for shards in [0, 2, 5] {
        let to = scratch.path(&format!("killed-{shards}"));
        let partial = scratch.path(&format!("killed-{shards}.partial"));
        let mut child =
            command(["quantize", "-m", text(&from), "--to", text(&to)].iter().chain(&flags)).spawn().expect("starts");
        let start = Instant::now();
        let done = || {
            fs::read_dir(&partial).map_or(0, |dir| {
                dir.filter(|e| e.as_ref().is_ok_and(|e| e.path().extension() == Some("safetensors".as_ref()))).count()
            })
        };
        while !partial.exists() || done() < shards {
            assert!(
                start.elapsed() < Duration::from_secs(120) && child.try_wait().expect("a state").is_none(),
                "{shards}: too late"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("killed");
        child.wait().expect("gone");
        assert!(!to.exists() && Pretrained::open(&partial).is_err(), "{shards}");
        let ended = quantize(&from, &to, &flags).with_code(0);
        resumed += usize::from(ended.stderr.contains(" had been finished before"));
        assert!(files(&to) == expected && !partial.exists(), "{shards}: other bytes");
    }
    assert!(resumed >= 2, "{resumed}");
}

/// A dry run is refused what the run is refused.
#[test]
fn a_dry_run_asks_for_the_name() {
    let scratch = Scratch::new();
    fs::write(scratch.path("file"), b"precious").expect("written");
    fs::create_dir(scratch.path("empty")).expect("made");
    let from = model("leanllama");
    for flags in [&["--format", "nf4", "--dry-run"][..], &["--format", "nf4"]] {
        quantize(&from, &scratch.path("file"), flags).fails_with(&["cannot write", "file", "is not a directory"]);
    }
    let convert = ["convert", "-m", text(&from), "--dtype", "f32", "--dry-run", "--to", text(&from)];
    ember(convert).fails_with(&["cannot write", "is not empty: nothing is overwritten"]);
    for name in ["empty", "new"] {
        quantize(&from, &scratch.path(name), &["--format", "nf4", "--dry-run"]).with_code(0);
    }
    assert_eq!(scratch.files(), ["empty", "file"]);
}

/// Processes that want one name at once: one has it, and the others are told so.
#[test]
fn of_several_processes_one_writes() {
    let scratch = Scratch::new();
    let from = model("leanllama");
    for round in 0..12 {
        let to = scratch.path(&format!("{round}"));
        let start = |format: &&str| {
            command(["quantize", "-m", text(&from), "--to", text(&to), "--format", format]).spawn().expect("starts")
        };
        let runs: Vec<_> = ["nf4", "int8", "nf4"].iter().map(start).collect();
        let mut written = 0;
        for run in runs {
            let output = run.wait_with_output().expect("ends");
            let stderr = String::from_utf8(output.stderr).expect("UTF-8");
            match output.status.code() {
                Some(0) => written += 1,
                code => {
                    let told = ["is being written by another process", "nothing is overwritten"];
                    let error = stderr.lines().last().unwrap_or_default();
                    assert!(code == Some(1) && told.iter().any(|told| error.contains(told)), "{round}: {stderr}");
                }
            }
        }
        assert!(written == 1 && Pretrained::open(&to).is_ok(), "{round}: {written} have written");
        assert!(!scratch.path(&format!("{round}.partial")).exists(), "{round}");
    }
}

/// What never ends is not read to its end.
#[cfg(unix)]
#[test]
fn prompts_without_end_are_refused() {
    let scratch = Scratch::new();
    let flags = ["--format", "nano", "--prompts", "/dev/zero"];
    quantize(&model("leanllama"), &scratch.path("rows"), &flags)
        .fails_with(&["/dev/zero", "longer than 1048576 bytes"]);
    assert!(scratch.files().is_empty());
}

/// A disk without room: nothing is made there. The file system of processes has none.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_without_room_is_told_before_anything_is_made() {
    let scratch = Scratch::new();
    let ended = quantize(&large(&scratch), Path::new("/proc/ember-none"), &["--format", "nf4"]).with_code(1);
    let error = ended.stderr.lines().last().expect("an error");
    assert!(error.starts_with("error: cannot write /proc/ember-none: "), "{error}");
    assert!(error.contains(" bytes are needed, but 0 are free: make room"), "{error}");
}

/// A full disk, as far as a limit on the size of files stands for it.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_that_loads() {
    let scratch = Scratch::new();
    let (from, to) = (large(&scratch), scratch.path("full"));
    let mut limited = std::process::Command::new("sh");
    // In units of 512 bytes; the signal would end the program before it can say why.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 2000; exec \"$@\"", "sh"]);
    let program = command(["quantize", "-m", text(&from), "--to", text(&to), "--format", "nf4"]);
    limited.arg(program.get_program()).args(program.get_args());
    let output = limited.output().expect("the shell runs");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let error = stderr.lines().last().expect("an error");
    assert!(
        error.starts_with("error: cannot write ") && error.contains("model.safetensors.part: File too large"),
        "{error}"
    );
    assert!(!to.exists() && Pretrained::open(scratch.path("full.partial")).is_err());
    // With room it goes on.
    quantize(&from, &to, &["--format", "nf4"]).with_code(0);
    assert!(Pretrained::open(&to).is_ok());
    assert_eq!(scratch.files(), ["full", "large"]);
}

/// A flag that is passed over looks as if it had done something.
#[test]
fn flags_of_another_format_are_refused() {
    let (scratch, from) = (Scratch::new(), model("leanllama"));
    let to = scratch.path("to");
    for flags in [["--min-cosine", "0.5"], ["--bits", "4"], ["--prompts", "/nowhere/prompts"]] {
        let ended = quantize(&from, &to, &[&["--format", "nf4"], &flags[..]].concat()).with_code(2);
        assert!(ended.stderr.contains(&format!("error: {} is for --format nano", flags[0])), "{}", ended.stderr);
        assert!(ended.stderr.contains("Usage: ember quantize"), "{}", ended.stderr);
    }
    let convert = ["convert", "-m", text(&from), "--to", text(&to), "--dtype", "f32", "--shard-size", "1MB"];
    let ended = ember(convert.iter().chain(&["--format", "burnpack"])).with_code(2);
    assert!(ended.stderr.contains("error: --shard-size is for --format safetensors"), "{}", ended.stderr);
    let [from, other] = [&from, &from].map(|path| text(path));
    for flags in [["--context", "64"], ["--window-bos", "never"], ["--cache-type", "q8"]] {
        let ended = ember(["diff", from, other].iter().chain(&flags)).with_code(2);
        assert!(ended.stderr.contains("--text <FILE>"), "{}", ended.stderr);
    }
    assert!(scratch.files().is_empty());
    let ended = quantize(&model("leanllama"), &to, &["--format", "nano", "--min-cosine", "-0.5"]);
    ended.fails_with(&["--min-cosine is -0.5, expected a number from 0 to 1"]);
}
