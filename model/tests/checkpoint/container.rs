//! Broken and hostile safetensors files, indexes and paths: a named error, in time, and no file outside the directory.

use std::fs::{self, File};
use std::path::Path;

use crate::support::*;
use emberlm_model::Error;
use emberlm_model::checkpoint::{Checkpoint, OpenOptions};

fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

/// A file with these entries and this many bytes of data.
fn file(entries: &[String], data: usize) -> Vec<u8> {
    container(&format!("{{{}}}", entries.join(",")), &vec![0; data])
}

#[test]
fn broken_containers_are_named() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("model.safetensors");
    let a = |begin, end| entry("a", "U8", &format!("[{}]", end - begin), begin, end);
    let b = |begin, end| entry("b", "U8", &format!("[{}]", end - begin), begin, end);
    let claims = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("empty", "shorter than 8", vec![]),
        ("1 byte", "shorter than 8", vec![1]),
        ("7 bytes", "shorter than 8", vec![1; 7]),
        ("header u64::MAX", "header of 18446744073709551615", claims(u64::MAX)),
        ("header 2^63", "header of", claims(1 << 63)),
        ("header beyond the file", "only 2 follow", claims(3)),
        ("header above the limit", "accepted", claims((16 << 20) + 1)),
        ("header empty", "not valid JSON", claims(0)),
        ("not utf-8", "not valid JSON", [&4u64.to_le_bytes()[..], b"{\"\xff\""].concat()),
        ("not JSON", "not valid JSON", container("hello", &[])),
        ("not an object", "not valid JSON", container("[1, 2]", &[])),
        ("deep JSON", "not valid JSON", container(&"[".repeat(10_000), &[])),
        ("deep JSON in a tensor", "not valid JSON", container(&format!("{{\"a\":{}", "{\"a\":".repeat(10_000)), &[])),
        ("same key twice", "twice", file(&[a(0, 1), a(1, 2)], 2)),
        (
            "same field twice",
            "duplicate field",
            container(r#"{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#, &[]),
        ),
        ("field missing", "missing field", container(r#"{"a":{"dtype":"U8","shape":[0]}}"#, &[])),
        (
            "field unknown",
            "unknown field",
            container(r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}}"#, &[]),
        ),
        ("overlap", "overlaps", file(&[a(0, 4), b(2, 6)], 6)),
        ("same range", "overlaps", file(&[a(0, 4), b(0, 4)], 4)),
        ("gap", "gap", file(&[a(0, 2), b(3, 4)], 4)),
        ("gap at the start", "gap", file(&[a(1, 4)], 4)),
        ("begin after end", "not in the", file(&[entry("a", "U8", "[1]", 2, 1)], 2)),
        ("end past the file", "not in the", file(&[a(0, 5)], 4)),
        ("end u64::MAX", "not in the", file(&[entry("a", "U8", "[4]", 0, u64::MAX)], 4)),
        (
            "negative offset",
            "not valid JSON",
            container(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}"#, &[]),
        ),
        ("shape overflows", "too large", file(&[entry("a", "F32", "[4294967296,4294967296,2]", 0, 4)], 4)),
        ("shape overflows in bytes", "too large", file(&[entry("a", "F32", "[9223372036854775807]", 0, 4)], 4)),
        ("fractional shape", "not valid JSON", file(&[entry("a", "U8", "[1.5]", 0, 1)], 1)),
        ("size against range", "takes 8 bytes", file(&[entry("a", "F32", "[2]", 0, 4)], 4)),
        ("zero sized with data", "takes 0 bytes", file(&[entry("a", "F32", "[0,7]", 0, 4)], 4)),
        ("unknown type", "F4", file(&[entry("a", "F4", "[8]", 0, 4)], 4)),
        ("rank 9", "9 dimensions", file(&[entry("a", "U8", "[1,1,1,1,1,1,1,1,1]", 0, 1)], 1)),
        ("trailing bytes", "belong to none", file(&[a(0, 4)], 5)),
        ("newline in a name", "control", file(&[entry("a\\nb", "U8", "[1]", 0, 1)], 1)),
        ("escape in a name", "control", file(&[entry("a\\u001b[2J", "U8", "[1]", 0, 1)], 1)),
        ("name of 1 MB", "1024 bytes", file(&[entry(&"x".repeat(1 << 20), "U8", "[1]", 0, 1)], 1)),
        ("unknown type of 1 MB", "unknown", file(&[entry("a", &"x".repeat(1 << 20), "[1]", 0, 1)], 1)),
        ("nameless", "1024 bytes", file(&[entry("", "U8", "[1]", 0, 1)], 1)),
    ];
    for (case, word, bytes) in cases {
        fs::write(&path, bytes).expect("write");
        let error = fails(case, word, || Checkpoint::open(dir.path()));
        assert!(matches!(error, Error::Container { .. }), "{case}: {error:?}");
    }
    fs::write(&path, file(&[a(0, 4), b(4, 4)], 4)).expect("write");
    assert_eq!(Checkpoint::open(dir.path()).expect("a good file").total_bytes(), 4);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let copy = Copy::of("leanllama");
    let whole = fs::read(copy.weights()).expect("read");
    for sixteenth in 0..16 {
        fs::write(copy.weights(), &whole[..whole.len() * sixteenth / 16]).expect("write");
        fails(&format!("cut at {sixteenth}/16"), "", || copy.load());
    }
}

