//! Model families, and the keys by which a config identifies them.

use super::fields::{Fields, spelled};
use super::notes::Notes;
use crate::Result;
use crate::checkpoint::names::shown;

spelled! {
    /// A model family.
    Family("family") {
        /// Sky v2.0: adaptive depth on the Qwen3.5 body.
        Crest = "crest",
        /// Nano compact: Qwen2 with integer rows.
        NanoCompact = "nano-compact",
        /// LeanLlama: Llama with a compressed cache.
        LeanLlama = "leanllama",
        /// Qwen3.5, text part.
        Qwen3_5 = "qwen3_5",
        /// Qwen2 and Qwen2.5.
        Qwen2 = "qwen2",
        /// Llama.
        Llama = "llama",
    }
}

impl Family {
    /// Whether layers mix linear and full attention (the Qwen3.5 body).
    pub fn is_hybrid(self) -> bool {
        matches!(self, Self::Crest | Self::Qwen3_5)
    }

    /// Whether the query, key and value projections have biases whatever the config says (the Qwen2 body).
    pub fn has_qkv_bias(self) -> bool {
        matches!(self, Self::NanoCompact | Self::Qwen2)
    }
}

/// The family of a config: additions that are present win over the name of the body they are added to, but the body must be
/// that of the additions.
pub(super) fn family(root: &Fields, text: &Fields, notes: &mut Notes) -> Result<(Family, String, Option<String>)> {
    const CREST: [&str; 4] = ["sky-crest", "sky_crest", "qwen3_5", "qwen3_5_text"];
    let model_type = root.text("model_type")?.unwrap_or_default();
    let architectures = root.strings("architectures")?.unwrap_or_default();
    let is = |name: &str| architectures.contains(&name);
    // Other bodies may have integer modules too: that is a storage, and they stay what they are.
    let integer_modules = text.get("nanollm_modules").is_some() && matches!(model_type, "qwen2" | "");
    let (family, bodies): (_, &[&str]) = if is("NanoQwenForCausalLM") || integer_modules {
        (Family::NanoCompact, &["qwen2"])
    } else if is("SkyCRESTForCausalLM") {
        (Family::Crest, &CREST)
    } else if is("LeanLlamaForCausalLM") {
        (Family::LeanLlama, &["llama"])
    } else {
        match model_type {
            "sky-crest" | "sky_crest" => (Family::Crest, &CREST),
            "qwen3_5" | "qwen3_5_text" if text.get("crest").is_some() => (Family::Crest, &CREST),
            "qwen3_5" | "qwen3_5_text" => (Family::Qwen3_5, &["qwen3_5", "qwen3_5_text"]),
            "qwen2" => (Family::Qwen2, &["qwen2"]),
            "llama" if text.get("kv_compression").is_some() => (Family::LeanLlama, &["llama"]),
            "llama" => (Family::Llama, &["llama"]),
            other => {
                let message = format!(
                    "\"{}\" is not supported. Supported: sky-crest, qwen3_5, qwen3_5_text, qwen2, llama; and the architectures \
                     SkyCRESTForCausalLM, NanoQwenForCausalLM, LeanLlamaForCausalLM",
                    shown(other)
                );
                return Err(root.error("model_type", message));
            }
        }
    };
    if model_type.is_empty() {
        notes.assumed.push(format!("model_type is not stated: that of {family} is assumed"));
    } else if !bodies.contains(&model_type) {
        let message = format!(
            "\"{}\" is not the body of {family}, which has model type {}",
            shown(model_type),
            bodies.join(" or ")
        );
        return Err(root.error("model_type", message));
    }
    Ok((family, model_type.to_owned(), architectures.first().map(|s| s.to_string())))
}
