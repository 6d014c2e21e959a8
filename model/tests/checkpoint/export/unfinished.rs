//! What a directory holds until it is complete, who may write it, and what is left after an error.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Barrier;

use emberlm_model::checkpoint::OpenOptions;
use emberlm_model::export::{ExportOptions, MatrixFormat};
use emberlm_model::verify::{Check, VerifyOptions, verify};
use emberlm_model::{Pretrained, QuantizeOnLoad};
use emberlm_quant::host::FloatType;
use half::{bf16, f16};
use serde_json::Value;

use super::files::files;
use super::{Target, all, layers, open, small_shards};
use crate::support::{Copy, Tensor, fails, fixture};

const NOTE: &str = ".ember-unfinished.json";

fn names(path: &Path) -> Vec<String> {
    files(path).into_iter().map(|(name, _)| name).collect()
}

/// The sum of what is in the files, not of what was reserved for them, also where some were there before.
#[test]
fn an_index_states_what_was_written() {
    let quantised = [QuantizeOnLoad::Nf4, QuantizeOnLoad::Nf4Double, QuantizeOnLoad::Int8, QuantizeOnLoad::Int8Rows];
    let mut formats: Vec<MatrixFormat> = quantised.map(MatrixFormat::Quantized).into();
    formats.extend([MatrixFormat::AsStored, MatrixFormat::MixedRows { bits: 4, keep: 8 }]);
    for name in ["leanllama", "crest_k2", "leanllama_nf4"] {
        let source = open(&fixture(name));
        for format in &formats {
            for cut in [false, true] {
                let (target, case) = (Target::new(), format!("{name} {format:?} {cut}"));
                let to = target.path("sharded");
                let plan = source.export(&small_shards(), layers(*format)).expect(&case);
                assert!(plan.shard_count() > 2, "{case}");
                if cut {
                    let mut left = 30;
                    let cut = AssertUnwindSafe(|| {
                        plan.write(&to, &mut |_| {
                            left -= 1;
                            assert!(left > 0, "cut off");
                        })
                    });
                    assert!(catch_unwind(cut).is_err(), "{case}");
                }
                let written = plan.write(&to, &mut |_| ()).expect(&case);
                assert_eq!(written.resumed > 0, cut, "{case}");
                let index = fs::read(to.join("model.safetensors.index.json")).expect("an index");
                let index: Value = serde_json::from_slice(&index).expect("JSON");
                let total = open(&to).weights().checkpoint().total_bytes() as u64;
                assert_eq!(index["metadata"]["total_size"].as_u64(), Some(total), "{case}");
                assert_eq!(written.data_bytes, total, "{case}");
                let verified = verify(&to, OpenOptions::default(), VerifyOptions::default(), &|_| ()).expect(&case);
                let wrong = |check| matches!(check, Check::Index | Check::File);
                let wrong: Vec<_> = verified.findings.iter().filter(|finding| wrong(finding.check)).collect();
                assert!(wrong.is_empty(), "{case}: {wrong:?}");
            }
        }
    }
}

/// Between two runs files lie about: what is no longer whole counts as missing.
#[test]
fn a_finished_file_that_was_damaged_is_written_again() {
    let (source, target) = (open(&fixture("leanllama")), Target::new());
    let plan = source.export(&small_shards(), layers(MatrixFormat::Quantized(QuantizeOnLoad::Int8))).expect("a plan");
    plan.write(&target.path("whole"), &mut |_| ()).expect("written");
    let damages: [fn(&Path); 3] = [
        |path| fs::write(path, fs::read(path).unwrap().split_last().unwrap().1).unwrap(),
        |path| fs::write(path, b"").unwrap(),
        |path| fs::write(path, [fs::read(path).unwrap(), vec![0; 8]].concat()).unwrap(),
    ];
    for (at, damage) in damages.into_iter().enumerate() {
        let to = target.path(&format!("damaged {at}"));
        let mut left = 30;
        let cut = AssertUnwindSafe(|| {
            plan.write(&to, &mut |_| {
                left -= 1;
                assert!(left > 0, "cut off");
            })
        });
        assert!(catch_unwind(cut).is_err());
        let partial = to.with_extension("partial");
        let mut finished: Vec<String> = names(&partial);
        finished.retain(|name| name.ends_with(".safetensors"));
        assert!(finished.len() > 1, "{finished:?}");
        damage(&partial.join(&finished[0]));
        let written = plan.write(&to, &mut |_| ()).expect("written");
        assert_eq!(written.resumed, finished.len() - 1, "damage {at}");
        assert_eq!(files(&to), files(&target.path("whole")), "damage {at}");
    }
}

