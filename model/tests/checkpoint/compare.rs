//! Two checkpoints beside each other, tensor by tensor.

use std::fs;
use std::path::Path;

use crate::support::{Copy, Tensor, Tensors, f32s, fixture, write_tensors};
use emberlm_model::Pretrained;
use emberlm_model::compare::{Comparison, compare};
use half::f16;
use serde_json::{Value, json};

const DOWN: &str = "model.layers.2.mlp.down_proj.weight";

fn open(path: &Path) -> Pretrained {
    Pretrained::open(path).expect("a model")
}

fn compared(a: &Path, b: &Path) -> Comparison {
    compare(&open(a), &open(b), &|_| ()).expect("a comparison")
}

/// The same checkpoint as plain F32 numbers.
fn dense(name: &str, change: impl FnOnce(&mut Value)) -> Copy {
    let copy = Copy::whole(name);
    let model = open(&fixture(name));
    let mut tensors = Tensors::new();
    for canonical in model.weights().canonical_names() {
        let shape = model.weights().entry(canonical).expect("an entry").shape.clone();
        tensors.insert(canonical.to_owned(), f32s(&shape, &model.weights().vector(canonical).expect("numbers")));
    }
    for entry in fs::read_dir(copy.path()).expect("a copy") {
        let path = entry.expect("an entry").path();
        let file = path.file_name().expect("a name").to_string_lossy().into_owned();
        if file.starts_with("model") || file.starts_with("nano") {
            fs::remove_file(path).expect("removed");
        }
    }
    write_tensors(&copy.weights(), &tensors);
    copy.change_config(change);
    copy
}

#[test]
fn a_model_is_the_same_as_itself() {
    for name in ["crest_k2", "crest_k4", "crest_k4_nf4", "leanllama", "leanllama_kv", "leanllama_nf4", "nano_compact"] {
        let found = compared(&fixture(name), &fixture(name));
        assert!(found.is_same() && found.tensors.len() > 40, "{name}: {found:?}");
        for tensor in &found.tensors {
            assert_eq!(
                (tensor.relative_error, tensor.max_difference, tensor.cosine),
                (0.0, 0.0, 1.0),
                "{}",
                tensor.name
            );
            assert!(tensor.worst_rows.is_empty(), "{}", tensor.name);
        }
        assert!(found.config.keys.is_empty());
    }
}

/// Nothing to compare is no difference, whatever the shape.
#[test]
fn tensors_without_numbers_are_the_same() {
    let copy = Copy::whole("leanllama");
    let shapes: [&[usize]; 4] = [&[0], &[0, 4], &[4, 0], &[2, 0, 3]];
    copy.change_tensors(|tensors| {
        for (i, shape) in shapes.into_iter().enumerate() {
            tensors.insert(format!("extra.{i}.weight"), f32s(shape, &[]));
        }
    });
    let found = compared(copy.path(), copy.path());
    assert!(found.is_same());
    let empty = found.tensors.iter().filter(|tensor| tensor.name.starts_with("extra."));
    assert_eq!(empty.filter(|tensor| tensor.identical && tensor.cosine == 1.0).count(), shapes.len());
}

/// A quantised checkpoint has the numbers that its dequantised copy has, whatever the storage.
#[test]
fn every_storage_compares_with_dense_numbers() {
    for name in ["crest_k4_nf4", "leanllama_nf4", "leanllama", "crest_k2"] {
        let copy = dense(name, |config| {
            config.as_object_mut().expect("an object").remove("quantization_config");
        });
        let found = compared(&fixture(name), copy.path());
        assert!(found.is_same(), "{name}: {:?} {:?}", found.tensors.first(), found.config);
        assert!(found.tensors.iter().any(|tensor| tensor.storage[0] != tensor.storage[1]), "{name}");
    }
    let copy = dense("nano_compact", |config| {
        config.as_object_mut().expect("an object").remove("nanollm_modules");
        config["architectures"] = json!(["Qwen2ForCausalLM"]);
        config["tie_word_embeddings"] = json!(true);
    });
    let found = compared(&fixture("nano_compact"), copy.path());
    assert!(found.is_same(), "{:?} {:?}", found.tensors.first(), found.config);
    assert!(found.config.keys.iter().all(|key| !key.counts), "{:?}", found.config.keys);
    let storages: Vec<String> = found.tensors.iter().map(|tensor| tensor.storage[0].to_string()).collect();
    for storage in ["int8-rows", "int8+int2", "int8+int4", "f16"] {
        assert!(storages.iter().any(|found| found == storage), "{storage}");
    }
}

