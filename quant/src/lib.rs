//! Number formats, packed weights and the burn operations of emberlm.

mod activations;
mod autodiff;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod cpu;
#[cfg(feature = "cube")]
pub mod cube;
mod error;
pub mod format;
pub mod halting;
pub mod host;
mod init;
#[cfg(any(feature = "ndarray", feature = "flex", feature = "cube"))]
mod kernels;
pub mod kv;
mod layers;
pub mod modules;
pub mod ops;
pub mod packed;
mod placed;
pub mod read;
pub mod reference;
pub mod self_test;
#[cfg(any(feature = "ndarray", feature = "flex", feature = "cube"))]
mod shapes;
mod spans;
#[cfg(any(feature = "ndarray", feature = "flex", feature = "cube"))]
mod split;
#[cfg(any(feature = "ndarray", feature = "flex", feature = "cube"))]
mod stored;
#[cfg(any(feature = "ndarray", feature = "flex", feature = "cube"))]
mod swiglu;
mod unpacked;

pub use activations::Activations;
pub use emberlm_backends::{environment, panics, random};
pub use error::{Error, Result};
pub use ops::CompactBackend;
