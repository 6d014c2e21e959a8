//! Safetensors files.

use super::model::Place;
use super::table::*;
use super::tensors::{Tensor, container};

const FILE: &str = "model.safetensors";
/// Every error names the file.
const NAMED: Must = Fail(&[" model.safetensors"]);

fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

/// A file with these entries and this many bytes of data.
fn file(entries: &[String], data: usize) -> Vec<u8> {
    container(&format!("{{{}}}", entries.join(",")), &vec![0; data])
}

/// Instead of the weights, these bytes.
fn bytes(name: &str, must: Must, bytes: Vec<u8>) -> Case {
    case(name, must, move |place| place.write(FILE, &bytes))
}

#[test]
fn headers() {
    let claims = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    let a = |begin, end| entry("a", "U8", &format!("[{}]", end - begin), begin, end);
    let b = |begin, end| entry("b", "U8", &format!("[{}]", end - begin), begin, end);
    let one = |name: &str, dtype: &str, shape: &str, end: u64| file(&[entry(name, dtype, shape, 0, end)], end as usize);
    const A: Must = Fail(&[" model.safetensors", "tensor a"]);
    let mut cases = vec![
        bytes("empty", NAMED, vec![]),
        bytes("header of u64::MAX", NAMED, claims(u64::MAX)),
        bytes("header of u64::MAX - 7, which wraps with its own length", NAMED, claims(u64::MAX - 7)),
        bytes("header of 2^63", NAMED, claims(1 << 63)),
        bytes("header of 2^32", NAMED, claims(1 << 32)),
        bytes("header one byte beyond the file", NAMED, claims(3)),
        bytes("header of nothing", NAMED, claims(0)),
        bytes("header above the limit, and there", NAMED, container(&format!("{{{}}}", " ".repeat(17 << 20)), &[])),
        case("header of 100 MB of zeros", NAMED, |place| {
            place.write_sparse(FILE, (100 << 20) + 8);
            let file = std::fs::File::options().write(true).open(place.path(FILE)).expect("open");
            std::os::unix::fs::FileExt::write_at(&file, &(100u64 << 20).to_le_bytes(), 0).expect("written");
        }),
        case("more than the address space", Fail(&[" model.safetensors", "cannot be mapped", "ulimit -v"]), |place| {
            place.write_sparse(FILE, 64 << 30);
        }),
        bytes("header of zeros", NAMED, container("\0\0\0\0", &[])),
        bytes("header not UTF-8", NAMED, [&4u64.to_le_bytes()[..], b"{\"\xff\""].concat()),
        bytes("header with a lone surrogate", NAMED, container(r#"{"\ud800":1}"#, &[])),
        bytes("header not JSON", NAMED, container("hello", &[])),
        bytes("header a list", NAMED, container("[1, 2]", &[])),
        bytes("header with something after it", NAMED, container("{} {}", &[])),
        bytes("header of brackets, 10,000 deep", NAMED, container(&"[".repeat(10_000), &[])),
        bytes("header of objects, 10,000 deep", NAMED, container(&r#"{"a":"#.repeat(10_000), &[])),
        bytes(
            "metadata 10,000 deep",
            Fail(&["/model"]),
            container(&format!(r#"{{"__metadata__":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000)), &[]),
        ),
        bytes("tensor twice", Fail(&[" model.safetensors", "a"]), file(&[a(0, 1), a(1, 2)], 2)),
        bytes("metadata twice", NAMED, container(r#"{"__metadata__":{},"__metadata__":{}}"#, &[])),
        bytes("overlap", Fail(&[" model.safetensors", "overlap"]), file(&[a(0, 4), b(2, 6)], 6)),
        bytes("one range for two", Fail(&[" model.safetensors", "overlap"]), file(&[a(0, 4), b(0, 4)], 4)),
        bytes("one inside another", Fail(&[" model.safetensors", "overlap"]), file(&[a(0, 8), b(2, 4)], 8)),
        bytes("gap", NAMED, file(&[a(0, 2), b(3, 4)], 4)),
        bytes("gap at the start", NAMED, file(&[a(1, 4)], 4)),
        bytes("begin after end", A, file(&[entry("a", "U8", "[1]", 2, 1)], 2)),
        bytes("end past the file", A, file(&[a(0, 5)], 4)),
        bytes("end of u64::MAX", A, file(&[entry("a", "U8", "[4]", 0, u64::MAX)], 4)),
        bytes("begin and end of u64::MAX", A, file(&[entry("a", "U8", "[0]", u64::MAX, u64::MAX)], 4)),
        bytes("negative offset", NAMED, file(&[r#""a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}"#.into()], 1)),
        bytes("three offsets", NAMED, file(&[r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}"#.into()], 1)),
        bytes(
            "offset of 1e400",
            NAMED,
            file(&[r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1e400]}"#.into()], 1),
        ),
        bytes("shape that overflows to 0", A, one("a", "U8", "[4294967296,4294967296]", 0)),
        bytes("shape that overflows to its size", A, one("a", "U8", "[4294967297,4294967297]", 1)),
        bytes("shape that overflows in bytes", A, one("a", "F32", "[4611686018427387905]", 4)),
        bytes("shape that overflows before a 0", A, one("a", "U8", "[4294967296,4294967296,0]", 0)),
        bytes("negative shape", NAMED, one("a", "U8", "[-1,-1]", 1)),
        bytes("fractional shape", NAMED, one("a", "U8", "[1.5]", 1)),
        bytes("size against range", A, one("a", "F32", "[2]", 4)),
        bytes("data where the shape says none", A, one("a", "F32", "[0,7]", 4)),
        bytes("element type of 4 bits", A, one("a", "F4", "[8]", 4)),
        bytes("element type unknown, 1 MB long", A, one("a", &"x".repeat(1 << 20), "[1]", 1)),
        bytes("rank 9", A, one("a", "U8", "[1,1,1,1,1,1,1,1,1]", 1)),
        bytes("rank 100,000", A, one("a", "U8", &format!("[{}1]", "1,".repeat(99_999)), 1)),
        bytes("bytes after the data", NAMED, file(&[a(0, 4)], 5)),
        bytes("name of 1 MB", NAMED, one(&"x".repeat(1 << 20), "U8", "[1]", 1)),
        bytes("name with a line break", NAMED, one("a\\nerror: b", "U8", "[1]", 1)),
        bytes("name with an escape sequence", NAMED, one("a\\u001b]0;title\\u0007", "U8", "[1]", 1)),
        bytes("name with C1 control characters", NAMED, one("a\\u009b31m", "U8", "[1]", 1)),
        bytes("no name", NAMED, one("", "U8", "[1]", 1)),
        bytes(
            "100,000 empty tensors",
            NAMED,
            file(&(0..100_000).map(|i| entry(&format!("t{i}"), "F32", "[0]", 0, 0)).collect::<Vec<_>>(), 0),
        ),
        bytes(
            "32,000 empty tensors of layers",
            Fail(&["/model"]),
            file(
                &(0..32_000)
                    .map(|i| entry(&format!("model.layers.{}.mlp.t{i}", i % 8), "F32", "[0]", 0, 0))
                    .collect::<Vec<_>>(),
                0,
            ),
        ),
        bytes("another model's tensors", Fail(&["/model", "a"]), file(&[a(0, 4)], 4)),
        bytes("no tensors", Fail(&["/model"]), container("{}", &[])),
    ];
    cases.extend((1..8).map(|length| bytes(&format!("{length} bytes"), NAMED, vec![1; length])));
    run("leanllama", INFO_AND_GENERATE, cases);
}

#[test]
fn cut_files() {
    let cut = |sixteenth: usize| {
        case(format!("cut at {sixteenth}/16"), NAMED, move |place| {
            let whole = place.read(FILE);
            place.write(FILE, &whole[..whole.len() * sixteenth / 16]);
        })
    };
    run("crest_k4", INFO_AND_GENERATE, (0..16).map(cut).collect());
    let shard = case("a shard cut by one byte", Fail(&[" model-00002-of-00003.safetensors"]), |place| {
        let whole = place.read("model-00002-of-00003.safetensors");
        place.write("model-00002-of-00003.safetensors", &whole[..whole.len() - 1]);
    });
    run("crest_k2", INFO_AND_GENERATE, vec![shard]);
}

/// Tensors that are in order as such, but not those of the model.
#[test]
fn tensors_of_the_wrong_kind() {
    const NORM: &str = "model.layers.0.input_layernorm.weight";
    const MATRIX: &str = "model.layers.0.self_attn.q_proj.weight";
    let put = |name: &str, at: &'static str, tensor: Tensor| {
        let change = move |place: &Place| {
            place.tensors(|tensors| {
                tensors.insert(at.into(), tensor.clone());
            });
        };
        case(name, if at == NORM { Fail(&["/model", NORM]) } else { Fail(&["/model", MATRIX]) }, change)
    };
    let tensor = |dtype: &str, shape: &[usize], bytes: usize| Tensor(dtype.into(), shape.into(), vec![0; bytes]);
    let cases = vec![
        put("a norm without numbers", NORM, tensor("F16", &[0], 0)),
        put("a norm of rank 0", NORM, tensor("F16", &[], 2)),
        put("a norm of rank 8", NORM, tensor("F16", &[1, 1, 1, 1, 1, 1, 1, 64], 128)),
        put("a norm that is longer", NORM, tensor("F16", &[65], 130)),
        put("a norm of booleans", NORM, tensor("BOOL", &[64], 64)),
        put("a norm of I64", NORM, tensor("I64", &[64], 512)),
        put("a matrix without rows", MATRIX, tensor("F16", &[0, 64], 0)),
        put("a matrix without columns", MATRIX, tensor("F16", &[64, 0], 0)),
        put("a matrix of rank 1", MATRIX, tensor("F16", &[4096], 8192)),
        put("a matrix of rank 8", MATRIX, tensor("F16", &[1, 1, 1, 1, 1, 1, 64, 64], 8192)),
        put("a matrix on its side", MATRIX, tensor("F16", &[32, 128], 8192)),
        put("a matrix of F8", MATRIX, tensor("F8_E4M3", &[64, 64], 4096)),
        put("a matrix of U8", MATRIX, tensor("U8", &[64, 64], 4096)),
        put("a matrix of F64", MATRIX, tensor("F64", &[64, 64], 32_768)),
        case("layer 4,294,967,296", Fail(&["/model"]), |place| {
            place.tensors(|tensors| {
                let norm = tensors[NORM].clone();
                tensors.insert("model.layers.4294967296.input_layernorm.weight".into(), norm);
            });
        }),
        case("layer 99999999999999999999", Fail(&["/model"]), |place| {
            place.tensors(|tensors| {
                let norm = tensors[NORM].clone();
                tensors.insert("model.layers.99999999999999999999.input_layernorm.weight".into(), norm);
            });
        }),
        case("layer 2 missing", Fail(&["/model", "model.layers.2."]), |place| {
            place.tensors(|tensors| tensors.retain(|name, _| !name.starts_with("model.layers.2.")));
        }),
    ];
    run("leanllama", INFO_AND_GENERATE, cases);
}

/// Other formats are named and not opened: a pipe in their place would be waited for.
#[test]
fn other_formats() {
    let cases = ["pytorch_model.bin", "model.pt", "model.pth", "model.gguf", "model.ckpt", "tf_model.h5", "model.onnx"]
        .into_iter()
        .map(|name| {
            case(name, Fail(&["/model", "safetensors"]), move |place| {
                place.remove(FILE);
                let pipe = std::process::Command::new("mkfifo").arg(place.path(name)).status().expect("mkfifo");
                assert!(pipe.success());
            })
        });
    run("leanllama", INFO_AND_GENERATE, cases.collect());
    for name in ["x.bin", "x.pt", "x.gguf", "x.zip", "x", "x.safetensors.bin"] {
        let place = Place::with("leanllama");
        place.write(name, [0x80, 2, b'c']);
        let path = place.path(name);
        for command in INFO_AND_GENERATE {
            let args = [command, &["-m", path.to_str().expect("UTF-8")][..]].concat();
            let must = Fail(&["/x", "not supported", ".safetensors"]);
            check(&place, &super::limits::Run::new(args), must).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

/// Bytes of the header and the data changed at random: any outcome but a crash.
#[test]
fn random_damage() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % below
    };
    for fixture in ["nano_compact", "leanllama_nf4", "crest_k4_nf4", "leanllama_kv"] {
        let mut cases = Vec::new();
        for round in 0..12 {
            let picks: Vec<(usize, usize)> = (0..=random(6)).map(|_| (random(usize::MAX >> 34), random(256))).collect();
            cases.push(case(format!("{fixture}, round {round}"), WorkOrFail(&[]), move |place| {
                let mut bytes = place.read(FILE);
                let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize + 8;
                for &(at, byte) in &picks {
                    let at = at % if round % 3 == 0 { bytes.len() } else { header };
                    // Mostly characters that keep the JSON valid.
                    bytes[at] = if bytes[at].is_ascii_digit() { b'0' + (byte % 10) as u8 } else { byte as u8 };
                }
                place.write(FILE, bytes);
            }));
        }
        run(fixture, &[GENERATE], cases);
    }
}
