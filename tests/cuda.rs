//! The suite on CUDA, for machines with an NVIDIA card.

#[macro_use]
mod suite;

type Backend = emberlm::quant::cube::Cuda;

whole_suite!();