/// Whichever comes first writes; the other is told so, or that there is something by now.
#[test]
fn of_two_runs_with_one_target_one_writes() {
    let (source, target) = (open(&fixture("leanllama")), Target::new());
    let plan = |format| source.export(&small_shards(), layers(MatrixFormat::Quantized(format))).expect("a plan");
    let plans = [plan(QuantizeOnLoad::Nf4), plan(QuantizeOnLoad::Int8)];
    for round in 0..40 {
        let (to, start) = (target.path(&format!("{round}")), Barrier::new(plans.len()));
        let ended: Vec<Result<(), String>> = std::thread::scope(|scope| {
            let run = |plan| {
                start.wait();
                emberlm_model::export::ExportPlan::write(plan, &to, &mut |_| ()).map(drop).map_err(|e| e.to_string())
            };
            let runs: Vec<_> = plans.iter().map(|plan| scope.spawn(move || run(plan))).collect();
            runs.into_iter().map(|run| run.join().expect("no panic")).collect()
        });
        let refused: Vec<&String> = ended.iter().filter_map(|ended| ended.as_ref().err()).collect();
        assert_eq!(refused.len(), 1, "round {round}: {ended:?}");
        let late = refused[0].contains("nothing is overwritten");
        assert!(late || refused[0].contains("is being written by another process"), "round {round}: {refused:?}");
        assert!(Pretrained::open(&to).is_ok() && !target.path(&format!("{round}.partial")).exists(), "round {round}");
    }
}

/// Whoever is second is told so before the note is read, whatever work it is of.
#[test]
fn a_run_that_is_writing_is_named_to_others() {
    let (source, target) = (open(&fixture("leanllama")), Target::new());
    let plan = |format| source.export(&small_shards(), layers(MatrixFormat::Quantized(format))).expect("a plan");
    let (plan, other, to) = (plan(QuantizeOnLoad::Nf4), plan(QuantizeOnLoad::Int8), target.path("taken"));
    let mut tried = false;
    let mut second = |_| {
        if !std::mem::replace(&mut tried, true) {
            for plan in [&plan, &other] {
                fails("a second run", "is being written by another process", || plan.write(&to, &mut |_| ()));
            }
        }
    };
    plan.write(&to, &mut second).expect("the first goes on");
    assert!(tried && Pretrained::open(&to).is_ok());
}

/// A run that ended before it said what it does is gone on with by any; a directory of others gets no note.
#[test]
fn an_empty_note_is_nobodys() {
    let (source, target) = (open(&fixture("leanllama")), Target::new());
    let nf4 = MatrixFormat::Quantized(QuantizeOnLoad::Nf4);
    let plan = source.export(&small_shards(), layers(nf4)).expect("a plan");
    let partial = target.path("new.partial");
    fs::create_dir(&partial).expect("made");
    fs::write(partial.join(NOTE), b"").expect("written");
    plan.write(&target.path("new"), &mut |_| ()).expect("goes on");
    assert!(!partial.exists() && !names(&target.path("new")).contains(&NOTE.to_owned()));

    let foreign = target.path("foreign.partial");
    fs::create_dir(&foreign).expect("made");
    fs::write(foreign.join("thesis.txt"), b"precious").expect("written");
    for _ in 0..2 {
        let write = || plan.write(&target.path("foreign"), &mut |_| ());
        fails("files of another origin", "not the unfinished output", write);
        assert_eq!(files(&foreign), [("thesis.txt".to_owned(), b"precious".to_vec())]);
    }
}

/// The note is a file: what a link leads to, or a pipe, is not opened.
#[cfg(unix)]
#[test]
fn a_note_is_no_link() {
    let (source, target) = (open(&fixture("leanllama")), Target::new());
    let plan = source.export(&small_shards(), all(MatrixFormat::AsStored)).expect("a plan");
    let partial = target.path("linked.partial");
    fs::create_dir(&partial).expect("made");
    std::os::unix::fs::symlink(target.path("elsewhere"), partial.join(NOTE)).expect("a link");
    fails("a link", "is not the note", || plan.write(&target.path("linked"), &mut |_| ()));
    assert!(!target.path("elsewhere").exists());
}

/// What is copied, and what becomes dense, is tested as it is when a model is loaded.
#[test]
fn numbers_that_are_copied_are_tested_as_those_that_are_loaded() {
    let int8 = MatrixFormat::Quantized(QuantizeOnLoad::Int8);
    for name in ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"] {
        for (bits, at) in [(f16::NAN, 0), (f16::INFINITY, 5)] {
            let copy = Copy::of("leanllama");
            copy.change_tensors(|tensors| spoil(&mut tensors.get_mut(name).expect(name).2, at, bits.to_bits()));
            let to = copy.path().join("int8");
            let source = open(copy.path());
            let write = || source.export(&ExportOptions::default(), layers(int8))?.write(&to, &mut |_| ());
            let error = fails(name, &format!("element {at} is not a finite number"), write).to_string();
            assert!(error.contains(name) && !to.exists() && !copy.path().join("int8.partial").exists(), "{error}");
        }
    }
}

