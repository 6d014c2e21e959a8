//! Code books, scales, codes and row numbers of quantised tensors.

use half::f16;
use serde_json::json;

use super::{Case, case, floats, halves, integers, state};
use crate::support::Tensor;

const CODES: &str = "model.layers.0.mlp.ffns.0.up_proj.weight";

pub fn book_codes() -> Vec<Case> {
    vec![
        case!("code book changed", "crest_k4_nf4", Error Scales "ffns.0.up_proj.weight.quant_map" "code 3 is -0.5", |copy| {
            floats(copy, &format!("{CODES}.quant_map"), |values| values[3] = -0.5);
        }),
        case!("negative scale", "crest_k4_nf4", Error Scales "ffns.0.up_proj.weight.absmax" "1 of 259 scales are negative, the first at [7]", |copy| {
            floats(copy, &format!("{CODES}.absmax"), |values| values[7] = -values[7]);
        }),
        case!("NaN scale", "crest_k4_nf4", Error Numbers "ffns.0.up_proj.weight.absmax" "1 NaN", |copy| {
            floats(copy, &format!("{CODES}.absmax"), |values| values[7] = f32::NAN);
        }),
        case!("scales lost", "crest_k4_nf4", Error Scales "ffns.0.up_proj.weight.absmax" "all scales are 0", |copy| {
            floats(copy, &format!("{CODES}.absmax"), |values| values.fill(0.0));
        }),
        case!("scale missing", "crest_k4_nf4", Error Tensors "ffns.0.up_proj.weight.absmax" "expected 259 elements", |copy| {
            copy.change_tensors(|tensors| {
                let Tensor(_, shape, data) = tensors.get_mut(&format!("{CODES}.absmax")).expect("it");
                *shape = vec![258];
                data.truncate(258 * 4);
            });
        }),
        case!("quant state missing", "crest_k4_nf4", Error Tensors "ffns.0.up_proj" "no quant_state", |copy| {
            copy.change_tensors(|tensors| drop(tensors.remove(&format!("{CODES}.quant_state.bitsandbytes__nf4"))));
        }),
        case!("quant state of another shape", "crest_k4_nf4", Error Tensors "ffns.0.up_proj" "[8272, 1]", |copy| {
            state(copy, CODES, |state| state["shape"] = json!([188, 90]));
        }),
        case!("hole in the codes", "crest_k4_nf4", Error Codes "ffns.0.up_proj" "bytes of zeros, from byte 4000 on", |copy| {
            copy.change_tensors(|tensors| tensors.get_mut(CODES).expect("it").2[4000..4300].fill(0));
        }),
        case!("codes of a block changed", "crest_k4_nf4", Warning Codes "ffns.0.up_proj" "1 of 259 blocks have no code of the largest magnitude, the first is block 10", |copy| {
            copy.change_tensors(|tensors| tensors.get_mut(CODES).expect("it").2[320..352].fill(0x88));
        }),
        case!("map of scales changed", "leanllama_nf4", Error Scales "up_proj.weight.nested_quant_map" "code 200 is 0.", |copy| {
            floats(copy, "model.layers.0.mlp.up_proj.weight.nested_quant_map", |values| values[200] += 0.01);
        }),
        case!("offset of scales with the wrong sign", "leanllama_nf4", Error Scales "up_proj.weight.absmax" "scales are negative", |copy| {
            state(copy, "model.layers.0.mlp.up_proj.weight", |state| {
                state["nested_offset"] = json!(-state["nested_offset"].as_f64().expect("a number"));
            });
        }),
        case!("nested scales lost", "leanllama_nf4", Error Scales "up_proj.weight.nested_absmax" "all scales are 0", |copy| {
            floats(copy, "model.layers.0.mlp.up_proj.weight.nested_absmax", |values| values.fill(0.0));
        }),
        case!("nested scales missing", "leanllama_nf4", Error Tensors "up_proj.weight" "double-quantised by its quant state", |copy| {
            copy.change_tensors(|tensors| {
                tensors.remove("model.layers.0.mlp.up_proj.weight.nested_absmax");
                tensors.remove("model.layers.0.mlp.up_proj.weight.nested_quant_map");
            });
        }),
    ]
}

pub fn rows() -> Vec<Case> {
    const GATE: &str = "model.layers.0.mlp.gate_proj";
    vec![
        case!("row stored twice", "nano_compact", Error Codes "layers.0.mlp.gate_proj" "is stored twice", |copy| {
            integers(copy, &format!("{GATE}.prot_idx"), |rows| rows[1] = rows[0]);
        }),
        case!("row number beyond the rows", "nano_compact", Error Codes "layers.0.mlp.gate_proj.deg_idx" "entry 4 is not one of the 128 rows", |copy| {
            integers(copy, &format!("{GATE}.deg_idx"), |rows| rows[4] = 128);
        }),
        case!("NaN scale of a row", "nano_compact", Error Numbers "gate_proj.prot_scale" "1 NaN", |copy| {
            halves(copy, &format!("{GATE}.prot_scale"), |scales| scales[3] = f16::NAN);
        }),
        case!("negative scale of a row", "nano_compact", Error Scales "gate_proj.prot_scale" "1 of 48 scales are negative, the first at [3]", |copy| {
            halves(copy, &format!("{GATE}.prot_scale"), |scales| scales[3] = -scales[3]);
        }),
        case!("2-bit code beyond the range", "nano_compact", Error Codes "gate_proj" "1 rows have codes of 2 bits above 1", |copy| {
            copy.change_tensors(|t| t.get_mut(&format!("{GATE}.deg_q_packed")).expect("it").2[20] |= 3);
        }),
        case!("8-bit code beyond the range", "nano_compact", Error Codes "o_proj" "1 codes of 8 bits are -128", |copy| {
            copy.change_tensors(|t| t.get_mut("model.layers.0.self_attn.o_proj.q").expect("it").2[20] = 0x80);
        }),
        case!("codes of a row changed", "nano_compact", Warning Codes "o_proj" "1 of 64 rows have no code at the end of the range", |copy| {
            copy.change_tensors(|t| t.get_mut("model.layers.0.self_attn.o_proj.q").expect("it").2[..64].fill(1));
        }),
        case!("hole in codes of 8 bits", "nano_compact", Warning Codes "o_proj" "at least 2048 bytes of zeros, from byte 1000 on", |copy| {
            copy.change_tensors(|t| t.get_mut("model.layers.0.self_attn.o_proj.q").expect("it").2[1000..3200].fill(0));
        }),
        case!("spec with another number of bits", "nano_compact", Error Config "layers.0.mlp.gate_proj.bits" "3", |copy| {
            copy.change_config(|config| config["nanollm_modules"][GATE]["bits"] = json!(3));
        }),
        case!("spec whose rows do not add up", "nano_compact", Error Config "deg_rows" "do not add up", |copy| {
            copy.change_config(|config| config["nanollm_modules"][GATE]["deg_rows"] = json!(79));
        }),
        case!("scales of a module missing", "nano_compact", Error Tensors "o_proj.scale" "is missing", |copy| {
            copy.change_tensors(|t| drop(t.remove("model.layers.0.self_attn.o_proj.scale")));
        }),
    ]
}
