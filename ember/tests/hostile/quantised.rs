//! Quantised tensors and what belongs to them.

use serde_json::{Value, json};

use super::table::*;
use super::tensors::{Tensor, Tensors, change_state, resize, set_f32};

const DOUBLE: &str = "model.layers.1.mlp.down_proj.weight";
const SINGLE: &str = "model.layers.1.mlp.ffns.2.down_proj.weight";
const MIXED: &str = "model.layers.0.mlp.up_proj";
/// The error names the tensor.
const OF_DOUBLE: Must = Fail(&[DOUBLE]);
const OF_SINGLE: Must = Fail(&[SINGLE]);
const OF_MIXED: Must = Fail(&[MIXED]);

fn change(name: &str, must: Must, change: impl Fn(&mut Tensors) + 'static) -> Case {
    case(name, must, move |place| place.tensors(&change))
}

/// Changes one tensor.
fn one(name: &str, must: Must, tensor: String, edit: fn(&mut Tensor)) -> Case {
    change(name, must, move |t| edit(t.get_mut(&tensor).unwrap_or_else(|| panic!("{tensor}"))))
}

fn without(name: &str, must: Must, tensor: String) -> Case {
    change(name, must, move |t| drop(t.remove(&tensor).unwrap_or_else(|| panic!("{tensor}"))))
}

