//! Reading `config.json`: every key checked, defaults as transformers has them.

use std::collections::BTreeMap;

use super::body::{self, linear_attention};
use super::crest::CrestConfig;
use super::family::{Family, family};
use super::fields::{Fields, float_type};
use super::generation_keys::Unusable;
use super::kv::KvCompressionConfig;
use super::limits::{
    MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, MixerSizes, check_mixers,
};
use super::model::{ModelConfig, Stated};
use super::nano;
use super::notes::Notes;
use super::options::ModelOptions;
use super::quantization::QuantizationConfig;
use super::rope::RopeConfig;
use super::rope_scaling::RopeContext;
use crate::Result;

impl ModelConfig {
    pub(super) fn read(root: &Fields) -> Result<Self> {
        let nested = root.object(Self::NESTED)?;
        // Keys of rotary embedding count where the text config is, as in transformers.
        let own = nested.as_ref().unwrap_or(root).clone();
        let text = nested.map_or_else(|| root.clone(), |text| text.or_else(root));
        let mut notes = Notes::default();
        if nested_rope(root, &own) {
            notes.unused.push("rope parameters beside text_config are not used: those inside count".into());
        }
        let (family, model_type, architecture) = family(root, &text, &mut notes)?;
        let hybrid = family.is_hybrid();

        let size = |key, max| text.required(key, |f, key| f.size(key, max));
        let hidden_size = size("hidden_size", MAX_WIDTH)?;
        let num_hidden_layers = size("num_hidden_layers", MAX_LAYERS)?;
        let num_attention_heads = size("num_attention_heads", MAX_HEADS)?;
        let num_key_value_heads = body::key_value_heads(&text, family, num_attention_heads, &mut notes)?;
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let message =
                format!("is {num_key_value_heads}, which does not divide num_attention_heads {num_attention_heads}");
            return Err(text.error("num_key_value_heads", message));
        }
        let head_dim = match text.size("head_dim", MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if hybrid => body::size_or(&text, "head_dim", MAX_HEAD_DIM, 256, &mut notes)?,
            None => match hidden_size.checked_div(num_attention_heads) {
                Some(head_dim) if hidden_size.is_multiple_of(num_attention_heads) => head_dim,
                _ => {
                    let message = format!("is {num_attention_heads}, which does not divide hidden_size {hidden_size}");
                    return Err(text.error("num_attention_heads", message));
                }
            },
        };
        if head_dim > MAX_HEAD_DIM {
            return Err(text.error(
                "num_attention_heads",
                format!("makes heads of {head_dim}, at most {MAX_HEAD_DIM} are supported"),
            ));
        }
        let positions = body::default_positions(family);
        let positions = body::size_or(&text, "max_position_embeddings", MAX_POSITIONS, positions, &mut notes)?;
        let rope = RopeContext { hybrid, head_dim, max_position_embeddings: positions };
        let rope = RopeConfig::read(&own, &rope, &mut notes)?;
        let max_position_embeddings = rope.context(positions);
        body::check_activation(&text)?;
        body::note_foreign(&text, &model_type, &mut notes);
        let biases = body::Biases::read(&text, family)?;
        let layer_types = body::layer_types(&text, family, num_hidden_layers, max_position_embeddings)?;
        let linear_attention = hybrid.then(|| linear_attention(&text, &mut notes)).transpose()?;
        let mixers = MixerSizes {
            layer_types: &layer_types,
            linear: linear_attention.as_ref(),
            heads: num_attention_heads,
            kv_heads: num_key_value_heads,
            head_dim,
        };
        check_mixers(&text, &mixers)?;
        let crest = match (family, text.object(CrestConfig::GROUP)?) {
            (Family::Crest, Some(object)) => Some(CrestConfig::read(&object)?),
            (Family::Crest, None) => Some(CrestConfig::default()),
            _ => None,
        };
        let kv_compression = match (family, text.object("kv_compression")?) {
            (Family::LeanLlama, Some(object)) => {
                let kv_dim = num_key_value_heads.saturating_mul(head_dim);
                Some(KvCompressionConfig::read(&object, num_hidden_layers, kv_dim)?)
            }
            _ => None,
        };
        let nanollm_modules = match text.object("nanollm_modules")? {
            Some(modules) => nano::read_modules(&modules)?,
            None => BTreeMap::new(),
        };
        let dtype = float_type(&text, "dtype")?;
        // A text can begin and end without them, and `generation_config.json` may have others.
        let mut unusable = Unusable::default();
        let eos_token_ids = unusable.ids(&text, "eos_token_id");
        let bos_token_id = unusable.or(text.token_id("bos_token_id"));
        notes.unused.append(&mut unusable.0);
        Ok(Self {
            family,
            model_type,
            architecture,
            hidden_size,
            intermediate_size: size("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: size("vocab_size", MAX_VOCABULARY)?,
            max_position_embeddings,
            rms_norm_eps: rms_norm_eps(&text, &mut notes)?,
            rope,
            qkv_bias: biases.qkv,
            o_bias: biases.o,
            mlp_bias: biases.mlp,
            tie_word_embeddings: text.boolean("tie_word_embeddings")?.unwrap_or(false),
            layer_types,
            linear_attention,
            attn_output_gate: text.boolean("attn_output_gate")?.unwrap_or(true) && hybrid,
            crest,
            kv_compression,
            side_file: ModelOptions::default(),
            nanollm_modules,
            quantization: text.object("quantization_config")?.map(|q| QuantizationConfig::read(&q)).transpose()?,
            dtype: if dtype.is_some() { dtype } else { float_type(&text, "torch_dtype")? },
            eos_token_ids,
            bos_token_id,
            // Nothing is padded by id, so a value that is no id (-1, a list) is as good as none.
            pad_token_id: text.token_id("pad_token_id").ok().flatten(),
            sliding_window: text.size("sliding_window", MAX_POSITIONS).ok().flatten(),
            auto_map: root.get("auto_map").is_some(),
            notes,
            stated: Stated(root.map().clone()),
            crest_file: Stated::default(),
        })
    }
}

/// Whether rope parameters stand beside a text config that has none of the same name.
fn nested_rope(root: &Fields, own: &Fields) -> bool {
    const KEYS: [&str; 4] = ["rope_theta", "rope_parameters", "rope_scaling", "partial_rotary_factor"];
    KEYS.iter().any(|key| root.get(key).is_some() && own.get(key).is_none())
}

/// Below the smallest normal f32 it would vanish in the norms.
fn rms_norm_eps(text: &Fields, notes: &mut Notes) -> Result<f64> {
    const DEFAULT: f64 = 1e-6;
    let allowed = |x| x >= f64::from(f32::MIN_POSITIVE) && x <= 1.0;
    if let Some(stated) = text.number("rms_norm_eps", "a number above 0, at most 1", allowed)? {
        return Ok(stated);
    }
    if text.is_null("rms_norm_eps") {
        return Err(text.error("rms_norm_eps", "is missing or null"));
    }
    notes.assumed.push(format!("rms_norm_eps is not stated: {DEFAULT:e} is assumed, as in transformers"));
    Ok(DEFAULT)
}
