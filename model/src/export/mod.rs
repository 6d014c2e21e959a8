//! Writing model directories: a checkpoint in other number formats, with everything else that its directory holds.
//!
//! [`Pretrained::export`](crate::Pretrained::export) says what is to be written and holds it against the source, reading nothing; [`ExportPlan::write`] then reads,
//! converts and writes tensor by tensor. One tensor is converted, on all threads, while the one before is written, so that memory holds
//! two; pages of the source are given back as soon as they are read.
//!
//! ```no_run
//! # use std::path::Path;
//! # use emberlm_model::export::{ExportOptions, MatrixFormat};
//! # use emberlm_model::{Pretrained, QuantizeOnLoad, Result, TensorRole};
//! # fn main() -> Result<()> {
//! let pretrained = Pretrained::open("path/to/a/model")?;
//! let nf4 = MatrixFormat::Quantized(QuantizeOnLoad::Nf4);
//! let plan = pretrained.export(&ExportOptions::default(), |matrix| match matrix.role {
//!     TensorRole::Projection => nf4,
//!     _ => MatrixFormat::AsStored,
//! })?;
//! println!("{} bytes", plan.bytes());
//! plan.write(Path::new("path/to/a/new/directory"), &mut |_| ())?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is written
//! A Hugging Face folder: `model.safetensors`, or shards and their index, or a record of burn-store ([`ExportContainer`]); `config.json` with what it must say about the formats; tokenizer,
//! chat templates and generation defaults as they are. Tensors keep the names that they have in the source, those of a record are the fields of the model. The directory appears when
//! it is complete; see [`ExportPlan::write`].

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod cascade;
mod config;
mod files;
mod item;
mod matrix;
mod modules;
mod options;
mod plan;
mod save;
mod write;

pub use cascade::{CascadeModule, CascadeOptions};
pub use matrix::{ExportedMatrix, MatrixFormat};
pub use options::{ExportContainer, ExportOptions};
pub use plan::ExportPlan;
pub use write::Exported;

/// Whether a directory can be written at this path, as [`ExportPlan::write`] asks first.
///
/// # Errors
/// [`Error::Source`](crate::Error::Source) when there is something that is not an empty directory.
pub fn check_target(directory: &std::path::Path) -> crate::Result<()> {
    crate::checkpoint::writer::check_target(directory)
}

/// Bytes that may be written on the disk of a directory, which need not exist; none where the system does not tell.
pub fn free_space(directory: &std::path::Path) -> Option<u64> {
    crate::checkpoint::writer::free_space(directory)
}