#[test]
fn bitsandbytes() {
    let side = |suffix: &str| format!("{DOUBLE}.{suffix}");
    let state = |key: &'static str, value: Value| {
        change(&format!("{key} {value}"), OF_DOUBLE, move |t| change_state(t, DOUBLE, |json| json[key] = value.clone()))
    };
    let state_bytes = |name: &str, bytes: Vec<u8>| {
        change(name, OF_DOUBLE, move |t| {
            let tensor = t.get_mut(&format!("{DOUBLE}.quant_state.bitsandbytes__nf4")).expect("a state");
            (tensor.1, tensor.2) = (vec![bytes.len()], bytes.clone());
        })
    };
    let copied = |name: &str, from: &'static str, to: &'static str| {
        change(name, OF_DOUBLE, move |t| {
            let copy = t[&format!("{DOUBLE}.{from}")].clone();
            t.insert(format!("{DOUBLE}.{to}"), copy);
        })
    };
    let cases = vec![
        one("15 codes", OF_DOUBLE, side("quant_map"), |t| resize(t, 15)),
        one("17 codes", OF_DOUBLE, side("quant_map"), |t| resize(t, 17)),
        one("a code of NaN", OF_DOUBLE, side("quant_map"), |t| set_f32(t, 3, f32::NAN)),
        one("a code of -Inf", OF_DOUBLE, side("quant_map"), |t| set_f32(t, 15, f32::NEG_INFINITY)),
        one("codes whose products overflow", WorkOrFail(&[]), side("quant_map"), |t| set_f32(t, 3, 3e38)),
        one("255 nested codes", OF_DOUBLE, side("nested_quant_map"), |t| resize(t, 255)),
        one("257 nested codes", OF_DOUBLE, side("nested_quant_map"), |t| resize(t, 257)),
        one("a nested code of NaN", OF_DOUBLE, side("nested_quant_map"), |t| set_f32(t, 0, f32::NAN)),
        one("a nested scale of Inf", OF_DOUBLE, side("nested_absmax"), |t| set_f32(t, 1, f32::INFINITY)),
        one("a nested scale short", OF_DOUBLE, side("nested_absmax"), |t| resize(t, 1)),
        one("a nested scale too many", OF_DOUBLE, side("nested_absmax"), |t| resize(t, 3)),
        one("a scale short", OF_DOUBLE, side("absmax"), |t| resize(t, 319)),
        one("a scale too many", OF_DOUBLE, side("absmax"), |t| resize(t, 321)),
        one("a packed byte short", OF_DOUBLE, DOUBLE.into(), |t| resize(t, 10_239)),
        one("a packed byte too many", OF_DOUBLE, DOUBLE.into(), |t| resize(t, 10_241)),
        one("no packed bytes", OF_DOUBLE, DOUBLE.into(), |t| (t.1, t.2) = (vec![0, 1], Vec::new())),
        without("no scales", OF_DOUBLE, side("absmax")),
        without("no codes", OF_DOUBLE, side("quant_map")),
        without("no nested scales", OF_DOUBLE, side("nested_absmax")),
        without("no nested codes", OF_DOUBLE, side("nested_quant_map")),
        without("no weight", OF_DOUBLE, DOUBLE.into()),
        without("no state", OF_DOUBLE, side("quant_state.bitsandbytes__nf4")),
        state("blocksize", json!(0)),
        state("blocksize", json!(63)),
        state("blocksize", json!(-64)),
        state("blocksize", json!(1u64 << 40)),
        state("blocksize", json!(u64::MAX)),
        state("blocksize", json!(4096)),
        state("nested_blocksize", json!(0)),
        state("nested_blocksize", json!(u64::MAX)),
        state("nested_blocksize", Value::Null),
        state("nested_offset", Value::Null),
        state("nested_offset", json!(1e300)),
        state("nested_offset", json!("0")),
        state("nested_dtype", json!("float16")),
        state("shape", json!([160, 129])),
        state("shape", json!([1u64 << 32, 1u64 << 32])),
        state("shape", json!([u64::MAX, u64::MAX])),
        // 3 times the other is 20,480 more than a multiple of 2^64.
        state("shape", json!([3, 20_480u64.wrapping_mul(0xaaaa_aaaa_aaaa_aaab)])),
        state("shape", json!([0, 160])),
        state("shape", json!([20480])),
        state("shape", json!([2, 64, 160])),
        state("shape", json!([-128, -160])),
        state("dtype", json!("int8")),
        state("quant_type", json!("fp4")),
        state("quant_type", json!(4)),
        state_bytes("a state of nothing", vec![]),
        state_bytes("a state that is no JSON", vec![0xff; 8]),
        state_bytes("a state 4,000 deep", "[".repeat(4000).into()),
        change("a state of 1 MB", OF_DOUBLE, |t| {
            let tensor = t.get_mut(&format!("{DOUBLE}.quant_state.bitsandbytes__nf4")).expect("a state");
            tensor.2.resize(1 << 20, b' ');
            tensor.1 = vec![1 << 20];
        }),
        copied("two formats", "quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4"),
        copied("8-bit scales as well", "nested_absmax", "SCB"),
        change("stored twice", OF_DOUBLE, |t| {
            let other = Tensor("F16".into(), vec![128, 160], vec![0; 128 * 160 * 2]);
            t.insert(DOUBLE.replace("model.", "model.language_model."), other);
        }),
    ];
    run("leanllama_nf4", &[GENERATE], cases);
    let side = |suffix: &str| format!("{SINGLE}.{suffix}");
    let cases = vec![
        one("a scale of NaN", OF_SINGLE, side("absmax"), |t| set_f32(t, 7, f32::NAN)),
        one("a scale of Inf", OF_SINGLE, side("absmax"), |t| set_f32(t, 7, f32::INFINITY)),
        one("a scale short", OF_SINGLE, side("absmax"), |t| {
            let count = t.1[0] - 1;
            resize(t, count)
        }),
        one("scales of U8", OF_SINGLE, side("absmax"), |t| {
            t.0 = "U8".into();
            t.2.truncate(t.1[0]);
        }),
        change("half of a double quantisation", OF_SINGLE, |t| {
            change_state(t, SINGLE, |json| json["nested_offset"] = json!(0.5))
        }),
        change("a gate of NaN", Fail(&["model.layers.2.mlp.gates.1.weight"]), |t| {
            t.get_mut("model.layers.2.mlp.gates.1.weight").expect("a gate").2[..2].copy_from_slice(&[0xc0, 0x7f]);
        }),
        change("one gate too few", Fail(&["gate"]), |t| drop(t.remove("model.layers.2.mlp.gates.1.weight"))),
    ];
    run("crest_k4_nf4", &[GENERATE], cases);
}

