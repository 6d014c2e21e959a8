//! The `quantization_config` of a checkpoint.

use emberlm_quant::host::FloatType;

use super::fields::{Fields, float_type, spelled};
use crate::Result;
use crate::checkpoint::names::shown;

spelled! {
    /// Whose layout quantised weights have.
    QuantMethod("quant_method") {
        /// 4-bit code books of bitsandbytes.
        Bitsandbytes = "bitsandbytes",
        /// 8-bit groups of compressed-tensors.
        CompressedTensors = "compressed-tensors",
        /// Several layouts in one checkpoint, or one that its own program does not read in all places: this program's alone.
        Emberlm = "emberlm",
    }
}

spelled! {
    /// A 4-bit code book of bitsandbytes.
    QuantType("bnb_4bit_quant_type") {
        /// 4-bit NormalFloat.
        Nf4 = "nf4",
        /// 4-bit floating point.
        Fp4 = "fp4",
    }
}

/// How the author quantised the weights. The tensors themselves decide how they are read; this is for display and plans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// Whose layout it is.
    pub method: QuantMethod,
    /// The code book (bitsandbytes).
    pub quant_type: Option<QuantType>,
    /// Whether the block scales are quantised themselves (bitsandbytes).
    pub double_quant: bool,
    /// The type the author computed in.
    pub compute_dtype: Option<FloatType>,
    /// Modules that were left unquantised.
    pub skip_modules: Vec<String>,
}

impl QuantizationConfig {
    pub(super) fn read(object: &Fields) -> Result<Self> {
        let says = |key| object.boolean(key).map(|on| on == Some(true));
        let bitsandbytes = says("load_in_4bit")? || says("_load_in_4bit")? || says("load_in_8bit")?;
        // Without a method transformers knows the format by these switches only.
        let Some(method) = object.text("quant_method")?.or(bitsandbytes.then_some("bitsandbytes")) else {
            let message =
                "is missing: only bitsandbytes 4-bit checkpoints are supported (not GPTQ, AWQ, FP8, MLX and others)";
            return Err(object.error("quant_method", message));
        };
        match method {
            "bitsandbytes" => Self::bitsandbytes(object),
            "compressed-tensors" => Self::compressed_tensors(object),
            "emberlm" => Ok(Self::of(QuantMethod::Emberlm)),
            _ => {
                let message = format!(
                    "\"{}\" is not supported, only bitsandbytes 4-bit checkpoints are: use the model in half precision, \
                     which can be quantised while it is loaded",
                    shown(method)
                );
                Err(object.error("quant_method", message))
            }
        }
    }

    fn of(method: QuantMethod) -> Self {
        Self { method, quant_type: None, double_quant: false, compute_dtype: None, skip_modules: Vec::new() }
    }

    fn bitsandbytes(object: &Fields) -> Result<Self> {
        if object.boolean("load_in_8bit")? == Some(true) {
            return Err(object.error(
                "load_in_8bit",
                "8-bit bitsandbytes checkpoints are not supported: use the 4-bit or the half precision one",
            ));
        }
        // The tensors decide how they are read: what is for display only stops nothing.
        let strings = object.strings("llm_int8_skip_modules").ok().flatten().unwrap_or_default();
        Ok(Self {
            quant_type: Some(object.choice("bnb_4bit_quant_type")?.unwrap_or(QuantType::Fp4)),
            double_quant: object.boolean("bnb_4bit_use_double_quant").ok().flatten().unwrap_or(false),
            compute_dtype: float_type(object, "bnb_4bit_compute_dtype").ok().flatten(),
            skip_modules: strings.into_iter().map(String::from).collect(),
            ..Self::of(QuantMethod::Bitsandbytes)
        })
    }

