//! Numbers that trained models do not have.

use half::f16;

use super::{Case, case, halves};
use crate::support::{Tensor, Tensors};

/// A norm of the fixture that most of these are planted in.
pub const NORM: &str = "model.layers.1.input_layernorm.weight";
const GATE: &str = "model.layers.2.mlp.gate_proj.weight";

pub fn numbers() -> Vec<Case> {
    vec![
        case!("NaN in a norm", "leanllama", Error Numbers "layers.1.input_layernorm" "1 NaN of 64 numbers, the first at [5]", |copy| {
            halves(copy, NORM, |values| values[5] = f16::NAN);
        }),
        case!("infinity in a matrix", "leanllama", Error Numbers "layers.2.mlp.gate_proj" "1 infinite of 8192 numbers, the first at [3, 8]", |copy| {
            halves(copy, GATE, |values| values[200] = f16::NEG_INFINITY);
        }),
        case!("flipped bit of an exponent", "crest_k4", Error Numbers "embed_tokens" "1 beyond 1e6", |copy| {
            copy.change_tensors(|tensors| {
                let (name, Tensor(_, _, data)) = tensors.iter_mut().find(|(name, _)| name.ends_with("embed_tokens.weight")).expect("it");
                assert!(!name.is_empty());
                data[101] ^= 0x40;
            });
        }),
        case!("number that stands out", "leanllama", Warning Numbers "gate_proj" "at [0, 17] is 6e2", |copy| {
            halves(copy, GATE, |values| values[17] = f16::from_f32(600.0));
        }),
        case!("tensor of zeros", "leanllama", Warning Numbers "gate_proj" "all 8192 numbers are 0", |copy| {
            halves(copy, GATE, |values| values.fill(f16::ZERO));
        }),
        case!("hole of zeros", "leanllama", Warning Numbers "gate_proj" "3000 zeros one after the other, from [15, 40] on", |copy| {
            halves(copy, GATE, |values| values[1000..4000].fill(f16::ZERO));
        }),
        case!("row of one value", "leanllama", Warning Numbers "gate_proj" "1 rows hold one value alone, the first is row 2", |copy| {
            halves(copy, GATE, |values| values[128..192].fill(f16::ONE));
        }),
        case!("rows of the embedding lost", "leanllama", Warning Numbers "embed_tokens" "rows of ordinary tokens are 0", |copy| {
            halves(copy, "model.embed_tokens.weight", |values| values[6400..9600].fill(f16::ZERO));
        }),
        case!("norm below 0", "leanllama", Warning Numbers "layers.1.input_layernorm" "the mean of this norm", |copy| {
            halves(copy, NORM, |values| values.iter_mut().for_each(|x| *x = -*x));
        }),
        case!("norm far off", "leanllama", Warning Numbers "layers.1.input_layernorm" "the mean of this norm", |copy| {
            halves(copy, NORM, |values| values.iter_mut().for_each(|x| *x = f16::from_f32(x.to_f32() * 3000.0)));
        }),
        case!("scale applied twice", "leanllama", Warning Layers "layers.2.mlp.gate_proj" "the root mean square is", |copy| {
            halves(copy, GATE, |values| values.iter_mut().for_each(|x| *x = f16::from_f32(x.to_f32() * 200.0)));
        }),
        case!("layer copied over another", "leanllama", Warning Layers "model.layers.1" "layers 1 and 2 hold the same bytes", |copy| {
            copy.change_tensors(|tensors| {
                let copied: Vec<_> = tensors.iter().filter(|(name, _)| name.contains("layers.1.")).collect();
                let copied = copied.into_iter().map(|(name, t)| (name.replace("layers.1.", "layers.2."), t.clone()));
                let copied: Tensors = copied.filter(|(name, _)| !name.contains("compressor")).collect();
                tensors.extend(copied);
            });
        }),
        case!("matrix copied over another", "leanllama", Warning Layers "layers.0.mlp.gate_proj" "the same bytes as in layer 2", |copy| {
            copy.change_tensors(|tensors| {
                let one = tensors["model.layers.0.mlp.gate_proj.weight"].clone();
                tensors.insert(GATE.into(), one);
            });
        }),
        case!("data shifted by a byte", "crest_k4", Error Numbers "in_proj_qkv" "beyond 1e6", |copy| {
            copy.change_tensors(|tensors| {
                let tensor = tensors.iter_mut().find(|(name, _)| name.ends_with("in_proj_qkv.weight")).expect("it").1;
                tensor.2.rotate_left(1);
            });
        }),
    ]
}