#[test]
fn nano_rows() {
    fn set_row(tensor: &mut Tensor, at: usize, row: i64) {
        tensor.2[8 * at..8 * at + 8].copy_from_slice(&row.to_le_bytes());
    }
    let leaf = |leaf: &str| format!("{MIXED}.{leaf}");
    let cases = vec![
        one("a row twice", OF_MIXED, leaf("prot_idx"), |t| {
            let first = t.2[..8].to_vec();
            t.2[8..16].copy_from_slice(&first);
        }),
        change("a row in both halves", OF_MIXED, |t| {
            let first = t[&format!("{MIXED}.prot_idx")].2[..8].to_vec();
            t.get_mut(&format!("{MIXED}.deg_idx")).expect("rows").2[..8].copy_from_slice(&first);
        }),
        one("a row out of range", OF_MIXED, leaf("deg_idx"), |t| set_row(t, 3, 128)),
        one("a row of i64::MAX", OF_MIXED, leaf("deg_idx"), |t| set_row(t, 3, i64::MAX)),
        one("a row of 2^32", OF_MIXED, leaf("deg_idx"), |t| set_row(t, 3, 1 << 32)),
        one("a negative row", OF_MIXED, leaf("deg_idx"), |t| set_row(t, 3, -1)),
        one("a row of i64::MIN", OF_MIXED, leaf("prot_idx"), |t| set_row(t, 0, i64::MIN)),
        one("a row number short", OF_MIXED, leaf("deg_idx"), |t| resize(t, 95)),
        one("a row number too many", OF_MIXED, leaf("deg_idx"), |t| resize(t, 97)),
        one("row numbers of U64", OF_MIXED, leaf("deg_idx"), |t| t.0 = "U64".into()),
        one("a scale of NaN", OF_MIXED, leaf("prot_scale"), |t| t.2[4..6].copy_from_slice(&[0, 0x7e])),
        one("a scale of -Inf", OF_MIXED, leaf("deg_scale"), |t| t.2[4..6].copy_from_slice(&[0, 0xfc])),
        one("a scale short", OF_MIXED, leaf("deg_scale"), |t| resize(t, 95)),
        one("a packed byte short in every row", OF_MIXED, leaf("deg_q_packed"), |t| {
            t.2.truncate(96 * 31);
            t.1 = vec![96, 31];
        }),
        one("codes on their side", OF_MIXED, leaf("prot_q"), |t| t.1.reverse()),
        one("codes of U8", OF_MIXED, leaf("prot_q"), |t| t.0 = "U8".into()),
        without("no codes", OF_MIXED, leaf("prot_q")),
        without("no row numbers", OF_MIXED, leaf("deg_idx")),
        without("no scale of the embedding", Fail(&["model.embed_tokens"]), "model.embed_tokens.scale".into()),
        change("packed and not", OF_MIXED, |t| {
            t.insert(format!("{MIXED}.deg_q"), Tensor("I8".into(), vec![96, 64], vec![0; 96 * 64]));
        }),
        change("dense as well", OF_MIXED, |t| {
            t.insert(format!("{MIXED}.weight"), Tensor("F16".into(), vec![128, 64], vec![0; 128 * 64 * 2]));
        }),
        change("a bias that is denied", OF_MIXED, |t| {
            t.insert(format!("{MIXED}.bias"), Tensor("F16".into(), vec![128], vec![0; 256]));
        }),
        change("integers that nobody listed", Fail(&["model.layers.0.self_attn.x"]), |t| {
            t.insert("model.layers.0.self_attn.x.q".into(), Tensor("I8".into(), vec![1], vec![0]));
        }),
    ];
    run("nano_compact", &[GENERATE], cases);
}
