//! The layers of all families, to build models of one's own: from a config, as burn's own layers, or loaded from a checkpoint.
//!
//! ```
//! use emberlm::burn::optim::{AdamWConfig, GradientsParams, Optimizer};
//! use emberlm::burn::tensor::{Distribution, Tensor, backend::Backend};
//! use emberlm::model::config::RopeConfig;
//! use emberlm::nn::{AttentionConfig, RotaryEmbedding};
//!
//! type Train = emberlm::Autodiff<emberlm::NdArray<f32>>;
//!
//! let device = Default::default();
//! Train::seed(&device, 1);
//! // Two query heads that share one head of keys and values.
//! let mut attention = AttentionConfig::new(16, 2, 1, 8).with_qkv_bias(true).init::<Train>(&device);
//! let rotary = RotaryEmbedding::new(&RopeConfig { theta: 1e4, rotary_dim: 8, scaling: None });
//!
//! // It learns to give the mean of what it has seen: two texts of six tokens.
//! let x = Tensor::<Train, 3>::random([2, 6, 16], Distribution::Default, &device);
//! let seen = Tensor::from_data([[[1.0f32], [2.0], [3.0], [4.0], [5.0], [6.0]]], &device);
//! let mean = x.clone().cumsum(1) / seen;
//! let mut optimizer = AdamWConfig::new().init();
//! let mut losses = Vec::new();
//! for _ in 0..20 {
//!     let error = attention.forward_uncached(x.clone(), &rotary)? - mean.clone();
//!     let loss = error.square().mean();
//!     losses.push(loss.clone().into_scalar());
//!     let gradients = GradientsParams::from_grads(loss.backward(), &attention);
//!     attention = optimizer.step(0.01, attention, gradients);
//! }
//! assert!(losses[19] < losses[0] / 2.0, "{losses:?}");
//! # Ok::<(), emberlm::model::Error>(())
//! ```
//!
//! A whole model begins with [`CausalLm::init`](crate::model::CausalLm::init); its rows without caches go through
//! [`forward_uncached`](crate::model::CausalLm::forward_uncached).

pub use emberlm_model::{
    Attention, AttentionConfig, CausalConv1d, CrestFfn, CrestFfnConfig, Decoder, DecoderLayer, DepthTrace, FeedForward,
    GatedDeltaNet, GatedDeltaNetConfig, HaltGate, KvCompressor, RmsNorm, RmsNormConfig, RotaryEmbedding,
};
pub use emberlm_quant::kv::{CodeActivation, CodeDecoder};
pub use emberlm_quant::modules::{Embedding, EmbeddingConfig, Linear, LinearConfig, SwiGlu, SwiGluConfig};
