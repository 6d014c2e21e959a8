//! Training: the default bodies are differentiable as they are.

use burn::tensor::{Int, Tensor};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;

use crate::CompactBackend;

impl<B: CompactBackend, C: CheckpointStrategy> CompactBackend for Autodiff<B, C> {
    fn max_buffer(device: &Self::Device) -> Option<usize> {
        B::max_buffer(device)
    }

    fn memory(device: &Self::Device) -> Option<usize> {
        B::memory(device)
    }

    fn first_unknown_id<const D: usize>(ids: &Tensor<Self, D, Int>, rows: usize) -> Option<i64> {
        B::first_unknown_id(&ids.clone().inner(), rows)
    }
}
