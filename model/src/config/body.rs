//! Keys that a config may omit, with the defaults of transformers 5; switches of attention; and keys of other families, which have
//! no effect.
//!
//! The rule: what would change the numbers is computed or refused by name, what would not is ignored. Keys that the model type of
//! a config does not have are ignored by transformers too; where they change the numbers of other families, a note says so.

use super::family::Family;
use super::fields::Fields;
use super::layers::{LayerType, LinearAttentionConfig};
use super::limits::{MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS};
use super::notes::Notes;
use crate::checkpoint::names::shown;
use crate::{Error, Result};

/// Keys that change the numbers of other families, with the values that change nothing besides null, false and 0.
const FOREIGN: [(&str, &[f64]); 26] = [
    ("attn_logit_softcapping", &[]),
    ("final_logit_softcapping", &[]),
    ("logit_scale", &[1.0]),
    ("logits_scaling", &[1.0]),
    ("embedding_multiplier", &[1.0]),
    ("residual_multiplier", &[1.0]),
    ("attention_multiplier", &[]),
    ("query_pre_attn_scalar", &[]),
    ("scale_emb", &[1.0]),
    ("scale_depth", &[]),
    ("dim_model_base", &[]),
    ("clip_qkv", &[]),
    ("qk_norm", &[]),
    ("use_qk_norm", &[]),
    ("qk_layernorm", &[]),
    ("rope_interleaved", &[]),
    ("rope_interleave", &[]),
    ("alibi", &[]),
    ("no_rope_layers", &[]),
    ("no_rope_layer_interval", &[]),
    ("parallel_residual", &[]),
    ("use_parallel_residual", &[]),
    ("attention_chunk_size", &[]),
    ("hidden_activation", &[]),
    ("activation_function", &[]),
    ("num_local_experts", &[1.0]),
];

/// Notes on keys of other families that are stated and not used.
pub(super) fn note_foreign(text: &Fields, model_type: &str, notes: &mut Notes) {
    for (key, neutral) in FOREIGN {
        let Some(value) = text.get(key) else { continue };
        let changes_nothing = match (value.as_f64(), value.as_bool(), value.as_str()) {
            (Some(x), ..) => x == 0.0 || neutral.contains(&x),
            (_, Some(on), _) => !on,
            (.., Some(name)) => matches!(name, "silu" | "swish"),
            _ => value.as_array().is_some_and(Vec::is_empty),
        };
        if !changes_nothing {
            notes.unused.push(format!(
                "{key} is not used: it is no key of model type {}, and transformers ignores it too",
                shown(model_type)
            ));
        }
    }
}

/// A size that transformers has a default for: what is stated, or the default with a note; null is an error.
pub(super) fn size_or(text: &Fields, key: &str, max: usize, default: usize, notes: &mut Notes) -> Result<usize> {
    if let Some(stated) = text.size(key, max)? {
        return Ok(stated);
    }
    if text.is_null(key) {
        return Err(text.error(key, "is missing or null"));
    }
    notes.assumed.push(format!("{key} is not stated: {default} is assumed, as in transformers"));
    Ok(default)
}

/// The context where none is stated.
pub(super) fn default_positions(family: Family) -> usize {
    match family {
        Family::LeanLlama | Family::Llama => 2048,
        _ => 32768,
    }
}

/// Refuses an activation that is not computed.
pub(super) fn check_activation(text: &Fields) -> Result<()> {
    match text.text("hidden_act")? {
        Some(other) if !matches!(other, "silu" | "swish") => {
            Err(text.error("hidden_act", format!("\"{}\" is not supported, only silu is", shown(other))))
        }
        _ => Ok(()),
    }
}

/// Biases of the projections.
pub(super) struct Biases {
    pub qkv: bool,
    pub o: bool,
    pub mlp: bool,
}

impl Biases {
    /// Qwen2 always has those of query, key and value; `attention_bias` is a key of Llama and Qwen3.5, `mlp_bias` one of Llama.
    pub(super) fn read(text: &Fields, family: Family) -> Result<Self> {
        let (attention, mlp) = (text.boolean("attention_bias")? == Some(true), text.boolean("mlp_bias")? == Some(true));
        if mlp && !matches!(family, Family::Llama | Family::LeanLlama) {
            return Err(text.error("mlp_bias", format!("true is not supported: {family} has no such biases")));
        }
        let always = family.has_qkv_bias();
        Ok(Self { qkv: always || attention, o: attention && !always, mlp })
    }
}

