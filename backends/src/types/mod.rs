//! Enums and shapes that the CPU, the GPUs, the plain bodies and the models share, each declared once.

mod activation;
mod conv;
mod delta_rule;
mod halting;
mod kv;
mod norm;
mod rotary;
mod store_kv;
mod weight;

pub use activation::CodeActivation;
pub use conv::ConvShape;
pub use delta_rule::{DeltaRuleInputs, DeltaRuleShape};
pub use halting::{HaltMode, HaltRule, HaltWeights};
pub use kv::{KV_BLOCK, KV_TILE, KvFormat};
pub use norm::RmsNorm;
pub use rotary::RotaryShape;
pub use store_kv::StoreKv;
pub use weight::{BlockScales, CodeBook4, INT8_BLOCK, Int8, IntegerRows, Matrix, Weight};
