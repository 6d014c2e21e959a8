//! Keys of a config that nothing reads: those of newer or other software, some of which may change the numbers.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::fields::Fields;
use super::json;
use super::model::ModelConfig;
use crate::Result;

/// Keys that do not change the numbers of a text model, whatever their value: by what they are about.
const HARMLESS: [&[&str]; 7] = [
    // Known, and read only where another key does not decide.
    &[
        "dtype",
        "torch_dtype",
        "model_type",
        "full_attention_interval",
        "max_window_layers",
        "quantization_config._load_in_4bit",
        "quantization_config.load_in_8bit",
    ],
    // Who wrote the file, and with what.
    &[
        "_name_or_path",
        "_commit_hash",
        "architectures",
        "auto_map",
        "transformers_version",
        "transformers.js_config",
        "unsloth_fixed",
        "unsloth_version",
        "tokenizer_class",
        "processor_class",
        "finetuning_task",
        "task_specific_params",
        "problem_type",
        "id2label",
        "label2id",
        "num_labels",
    ],
    // How a model is run: the cache, the kernel, what is returned.
    &[
        "use_cache",
        "use_return_dict",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "output_scores",
        "return_dict_in_generate",
        "torchscript",
        "use_bfloat16",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attention_implementation",
        "cache_implementation",
        "chunk_size_feed_forward",
        "pretraining_tp",
        "low_cpu_mem_usage",
        "num_logits_to_keep",
        "is_llama_config",
        "mamba_ssm_dtype",
        "remove_invalid_values",
        "tf_legacy_loss",
    ],
    // Training.
    &[
        "initializer_range",
        "initializer_factor",
        "attention_dropout",
        "attn_dropout",
        "hidden_dropout",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "dropout",
        "gradient_checkpointing",
        "router_aux_loss_coef",
        "label_smoothing",
        "z_loss_coefficient",
        "max_sequence_length_training",
    ],
    // Choosing tokens: keys of older files, which generation_config.json replaces.
    &[
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "unk_token_id",
        "sep_token_id",
        "cls_token_id",
        "mask_token_id",
        "decoder_start_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "max_length",
        "max_new_tokens",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "num_return_sequences",
        "suppress_tokens",
        "begin_suppress_tokens",
        "exponential_decay_length_penalty",
        "prefix",
    ],
    // Parts that are not run: encoders, pictures, prediction of several tokens. Their tensors are named where they are stored.
    &[
        "is_decoder",
        "is_encoder_decoder",
        "add_cross_attention",
        "cross_attention_hidden_size",
        "tie_encoder_decoder",
        "pruned_heads",
        "vision_config",
        "audio_config",
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
        "vision_token_id",
        "language_model_only",
        "mtp_num_hidden_layers",
        "mtp_use_dedicated_embeddings",
    ],
    // How a number format was made, not how it is read; and position streams that are equal for text.
    &[
        "quantization_config._load_in_8bit",
        "quantization_config.modules_to_not_convert",
        "quantization_config.bnb_4bit_quant_storage",
        "quantization_config.formats",
        "quantization_config.global_compression_ratio",
        "quantization_config.llm_int8_enable_fp32_cpu_offload",
        "quantization_config.llm_int8_has_fp16_weight",
        "quantization_config.llm_int8_threshold",
        "quantization_config.quantization_status",
        "quantization_config.version",
        "rope_parameters.mrope_interleaved",
        "rope_parameters.mrope_section",
        "rope_scaling.mrope_interleaved",
        "rope_scaling.mrope_section",
        "rope_scaling.finetuned",
        "rope_parameters.finetuned",
    ],
];

/// Where the groups of compressed-tensors are, each under a name of its own.
const GROUPS: &str = "quantization_config.config_groups.";

/// How their keys end that do not change the numbers: which modules a group is of, which the tensors show, and how its scales were found.
const HARMLESS_OF_GROUPS: [&str; 6] = [
    ".targets",
    ".weights.dynamic",
    ".weights.observer",
    ".weights.observer_kwargs",
    ".weights.scale_dtype",
    ".weights.zp_dtype",
];

/// The place of a key without that of a text config around it.
fn plain(place: &str) -> &str {
    place.strip_prefix("text_config.").unwrap_or(place)
}

/// Whether a key changes nothing about the numbers of a text model, by itself or as a part of one that does not.
pub(crate) fn is_harmless(place: &str) -> bool {
    let place = plain(place);
    let of_group = |key: &&str| place.starts_with(GROUPS) && place.ends_with(*key);
    let parents = place.match_indices('.').filter_map(|(dot, _)| place.get(..dot));
    let harmless = |place: &str| HARMLESS.iter().any(|keys| keys.contains(&place));
    parents.chain([place]).any(harmless) || HARMLESS_OF_GROUPS.iter().any(of_group)
}

impl ModelConfig {
    /// The keys of a `config.json` that reading it does not ask for, that may change the numbers, and that are not switched off
    /// (null, false, 0, empty), with their values. `path` is for messages.
    ///
    /// # Errors
    /// As [`Self::from_json`].
    pub(crate) fn unread_keys(path: &Path, bytes: &[u8]) -> Result<Vec<(String, Value)>> {
        let value = json::parse(bytes).map_err(|message| super::model::not_json(path, message))?;
        let asked = RefCell::new(BTreeSet::new());
        Self::read(&Fields::root(path, &value)?.noting(&asked))?;
        let mut unread = Vec::new();
        if let Value::Object(map) = &value {
            collect(map, "", &asked.borrow(), &mut unread);
        }
        Ok(unread)
    }
}

fn collect(map: &Map<String, Value>, at: &str, asked: &BTreeSet<String>, unread: &mut Vec<(String, Value)>) {
    for (key, value) in map {
        let place = format!("{at}{key}");
        if is_harmless(&place) || is_off(value) {
            continue;
        }
        let below = format!("{place}.");
        let looked_into = asked.range(below.clone()..).next().is_some_and(|next| next.starts_with(&below));
        match value {
            Value::Object(inner) if looked_into => collect(inner, &below, asked, unread),
            Value::Object(_) => unread.push((place, value.clone())),
            _ if !asked.contains(&place) => unread.push((place, value.clone())),
            _ => {}
        }
    }
}

/// Whether a value states that something is not there.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(x) => x.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_asks_for_is_named() {
        let json = br#"{
            "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
            "vocab_size": 8, "rms_norm_eps": 1e-5, "use_cache": true, "attention_sink_size": 4, "off": false, "none": [], "zero": 0,
            "crest": {"num_steps": 4},
            "rope_scaling": {"rope_type": "linear", "factor": 2.0, "tempo": 3}
        }"#;
        let keys = ModelConfig::unread_keys(Path::new("config.json"), json).unwrap();
        let names: Vec<&str> = keys.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(names, ["attention_sink_size", "crest", "rope_scaling.tempo"]);
    }
}
