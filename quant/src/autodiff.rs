//! Training: the default bodies are differentiable as they are.

use burn::tensor::backend::Backend;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;

use crate::CompactBackend;

impl<B: Backend, C: CheckpointStrategy> CompactBackend for Autodiff<B, C> {}
