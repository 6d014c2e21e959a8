//! Records of burn name a tensor by the fields that lead to it, enum variants included; checkpoints have names of their own. The two
//! differ in few places, which are all here.
//!
//! | field | checkpoint |
//! |---|---|
//! | `q_proj.weight.Float` | `q_proj.weight` |
//! | `mlp.Dense.up_proj`, `mlp.Crest.steps.0.up_proj` | `mlp.up_proj`, `mlp.steps.0.up_proj` |
//! | `linear_attn.a_log` | `linear_attn.A_log` |
//! | `halt_gate.hidden`, `halt_gate.output` (two layers) | `halt_gate.0`, `halt_gate.2` |
//! | `halt_gate.output` (one layer) | `halt_gate` |

use std::collections::BTreeSet;

/// Plain numbers, the one variant of a weight that means something without its model.
const PLAIN: &str = "Float";
/// The others.
const PACKED: [&str; 5] = ["Half", "CodeBook4", "Int8", "Rows", "Split"];

/// The fields of a record.
pub(super) struct Fields {
    /// Paths of modules that have a first of two layers.
    two_layers: BTreeSet<String>,
}

impl Fields {
    /// Of the paths of all its tensors.
    pub(super) fn of<'a>(paths: impl Iterator<Item = &'a str>) -> Self {
        Self { two_layers: paths.filter_map(|path| Some(path.split_once(".hidden.")?.0.to_owned())).collect() }
    }

    /// The name of a tensor in a checkpoint.
    ///
    /// # Errors
    /// What to do about a tensor that is a part of a packed weight.
    pub(super) fn checkpoint_name(&self, path: &str) -> Result<String, String> {
        let mut out: Vec<&str> = Vec::new();
        let mut parts = path.split('.').peekable();
        let mut before = String::new();
        while let Some(part) = parts.next() {
            match (out.last().copied(), part) {
                (Some("weight"), PLAIN) if parts.peek().is_none() => {}
                (Some("weight"), variant) if PACKED.contains(&variant) => {
                    return Err(format!(
                        "is a part of a packed weight ({variant}), which only the model that it was saved from can read: records of plain \
                         numbers are read, and CausalLm::save writes packed weights to a directory that loads again"
                    ));
                }
                (Some("mlp"), "Dense" | "Crest") => {}
                (_, "a_log") => out.push("A_log"),
                (Some(_), "hidden") if holds_two_layers(&out) => out.push("0"),
                (Some(_), "output") if holds_two_layers(&out) => {
                    if self.two_layers.contains(before.as_str()) {
                        out.push("2");
                    }
                }
                _ => out.push(part),
            }
            if !before.is_empty() {
                before.push('.');
            }
            before.push_str(part);
        }
        Ok(out.join("."))
    }
}

/// The fields that lead to a tensor of this canonical name.
pub(crate) fn field(name: &str, is_matrix: bool) -> String {
    let mut out: Vec<&str> = Vec::new();
    for part in name.split('.') {
        match (out.last().copied(), part) {
            (Some("mlp"), "steps" | "halt_gate" | "halt_gates") => out.extend(["Crest", part]),
            (Some("mlp"), _) => out.extend(["Dense", part]),
            (_, "A_log") => out.push("a_log"),
            (Some(_), "0") if holds_two_layers(&out) => out.push("hidden"),
            (Some(_), "2") if holds_two_layers(&out) => out.push("output"),
            (Some(_), "weight" | "bias") if holds_two_layers(&out) => out.extend(["output", part]),
            _ => out.push(part),
        }
    }
    if is_matrix {
        out.push(PLAIN);
    }
    out.join(".")
}

/// Whether a path leads to a module of one linear or two: a gate, alone or of a list, or the decoder of a compressor.
fn holds_two_layers(path: &[&str]) -> bool {
    match path {
        [.., "halt_gates", index] => index.bytes().all(|byte| byte.is_ascii_digit()),
        [.., last] => matches!(*last, "halt_gate" | "decoder"),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        let matrices = [
            ("model.embed_tokens.weight", "model.embed_tokens.weight.Float"),
            ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.Dense.up_proj.weight.Float"),
            ("model.layers.0.mlp.steps.1.up_proj.weight", "model.layers.0.mlp.Crest.steps.1.up_proj.weight.Float"),
            ("model.layers.0.mlp.halt_gates.1.weight", "model.layers.0.mlp.Crest.halt_gates.1.output.weight.Float"),
            ("model.layers.0.mlp.halt_gates.2.0.weight", "model.layers.0.mlp.Crest.halt_gates.2.hidden.weight.Float"),
            ("model.layers.0.mlp.halt_gates.2.2.weight", "model.layers.0.mlp.Crest.halt_gates.2.output.weight.Float"),
            ("model.layers.1.mlp.halt_gate.weight", "model.layers.1.mlp.Crest.halt_gate.output.weight.Float"),
            (
                "model.layers.1.self_attn.v_compressor.decoder.0.weight",
                "model.layers.1.self_attn.v_compressor.decoder.hidden.weight.Float",
            ),
            (
                "model.layers.1.self_attn.v_compressor.decoder.2.weight",
                "model.layers.1.self_attn.v_compressor.decoder.output.weight.Float",
            ),
            ("lm_head.weight", "lm_head.weight.Float"),
        ];
        let others = [
            ("model.layers.0.linear_attn.A_log", "model.layers.0.linear_attn.a_log"),
            ("model.layers.0.mlp.halt_gates.2.2.bias", "model.layers.0.mlp.Crest.halt_gates.2.output.bias"),
            ("model.norm.weight", "model.norm.weight"),
            ("model.layers.0.linear_attn.conv1d.weight", "model.layers.0.linear_attn.conv1d.weight"),
        ];
        let fields = Fields::of(matrices.iter().chain(&others).map(|(_, path)| *path));
        for (name, path) in &matrices {
            assert_eq!(field(name, true), *path);
            assert_eq!(fields.checkpoint_name(path).as_deref(), Ok(*name));
        }
        for (name, path) in &others {
            assert_eq!(field(name, false), *path);
            assert_eq!(fields.checkpoint_name(path).as_deref(), Ok(*name));
        }
        let packed = fields.checkpoint_name("lm_head.weight.Half.words").unwrap_err();
        assert!(packed.contains("packed weight (Half)") && packed.contains("CausalLm::save"), "{packed}");
    }
}
