//! Broken quantised data: an error that names the tensor; and the spellings of good data.

use crate::support::*;
use emberlm_model::checkpoint::Weights;
use serde_json::{Value, json};

const DOUBLE: &str = "model.layers.1.mlp.down_proj.weight";
const SINGLE: &str = "model.layers.1.mlp.ffns.2.down_proj.weight";

type Change = Box<dyn Fn(&mut Tensors)>;

/// Each change alone makes the checkpoint fail, with this word; in the end it is whole again.
fn each_fails(copy: &Copy, good: &Tensors, cases: Vec<(&str, &str, Change)>) {
    for (case, word, change) in cases {
        let mut tensors = good.clone();
        change(&mut tensors);
        write_tensors(&copy.weights(), &tensors);
        fails(case, word, || copy.load());
    }
    write_tensors(&copy.weights(), good);
}

#[test]
fn broken_bitsandbytes_tensors_are_named() {
    let side = |suffix: &'static str, change: fn(&mut Tensor)| -> Change {
        Box::new(move |t| change(t.get_mut(&format!("{DOUBLE}.{suffix}")).expect(suffix)))
    };
    let remove = |suffix: &'static str| -> Change {
        Box::new(move |t| {
            t.remove(&format!("{DOUBLE}{suffix}")).expect(suffix);
        })
    };
    let state = |key: &'static str, value: Value| -> Change {
        Box::new(move |t| change_state(t, DOUBLE, |json| json[key] = value.clone()))
    };
    let copy_side = |from: &'static str, to: &'static str| -> Change {
        Box::new(move |t| {
            let copy = t[&format!("{DOUBLE}.{from}")].clone();
            t.insert(format!("{DOUBLE}.{to}"), copy);
        })
    };
    let cases: Vec<(&str, &str, Change)> = vec![
        ("15 codes", "16 elements", side("quant_map", |t| resize(t, 15))),
        ("17 codes", "16 elements", side("quant_map", |t| resize(t, 17))),
        ("NaN code", "not a finite", side("quant_map", |t| set_f32(t, 3, f32::NAN))),
        (
            "huge product",
            "overflow",
            Box::new(|t| {
                set_f32(t.get_mut(&format!("{DOUBLE}.quant_map")).expect("map"), 3, 3e38);
                change_state(t, DOUBLE, |json| json["nested_offset"] = json!(100));
            }),
        ),
        ("255 nested codes", "256 elements", side("nested_quant_map", |t| resize(t, 255))),
        ("NaN nested code", "not a finite", side("nested_quant_map", |t| set_f32(t, 0, f32::NAN))),
        ("infinite nested scale", "not a finite", side("nested_absmax", |t| set_f32(t, 1, f32::INFINITY))),
        ("nested scale short", "elements of F32", side("nested_absmax", |t| resize(t, 1))),
        ("absmax one short", "320 elements", side("absmax", |t| resize(t, 319))),
        ("absmax one long", "320 elements", side("absmax", |t| resize(t, 321))),
        ("codes one short", "expected 10240 bytes", Box::new(|t| resize(t.get_mut(DOUBLE).expect("weight"), 10239))),
        (
            "codes of another type",
            "expected 10240 bytes",
            Box::new(|t| t.get_mut(DOUBLE).expect("weight").0 = "BOOL".into()),
        ),
        (
            "half the codes as F16",
            "expected 10240 bytes",
            Box::new(|t| {
                let weight = t.get_mut(DOUBLE).expect("weight");
                *weight = Tensor("F16".into(), vec![2560, 1], weight.2[..5120].to_vec());
            }),
        ),
        ("no absmax", "is missing", remove(".absmax")),
        ("no code book", "is missing", remove(".quant_map")),
        ("no nested scales", "is missing", remove(".nested_absmax")),
        ("no nested codes", "is missing", remove(".nested_quant_map")),
        ("no weight", "is missing", remove("")),
        ("no state", "no quant_state", remove(".quant_state.bitsandbytes__nf4")),
        ("block size 0", "blocksize 0", state("blocksize", json!(0))),
        ("block size 63", "blocksize 63", state("blocksize", json!(63))),
        ("block size beyond the tensor", "blocksize", state("blocksize", json!(1u64 << 40))),
        ("another block size", "elements", state("blocksize", json!(128))),
        ("negative block size", "not valid JSON", state("blocksize", json!(-64))),
        ("nested block size 0", "nested_blocksize", state("nested_blocksize", json!(0))),
        ("no nested block size", "nested_blocksize", state("nested_blocksize", Value::Null)),
        ("no nested offset", "nested_offset", state("nested_offset", Value::Null)),
        ("nested offset beyond f32", "nested_offset", state("nested_offset", json!(1e300))),
        ("nested type", "nested_dtype", state("nested_dtype", json!("float16"))),
        ("another shape", "expected", state("shape", json!([128, 161]))),
        ("shape overflows", "two sizes", state("shape", json!([1u64 << 40, 1u64 << 40]))),
        ("shape 0", "two sizes", state("shape", json!([0, 160]))),
        ("rank 3", "two sizes", state("shape", json!([2, 64, 160]))),
        ("another type", "dtype", state("dtype", json!("int8"))),
        ("another kind", "quant_type", state("quant_type", json!("fp4"))),
        ("state not JSON", "not valid JSON", side("quant_state.bitsandbytes__nf4", |t| t.2[0] = 0xff)),
        (
            "state of 1 MB",
            "at most 4096",
            side("quant_state.bitsandbytes__nf4", |t| {
                t.2.resize(1 << 20, b' ');
                t.1 = vec![1 << 20];
            }),
        ),
        ("two kinds", "two formats", copy_side("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4")),
        ("8-bit storage", "8-bit", copy_side("nested_absmax", "SCB")),
        (
            "stored twice",
            "stored twice",
            Box::new(|t| {
                t.insert(DOUBLE.replace("model.", "model.language_model."), zeros(&[128, 160]));
            }),
        ),
    ];
    let copy = Copy::of("leanllama_nf4");
    let good = read_tensors(&copy.weights());
    each_fails(&copy, &good, cases);
    copy.load().expect("unchanged");
}

