//! The model families of emberlm: configs, modules, loading, text and generation.

mod error;
pub mod sampling;
pub mod text;

pub use error::{Error, Result};
