//! Indexes, links and what else may stand in a file's place.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use serde_json::{Value, json};

use super::limits::Run;
use super::model::{Place, read_safetensors};
use super::table::*;
use super::tensors::safetensors;

const INDEX: &str = "model.safetensors.index.json";
const SHARD: &str = "model-00002-of-00003.safetensors";
const NAMED: Must = Fail(&[" model.safetensors.index.json"]);

/// The first tensor of the index lies in a file of this name.
fn shard_name(name: &str, must: Must) -> Case {
    let name = name.to_owned();
    case(format!("shard {name:?}"), must, move |place| {
        place.edit(INDEX, |json| {
            let map = json["weight_map"].as_object_mut().expect("a map");
            let first = map.values_mut().next().expect("a tensor");
            *first = json!(name);
        });
        // What would be opened is there.
        fs::copy(place.outside().join("model.safetensors"), place.root().join("x.safetensors")).expect("a copy");
        fs::copy(place.outside().join("model.safetensors"), place.outside().join("x.safetensors")).expect("a copy");
        fs::create_dir_all(place.path("sub")).expect("a directory");
        fs::copy(place.outside().join("model.safetensors"), place.path("sub/x.safetensors")).expect("a copy");
    })
}

#[test]
fn shard_names() {
    // What is below the directory may count as part of it; nothing else may.
    const PLAIN: Must = NAMED;
    let mut cases: Vec<Case> = [
        "../x.safetensors",
        "../outside/x.safetensors",
        "./../x.safetensors",
        "sub/../../x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "C:\\x.safetensors",
        "C:x.safetensors",
        "\\\\host\\share\\x.safetensors",
        "//host/share/x.safetensors",
        "\\\\?\\C:\\x.safetensors",
        "file:///x.safetensors",
        "x.safetensors:stream",
        "",
        ".",
        "..",
        "...",
        " ",
        "x\0.safetensors",
        "x\n.safetensors",
        "\u{1b}[2Jx.safetensors",
        "pytorch_model.bin",
        "x.gguf",
        "CON",
    ]
    .into_iter()
    .map(|name| {
        shard_name(
            name,
            if matches!(name, "..." | " " | "CON" | "sub/x.safetensors") { Fail(&["/model"]) } else { PLAIN },
        )
    })
    .collect();
    cases.push(shard_name(&"x".repeat(300), Fail(&["/model"])));
    cases.push(shard_name(&format!("{}.safetensors", "x".repeat(240)), Fail(&["/model", "missing"])));
    // Names that fit a file system only in another spelling.
    cases.push(shard_name("model-00001-of-00003.SAFETENSORS", Fail(&["/model"])));
    cases.push(case("a name in a folder that is a link out", Fail(&["/model"]), |place| {
        fs::copy(place.path(SHARD), place.outside().join(SHARD)).expect("a copy");
        place.remove(SHARD);
        symlink("../outside", place.path("sub")).expect("a link");
        let text = String::from_utf8(place.read(INDEX)).expect("UTF-8");
        place.write(INDEX, text.replace(SHARD, &format!("sub/{SHARD}")));
    }));
    cases.push(case("an absolute name", PLAIN, |place| {
        let target = place.outside().join("model.safetensors");
        place.edit(INDEX, |json| {
            let map = json["weight_map"].as_object_mut().expect("a map");
            *map.values_mut().next().expect("a tensor") = json!(target.to_str());
        });
    }));
    run("crest_k2", INFO_AND_GENERATE, cases);
}