/// `bnb_4bit_quant_storage`: the packed bytes of every weight as a tensor of another type, whatever the code book and the scales.
#[test]
fn packed_weights_may_be_stored_as_any_type() {
    for name in ["leanllama_nf4", "crest_k4_nf4"] {
        let copy = Copy::of(name);
        let good = read_tensors(&copy.weights());
        // Read before the file is written anew: what is loaded are views of it.
        let numbers = |weights: &Weights| -> Vec<(String, Vec<usize>, Vec<f32>)> {
            let read = |name: &str| {
                let shape = weights.entry(name).expect(name).shape.clone();
                (name.to_owned(), shape, weights.vector(name).expect(name))
            };
            weights.canonical_names().map(read).collect()
        };
        let plain = numbers(&copy.load().expect(name));
        for (dtype, size) in [("I8", 1), ("BF16", 2), ("F16", 2), ("F32", 4), ("F64", 8)] {
            for fp4 in [false, true] {
                let mut tensors = good.clone();
                let states: Vec<String> =
                    good.keys().filter(|name| name.ends_with("quant_state.bitsandbytes__nf4")).cloned().collect();
                for state in &states {
                    let weight = state.trim_end_matches(".quant_state.bitsandbytes__nf4");
                    let packed = tensors.get_mut(weight).expect("weight");
                    assert_eq!(packed.2.len() % size, 0, "{weight}");
                    *packed = Tensor(dtype.into(), vec![packed.2.len() / size, 1], packed.2.clone());
                    if fp4 {
                        change_state(&mut tensors, weight, |json| json["quant_type"] = json!("fp4"));
                        let tensor = tensors.remove(state).expect("state");
                        tensors.insert(state.replace("__nf4", "__fp4"), tensor);
                    }
                }
                write_tensors(&copy.weights(), &tensors);
                let loaded = copy.load().unwrap_or_else(|e| panic!("{name} as {dtype}: {e}"));
                // The code book is stored beside the codes, so that the numbers are the same under either name.
                assert!(numbers(&loaded) == plain, "{name} as {dtype}, fp4 {fp4}");
            }
        }
        write_tensors(&copy.weights(), &good);
    }
}

#[test]
fn broken_single_scales_are_named() {
    let copy = Copy::of("crest_k4_nf4");
    let good = read_tensors(&copy.weights());
    for (case, word, x) in [("NaN", "not a finite", f32::NAN), ("infinite", "not a finite", f32::INFINITY)] {
        let mut tensors = good.clone();
        set_f32(tensors.get_mut(&format!("{SINGLE}.absmax")).expect("absmax"), 7, x);
        write_tensors(&copy.weights(), &tensors);
        fails(case, word, || copy.load());
    }
    let mut tensors = good.clone();
    change_state(&mut tensors, SINGLE, |json| json["nested_offset"] = json!(0.5));
    write_tensors(&copy.weights(), &tensors);
    fails("half double", "double-quantised", || copy.load());
    let mut tensors = good;
    let gate = tensors.get_mut("model.layers.2.mlp.gates.1.weight").expect("gate");
    gate.2[..2].copy_from_slice(&[0xc0, 0x7f]);
    write_tensors(&copy.weights(), &tensors);
    fails("NaN gate", "gates.1.weight: element 0 is not a finite", || copy.load());
}

