//! Model directories that are written: what they hold, what they compute, and what is left of one that was cut off.

#[path = "../../../../tests/support/files.rs"]
mod files;
mod gates;
mod unfinished;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::support::{Copy, Tensor, Tensors, fails, fixture, read_tensors};
use emberlm_model::checkpoint::Checkpoint;
use emberlm_model::config::{CrestOverrides, Family};
use emberlm_model::export::{CascadeOptions, ExportOptions, MatrixFormat};
use emberlm_model::{PlannedTensor, Pretrained, QuantizeOnLoad, Result, TensorRole};
use emberlm_quant::format::{dequantize, dequantize_to};
use emberlm_quant::host::FloatType;
use emberlm_quant::kv::KvFormat;
use files::files;
use serde_json::{Value, json};

type Cpu = burn_ndarray::NdArray<f32>;

const FIXTURES: [&str; 7] =
    ["crest_k2", "crest_k4", "crest_k4_nf4", "leanllama", "leanllama_kv", "leanllama_nf4", "nano_compact"];
const DENSE: [&str; 4] = ["crest_k2", "crest_k4", "leanllama", "leanllama_kv"];
const IDS: [u32; 12] = [1, 17, 300, 44, 5, 210, 99, 3, 402, 77, 8, 250];

/// A directory that does not exist yet, in one that is removed at the end.
struct Target {
    dir: tempfile::TempDir,
}

impl Target {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn open(path: &Path) -> Pretrained {
    Pretrained::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn layers(format: MatrixFormat) -> impl Fn(&PlannedTensor) -> MatrixFormat {
    move |tensor| if tensor.role == TensorRole::Projection { format } else { MatrixFormat::AsStored }
}

fn all(format: MatrixFormat) -> impl Fn(&PlannedTensor) -> MatrixFormat {
    move |_| format
}

fn export(
    source: &Pretrained,
    to: &Path,
    options: &ExportOptions,
    format: impl Fn(&PlannedTensor) -> MatrixFormat,
) -> Result<()> {
    source.export(options, format)?.write(to, &mut |_| ()).map(|_| ())
}

fn logits(pretrained: &Pretrained) -> Vec<f32> {
    logits_after(&IDS, pretrained)
}

fn logits_after(ids: &[u32], pretrained: &Pretrained) -> Vec<f32> {
    let model = pretrained.load::<Cpu>(&Default::default()).expect("a model");
    let mut cache = model.new_cache(KvFormat::F32);
    model.prefill(ids, &mut cache, 64).expect("logits").into_data().into_vec().expect("numbers")
}

fn config(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path.join("config.json")).expect("a config")).expect("JSON")
}

/// Everything is byte for byte what it was, whatever the storage; tensors that the model does not use are left out.
#[test]
fn what_stays_as_it_is_stored_is_copied() {
    for name in FIXTURES {
        let (source, target) = (open(&fixture(name)), Target::new());
        let plan = source.export(&ExportOptions::default(), all(MatrixFormat::AsStored)).expect(name);
        let to = target.path("copy");
        plan.write(&to, &mut |_| ()).expect(name);
        let (from, copy) = (Checkpoint::open(&fixture(name)).expect(name), Checkpoint::open(&to).expect(name));
        let expected: Vec<&str> = from.names().filter(|name| !plan.left_out().iter().any(|out| out == name)).collect();
        assert_eq!(copy.names().collect::<Vec<_>>(), expected, "{name}");
        for tensor in expected {
            assert_eq!(copy.data(tensor).expect("data"), from.data(tensor).expect("data"), "{name} {tensor}");
        }
        let left_out = if name == "crest_k2" { 2 } else { 0 };
        assert_eq!(plan.left_out().len(), left_out, "{name}: {:?}", plan.left_out());
        assert_eq!(config(&to), config(&fixture(name)), "{name}");
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            assert_eq!(fs::read(to.join(file)).expect(file), fs::read(fixture(name).join(file)).expect(file), "{name}");
        }
        assert!(files(&to).iter().all(|(name, _)| !name.starts_with('.')), "{name}: notes are left behind");
        let written: u64 = files(&to).iter().map(|(_, bytes)| bytes.len() as u64).sum();
        assert!(written.abs_diff(plan.bytes()) < 2048, "{name}: {written} of {}", plan.bytes());
        assert_eq!(logits(&open(&to)), logits(&source), "{name}");
    }
}

