//! The model families of emberlm: configs, modules, loading, text and generation.

mod error;

pub use error::{Error, Result};