    /// What the tensors do not show is whether integers stand for the weights alone.
    fn compressed_tensors(object: &Fields) -> Result<Self> {
        match object.text("format")? {
            Some("int-quantized") => {}
            other => {
                let message = format!(
                    "\"{}\" of compressed-tensors is not supported, only int-quantized in symmetric groups of 64 is: use the model \
                     in half precision, which can be quantised while it is loaded",
                    shown(other.unwrap_or_default())
                );
                return Err(object.error("format", message));
            }
        }
        for (name, group) in
            object.object("config_groups")?.iter().flat_map(|groups| groups.keys().map(move |n| (n, groups)))
        {
            let Some(group) = group.object(name)? else { continue };
            Self::compressed_group(&group)?;
        }
        let strings = object.strings("ignore").ok().flatten().unwrap_or_default();
        let skip_modules = strings.into_iter().map(String::from).collect();
        Ok(Self { skip_modules, ..Self::of(QuantMethod::CompressedTensors) })
    }
    /// One group of modules: nothing that its tensors are not. What is absent is as this program writes it.
    fn compressed_group(group: &Fields) -> Result<()> {
        for key in ["input_activations", "output_activations"] {
            if group.get(key).is_some() {
                return Err(group.error(key, "quantised activations are not supported, only weights are"));
            }
        }
        expect(group, "format", "int-quantized")?;
        let Some(weights) = group.object("weights")? else { return Ok(()) };
        if weights.boolean("symmetric")? == Some(false) {
            return Err(weights.error("symmetric", "is false: only symmetric groups are supported"));
        }
        weights.integer("num_bits", 8, 8)?;
        expect(&weights, "type", "int")?;
        expect(&weights, "strategy", "group")?;
        weights.integer("group_size", GROUP, GROUP)?;
        Ok(())
    }
}

/// Weights that share a scale in compressed-tensors' groups.
const GROUP: usize = 64;

/// An error where a text is another than this one.
fn expect(object: &Fields, key: &str, expected: &str) -> Result<()> {
    match object.text(key)? {
        Some(text) if text != expected => {
            Err(object.error(key, format!("is \"{}\", expected \"{expected}\"", shown(text))))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use crate::config::ModelConfig;

    fn with_group(change: impl Fn(&mut Value)) -> Value {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
            "vocab_size": 8, "rms_norm_eps": 1e-5,
            "quantization_config": {
                "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
                "version": "0.12.2", "global_compression_ratio": 1.5, "ignore": ["lm_head"], "kv_cache_scheme": null,
                "config_groups": { "group_0": {
                    "targets": ["Linear"], "format": "int-quantized", "input_activations": null, "output_activations": null,
                    "weights": {
                        "num_bits": 8, "type": "int", "symmetric": true, "strategy": "group", "group_size": 64, "dynamic": false,
                        "actorder": null, "block_structure": null, "observer": "minmax", "observer_kwargs": {"averaging": 1},
                    },
                } },
            },
        });
        change(&mut config["quantization_config"]);
        config
    }

    #[test]
    fn every_key_of_compressed_groups_is_known() {
        let path = Path::new("config.json");
        let config = with_group(|_| ()).to_string();
        assert_eq!(ModelConfig::unread_keys(path, config.as_bytes()).unwrap(), []);
        let config = with_group(|quantization| {
            quantization["kv_cache_scheme"] = json!({"num_bits": 8});
            quantization["config_groups"]["group_0"]["weights"]["actorder"] = json!("group");
        });
        let unread = ModelConfig::unread_keys(path, config.to_string().as_bytes()).unwrap();
        let names: Vec<&str> = unread.iter().map(|(key, _)| key.rsplit('.').next().unwrap()).collect();
        assert_eq!(names, ["kv_cache_scheme", "actorder"]);
    }

    #[test]
    fn groups_that_are_computed_otherwise_are_refused() {
        for (key, value) in [
            ("num_bits", json!(4)),
            ("type", json!("float")),
            ("strategy", json!("channel")),
            ("group_size", json!(128)),
            ("symmetric", json!(false)),
        ] {
            let config =
                with_group(|quantization| quantization["config_groups"]["group_0"]["weights"][key] = value.clone());
            let error = ModelConfig::from_json(Path::new("config.json"), config.to_string().as_bytes()).unwrap_err();
            let place = format!("config_groups.group_0.weights.{key}");
            assert!(error.to_string().contains(&place), "{key}: {error}");
        }
        for key in ["input_activations", "output_activations"] {
            let config =
                with_group(|quantization| quantization["config_groups"]["group_0"][key] = json!({"num_bits": 8}));
            let error = ModelConfig::from_json(Path::new("config.json"), config.to_string().as_bytes()).unwrap_err();
            assert!(error.to_string().contains(key), "{key}: {error}");
        }
    }
}
