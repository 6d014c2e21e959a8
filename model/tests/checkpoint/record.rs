//! Records of burn-store as checkpoints, and what is said of damaged ones.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::support::{Copy, fixture};
use ciborium::Value;
use emberlm_model::checkpoint::Checkpoint;
use emberlm_model::export::{ExportContainer, ExportOptions, MatrixFormat};
use emberlm_model::{Error, Pretrained};
use emberlm_quant::host::FloatType;

/// A tensor of a record: its field, type, shape and range.
type Described = (&'static str, Value, Vec<u64>, (u64, u64));

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn f32() -> Value {
    text("F32")
}

/// The bytes of a record with these tensors and so many bytes of data.
fn record(tensors: &[Described], data: usize) -> Vec<u8> {
    let integers = |numbers: &[u64]| Value::Array(numbers.iter().map(|&number| number.into()).collect());
    let entries = tensors.iter().map(|(name, dtype, shape, (start, end))| {
        let entry = vec![
            (text("dtype"), dtype.clone()),
            (text("shape"), integers(shape)),
            (text("data_offsets"), integers(&[*start, *end])),
            (text("param_id"), 7.into()),
        ];
        (text(name), Value::Map(entry))
    });
    let map =
        Value::Map(vec![(text("tensors"), Value::Map(entries.collect())), (text("metadata"), Value::Map(vec![]))]);
    let mut bytes = Vec::new();
    ciborium::into_writer(&map, &mut bytes).unwrap();
    let mut out = b"NRUB\x01\x00".to_vec();
    out.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(256), 0);
    out.resize(out.len() + data, 0);
    out
}

/// A directory with a model as a record.
fn model() -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let to = scratch.path().join("model");
    let options = ExportOptions {
        dense: Some(FloatType::Bf16),
        container: ExportContainer::Burnpack,
        ..ExportOptions::default()
    };
    let source = Pretrained::open(fixture("leanllama_kv")).unwrap();
    source.export(&options, |_| MatrixFormat::Dense(FloatType::Bf16)).unwrap().write(&to, &mut |_| ()).unwrap();
    (scratch, to)
}

/// Opens without a panic.
fn open(file: &Path) -> Result<Checkpoint, Error> {
    catch_unwind(AssertUnwindSafe(|| Checkpoint::open(file))).expect("no panic")
}

#[test]
fn what_is_wrong_with_a_record_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("model.bpk");
    let good: [Described; 2] = [("a.weight.Float", f32(), vec![2, 4], (0, 32)), ("b.bias", f32(), vec![3], (256, 268))];
    fs::write(&file, record(&good, 268)).unwrap();
    let checkpoint = open(&file).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a.weight", "b.bias"]);
    assert_eq!(checkpoint.info("a.weight").unwrap().shape, [2, 4]);

    let changed = |change: &dyn Fn(&mut Vec<Described>)| {
        let mut tensors = good.to_vec();
        change(&mut tensors);
        record(&tensors, 268)
    };
    let with = |at: usize, byte: u8| {
        let mut bytes = record(&good, 268);
        bytes[at] = byte;
        bytes
    };
    let quantised = Value::Map(vec![(text("QFloat"), Value::Map(vec![]))]);
    let cases = [
        ("version 2", with(4, 2)),
        ("claims a map of", with(9, 0xff)),
        ("but only", with(7, 0x20)),
        ("cannot be read", with(10, 0xff)),
        ("cut off", record(&good, 268)[..9].to_vec()),
        ("are not in the", record(&good, 200)),
        ("belong to none", record(&good, 300)),
        ("overlaps", changed(&|t| t[1].3 = (16, 28))),
        ("gap", record(&[good[0].clone(), ("b.bias", f32(), vec![3], (512, 524))], 524)),
        ("takes 32 bytes", changed(&|t| t[0].3 = (0, 28))),
        ("too large", changed(&|t| t[0].2 = vec![1 << 40, 1 << 40])),
        ("is unknown", changed(&|t| t[0].1 = text("F7"))),
        ("cannot be read", changed(&|t| t[0].1 = quantised.clone())),
        ("there twice", changed(&|t| t[1].0 = "a.weight.Float")),
        ("same parameter", changed(&|t| t[1].0 = "a.weight")),
        ("packed weight (Half)", changed(&|t| t[1].0 = "b.weight.Half.words")),
        ("control characters", changed(&|t| t[1].0 = "b\u{1b}[0m")),
    ];
    for (part, bytes) in cases {
        fs::write(&file, bytes).unwrap();
        let error = open(&file).expect_err(part).to_string();
        assert!(error.contains(part) && error.contains("model.bpk"), "{part}: {error}");
    }
}

#[test]
fn damage_of_any_kind_is_an_error_or_harmless() {
    let (_scratch, folder) = model();
    let file = folder.join("model.bpk");
    let good = fs::read(&file).unwrap();
    let header = 10 + u32::from_le_bytes(good[6..10].try_into().unwrap()) as usize;
    for length in (0..header).step_by(97).chain([header, header + 1, good.len() - 1]) {
        fs::write(&file, &good[..length]).unwrap();
        let error = open(&folder).expect_err("cut off").to_string();
        assert!(error.contains("model.bpk"), "{length}: {error}");
    }
    let mut state = 1u32;
    let mut random = |n: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % n
    };
    let mut refused = 0;
    for _ in 0..500 {
        let mut bytes = good.clone();
        for _ in 0..=random(3) {
            bytes[random(header)] = random(256) as u8;
        }
        fs::write(&file, bytes).unwrap();
        refused += usize::from(open(&folder).is_err());
    }
    assert!(refused > 250, "{refused}");
    fs::write(&file, good).unwrap();
    Pretrained::open(&folder).unwrap();
}

/// A record beside a safetensors file is not looked at; alone it is found in the directory, in its only subfolder, and by its name.
#[test]
fn a_record_is_found() {
    let (scratch, folder) = model();
    let names = |path: &Path| open(path).unwrap().names().map(String::from).collect::<Vec<_>>();
    let expected = names(&folder);
    assert!(expected.contains(&"model.layers.0.mlp.down_proj.weight".to_owned()), "{expected:?}");
    assert_eq!(names(&folder.join("model.bpk")), expected);
    assert_eq!(names(scratch.path()), expected);
    let both = Copy::of("leanllama_kv");
    fs::write(both.path().join("model.bpk"), "not a record").unwrap();
    both.load().unwrap();
}
