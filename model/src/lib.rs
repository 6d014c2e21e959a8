//! The model families of emberlm: configs, modules, loading, text and generation.

pub mod checkpoint;
pub mod config;
mod error;
pub mod sampling;
pub mod text;

pub use error::{Error, Result};
