//! `config.json` and the files beside it, parsed into validated types.
//!
//! Every number is checked against a range when it is read, so that model code may multiply sizes and divide by the number of heads
//! without checks of its own. Text keys may be flat or under `text_config`; the spellings of transformers 4 and 5 are both read.
//! `auto_map` is noted, never followed.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod agreement;
mod body;
mod crest;
mod family;
mod fields;
mod generation;
mod generation_keys;
pub(crate) mod json;
mod kv;
mod layers;
mod limits;
mod model;
mod nano;
mod notes;
mod options;
mod origin;
mod quantization;
mod read;
mod rope;
mod rope_scaling;
mod unread;

pub use crest::{CrestConfig, CrestOptions, CrestOverrides, DiscoveredCrest, GateInput, StepInput};
pub use emberlm_quant::halting::{HaltMode, HaltWeights};
pub use emberlm_quant::kv::CodeActivation;
pub use family::Family;
pub use generation::{GenerationConfig, GenerationDefaults};
pub use kv::{DiscoveredKvCompression, KStage, KvCodec, KvCompression, KvCompressionConfig, KvOverrides, KvTarget};
pub use layers::{LayerType, LinearAttentionConfig};
pub use model::ModelConfig;
pub use nano::{NanoKind, NanoModule};
pub use notes::Notes;
pub use options::ModelOptions;
pub use quantization::{QuantMethod, QuantType, QuantizationConfig};
pub use rope::RopeConfig;
pub use rope_scaling::{DynamicScaling, Llama3Scaling, LongRopeScaling, RopeScaling, YarnScaling};
pub(crate) use unread::is_harmless;
