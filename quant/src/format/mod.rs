//! Number formats: what the bytes of a [`HostWeight`](crate::host::HostWeight) mean, and how to make them.
//!
//! [`dequantize`] and [`dequantize_rounded`] are the plain statement of every storage, exact to the bit: kernels are
//! tested against them. [`quantize_nf4`], [`quantize_int8`] and [`quantize_truequant`] go the other
//! way and produce the bytes that the programs which defined the formats produce.
//!
//! # Untrusted input
//! A [`HostWeight`](crate::host::HostWeight) that comes from a file goes through [`check`] once. The readers rely on
//! what it promises; the quantisers call it themselves.

mod check;
mod float;
mod read;

pub use check::check;
pub use read::{dequantize, dequantize_rounded};