#[test]
fn broken_nano_modules_are_named() {
    const MIXED: &str = "model.layers.0.mlp.up_proj";
    let leaf = |leaf: &'static str, change: fn(&mut Tensor)| -> Change {
        Box::new(move |t| change(t.get_mut(&format!("{MIXED}.{leaf}")).expect(leaf)))
    };
    fn set_row(tensor: &mut Tensor, at: usize, row: i64) {
        tensor.2[8 * at..8 * at + 8].copy_from_slice(&row.to_le_bytes());
    }
    let cases: Vec<(&str, &str, Change)> = vec![
        (
            "row twice",
            "stored twice",
            leaf("prot_idx", |t| {
                let first = t.2[..8].to_vec();
                t.2[8..16].copy_from_slice(&first)
            }),
        ),
        ("row out of range", "entry 3 is not one of the 128 rows", leaf("deg_idx", |t| set_row(t, 3, 128))),
        ("row far out of range", "not one of", leaf("deg_idx", |t| set_row(t, 3, i64::MAX))),
        ("negative row", "not one of", leaf("deg_idx", |t| set_row(t, 3, -1))),
        ("a row number short", "expected I64", leaf("deg_idx", |t| resize(t, 95))),
        ("row numbers of another type", "expected I64", leaf("deg_idx", |t| t.0 = "U64".into())),
        ("NaN scale", "scale of row 2", leaf("prot_scale", |t| t.2[4..6].copy_from_slice(&[0, 0x7e]))),
        ("infinite scale", "scale of row 2", leaf("deg_scale", |t| t.2[4..6].copy_from_slice(&[0, 0x7c]))),
        ("a scale short", "expected F16", leaf("deg_scale", |t| resize(t, 95))),
        (
            "packed bytes one short",
            "expected U8 [96, 32]",
            leaf("deg_q_packed", |t| {
                t.2.truncate(96 * 31);
                t.1 = vec![96, 31]
            }),
        ),
        ("codes of another type", "expected I8", leaf("prot_q", |t| t.0 = "U8".into())),
        (
            "codes missing",
            "2 missing: model.embed_tokens.scale, model.layers.0.mlp.up_proj.prot_q",
            Box::new(|t| {
                t.remove(&format!("{MIXED}.prot_q")).expect("codes");
                t.remove("model.embed_tokens.scale").expect("scale");
            }),
        ),
        (
            "packed and not",
            "two formats",
            Box::new(|t| {
                t.insert(format!("{MIXED}.deg_q"), Tensor("I8".into(), vec![96, 64], vec![0; 96 * 64]));
            }),
        ),
        (
            "dense as well",
            "stored twice",
            Box::new(|t| {
                t.insert(format!("{MIXED}.weight"), zeros(&[128, 64]));
            }),
        ),
        (
            "a bias that is denied",
            "has no bias",
            Box::new(|t| {
                t.insert(format!("{MIXED}.bias"), zeros(&[128]));
            }),
        ),
        (
            "integers that nobody listed",
            "belongs to no quantised tensor",
            Box::new(|t| {
                t.insert("model.layers.0.self_attn.x.q".into(), Tensor("I8".into(), vec![1], vec![0]));
            }),
        ),
    ];
    let copy = Copy::of("nano_compact");
    let good = read_tensors(&copy.weights());
    each_fails(&copy, &good, cases);
    copy.change_config(|json| json["nanollm_modules"][MIXED]["bits"] = json!(2));
    fails("other bits", "expected U8 [96, 16]", || copy.load());
    copy.change_config(|json| json["nanollm_modules"][MIXED]["bits"] = json!(8));
    fails("packed 8 bits", "only 2 or 4 are packed", || copy.load());
}

#[test]
fn scales_spelling_and_absent_empty_parts_of_nano() {
    let copy = Copy::of("nano_compact");
    // Read before the file is written anew: a map shows the file as it is.
    let names = ["model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"];
    let read = || names.map(|name| copy.load().expect("load").vector(name).expect(name));
    let before = read();
    copy.change_tensors(|t| {
        let scale = t.remove("model.embed_tokens.scale").expect("scale");
        t.insert("model.embed_tokens.scales".into(), scale);
        for leaf in ["deg_q", "deg_scale", "deg_idx"] {
            t.remove(&format!("model.layers.0.mlp.down_proj.{leaf}")).expect(leaf);
        }
    });
    assert_eq!(read(), before);
}

#[test]
fn every_prefix_resolves_to_the_same_names() {
    let copy = Copy::of("leanllama_nf4");
    let names = |weights: &Weights| weights.canonical_names().map(String::from).collect::<Vec<_>>();
    let expected = names(&copy.load().expect("load"));
    let good = read_tensors(&copy.weights());
    for prefix in ["model.language_model.", "language_model.model.", ""] {
        let head = if prefix.starts_with("language_model.") { "language_model." } else { "" };
        let rename = |name: &str| match name.strip_prefix("model.") {
            Some(bare) => format!("{prefix}{bare}"),
            None => format!("{head}{name}"),
        };
        let mut tensors: Tensors = good.iter().map(|(name, t)| (rename(name), t.clone())).collect();
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), zeros(&[8]));
        tensors.insert("mtp.layers.0.x.weight".into(), Tensor("F64".into(), vec![1], vec![0; 8]));
        write_tensors(&copy.weights(), &tensors);
        let weights = copy.load().expect(prefix);
        assert_eq!(names(&weights), expected, "{prefix}");
        assert_eq!(weights.ignored().len(), 2);
    }
}