/// A folder that was quantised computes, bit for bit, what quantisation at load computes; made dense again, it holds the numbers
/// that its codes stand for.
#[test]
fn quantised_folders_are_what_quantisation_at_load_makes() {
    use QuantizeOnLoad::{Int8, Int8Rows, Nf4, Nf4Double};
    for name in DENSE {
        let (source, target) = (open(&fixture(name)), Target::new());
        for format in [Nf4, Nf4Double, Int8, Int8Rows] {
            let case = format!("{name} {format:?}");
            let folder = target.path(&format!("{format:?}"));
            export(&source, &folder, &ExportOptions::default(), layers(MatrixFormat::Quantized(format))).expect(&case);
            let quantised = open(&folder);
            let at_load = open(&fixture(name)).quantize(format);
            assert_eq!(logits(&quantised), logits(&at_load), "{case}");
            assert_ne!(logits(&quantised), logits(&source), "{case}: is quantised");

            let dense = target.path(&format!("{format:?}-bf16"));
            let options = ExportOptions { dense: Some(FloatType::Bf16), ..ExportOptions::default() };
            export(&quantised, &dense, &options, all(MatrixFormat::Dense(FloatType::Bf16))).expect(&case);
            let dense = open(&dense);
            for matrix in source.weights().canonical_names() {
                let (found, expected) = (dense.weights(), quantised.weights());
                if expected.entry(matrix).is_some_and(|entry| entry.storage.is_quantized()) {
                    let rounded =
                        dequantize_to(&expected.matrix(matrix).expect("codes"), FloatType::Bf16).expect("bf16");
                    assert_eq!(
                        dequantize(&found.matrix(matrix).expect("dense")),
                        dequantize(&rounded),
                        "{case} {matrix}"
                    );
                }
                assert!(!found.entry(matrix).expect("an entry").storage.is_quantized(), "{case} {matrix}");
            }
        }
    }
}

/// Embedding and head too, where they are apart and where they are one.
#[test]
fn heads_are_quantised_as_at_load() {
    for name in ["leanllama", "crest_k4"] {
        for format in [QuantizeOnLoad::Int8, QuantizeOnLoad::Int8Rows, QuantizeOnLoad::Nf4Double] {
            let (source, target) = (open(&fixture(name)), Target::new());
            let folder = target.path("folder");
            let wanted = |tensor: &PlannedTensor| match tensor.role {
                TensorRole::Embedding | TensorRole::Head => MatrixFormat::Quantized(format),
                _ => MatrixFormat::AsStored,
            };
            export(&source, &folder, &ExportOptions::default(), wanted).expect(name);
            assert_eq!(
                logits(&open(&folder)),
                logits(&open(&fixture(name)).quantize_head(format)),
                "{name} {format:?}"
            );
            // Others would read it wrongly.
            assert_eq!(config(&folder)["quantization_config"]["quant_method"], "emberlm", "{name} {format:?}");
        }
    }
}

