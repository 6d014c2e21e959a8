//! Broken and hostile safetensors files, indexes and paths: a named error, in time, and no file outside the directory.

mod checkpoint_support;

use std::fs::{self, File};
use std::path::Path;

use checkpoint_support::*;
use emberlm_model::Error;
use emberlm_model::checkpoint::Checkpoint;

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
    case(100_000, "t", "[0]", "more than 32768 tensors");
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
        ("parent", "plain name", shard("../x.safetensors")),
        ("parent with backslash", "plain name", shard("..\\\\x.safetensors")),
        ("absolute", "plain name", shard(&absolute)),
        ("drive", "plain name", shard("C:\\\\x.safetensors")),
        ("drive relative", "plain name", shard("C:x.safetensors")),
        ("share", "plain name", shard("\\\\\\\\host\\\\share\\\\x.safetensors")),
        ("subfolder", "plain name", shard("sub/x.safetensors")),
        ("dot", "plain name", shard(".")),
        ("empty", "plain name", shard("")),
        ("pickle", "plain name", shard("pytorch_model.bin")),
        ("escape", "plain name", shard("\\u001b[2Jx.safetensors")),
        ("NUL", "plain name", shard("x\\u0000.safetensors")),
        (
            "missing",
            "2 of 3 files are missing: x.safetensors, y.safetensors",
            r#"{"a":"m-1.safetensors","b":"x.safetensors","c":"y.safetensors"}"#.into(),
        ),
        ("promised, not there", "promises", r#"{"a":"m-1.safetensors","c":"m-1.safetensors"}"#.into()),
        ("in two", "also in", r#"{"a":"m-1.safetensors","b":"m-2.safetensors"}"#.into()),
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
    File::create(dir.path().join("model.safetensors.index.json")).and_then(|f| f.set_len(100 << 20)).expect("sparse");
    fails("100 MB", "at most", || Checkpoint::open(dir.path()));
    index(dir.path(), r#"{"a":"m-2.safetensors","b":"m-2.safetensors"}"#);
    assert_eq!(Checkpoint::open(dir.path()).expect("a good index").names().len(), 2);
}

#[test]
fn other_formats_are_named_and_not_opened() {
    let dir = tempfile::tempdir().expect("tempdir");
    for name in ["pytorch_model.bin", "model.pt", "model.gguf"] {
        // A directory in its place: opening it would give another error.
        fs::create_dir(dir.path().join(name)).expect("create");
        fs::write(dir.path().join("config.json"), "{}").expect("write");
        fails(name, name, || Checkpoint::open(dir.path()));
        fs::remove_dir(dir.path().join(name)).expect("remove");
        fs::write(dir.path().join(name), "x").expect("write");
        fails(name, "convert the model to safetensors", || Checkpoint::open(&dir.path().join(name)));
        fs::remove_file(dir.path().join(name)).expect("remove");
    }
    write_tensors(&dir.path().join("other.safetensors"), &Tensors::from([("a".into(), zeros(&[1]))]));
    fails("another name", "other.safetensors", || Checkpoint::open(dir.path()));
    Checkpoint::open(&dir.path().join("other.safetensors")).expect("by its path");
    fails("nothing there", "No such file", || Checkpoint::open(&dir.path().join("absent")));
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