/// Also those that are too large to be tested when they are loaded.
#[test]
fn large_matrices_are_tested_when_they_are_copied() {
    const ROWS: usize = 20_000;
    let copy = Copy::of("leanllama");
    copy.change_config(|config| config["vocab_size"] = ROWS.into());
    let bad = (ROWS - 1) * 64 + 7;
    copy.change_tensors(|tensors| {
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            let tensor = tensors.get_mut(name).expect(name);
            tensor.1[0] = ROWS;
            tensor.2.resize(ROWS * 64 * 2, 0);
        }
        spoil(&mut tensors.get_mut("lm_head.weight").expect("a head").2, bad, f16::NAN.to_bits());
    });
    let source = open(copy.path());
    for dense in [None, Some(FloatType::F32), Some(FloatType::Bf16)] {
        let options = ExportOptions { dense, ..ExportOptions::default() };
        let format = dense.map_or(MatrixFormat::AsStored, MatrixFormat::Dense);
        let write = || source.export(&options, all(format))?.write(&copy.path().join("copy"), &mut |_| ());
        let error = fails("NaN", &format!("element {bad} is not a finite number"), write).to_string();
        assert!(error.contains("lm_head.weight"), "{error}");
    }
}

/// bitsandbytes stores codes under any type (`bnb_4bit_quant_storage`): as numbers of it they mean nothing.
#[test]
fn codes_under_a_type_of_numbers_are_copied_untested() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let copy = Copy::of("leanllama_nf4");
    copy.change_tensors(|tensors| {
        let tensor = tensors.get_mut(name).expect("codes");
        *tensor = Tensor("BF16".into(), vec![tensor.2.len() / 2, 1], std::mem::take(&mut tensor.2));
        spoil(&mut tensor.2, 3, bf16::NAN.to_bits());
    });
    let to = copy.path().join("copy");
    let source = open(copy.path());
    let plan = source.export(&ExportOptions::default(), all(MatrixFormat::AsStored)).expect("a plan");
    plan.write(&to, &mut |_| ()).expect("codes");
    let (from, copied) = (source.weights().checkpoint(), Pretrained::open(&to).expect("a copy"));
    assert_eq!(copied.weights().checkpoint().data(name).expect("codes"), from.data(name).expect("codes"));
}

fn spoil(data: &mut [u8], at: usize, bits: u16) {
    data[2 * at..][..2].copy_from_slice(&bits.to_le_bytes());
}

/// The same command would end in the same error: what it wrote is gone, so that another can have the name. What a run before has finished
/// stays.
#[test]
fn an_error_of_the_source_leaves_the_name_free() {
    let copy = Copy::of("crest_k4");
    copy.change_tensors(|tensors| {
        let data = &mut tensors.get_mut("model.layers.3.mlp.steps.1.up_proj.weight").expect("a matrix").2;
        spoil(data, 7, bf16::from_f32(1e5).to_bits());
    });
    let (source, target) = (open(copy.path()), Target::new());
    let plan = |float| {
        let options = ExportOptions { dense: Some(float), ..small_shards() };
        source.export(&options, all(MatrixFormat::Dense(float))).expect("a plan")
    };
    let (to, partial) = (target.path("big"), target.path("big.partial"));
    let narrow = plan(FloatType::F16);
    let beyond = || fails("beyond F16", "beyond the numbers of f16", || narrow.write(&to, &mut |_| ()));
    beyond();
    assert!(!partial.exists());
    plan(FloatType::Bf16).write(&to, &mut |_| ()).expect("another type");
    fs::remove_dir_all(&to).expect("removed");

    let mut left = 20;
    let cut = catch_unwind(AssertUnwindSafe(|| {
        narrow.write(&to, &mut |_| {
            left -= 1;
            assert!(left > 0, "cut off");
        })
    }));
    let finished = || names(&partial).into_iter().filter(|name| !name.ends_with(".part")).collect::<Vec<_>>();
    let before = finished();
    assert!(cut.is_err() && before.len() > 1, "{before:?}");
    beyond();
    assert_eq!(names(&partial), before, "what was finished before, and nothing else");
}

/// What is about to be written anew is not counted as taken.
#[test]
fn room_of_files_that_are_not_complete_is_free() {
    let (source, target) = (open(&fixture("crest_k4")), Target::new());
    let nf4 = MatrixFormat::Quantized(QuantizeOnLoad::Nf4);
    let plan = source.export(&small_shards(), layers(nf4)).expect("a plan");
    let (to, partial) = (target.path("room"), target.path("room.partial"));
    let mut left = 22;
    let cut = catch_unwind(AssertUnwindSafe(|| {
        plan.write(&to, &mut |_| {
            left -= 1;
            assert!(left > 0, "cut off");
        })
    }));
    let parts = || names(&partial).into_iter().filter(|name| name.ends_with(".part")).count();
    assert!(cut.is_err() && parts() == 1, "{:?}", names(&partial));
    // Room has been asked for when the first progress is told.
    let mut first = None;
    plan.write(&to, &mut |_| first = first.or_else(|| Some(parts()))).expect("goes on");
    assert_eq!(first, Some(0));
}