/// Quantised checkpoints of every family become dense ones that compute the same in the type that holds their numbers.
#[test]
fn every_fixture_becomes_dense() {
    for name in FIXTURES {
        let (source, target) = (open(&fixture(name)), Target::new());
        let options = ExportOptions { dense: Some(FloatType::F32), ..ExportOptions::default() };
        let folder = target.path("f32");
        export(&source, &folder, &options, all(MatrixFormat::Dense(FloatType::F32))).expect(name);
        let dense = open(&folder);
        for parameter in dense.weights().canonical_names() {
            let found = dense.weights().vector(parameter).expect("numbers");
            assert_eq!(found, source.weights().vector(parameter).expect("numbers"), "{name} {parameter}");
        }
        let config = config(&folder);
        assert!(config.get("quantization_config").is_none() && config.get("nanollm_modules").is_none(), "{name}");
        let close = logits(&dense).into_iter().zip(logits(&source)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(close < 1e-3, "{name}: {close}");
    }
}

/// What the config must say so that the programs that know a format read it, and those that do not refuse.
#[test]
fn configs_say_who_reads_the_format() {
    let (source, target) = (open(&fixture("leanllama")), Target::new());
    let nf4 = MatrixFormat::Quantized(QuantizeOnLoad::Nf4);
    let int8 = MatrixFormat::Quantized(QuantizeOnLoad::Int8);
    let down = |tensor: &PlannedTensor| tensor.name.ends_with("down_proj.weight");
    let write = |name: &str, format: &dyn Fn(&PlannedTensor) -> MatrixFormat| {
        let folder = target.path(name);
        export(&source, &folder, &ExportOptions::default(), format).expect(name);
        config(&folder)["quantization_config"].clone()
    };
    let plain = write("plain", &layers(nf4));
    assert_eq!((&plain["quant_method"], &plain["bnb_4bit_quant_type"]), (&json!("bitsandbytes"), &json!("nf4")));
    let skipped: Vec<&str> =
        plain["llm_int8_skip_modules"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(
        skipped.contains(&"lm_head") && skipped.iter().any(|path| path.starts_with("model.layers.1.self_attn.")),
        "{skipped:?}"
    );
    let partly = write("partly", &|tensor| if down(tensor) { MatrixFormat::AsStored } else { layers(nf4)(tensor) });
    assert!(partly["llm_int8_skip_modules"].to_string().contains("model.layers.2.mlp.down_proj"), "{partly}");
    let groups = write("groups", &layers(int8));
    assert_eq!(groups["config_groups"]["group_0"]["format"], "int-quantized");
    assert_eq!((&groups["quant_method"], &groups["format"]), (&json!("compressed-tensors"), &json!("int-quantized")));
    let mixed = write("mixed", &|tensor| if down(tensor) { int8 } else { layers(nf4)(tensor) });
    assert_eq!(mixed, json!({ "quant_method": "emberlm", "formats": ["int8", "nf4"] }));
    for folder in ["plain", "partly", "groups", "mixed"] {
        assert!(logits(&open(&target.path(folder))).iter().all(|x| x.is_finite()), "{folder}");
    }
    // Rows of 96 are no groups of 64.
    let (source, uneven) = (open(&fixture("leanllama_kv")), target.path("uneven"));
    export(&source, &uneven, &ExportOptions::default(), layers(int8)).expect("uneven");
    assert_eq!(config(&uneven)["quantization_config"]["quant_method"], "emberlm");
}

fn small_shards() -> ExportOptions {
    ExportOptions { shard_bytes: 40_000, ..ExportOptions::default() }
}

/// A run that was cut off in the middle leaves nothing at the name, and the next one goes on to the same bytes.
#[test]
fn a_run_that_was_cut_off_goes_on() {
    let (source, target) = (open(&fixture("crest_k4")), Target::new());
    let nf4 = MatrixFormat::Quantized(QuantizeOnLoad::Nf4Double);
    let plan = source.export(&small_shards(), layers(nf4)).expect("a plan");
    assert!(plan.shard_count() > 3, "{}", plan.shard_count());
    let whole = target.path("whole");
    plan.write(&whole, &mut |_| ()).expect("written");
    let expected = files(&whole);
    assert_eq!(logits(&open(&whole)), logits(&open(&fixture("crest_k4")).quantize(QuantizeOnLoad::Nf4Double)));

    let items = std::cell::Cell::new(0);
    plan.write(&target.path("counted"), &mut |_| items.set(items.get() + 1)).expect("written");
    for stop in [1, items.get() / 3, items.get() / 2, items.get() - 1] {
        let folder = target.path(&format!("cut-{stop}"));
        let mut left = stop;
        let cut = catch_unwind(AssertUnwindSafe(|| {
            plan.write(&folder, &mut |_| {
                left -= 1;
                assert!(left > 0, "cut off");
            })
        }));
        assert!(cut.is_err() && !folder.exists(), "{stop}");
        let partial = target.path(&format!("cut-{stop}.partial"));
        assert!(Pretrained::open(&partial).is_err(), "{stop}: half of a model loads");
        let written = plan.write(&folder, &mut |_| ()).expect("goes on");
        assert_eq!(written.resumed > 0, stop > items.get() / 3 - 1, "{stop}: {}", written.resumed);
        assert!(!partial.exists(), "{stop}");
        assert_eq!(files(&folder), expected, "{stop}");
    }
}

/// Nothing is overwritten, and nothing goes on that is not the same work.
#[test]
fn other_directories_are_refused() {
    let (source, target) = (open(&fixture("leanllama")), Target::new());
    let nf4 = MatrixFormat::Quantized(QuantizeOnLoad::Nf4);
    let plan = source.export(&small_shards(), layers(nf4)).expect("a plan");
    let write = |to: &Path| plan.write(to, &mut |_| ()).map(|_| ());

    let full = target.path("full");
    fs::create_dir(&full).expect("made");
    fs::write(full.join("model.safetensors"), b"precious").expect("written");
    fails("a full directory", "is not empty: nothing is overwritten", || write(&full));
    assert_eq!(files(&full), [("model.safetensors".to_owned(), b"precious".to_vec())]);
    fs::write(target.path("file"), b"precious").expect("written");
    fails("a file", "is not a directory", || write(&target.path("file")));
    fails("no name", "is not the name of a new directory", || write(&target.path("x/..")));
    fails("the source itself", "is not empty", || write(&fixture("leanllama")));

    fs::create_dir(target.path("empty")).expect("made");
    write(&target.path("empty")).expect("an empty directory will do");
    write(&target.path("a/b/c")).expect("directories above are made");

    let foreign = target.path("foreign.partial");
    fs::create_dir(&foreign).expect("made");
    fs::write(foreign.join("model-00001-of-00004.safetensors"), b"precious").expect("written");
    fails("files of another origin", "not the unfinished output", || write(&target.path("foreign")));

    // Cut off, then other options.
    let cut = target.path("cut");
    assert!(catch_unwind(AssertUnwindSafe(|| plan.write(&cut, &mut |_| panic!("cut off")))).is_err());
    let other = source.export(&small_shards(), layers(MatrixFormat::Quantized(QuantizeOnLoad::Int8))).expect("a plan");
    fails("other options", "is the unfinished output of other work", || other.write(&cut, &mut |_| ()));
    let larger = source.export(&ExportOptions::default(), layers(nf4)).expect("a plan");
    fails("other shards", "is the unfinished output of other work", || larger.write(&cut, &mut |_| ()));
    write(&cut).expect("the same work goes on");

    let partial = target.path("damaged.partial");
    fs::create_dir(&partial).expect("made");
    fs::write(partial.join(".ember-unfinished.json"), b"{}").expect("written");
    fails("a damaged note", "delete the directory", || write(&target.path("damaged")));
}

/// Numbers that cannot be converted are named; nothing is left at the name.
#[test]
fn numbers_out_of_range_are_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let spoilt = |bits: u16| {
        let copy = Copy::of("leanllama");
        copy.change_tensors(|tensors| {
            let data = &mut tensors.get_mut(name).expect("a matrix").2;
            data[2 * (3 * 64 + 5)..][..2].copy_from_slice(&bits.to_le_bytes());
        });
        copy
    };
    let target = Target::new();
    for (at, (bits, value)) in [(0x7e00, "NaN"), (0x7c00, "inf")].into_iter().enumerate() {
        let copy = spoilt(bits);
        let source = open(copy.path());
        for format in [QuantizeOnLoad::Nf4, QuantizeOnLoad::Int8, QuantizeOnLoad::Int8Rows] {
            let to = target.path(&format!("{at}{format:?}"));
            let error = fails(value, "element 197 is not a finite number", || {
                export(&source, &to, &ExportOptions::default(), layers(MatrixFormat::Quantized(format)))
            });
            assert!(error.to_string().contains(name) && !to.exists(), "{error}");
        }
    }
    // Beyond F16: BF16 reaches further.
    let copy = Copy::of("crest_k4");
    let name = "model.layers.0.mlp.steps.1.up_proj.weight";
    copy.change_tensors(|tensors| {
        let data = &mut tensors.get_mut(name).expect("a matrix").2;
        data[2 * (7 * 64 + 9)..][..2].copy_from_slice(&half::bf16::from_f32(-1e5).to_le_bytes());
    });
    let options = ExportOptions { dense: Some(FloatType::F16), ..ExportOptions::default() };
    let to = target.path("f16");
    let error = fails("beyond F16", "row 7, column 9 is -99840, beyond the numbers of f16", || {
        export(&open(copy.path()), &to, &options, all(MatrixFormat::Dense(FloatType::F16)))
    });
    assert!(error.to_string().contains(name) && !to.exists(), "{error}");
}

/// int8 of other makers, or damaged.
#[test]
fn damaged_int8_is_refused() {
    let (source, target) = (open(&fixture("leanllama")), Target::new());
    let folder = target.path("int8");
    export(&source, &folder, &ExportOptions::default(), layers(MatrixFormat::Quantized(QuantizeOnLoad::Int8)))
        .expect("int8");
    let name = "model.layers.1.mlp.down_proj.weight";
    let scale = format!("{name}_scale");
    let weights = folder.join("model.safetensors");
    let good = read_tensors(&weights);
    let stated = config(&folder);
    let broken = |case: &str, word: &str, change: &dyn Fn(&mut Tensors, &mut Value)| {
        let (mut tensors, mut config) = (good.clone(), stated.clone());
        change(&mut tensors, &mut config);
        crate::support::write_tensors(&weights, &tensors);
        fs::write(folder.join("config.json"), config.to_string()).expect("written");
        fails(case, word, || crate::support::load(&folder));
    };
    broken("no scales", "belongs to no quantised tensor", &|tensors, _| drop(tensors.remove(&scale)));
    broken("one scale too few", "one scale per 64 elements", &|tensors, _| {
        let tensor = tensors.get_mut(&scale).expect("scales");
        tensor.1[0] -= 1;
        tensor.2.truncate(tensor.2.len() - 4);
    });
    broken("scales per row", "one scale per 64 elements", &|tensors, _| {
        let tensor = tensors.get_mut(&scale).expect("scales");
        *tensor = Tensor("F16".into(), vec![64, 1], tensor.2[..128].to_vec());
    });
    broken("NaN", "is not a finite number", &|tensors, _| {
        tensors.get_mut(&scale).expect("scales").2[6..8].copy_from_slice(&0x7e00u16.to_le_bytes());
    });
    broken("packed", "only int-quantized", &|_, config| {
        config["quantization_config"]["format"] = json!("pack-quantized")
    });
    broken("asymmetric", "only symmetric groups", &|_, config| {
        config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = json!(false);
    });
    broken("activations", "only weights are", &|_, config| {
        config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = json!({ "num_bits": 8 });
    });
}

/// The cascade keeps its promise, its formats are those that are written, and a bound that nothing keeps changes nothing.
#[test]
fn rows_are_as_narrow_as_the_answers_allow() {
    let prompts = vec![IDS.to_vec(), vec![7, 7, 300], vec![100]];
    let modules = |tensor: &PlannedTensor| tensor.role == TensorRole::Projection && tensor.name.contains(".mlp.");
    for name in ["leanllama", "crest_k2"] {
        let (source, target) = (open(&fixture(name)), Target::new());
        for min_cosine in [0.98, 0.9999] {
            let options = CascadeOptions { min_cosine, bits: vec![2, 4, 6], ..CascadeOptions::default() };
            let chosen = source
                .choose_rows::<Cpu>(&Default::default(), &prompts, &options, |_| false, modules, &mut |_, _| ())
                .expect(name);
            // What may be lost is spread over the modules.
            for (i, module) in chosen.iter().enumerate() {
                let share = (i + 1) as f64 / chosen.len() as f64;
                assert!(
                    module.cosine >= 1.0 - (1.0 - min_cosine) * share && module.tried > 0,
                    "{name} {i}: {chosen:?}"
                );
            }
            let narrow =
                |module: &emberlm_model::export::CascadeModule| matches!(module.format, MatrixFormat::MixedRows { .. });
            assert!(chosen.iter().any(narrow), "{name} {min_cosine}: {chosen:?}");
            let format = |tensor: &PlannedTensor| {
                let module = chosen.iter().find(|module| module.name == tensor.name);
                module.map_or(MatrixFormat::AsStored, |module| module.format)
            };
            let folder = target.path(&format!("{min_cosine}"));
            export(&source, &folder, &ExportOptions::default(), format).expect(name);
            let written = open(&folder);
            // The model at the end of the cascade is the one that is written, and no prompt is worse off than is said.
            let product =
                |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let cosine = |ids: &Vec<u32>| {
                let (a, b) = (logits_after(ids, &source), logits_after(ids, &written));
                product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
            };
            let cosines: Vec<f64> = prompts.iter().map(cosine).collect();
            let (least, kept) = (cosines.iter().copied().fold(1.0, f64::min), chosen.last().expect("modules").cosine);
            assert!(least >= min_cosine && least < 0.999_999_9, "{name}: {cosines:?}");
            assert!((kept - least).abs() < 1e-6, "{name}: {kept} is said to be the least of {cosines:?}");
        }
    }
    let source = open(&fixture("leanllama"));
    let exact = CascadeOptions { min_cosine: 1.0, ..CascadeOptions::default() };
    let chosen = source.choose_rows::<Cpu>(&Default::default(), &prompts, &exact, |_| false, modules, &mut |_, _| ());
    assert!(chosen.expect("a choice").iter().all(|module| module.format == MatrixFormat::AsStored));
    // Where anything is good enough, the smallest is taken.
    let any = CascadeOptions { min_cosine: 0.0, ..CascadeOptions::default() };
    let one = |tensor: &PlannedTensor| tensor.name == "model.layers.2.mlp.up_proj.weight";
    let chosen = source.choose_rows::<Cpu>(&Default::default(), &prompts, &any, |_| false, one, &mut |_, _| ());
    let formats: Vec<MatrixFormat> = chosen.expect("a choice").iter().map(|module| module.format).collect();
    assert_eq!(formats, [MatrixFormat::MixedRows { bits: 2, keep: 0 }]);
    let choose = |options: CascadeOptions, prompts: &[Vec<u32>]| {
        source.choose_rows::<Cpu>(&Default::default(), prompts, &options, |_| false, modules, &mut |_, _| ())
    };
    fails("bits", "expected 2, 4, 6 or 8", || choose(CascadeOptions { bits: vec![3], ..exact.clone() }, &prompts));
    fails("cosine", "from 0 to 1", || choose(CascadeOptions { min_cosine: 1.5, ..exact.clone() }, &prompts));
    fails("no prompts", "are none", || choose(exact.clone(), &[]));
}

/// A model in memory, however its weights are held, becomes a directory that loads again and computes the same.
#[test]
fn a_loaded_model_is_saved_as_it_is() {
    use QuantizeOnLoad::{Int8, Int8Rows, Nf4, Nf4Double};
    for name in FIXTURES {
        for (at, format) in [None, Some(Nf4), Some(Nf4Double), Some(Int8), Some(Int8Rows)].into_iter().enumerate() {
            let (mut source, target) = (open(&fixture(name)), Target::new());
            if let Some(format) = format {
                source = source.quantize(format).quantize_head(format);
            }
            let model = source.load::<Cpu>(&Default::default()).expect(name);
            let to = target.path("saved");
            model.save(&to).unwrap_or_else(|error| panic!("{name} {format:?}: {error}"));
            let saved = open(&to);
            assert_eq!(logits(&saved), logits(&source), "{name} {format:?}");
            assert_eq!(saved.architecture().crest, source.architecture().crest, "{name} {format:?}");
            assert_eq!(config(&to)["tie_word_embeddings"], json!(source.architecture().tied_head), "{name} {format:?}");
            for matrix in saved.weights().canonical_names() {
                let storage = saved.weights().entry(matrix).expect("an entry").storage;
                let before = source.weights().entry(matrix).expect("the same names").storage;
                assert!(
                    format.is_some() || !before.is_quantized() || storage == before,
                    "{name} {at} {matrix}: {storage}"
                );
            }
            fails("a second time", "is not empty", || model.save(&to));
        }
    }
    let fewer = CrestOverrides { num_steps: Some(2), halt_threshold: Some(0.4), ..CrestOverrides::default() };
    let (source, target) = (open(&fixture("crest_k4")).depth(&fewer).expect("two steps"), Target::new());
    source.load::<Cpu>(&Default::default()).expect("a model").save(target.path("two")).expect("saved");
    let saved = open(&target.path("two"));
    assert_eq!(saved.architecture().crest, source.architecture().crest);
    assert_eq!(logits(&saved), logits(&source));
}

/// Nano compact becomes the Qwen2 that it was made of, and Qwen2 becomes Nano compact in the author's layout.
#[test]
fn nano_compact_is_made_of_qwen2() {
    let (source, target) = (open(&fixture("nano_compact")), Target::new());
    let (qwen, nano) = (target.path("qwen2"), target.path("nano"));
    let options = ExportOptions { dense: Some(FloatType::F16), ..ExportOptions::default() };
    export(&source, &qwen, &options, all(MatrixFormat::Dense(FloatType::F16))).expect("dense");
    let dense = open(&qwen);
    assert_eq!(dense.architecture().config.family, Family::Qwen2);
    assert_eq!(config(&qwen)["architectures"], json!(["Qwen2ForCausalLM"]));
    assert!(!qwen.join("nano_compact_spec.json").exists());

    let rows = MatrixFormat::Quantized(QuantizeOnLoad::Int8Rows);
    let format = |tensor: &PlannedTensor| match tensor.name.as_str() {
        name if name.contains("up_proj") => MatrixFormat::MixedRows { bits: 2, keep: 100 },
        name if name.contains("down_proj") => MatrixFormat::MixedRows { bits: 4, keep: 16 },
        name if name.contains("gate_proj") => MatrixFormat::MixedRows { bits: 6, keep: 5 },
        name if name.contains("o_proj") || tensor.role == TensorRole::Embedding => rows,
        _ => MatrixFormat::AsStored,
    };
    export(&dense, &nano, &ExportOptions::default(), format).expect("rows");
    let written = open(&nano);
    assert_eq!(written.architecture().config.family, Family::NanoCompact);
    let (config, spec) = (config(&nano), fs::read(nano.join("nano_compact_spec.json")).expect("a spec"));
    let spec: Value = serde_json::from_slice(&spec).expect("JSON");
    assert_eq!(config["architectures"], json!(["NanoQwenForCausalLM"]));
    assert_eq!(config["nanollm_modules"], spec["nanollm_modules"]);
    assert_eq!(config["nanollm_modules"].as_object().map(serde_json::Map::len), Some(1 + 4 * 4));
    assert_eq!(config["nanollm_modules"]["model.layers.3.mlp.down_proj"]["deg_rows"], 48);
    assert_eq!(config["nanollm_modules"]["model.embed_tokens"]["kind"], "embedding");
    assert_eq!(config["nanollm_modules"]["model.layers.3.self_attn.o_proj"]["kind"], "int8_linear");
    assert!(config.get("quantization_config").is_none());
    let storage = |name: &str| written.weights().entry(name).expect("an entry").storage.to_string();
    let found = ["up_proj", "down_proj", "gate_proj"].map(|leaf| storage(&format!("model.layers.1.mlp.{leaf}.weight")));
    assert_eq!(found, ["int8+int2", "int8+int4", "int8-rows"]);
    assert!(logits(&written).iter().all(|x| x.is_finite()));
}