/// No header is beyond its limit, all of them together are.
#[test]
fn the_tensors_of_all_files_are_counted_together() {
    let dir = tempfile::tempdir().expect("tempdir");
    for shard in ["a", "b"] {
        let entries: Vec<String> =
            (0..17_000).map(|i| entry(&format!("{shard}{i}.weight"), "F32", "[0]", 0, 0)).collect();
        fs::write(dir.path().join(format!("{shard}.safetensors")), file(&entries, 0)).expect("write");
    }
    index(dir.path(), r#"{"a0.weight":"a.safetensors","b0.weight":"b.safetensors"}"#);
    fails("34,000 tensors", "holds more than 32768 tensors", || Checkpoint::open(dir.path()));
}

/// What a caller could not divide by.
#[test]
fn a_matrix_without_rows_or_columns_is_refused() {
    for shape in [[0, 64], [544, 0]] {
        let copy = Copy::of("leanllama");
        copy.change_tensors(|tensors| drop(tensors.insert("lm_head.weight".into(), zeros(&shape))));
        fails(&format!("{shape:?}"), "expected sizes above 0", || copy.load());
    }
}

/// The length that a file system tells need not be that of what is read.
#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_longer_than_it_says_is_refused() {
    use emberlm_model::checkpoint::ModelDir;
    let dir = tempfile::tempdir().expect("tempdir");
    // Its length is told as 0.
    std::os::unix::fs::symlink("/proc/self/maps", dir.path().join("config.json")).expect("a link");
    let dir = ModelDir::open(dir.path()).expect("a directory").allow_links();
    fails("a file that grows", "is longer than the 16 bytes", || dir.read("config.json", 16));
}

#[test]
fn many_empty_tensors_are_handled_in_time() {
    let dir = tempfile::tempdir().expect("tempdir");
    fs::copy(fixture("crest_k4/config.json"), dir.path().join("config.json")).expect("copy");
    let case = |count: usize, prefix: &str, shape: &str, word: &str| {
        let entries: Vec<String> =
            (0..count).map(|i| entry(&format!("{prefix}{i}.weight"), "F32", shape, 0, 0)).collect();
        fs::write(dir.path().join("model.safetensors"), file(&entries, 0)).expect("write");
        fails(&format!("{count} of {prefix}"), word, || load(dir.path()));
    };
    // By the header's own limit, before the sum over all files is looked at.
    case(100_000, "t", "[0]", "not valid JSON: more than 32768 tensors");
    case(32_000, "t", "[0]", "no layers");
    case(32_000, "model.layers.0.t", "[0,64]", "more than 2048 tensors");
    case(2_000, "model.layers.0.t", "[0,64]", "Found");
}

fn index(dir: &Path, map: &str) {
    fs::write(
        dir.join("model.safetensors.index.json"),
        format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{map}}}"#),
    )
    .expect("write");
}

