//! Checkpoints on disk: safetensors files, alone or sharded, or a record of burn-store, in a model directory.
//!
//! Three layers, each of which trusts the one before: [`ModelDir`] (which files may be read), [`Checkpoint`] (which bytes are
//! which tensor), [`Weights`] (which tensors are which parameter of the model, under canonical names).
//!
//! # Untrusted input
//! Files come from strangers. Only files in the model directory and its subfolders are opened (a hub snapshot's links
//! into its own blobs included; other links only with [`OpenOptions::allow_links`]). Headers are checked completely before any
//! tensor is read, so that every tensor is a range inside its file and no two overlap; sizes are computed with checked arithmetic;
//! nothing is allocated by a number that a file states, unless the file is at least as large. `.bin`, `.pt` and the like are never opened.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod advice;
mod bnb;
mod container;
mod differences;
mod dir;
mod discovery;
mod dtype;
mod foreign;
mod header;
mod index;
mod int8;
pub(crate) mod names;
mod nano;
mod open;
mod problem;
mod record;
mod record_names;
mod resolve;
mod storage_kind;
pub(crate) mod survey;
mod tied;
mod weights;
pub(crate) mod writer;

pub(crate) use bnb::SIDES as BNB_SIDES;
pub use differences::{MismatchedTensor, MissingTensor, TensorDifferences};
#[cfg(feature = "hub")]
pub(crate) use dir::relative;
pub use dir::{EmbeddedFile, ModelDir};
pub(crate) use dir::{INDEX, RECORD, SINGLE};
pub use dtype::Dtype;
pub(crate) use foreign::recognise;
pub use foreign::{LFS_ADVICE, is_lfs_pointer};
pub(crate) use header::FlawKind;
pub use header::TensorInfo;
#[cfg(feature = "hub")]
pub(crate) use index::{MAX_INDEX_BYTES, parse as parse_index};
pub(crate) use names::layer_of;
pub use open::{Checkpoint, OpenOptions};
pub use problem::{CheckpointError, TensorProperty};
pub(crate) use record_names::field as record_field;
pub use storage_kind::StorageKind;
pub use weights::{ParameterInfo, Weights};
