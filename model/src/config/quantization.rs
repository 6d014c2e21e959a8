//! The `quantization_config` of a checkpoint that bitsandbytes wrote.

use emberlm_quant::host::FloatType;

use super::fields::{Fields, float_type, spelled};
use crate::Result;
use crate::checkpoint::names::shown;

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
    /// The code book.
    pub quant_type: QuantType,
    /// Whether the block scales are quantised themselves.
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
        if method != "bitsandbytes" {
            let message = format!(
                "\"{}\" is not supported, only bitsandbytes 4-bit checkpoints are: use the model in half precision, \
                 which can be quantised while it is loaded",
                shown(method)
            );
            return Err(object.error("quant_method", message));
        }
        if object.boolean("load_in_8bit")? == Some(true) {
            return Err(object.error(
                "load_in_8bit",
                "8-bit bitsandbytes checkpoints are not supported: use the 4-bit or the half precision one",
            ));
        }
        // The tensors decide how they are read: what is for display only stops nothing.
        let strings = object.strings("llm_int8_skip_modules").ok().flatten().unwrap_or_default();
        Ok(Self {
            quant_type: object.choice("bnb_4bit_quant_type")?.unwrap_or(QuantType::Fp4),
            double_quant: object.boolean("bnb_4bit_use_double_quant").ok().flatten().unwrap_or(false),
            compute_dtype: float_type(object, "bnb_4bit_compute_dtype").ok().flatten(),
            skip_modules: strings.into_iter().map(String::from).collect(),
        })
    }
}