/// The mixer of each of `layers` layers, in a context of `context` tokens. Windows as long as that are no windows; shorter ones
/// are refused where a layer uses them.
pub(super) fn layer_types(text: &Fields, family: Family, layers: usize, context: usize) -> Result<Vec<LayerType>> {
    let hybrid = family.is_hybrid();
    let names = text.strings("layer_types")?;
    if let Some(names) = names.as_ref().filter(|names| names.len() != layers) {
        let message = format!("has {} entries, but num_hidden_layers is {layers}", names.len());
        return Err(text.error("layer_types", message));
    }
    if !hybrid {
        check_window(text, family, names.as_deref(), layers, context)?;
    }
    let Some(names) = names else {
        if !hybrid {
            return Ok(vec![LayerType::FullAttention; layers]);
        }
        let interval = text.size("full_attention_interval", MAX_LAYERS)?.unwrap_or(4);
        let full = |layer: &usize| layer.is_multiple_of(interval);
        let kind = |layer| if full(&layer) { LayerType::FullAttention } else { LayerType::LinearAttention };
        return Ok((1..=layers).map(kind).collect());
    };
    // The older names of the same mixers.
    let current = |name| match name {
        "attention" => "full_attention",
        "mamba" => "linear_attention",
        other => other,
    };
    let parse = |name| match current(name).parse() {
        // Windows shorter than the context were refused before.
        Err(_) if name == "sliding_attention" && !hybrid => Ok(LayerType::FullAttention),
        Ok(LayerType::LinearAttention) if !hybrid => {
            Err(text.error("layer_types", "linear_attention is not part of this model type"))
        }
        Ok(kind) => Ok(kind),
        Err(Error::Option { message, .. }) => Err(text.error("layer_types", message)),
        Err(other) => Err(other),
    };
    names.into_iter().map(parse).collect()
}

/// Refuses a window that a layer uses and that is shorter than the context. `use_sliding_window` false turns windows off; Qwen2 has
/// none unless it is true, and then in the layers from `max_window_layers` on; `layer_types` says it layer by layer.
fn check_window(text: &Fields, family: Family, names: Option<&[&str]>, layers: usize, context: usize) -> Result<()> {
    let qwen2 = family.has_qkv_bias();
    let on = text.boolean("use_sliding_window")?;
    let in_force = on.unwrap_or(!qwen2);
    let window = match text.is_null("sliding_window") {
        _ if !in_force => None,
        true => None,
        false => text.size("sliding_window", MAX_POSITIONS)?.or(qwen2.then_some(4096)),
    };
    let first = text.integer("max_window_layers", 0, MAX_LAYERS).ok().flatten().unwrap_or(if qwen2 { 28 } else { 0 });
    let (key, slides) = match names {
        Some(names) => ("layer_types", names.contains(&"sliding_attention")),
        None => {
            (if on.is_some() { "use_sliding_window" } else { "sliding_window" }, window.is_some() && first < layers)
        }
    };
    match window {
        _ if !slides => Ok(()),
        Some(window) if window >= context => Ok(()),
        Some(window) => {
            let message = format!(
                "asks for layers that see a window of {window} tokens, which is not supported: it is shorter than the context of {context}"
            );
            Err(text.error(key, message))
        }
        None => Err(text.error(key, "has sliding_attention, but no sliding_window is in force")),
    }
}

/// Key and value heads where none are stated.
pub(super) fn key_value_heads(text: &Fields, family: Family, heads: usize, notes: &mut Notes) -> Result<usize> {
    match family.is_hybrid() && !text.is_null("num_key_value_heads") {
        true => size_or(text, "num_key_value_heads", MAX_HEADS, 4, notes),
        false => Ok(text.size("num_key_value_heads", MAX_HEADS)?.unwrap_or(heads)),
    }
}

/// The sizes of linear attention, with transformers' defaults.
pub(super) fn linear_attention(text: &Fields, notes: &mut Notes) -> Result<LinearAttentionConfig> {
    let mut size = |key, max, default| size_or(text, key, max, default, notes);
    let out = LinearAttentionConfig {
        num_key_heads: size("linear_num_key_heads", MAX_HEADS, 16)?,
        num_value_heads: size("linear_num_value_heads", MAX_HEADS, 32)?,
        key_head_dim: size("linear_key_head_dim", MAX_HEAD_DIM, 128)?,
        value_head_dim: size("linear_value_head_dim", MAX_HEAD_DIM, 128)?,
        conv_kernel_dim: size("linear_conv_kernel_dim", 64, 4)?,
    };
    if !out.num_value_heads.is_multiple_of(out.num_key_heads) {
        let message =
            format!("is {}, which does not divide linear_num_value_heads {}", out.num_key_heads, out.num_value_heads);
        return Err(text.error("linear_num_key_heads", message));
    }
    Ok(out)
}