#[test]
fn indexes() {
    let map = |name: &str, must: Must, value: Value| {
        case(name, must, move |place| place.edit(INDEX, |json| json["weight_map"] = value.clone()))
    };
    let text = |name: &str, text: String| case(name, NAMED, move |place| place.write(INDEX, &text));
    let mut cases = vec![
        map("weight_map a list", NAMED, json!([1])),
        map("weight_map a text", NAMED, json!("x")),
        map("weight_map null", NAMED, Value::Null),
        map("weight_map of numbers", NAMED, json!({"a": 1})),
        map("weight_map of lists", NAMED, json!({"a": ["model-00001-of-00003.safetensors"]})),
        map("weight_map empty", NAMED, json!({})),
        map(
            "1,500 shards",
            NAMED,
            (0..1500)
                .map(|i| (format!("t{i}"), json!(format!("m{i}.safetensors"))))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        ),
        text("no weight_map", "{}".into()),
        text("empty", String::new()),
        text("cut", r#"{"weight_map":{"a":"b"#.into()),
        text("a list", "[]".into()),
        text("10,000 deep", format!(r#"{{"weight_map":{}"#, r#"{"a":"#.repeat(10_000))),
        text("metadata 10,000 deep", format!(r#"{{"metadata":{}"#, "[".repeat(10_000))),
        text("a tensor twice", r#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#.into()),
        text(
            "a million entries",
            format!(
                r#"{{"weight_map":{{{}}}}}"#,
                (0..1_000_000).map(|i| format!(r#""t{i}":"x""#)).collect::<Vec<_>>().join(",")
            ),
        ),
        case("200,000 entries of a shard that is there", NAMED, |place| {
            let entries = (0..200_000).map(|i| format!(r#""t{i}":"{SHARD}""#)).collect::<Vec<_>>().join(",");
            place.write(INDEX, format!(r#"{{"weight_map":{{{entries}}}}}"#));
        }),
        case("100 MB", NAMED, |place| place.write_sparse(INDEX, 100 << 20)),
        case(
            "two shards missing",
            Fail(&["/model", "2 of 3", "model-00001-of-00003", "model-00003-of-00003"]),
            |place| {
                place.remove("model-00001-of-00003.safetensors");
                place.remove("model-00003-of-00003.safetensors");
            },
        ),
        case("no index, shards alone", Fail(&["/model", "model.safetensors"]), |place| place.remove(INDEX)),
        case(
            "tensor of the index in no shard",
            WorkOrFail(&["/model", "model.language_model.absent.weight"]),
            |place| {
                place.edit(INDEX, |json| json["weight_map"]["model.language_model.absent.weight"] = json!(SHARD));
            },
        ),
    ];
    // Which of two counts where the index names one is for the loader to say; both must end in order.
    cases.push(case("tensor in two shards", WorkOrFail(&["/model", "norm"]), |place| {
        let mut tensors = read_safetensors(&place.read(SHARD));
        let other = read_safetensors(&place.read("model-00001-of-00003.safetensors"));
        let (name, tensor) = other.iter().find(|(name, _)| name.ends_with("norm.weight")).expect("a norm");
        tensors.insert(name.clone(), tensor.clone());
        place.write(SHARD, safetensors(&tensors));
    }));
    run("crest_k2", INFO_AND_GENERATE, cases);
}

/// Files of the model that are links or no files.
#[test]
fn what_stands_in_a_files_place() {
    let replace = |file: &'static str, how: &str, must: Must, put: fn(&Place, &str)| {
        case(format!("{file}: {how}"), must, move |place| {
            fs::copy(place.path(file), place.outside().join(file)).expect("a copy");
            place.remove(file);
            put(place, file);
        })
    };
    let mut cases = Vec::new();
    for (file, out, special) in [
        (
            "model.safetensors",
            Fail(&[" model.safetensors", "leads out"]),
            Fail(&[" model.safetensors", "regular file"]),
        ),
        ("config.json", Fail(&[" config.json", "leads out"]), Fail(&[" config.json", "regular file"])),
        (
            "generation_config.json",
            Fail(&[" generation_config.json", "leads out"]),
            Fail(&[" generation_config.json", "regular file"]),
        ),
    ] {
        cases.push(replace(file, "link out", out, |place, file| {
            symlink(format!("../outside/{file}"), place.path(file)).expect("a link");
        }));
        cases.push(replace(file, "absolute link out", out, |place, file| {
            symlink(place.outside().join(file), place.path(file)).expect("a link");
        }));
        cases.push(replace(file, "link to a link out", out, |place, file| {
            symlink(format!("../outside/{file}"), place.path("second")).expect("a link");
            symlink("second", place.path(file)).expect("a link");
        }));
        cases.push(replace(file, "link out by way of a directory", out, |place, file| {
            symlink("../outside", place.path("way")).expect("a link");
            symlink(format!("way/{file}"), place.path(file)).expect("a link");
        }));
        cases.push(replace(file, "link inside", Work, |place, file| {
            fs::rename(place.outside().join(file), place.path("kept")).expect("moved");
            symlink("kept", place.path(file)).expect("a link");
        }));
        cases.push(replace(file, "link to itself", Fail(&["/model"]), |place, file| {
            symlink(file, place.path(file)).expect("a link");
        }));
        cases.push(replace(file, "link to nothing", Fail(&["/model"]), |place, file| {
            symlink("nothing", place.path(file)).expect("a link");
        }));
        cases.push(replace(file, "a directory", special, |place, file| {
            fs::create_dir(place.path(file)).expect("a directory");
        }));
        cases.push(replace(file, "a pipe", special, |place, file| {
            let made = std::process::Command::new("mkfifo").arg(place.path(file)).status().expect("mkfifo");
            assert!(made.success());
        }));
        cases.push(replace(file, "a socket", special, |place, file| {
            // A socket's path is short: bound in place by way of a short link.
            let short = std::env::temp_dir().join(format!("h{}-{:?}", std::process::id(), std::thread::current().id()));
            let short = std::path::PathBuf::from(short.display().to_string().replace(['(', ')'], ""));
            symlink(place.model(), &short).expect("a link");
            drop(UnixListener::bind(short.join(file)).expect("a socket"));
            fs::remove_file(&short).expect("removed");
        }));
        cases.push(replace(file, "a device", special, |place, file| {
            symlink("/dev/zero", place.path(file)).expect("a link");
        }));
    }
    // A device is outside as well; either is said.
    for (name, must, _) in &mut cases {
        if name.ends_with("a device") {
            *must = Fail(&["/model"]);
        }
    }
    run("leanllama", INFO_AND_GENERATE, cases);
}

/// Text files that lead out: information about a model goes without them, generating does not.
#[test]
fn text_files_that_lead_out() {
    let cases = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"].into_iter().map(|file| {
        case(file, Fail(&["leads out"]), move |place| {
            fs::write(place.outside().join(file), "{}").expect("written");
            let _ = fs::remove_file(place.path(file));
            symlink(format!("../outside/{file}"), place.path(file)).expect("a link");
        })
    });
    run("leanllama", &[CHAT], cases.collect());
}

/// The links of a hub snapshot lead to the blobs of their own repository only.
#[test]
fn hub_snapshots() {
    let place = Place::with("leanllama");
    let hub = place.path("hub");
    let snapshot = |repository: &str, target: &str| {
        let snapshot = hub.join(repository).join("snapshots/abc");
        let blobs = hub.join(repository).join("blobs");
        fs::create_dir_all(&snapshot).expect("a directory");
        fs::create_dir_all(&blobs).expect("a directory");
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            fs::copy(place.path(name), blobs.join(name)).expect("a copy");
            symlink(format!("{target}/{name}"), snapshot.join(name)).expect("a link");
        }
        snapshot
    };
    let own = snapshot("models--a--b", "../../blobs");
    let others = snapshot("models--c--d", "../../../models--a--b/blobs");
    let out = snapshot("models--e--f", "../../../../../outside");
    let no_hub = snapshot("folder", "../../blobs");
    for (model, must) in
        [(own, Work), (others, Fail(&["leads out"])), (out, Fail(&["leads out"])), (no_hub, Fail(&["leads out"]))]
    {
        let args = [GENERATE, &["-m", model.to_str().expect("UTF-8")][..]].concat();
        check(&place, &Run::new(args), must).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    }
}