#[test]
fn broken_indexes_are_named() {
    let outside = tempfile::tempdir().expect("tempdir");
    write_tensors(&outside.path().join("x.safetensors"), &Tensors::from([("a".into(), zeros(&[1]))]));
    let dir = tempfile::tempdir().expect("tempdir");
    let one = Tensors::from([("a".into(), zeros(&[1]))]);
    write_tensors(&dir.path().join("m-1.safetensors"), &one);
    let both = Tensors::from([("a".into(), zeros(&[1])), ("b".into(), zeros(&[1]))]);
    write_tensors(&dir.path().join("m-2.safetensors"), &both);
    let absolute = outside.path().join("x.safetensors").display().to_string();
    let shard = |name: &str| format!(r#"{{"a":"{name}"}}"#);
    let cases = [
        ("parent", "not the name of a .safetensors", shard("../x.safetensors")),
        ("parent with backslash", "not the name of a .safetensors", shard("..\\\\x.safetensors")),
        ("absolute", "not the name of a .safetensors", shard(&absolute)),
        ("drive", "not the name of a .safetensors", shard("C:\\\\x.safetensors")),
        ("drive relative", "not the name of a .safetensors", shard("C:x.safetensors")),
        ("share", "not the name of a .safetensors", shard("\\\\\\\\host\\\\share\\\\x.safetensors")),
        ("parent of a subfolder", "not the name of a .safetensors", shard("sub/../../x.safetensors")),
        ("parent at the end", "not the name of a .safetensors", shard("sub/..")),
        ("drive in a subfolder", "not the name of a .safetensors", shard("sub/C:x.safetensors")),
        ("folder", "not the name of a .safetensors", shard("sub.safetensors/")),
        ("deep", "not the name of a .safetensors", shard(&format!("{}x.safetensors", "s/".repeat(20)))),
        ("subfolder that is not there", "1 of 1 files are missing: sub/x.safetensors", shard("./sub/./x.safetensors")),
        ("dot", "not the name of a .safetensors", shard(".")),
        ("empty", "not the name of a .safetensors", shard("")),
        ("pickle", "not the name of a .safetensors", shard("pytorch_model.bin")),
        ("escape", "not the name of a .safetensors", shard("\\u001b[2Jx.safetensors")),
        ("NUL", "not the name of a .safetensors", shard("x\\u0000.safetensors")),
        (
            "missing",
            "2 of 3 files are missing: x.safetensors, y.safetensors",
            r#"{"a":"m-1.safetensors","b":"x.safetensors","c":"y.safetensors"}"#.into(),
        ),
        ("twice in the map", "twice", r#"{"a":"m-1.safetensors","a":"m-2.safetensors"}"#.into()),
        ("a list", "invalid type", "[1]".into()),
        ("a string", "invalid type", "\"x\"".into()),
        ("numbers", "invalid type", r#"{"a":1}"#.into()),
        ("nothing", "no files", "{}".into()),
    ];
    for (case, word, map) in cases {
        index(dir.path(), &map);
        fails(case, word, || Checkpoint::open(dir.path()));
    }
    let many: Vec<String> = (0..1_000_000).map(|i| format!(r#""t{i}":"x""#)).collect();
    index(dir.path(), &format!("{{{}}}", many.join(",")));
    fails("a million entries", "more than", || Checkpoint::open(dir.path()));
    let files: Vec<String> = (0..1001).map(|i| format!(r#""t{i}":"{i}.safetensors""#)).collect();
    index(dir.path(), &format!("{{{}}}", files.join(",")));
    fails("1001 files", "names more than 1000 files", || Checkpoint::open(dir.path()));
    File::create(dir.path().join("model.safetensors.index.json")).and_then(|f| f.set_len(100 << 20)).expect("sparse");
    fails("100 MB", "at most", || Checkpoint::open(dir.path()));
    index(dir.path(), r#"{"a":"m-2.safetensors","b":"m-2.safetensors"}"#);
    assert_eq!(Checkpoint::open(dir.path()).expect("a good index").names().len(), 2);
}

/// As `os.path.join` of the directory and the name in the index.
#[test]
fn an_index_may_name_files_in_subfolders() {
    let dir = tempfile::tempdir().expect("tempdir");
    fs::create_dir(dir.path().join("sub")).expect("create");
    let one = |name: &str| Tensors::from([(name.to_owned(), zeros(&[1]))]);
    write_tensors(&dir.path().join("a.safetensors"), &one("a"));
    write_tensors(&dir.path().join("sub/b.safetensors"), &one("b"));
    for (a, b) in [("a", "sub/b"), ("./a", "./sub/b"), (".//a", "sub//./b")] {
        index(dir.path(), &format!(r#"{{"a":"{a}.safetensors","b":"{b}.safetensors"}}"#));
        let checkpoint = Checkpoint::open(dir.path()).expect("an index with subfolders");
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"], "{b}");
        assert_eq!(checkpoint.data("b").expect("data").len(), 4, "{b}");
    }
}

/// What no file holds may be a part that is not run; what the model needs is named as missing by the plan.
#[test]
fn an_index_may_list_what_no_file_holds() {
    let dir = tempfile::tempdir().expect("tempdir");
    write_tensors(&dir.path().join("m-1.safetensors"), &Tensors::from([("a".into(), zeros(&[1]))]));
    write_tensors(&dir.path().join("m-2.safetensors"), &Tensors::from([("b".into(), zeros(&[1]))]));
    index(dir.path(), r#"{"a":"m-2.safetensors","b":"m-1.safetensors","mtp.fc.weight":"m-1.safetensors"}"#);
    let checkpoint = Checkpoint::open(dir.path()).expect("mtp is not run");
    assert_eq!(checkpoint.names().len(), 2);
    assert!(checkpoint.info("mtp.fc.weight").is_none());
    for (name, shard) in [("a", "m-1.safetensors"), ("b", "m-2.safetensors")] {
        assert!(
            checkpoint.info(name).expect(name).file.ends_with(shard),
            "{name} is where it is, not where the index says"
        );
    }
}

/// Overlays: the file that the index names; for a tensor that it does not list, the last by name, as in transformers.
#[test]
fn of_a_tensor_in_two_files_the_index_chooses() {
    let dir = tempfile::tempdir().expect("tempdir");
    let files = |names: [&str; 2]| {
        for (name, x) in names.into_iter().zip([1.0, 2.0]) {
            write_tensors(
                &dir.path().join(name),
                &Tensors::from([("a".into(), f32s(&[1], &[x])), (name.into(), zeros(&[1]))]),
            );
        }
    };
    let chosen = |map: String| {
        index(dir.path(), &map);
        let checkpoint = Checkpoint::open(dir.path()).expect("an overlay");
        assert_eq!(checkpoint.names().len(), 3);
        checkpoint.data("a").expect("data").to_vec()
    };
    let (one, two) = (1f32.to_le_bytes(), 2f32.to_le_bytes());
    let names = ["m-1.safetensors", "m-2.safetensors"];
    files(names);
    let list = |rest: &str| format!(r#"{{"{0}":"{0}","{1}":"{1}"{rest}}}"#, names[0], names[1]);
    assert_eq!(chosen(list(r#","a":"m-1.safetensors""#)), one);
    assert_eq!(chosen(list(r#","a":"m-2.safetensors""#)), two);
    assert_eq!(chosen(list("")), two);
}

#[test]
fn other_formats_are_named_and_not_opened() {
    let dir = tempfile::tempdir().expect("tempdir");
    let formats = [
        ("pytorch_model.bin", "pickles are never opened"),
        ("model.pt", "pickles are never opened"),
        ("consolidated.00.pth", "pickles are never opened"),
        ("model.gguf", "llama.cpp's format is not read"),
        ("model.GGUF", "llama.cpp's format is not read"),
        ("model.onnx", "ONNX is not read"),
        ("weights.npz", "convert the model to safetensors"),
    ];
    for (name, word) in formats {
        // A directory in its place: opening it would give another error.
        fs::create_dir(dir.path().join(name)).expect("create");
        fs::write(dir.path().join("config.json"), "{}").expect("write");
        fails(name, name, || Checkpoint::open(dir.path()));
        fails(name, word, || Checkpoint::open(dir.path()));
        fs::remove_dir(dir.path().join(name)).expect("remove");
        fs::write(dir.path().join(name), "x").expect("write");
        fails(name, word, || Checkpoint::open(&dir.path().join(name)));
        fs::remove_file(dir.path().join(name)).expect("remove");
    }
    fails("a config alone", "download the weights", || Checkpoint::open(dir.path()));
    write_tensors(&dir.path().join("other.safetensors"), &Tensors::from([("a".into(), zeros(&[1]))]));
    fails("another name", "other.safetensors", || Checkpoint::open(dir.path()));
    Checkpoint::open(&dir.path().join("other.safetensors")).expect("by its path");
    fails("nothing there", "No such file", || Checkpoint::open(&dir.path().join("absent")));
}

#[test]
fn other_contents_are_named() {
    let copy = Copy::of("leanllama");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    for (contents, word) in [
        (pointer, "git lfs pull"),
        ("GGUF\u{3}\0\0\0\0\0\0", "GGUF"),
        ("PK\u{3}\u{4}archive/data.pkl", "zip"),
        ("<!DOCTYPE html><title>Sign in</title>", "web page"),
    ] {
        let kept = fs::read(copy.weights()).expect("read");
        fs::write(copy.weights(), contents).expect("write");
        fails(contents, word, || copy.load());
        fails(contents, word, || Checkpoint::open(&copy.weights()));
        fs::write(copy.weights(), kept).expect("write");
    }
    // The texts beside the weights as well.
    fs::write(copy.path().join("config.json"), pointer).expect("write");
    fails("config", "git lfs pull", || copy.load());
    index(copy.path(), "{}");
    fs::remove_file(copy.weights()).expect("remove");
    fs::write(copy.path().join("model.safetensors.index.json"), pointer).expect("write");
    fails("index", "git lfs pull", || copy.load());
}

#[test]
fn adapters_are_named_with_their_base() {
    let dir = tempfile::tempdir().expect("tempdir");
    let lora =
        Tensors::from([("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight".into(), zeros(&[4, 8]))]);
    let file = dir.path().join("adapter_model.safetensors");
    write_tensors(&file, &lora);
    let config = dir.path().join("adapter_config.json");
    for (text, word) in [
        (r#"{"peft_type":"LORA","base_model_name_or_path":"org/base-model"}"#, "LoRA adapter of org/base-model"),
        (r#"{"fine_tune_type":"lora","model":"mlx-community/base"}"#, "LoRA adapter of mlx-community/base"),
        (r#"{"base_model_name_or_path":null}"#, "does not name"),
        (r#"{"base_model_name_or_path":"a\u001b[2J"}"#, "a\\u{1b}[2J"),
        ("not JSON", "does not name"),
    ] {
        fs::write(&config, text).expect("write");
        fails(text, word, || Checkpoint::open(dir.path()));
        fails(text, word, || Checkpoint::open(&file));
    }
    // Whatever the names of the tensors are.
    write_tensors(&file, &Tensors::from([("prompt_embeddings".into(), zeros(&[4, 8]))]));
    fails("prompt tuning", "adapter", || Checkpoint::open(&file));
    // Unmerged weights under the name of a model's.
    fs::remove_file(&config).expect("remove");
    fs::remove_file(&file).expect("remove");
    write_tensors(&dir.path().join("model.safetensors"), &lora);
    fails("unmerged", "merge it into its base", || Checkpoint::open(dir.path()));
    // A model beside an adapter is the model.
    let copy = Copy::of("leanllama");
    fs::write(copy.path().join("adapter_config.json"), r#"{"base_model_name_or_path":"org/base-model"}"#)
        .expect("write");
    copy.load().expect("the model");
    let pretrained = emberlm_model::Pretrained::open(copy.path()).expect("the model");
    assert!(pretrained.notes().iter().any(|note| note.contains("adapter")), "{:?}", pretrained.notes());
}

#[test]
fn directories_without_a_model_get_advice() {
    let dir = tempfile::tempdir().expect("tempdir");
    let open = || Checkpoint::open(dir.path());
    fails("empty", "it is empty", open);
    fs::create_dir_all(dir.path().join("a/b")).expect("create");
    fs::create_dir(dir.path().join("logs")).expect("create");
    fails("only subfolders", "only the subfolders a, logs", open);
    fs::write(dir.path().join("a/b/config.json"), "{}").expect("write");
    fails("a model further down", "there are models in a/b", open);
    let hub = dir.path().join("models--org--name/snapshots/0123abc");
    fs::create_dir_all(&hub).expect("create");
    fs::write(hub.join("config.json"), "{}").expect("write");
    fails("a hub cache", "models--org--name/snapshots/0123abc", open);
}

#[test]
fn a_single_subfolder_stands_for_the_model() {
    let dir = tempfile::tempdir().expect("tempdir");
    let sub = |name: &str| {
        fs::create_dir(dir.path().join(name)).expect("create");
        fs::copy(fixture("leanllama/config.json"), dir.path().join(name).join("config.json")).expect("copy");
        fs::copy(fixture("leanllama/model.safetensors"), dir.path().join(name).join("model.safetensors"))
            .expect("copy");
    };
    fails("no subfolder", "no model.safetensors", || Checkpoint::open(dir.path()));
    fs::create_dir(dir.path().join("assets")).expect("create");
    sub("nano_compact");
    load(dir.path()).expect("the only subfolder");
    sub("second");
    fails("two subfolders", "nano_compact, second", || Checkpoint::open(dir.path()));
    let named = Checkpoint::open_subfolder(dir.path(), "second").expect("by name");
    assert!(named.dir().path().ends_with("second"));
    for name in ["..", "../x", "", "/", "second/../..", "C:\\x"] {
        fails(name, "not the name of a subfolder", || Checkpoint::open_subfolder(dir.path(), name));
    }
}

#[cfg(unix)]
mod links {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn links_out_of_the_directory_are_refused() {
        let secret = tempfile::tempdir().expect("tempdir");
        fs::copy(fixture("leanllama/model.safetensors"), secret.path().join("model.safetensors")).expect("copy");
        fs::copy(fixture("leanllama/config.json"), secret.path().join("config.json")).expect("copy");
        let copy = Copy::of("leanllama");
        for name in ["model.safetensors", "config.json"] {
            let path = copy.path().join(name);
            fs::rename(&path, copy.path().join("kept")).expect("rename");
            symlink(secret.path().join(name), &path).expect("link");
            fails(name, "leads out", || copy.load());
            fs::remove_file(&path).expect("remove");
            // Within the directory a link is fine.
            symlink("kept", &path).expect("link");
            copy.load().expect("a link inside");
            fs::remove_file(&path).expect("remove");
            fs::rename(copy.path().join("kept"), &path).expect("rename");
        }
        let empty = tempfile::tempdir().expect("tempdir");
        symlink(secret.path(), empty.path().join("sub")).expect("link");
        fails("subfolder", "leads out", || Checkpoint::open_subfolder(empty.path(), "sub"));
        fails("the only subfolder", "no model.safetensors", || Checkpoint::open(empty.path()));
        symlink("nowhere", empty.path().join("model.safetensors")).expect("link");
        fails("dangling", "No such file", || Checkpoint::open(empty.path()));
    }

    #[test]
    fn links_are_followed_where_the_caller_allows_it() {
        let elsewhere = tempfile::tempdir().expect("tempdir");
        fs::copy(fixture("leanllama/model.safetensors"), elsewhere.path().join("weights.safetensors")).expect("copy");
        let copy = Copy::of("leanllama");
        fs::remove_file(copy.weights()).expect("remove");
        symlink(elsewhere.path().join("weights.safetensors"), copy.weights()).expect("link");
        let open = |path: &Path, allow_links: bool| Checkpoint::open_with(path, OpenOptions { allow_links });
        fails("not allowed", "--allow-links", || open(copy.path(), false));
        fails("the file, not allowed", "--allow-links", || open(&copy.weights(), false));
        for path in [copy.path(), &copy.weights()] {
            let checkpoint = open(path, true).expect("allowed");
            checkpoint.config().expect("the config beside it");
        }
        // A folder of links to the files of another, and a link to the only subfolder.
        let links = tempfile::tempdir().expect("tempdir");
        symlink(copy.path(), links.path().join("sub")).expect("link");
        fails("a linked subfolder", "no model.safetensors", || open(links.path(), false));
        open(links.path(), true).expect("a linked subfolder");
        symlink("nowhere", elsewhere.path().join("model.safetensors")).expect("link");
        fails("dangling", "No such file", || open(elsewhere.path(), true));
    }

    #[test]
    fn a_hub_snapshot_links_to_its_own_blobs_only() {
        let hub = tempfile::tempdir().expect("tempdir");
        let snapshot = |repository: &str| {
            let snapshot = hub.path().join(repository).join("snapshots/abc");
            let blobs = hub.path().join(repository).join("blobs");
            fs::create_dir_all(&snapshot).expect("create");
            fs::create_dir_all(&blobs).expect("create");
            for name in ["config.json", "model.safetensors"] {
                fs::copy(fixture("leanllama").join(name), blobs.join(format!("hash-{name}"))).expect("copy");
            }
            snapshot
        };
        let (mine, other) = (snapshot("models--a--b"), snapshot("models--c--d"));
        for name in ["config.json", "model.safetensors"] {
            symlink(format!("../../blobs/hash-{name}"), mine.join(name)).expect("link");
            symlink(format!("../../../models--a--b/blobs/hash-{name}"), other.join(name)).expect("link");
        }
        load(&mine).expect("its own blobs");
        fails("blobs of another repository", "leads out", || load(&other));
        let elsewhere = snapshot("folder");
        symlink("../../blobs/hash-model.safetensors", elsewhere.join("model.safetensors")).expect("link");
        fails("not a hub folder", "leads out", || load(&elsewhere));
    }

    /// huggingface_hub 2 keeps what it gets from Xet in one store of the whole cache, to which the blobs link.
    #[test]
    fn a_hub_snapshot_links_to_the_store_of_its_cache() {
        let hub = tempfile::tempdir().expect("tempdir");
        let repository = hub.path().join("models--a--b");
        let (snapshot, blobs) = (repository.join("snapshots/abc"), repository.join("blobs"));
        let hash = "ab".repeat(32);
        let store = hub.path().join("blobs/ab");
        for folder in [&snapshot, &blobs, &store] {
            fs::create_dir_all(folder).expect("create");
        }
        fs::copy(fixture("leanllama").join("config.json"), snapshot.join("config.json")).expect("copy");
        fs::copy(fixture("leanllama").join("model.safetensors"), store.join(&hash)).expect("copy");
        symlink(format!("../../blobs/ab/{hash}"), blobs.join("etag")).expect("link");
        symlink("../../blobs/etag", snapshot.join("model.safetensors")).expect("link");
        load(&snapshot).expect("the store of the cache");
        // Anything else beside the repository is not.
        fs::rename(store.join(&hash), store.join("notes")).expect("rename");
        fs::remove_file(blobs.join("etag")).expect("remove");
        symlink("../../blobs/ab/notes", blobs.join("etag")).expect("link");
        fails("a file that is no blob", "leads out", || load(&snapshot));
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused() {
        let copy = Copy::of("leanllama");
        let path = copy.weights();
        fs::remove_file(&path).expect("remove");
        fs::create_dir(&path).expect("create");
        fails("directory", "not a regular file", || copy.load());
        fs::remove_dir(&path).expect("remove");
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo");
        assert!(made.success());
        fails("FIFO", "not a regular file", || copy.load());
        fails("FIFO by path", "not a regular file", || Checkpoint::open(&path));
        fs::remove_file(&path).expect("remove");
        let _socket = UnixListener::bind(&path).expect("bind");
        fails("socket", "not a regular file", || copy.load());
    }
}

/// Bytes of the header and the data changed at random: any outcome but a crash.
#[test]
fn random_damage_never_panics() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % below
    };
    let mut refused = 0;
    for name in ["nano_compact", "leanllama_nf4", "crest_k4_nf4"] {
        let copy = Copy::of(name);
        let whole = fs::read(copy.weights()).expect("read");
        let header = u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize + 8;
        for round in 0..100 {
            let mut bytes = whole.clone();
            let range = if round % 4 == 0 { bytes.len() } else { header };
            for _ in 0..=random(4) {
                let at = random(range);
                // Mostly characters that keep the JSON valid.
                bytes[at] = if bytes[at].is_ascii_digit() { b'0' + random(10) as u8 } else { random(256) as u8 };
            }
            fs::write(copy.weights(), &bytes).expect("write");
            refused += usize::from(copy.load().is_err());
        }
    }
    assert!(refused > 150, "only {refused} of 300 were refused: is anything checked?");
}
