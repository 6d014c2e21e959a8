//! Layers with initial values, for training: a config, then `init` on a device, as burn's own layers do it.

use burn::config::Config;
use burn::module::Initializer;
use burn::tensor::backend::Backend;

use crate::layers::{Embedding, Linear, SwiGlu};
use crate::packed::PackedWeight;

/// How a [`Linear`] begins: `y = x Wᵀ + b` over plain floats, the one storage that trains.
#[derive(Config, Debug)]
pub struct LinearConfig {
    /// Inputs.
    pub d_input: usize,
    /// Outputs.
    pub d_output: usize,
    /// With a bias.
    #[config(default = true)]
    pub bias: bool,
    /// Of weight and bias; uniform within `1 / sqrt(d_input)`, as burn and PyTorch begin.
    #[config(default = "Initializer::KaimingUniform { gain: 1.0 / 3f64.sqrt(), fan_out_only: false }")]
    pub initializer: Initializer,
}

impl LinearConfig {
    /// The layer with initial values, which are drawn when they are first used.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Linear<B> {
        let fans = (Some(self.d_input), Some(self.d_output));
        let weight = self.initializer.init_with([self.d_output, self.d_input], fans.0, fans.1, device);
        let bias = self.bias.then(|| self.initializer.init_with([self.d_output], fans.0, fans.1, device));
        Linear { weight: PackedWeight::Float(weight), bias }
    }
}

/// How an [`Embedding`] begins.
#[derive(Config, Debug)]
pub struct EmbeddingConfig {
    /// Entries: the vocabulary.
    pub n_embedding: usize,
    /// Width of an entry.
    pub d_model: usize,
    /// Of the table; normal with a deviation of 0.02, so that a head tied to it begins with even logits.
    #[config(default = "Initializer::Normal { mean: 0.0, std: 0.02 }")]
    pub initializer: Initializer,
}

impl EmbeddingConfig {
    /// The table with initial values, which are drawn when they are first used.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Embedding<B> {
        let weight = self.initializer.init([self.n_embedding, self.d_model], device);
        Embedding { weight: PackedWeight::Float(weight) }
    }
}

/// How a [`SwiGlu`] begins: `down(silu(gate x) * up x)`.
#[derive(Config, Debug)]
pub struct SwiGluConfig {
    /// Inputs and outputs.
    pub hidden_size: usize,
    /// Between them.
    pub intermediate_size: usize,
    /// With biases.
    #[config(default = false)]
    pub bias: bool,
}

impl SwiGluConfig {
    /// The block with initial values: those of [`LinearConfig`].
    pub fn init<B: Backend>(&self, device: &B::Device) -> SwiGlu<B> {
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).with_bias(self.bias).init(device);
        SwiGlu {
            gate_proj: linear(self.hidden_size, self.intermediate_size),
            up_proj: linear(self.hidden_size, self.intermediate_size),
            down_proj: linear(self.intermediate_size, self.hidden_size),
        }
    }
}
