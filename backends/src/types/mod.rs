//! Enums and shapes that the CPU, the GPUs, the plain bodies and the models share, each declared once.

mod activation;
mod delta_rule;
mod halting;
mod kv;
mod store_kv;
mod weight;

pub use activation::CodeActivation;
pub use delta_rule::DeltaRuleShape;
pub use halting::{HaltMode, HaltRule, HaltWeights};
pub use kv::{KV_BLOCK, KV_TILE};
pub use store_kv::StoreKv;
pub use weight::{BlockScales, CodeBook4, INT8_BLOCK, Int8, IntegerRows, Matrix, Weight};
