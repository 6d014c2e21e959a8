//! The suite on burn-ndarray.

#[macro_use]
mod suite;

type Backend = burn_ndarray::NdArray<f32>;

whole_suite!();
