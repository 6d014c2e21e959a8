//! The suite on CUDA, for machines with an NVIDIA card.

// The parts that are not for GPUs.
#![allow(dead_code)]

#[macro_use]
mod suite;

type Backend = emberlm::quant::cube::Cuda;

whole_suite!(gpu);
