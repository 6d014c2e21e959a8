//! Number formats: what the bytes of a [`HostWeight`](crate::host::HostWeight) mean, and how to make them.
//!
//! [`dequantize`] and [`dequantize_rounded`] are the plain statement of every storage, exact to the bit: kernels are
//! tested against them. [`quantize_nf4`], [`quantize_fp4`], [`quantize_int8_rows`] and [`quantize_truequant`] go the other
//! way and produce the bytes that the programs which defined the formats produce; [`quantize_int8`] makes a format of our own.
//!
//! # Untrusted input
//! [`check`] says whether the parts of a [`HostWeight`](crate::host::HostWeight) fit each other. Every function here that takes a
//! weight calls it: quantisers return its error, [`dequantize`] and [`dequantize_rounded`] panic with it. So call it before them on
//! a weight that comes from a file. Putting a weight on a device does not call it.

mod check;
mod dense;
mod dynamic_map;
mod float;
mod int8;
mod nf4;
mod read;
mod rows;
mod split;
mod sum;

pub use check::check;
pub use dynamic_map::dynamic_map;
pub use emberlm_backends::cpu::INT8_BLOCK;
pub use int8::quantize_int8;
pub use nf4::{FP4, NF4, quantize_fp4, quantize_nf4};
pub use read::{Dequantizer, dequantize, dequantize_rounded, dequantize_to};
pub use rows::{quantize_int8_rows, quantize_truequant};
pub use split::{BufferLimit, first_rows, largest_buffer, split_rows};