/// Every figure against the plain sum over all numbers.
#[test]
fn figures_are_those_of_plain_sums() {
    let copy = Copy::whole("leanllama");
    let before: Vec<f32> = open(copy.path()).weights().vector(DOWN).expect("numbers");
    copy.change_tensors(|tensors| {
        let Tensor(_, _, data) = tensors.get_mut(DOWN).expect("it");
        let mut values: Vec<f16> = data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
        for (i, value) in values.iter_mut().enumerate() {
            let row = i / 128;
            *value = f16::from_f32(value.to_f32() * (1.0 + if row % 7 == 3 { 0.25 } else { 0.03 }));
        }
        values[50 * 128 + 9] = f16::from_f32(2.0);
        *data = values.into_iter().flat_map(f16::to_le_bytes).collect();
    });
    let after: Vec<f32> = open(copy.path()).weights().vector(DOWN).expect("numbers");
    let found = compared(&fixture("leanllama"), copy.path());
    assert!(!found.is_same() && found.config.same);
    let tensor = &found.tensors[0];
    assert_eq!((tensor.name.as_str(), tensor.shape.as_slice(), tensor.identical), (DOWN, &[64, 128][..], false));
    assert!(found.tensors[1..].iter().all(|tensor| tensor.identical));

    let sum = |x: &[f32], y: &[f32]| -> f64 { x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum() };
    let difference: Vec<f64> = before.iter().zip(&after).map(|(&x, &y)| f64::from(x) - f64::from(y)).collect();
    let square = |x: &[f64]| -> f64 { x.iter().map(|x| x * x).sum() };
    let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
    near(tensor.relative_error, (square(&difference) / sum(&before, &before)).sqrt());
    near(tensor.cosine, sum(&before, &after) / (sum(&before, &before) * sum(&after, &after)).sqrt());
    near(tensor.norm_ratio, (sum(&before, &before) / sum(&after, &after)).sqrt());
    let largest = difference.iter().map(|x| x.abs()).fold(0.0, f64::max);
    assert_eq!((tensor.max_difference, tensor.max_at), (largest, [50, 9]));
    let rows = before.chunks(128).zip(difference.chunks(128));
    let mut errors: Vec<(usize, f64)> = rows.map(|(x, d)| (square(d) / sum(x, x)).sqrt()).enumerate().collect();
    errors.sort_by(|a, b| b.1.total_cmp(&a.1));
    let worst: Vec<usize> = tensor.worst_rows.iter().map(|row| row.row).collect();
    assert_eq!(worst, errors[..3].iter().map(|(row, _)| *row).collect::<Vec<_>>());
    near(tensor.worst_rows[0].relative_error, errors[0].1);
}

/// Numbers that are not finite are counted, and are no error of 0.
#[test]
fn not_finite_is_not_equal() {
    let copy = Copy::whole("leanllama");
    copy.change_tensors(|tensors| {
        tensors.get_mut(DOWN).expect("it").2[..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    });
    // Matrices of this size are checked when they are loaded; so is this one when it is compared.
    let error = compare(&open(&fixture("leanllama")), &open(copy.path()), &|_| ()).expect_err("infinite");
    assert!(error.to_string().contains(DOWN) && error.to_string().contains("not a finite number"), "{error}");
}

#[test]
fn tensors_and_keys_of_one_alone_are_named() {
    let copy = Copy::whole("leanllama");
    let layers = open(copy.path()).architecture().config.num_hidden_layers;
    copy.change_config(|config| {
        config["num_hidden_layers"] = json!(layers - 1);
        config["transformers_version"] = json!("9.9");
    });
    copy.change_tensors(|tensors| tensors.retain(|name, _| !name.contains(&format!("layers.{}.", layers - 1))));
    let found = compared(&fixture("leanllama"), copy.path());
    assert!(!found.is_same() && !found.config.same);
    assert!(found.only_first.iter().all(|name| name.contains(&format!("layers.{}.", layers - 1))), "{found:?}");
    assert!(found.only_first.len() >= 9 && found.only_second.is_empty() && found.reshaped.is_empty());
    let keys: Vec<(&str, bool)> = found.config.keys.iter().map(|key| (key.key.as_str(), key.counts)).collect();
    assert_eq!(keys, [("num_hidden_layers", true), ("transformers_version", false)]);
    let back = compared(copy.path(), &fixture("leanllama"));
    assert_eq!((back.only_second, back.only_first.len()), (found.only_first, 0));
}

/// A key that nothing reads may change the numbers of the author's code, so it counts; one spelled otherwise does not.
#[test]
fn keys_count_by_what_they_mean() {
    let copy = Copy::whole("leanllama");
    copy.change_config(|config| {
        config.as_object_mut().expect("an object").remove("auto_map");
        config["task_specific_params"] = json!({"summaries": {"num_beams": 4}});
    });
    let found = compared(&fixture("leanllama"), copy.path());
    assert!(found.is_same(), "{:?}", found.config);
    assert!(found.config.keys.len() >= 2 && found.config.keys.iter().all(|key| !key.counts), "{:?}", found.config.keys);

    let copy = Copy::whole("leanllama");
    copy.change_config(|config| config["attention_sinks"] = json!(4));
    let found = compared(&fixture("leanllama"), copy.path());
    assert!(!found.is_same() && found.tensors.iter().all(|tensor| tensor.identical));

    let copy = Copy::whole("leanllama");
    copy.change_config(|config| {
        let config = config.as_object_mut().expect("an object");
        let rope = config.remove("rope_parameters").or_else(|| config.remove("rope_scaling")).expect("rope");
        let theta = rope.get("rope_theta").cloned().or_else(|| config.remove("rope_theta")).expect("a base");
        let mut rope = rope;
        rope.as_object_mut().expect("an object").remove("rope_theta");
        config.insert("rope_scaling".into(), rope);
        config.insert("rope_theta".into(), theta);
        config.remove("torch_dtype");
        config.remove("dtype");
    });
    let found = compared(&fixture("leanllama"), copy.path());
    assert!(found.is_same(), "{:?}", found.config);
    assert!(!found.config.keys.is_empty());
}
