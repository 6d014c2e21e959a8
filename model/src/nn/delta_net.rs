//! Gated DeltaNet, the linear attention of Qwen3.5.
//!
//! Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule" (2024), with Qwen3.5's
//! projections.

use std::ops::Range;

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, Tensor};
use emberlm_quant::CompactBackend;
use emberlm_quant::modules::{Linear, LinearConfig, forward_all};
use emberlm_quant::ops::{CausalConv, DeltaGates, DeltaRule};

use super::forward_context::{ForwardContext, LayerCaches};
use super::norm::{RmsNorm, RmsNormConfig};
use super::rope::RotaryEmbedding;
use crate::cache::DeltaNetCache;
use crate::config::{LinearAttentionConfig, ModelConfig};
use crate::error::Result;
use crate::loader::Loader;

/// The linear attention of one layer.
#[derive(Module, Debug)]
pub struct GatedDeltaNet<B: Backend> {
    /// Queries, keys and values, before the convolution.
    pub in_proj_qkv: Linear<B>,
    /// The output gate.
    pub in_proj_z: Linear<B>,
    /// The writing strength, per value head.
    pub in_proj_b: Linear<B>,
    /// The decay, per value head.
    pub in_proj_a: Linear<B>,
    /// Depthwise and causal.
    pub conv1d: CausalConv1d<B>,
    /// `[value_heads]`; `A_log` in the checkpoint.
    pub a_log: Param<Tensor<B, 1>>,
    /// `[value_heads]`.
    pub dt_bias: Param<Tensor<B, 1>>,
    /// Of the output, per value head; its weight is not zero-centred.
    pub norm: RmsNorm<B>,
    /// Back to the hidden size.
    pub out_proj: Linear<B>,
    #[module(skip)]
    dims: LinearAttentionConfig,
}

/// Depthwise causal convolution over time.
#[derive(Module, Debug)]
pub struct CausalConv1d<B: Backend> {
    /// `[channels, 1, width]`.
    pub weight: Param<Tensor<B, 3>>,
}

/// How a [`GatedDeltaNet`] begins.
#[derive(Config, Debug)]
pub struct GatedDeltaNetConfig {
    /// Inputs and outputs.
    pub hidden_size: usize,
    /// Query and key heads; divides `num_value_heads`.
    pub num_key_heads: usize,
    /// Value heads, each with a state.
    pub num_value_heads: usize,
    /// Size of a query or key head.
    pub key_head_dim: usize,
    /// Size of a value head.
    pub value_head_dim: usize,
    /// Taps of the causal convolution.
    #[config(default = 4)]
    pub conv_kernel_dim: usize,
    /// Of the norm of the output.
    #[config(default = 1e-6)]
    pub rms_norm_eps: f64,
}

impl GatedDeltaNetConfig {
    /// That of every linear-attention layer of a model.
    pub fn of(config: &ModelConfig, dims: &LinearAttentionConfig) -> Self {
        let (keys, values) = (dims.num_key_heads, dims.num_value_heads);
        Self::new(config.hidden_size, keys, values, dims.key_head_dim, dims.value_head_dim)
            .with_conv_kernel_dim(dims.conv_kernel_dim)
            .with_rms_norm_eps(config.rms_norm_eps)
    }

    /// The layer with the initial values of [`LinearConfig`]. Memories fade as in Mamba2 and the published Gated DeltaNet: rates of
    /// 1 to 16, times steps of 0.001 to 0.1.
    pub fn init<B: Backend>(&self, device: &B::Device) -> GatedDeltaNet<B> {
        let dims = LinearAttentionConfig {
            num_key_heads: self.num_key_heads,
            num_value_heads: self.num_value_heads,
            key_head_dim: self.key_head_dim,
            value_head_dim: self.value_head_dim,
            conv_kernel_dim: self.conv_kernel_dim,
        };
        let (h, heads, values) = (self.hidden_size, self.num_value_heads, dims.value_width());
        let channels = 2 * dims.key_width() + values;
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).with_bias(false).init(device);
        let uniform = |low: f64, high: f64| {
            let distribution = Distribution::Uniform(low, high);
            Tensor::<B, 1>::random([heads], distribution, (device, DType::F32))
        };
        // softplus(dt_bias) is the step.
        let step = uniform(0.001f64.ln(), 0.1f64.ln()).exp();
        let taps = (self.conv_kernel_dim as f64).powf(-0.5);
        GatedDeltaNet {
            in_proj_qkv: linear(h, channels),
            in_proj_z: linear(h, values),
            in_proj_b: linear(h, heads),
            in_proj_a: linear(h, heads),
            conv1d: CausalConv1d {
                weight: Initializer::Uniform { min: -taps, max: taps }
                    .init([channels, 1, self.conv_kernel_dim], device),
            },
            a_log: Param::from_tensor(uniform(1.0, 16.0).log().detach()),
            dt_bias: Param::from_tensor((step.clone() + (step.neg().exp().neg() + 1.0).log()).detach()),
            norm: RmsNormConfig::new(self.value_head_dim).with_eps(self.rms_norm_eps).init(device),
            out_proj: linear(values, h),
            dims,
        }
    }
}

impl<B: CompactBackend> GatedDeltaNet<B> {
    /// Reads and updates a state token by token; each row begins a sequence. What training runs.
    ///
    /// # Shapes
    /// `[b, s, hidden] -> [b, s, hidden]`
    ///
    /// # Errors
    /// Never as it is: the signature is that of a pass with caches, which can fail.
    pub fn forward_uncached(&self, x: Tensor<B, 3>) -> Result<Tensor<B, 3>> {
        let context = ForwardContext::uncached(&x, &RotaryEmbedding::none());
        self.forward(x, &context, None)
    }

    pub(crate) fn load(loader: &Loader<'_, B>, config: &ModelConfig, dims: &LinearAttentionConfig) -> Result<Self> {
        Ok(Self {
            in_proj_qkv: loader.linear("in_proj_qkv")?,
            in_proj_z: loader.linear("in_proj_z")?,
            in_proj_b: loader.linear("in_proj_b")?,
            in_proj_a: loader.linear("in_proj_a")?,
            conv1d: CausalConv1d { weight: loader.at("conv1d").tensor("weight")? },
            a_log: loader.tensor("A_log")?,
            dt_bias: loader.tensor("dt_bias")?,
            norm: loader.rms_norm("norm", config.rms_norm_eps)?,
            out_proj: loader.linear("out_proj")?,
            dims: dims.clone(),
        })
    }

    /// Updates the states of the sequences with their new tokens and reads them for each.
    ///
    /// # Shapes
    /// `[b, s, hidden] -> [b, s, hidden]`
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        context: &ForwardContext<B>,
        caches: LayerCaches<'_, B>,
    ) -> Result<Tensor<B, 3>> {
        let ([b, s, _], device) = (x.dims(), x.device());
        let LinearAttentionConfig {
            num_key_heads: hk, num_value_heads: hv, key_head_dim: dk, value_head_dim: dv, ..
        } = self.dims;
        let (kd, vd) = (hk * dk, hv * dv);
        let mut caches = caches
            .map(|caches| caches.into_iter().map(|cache| cache.delta_net_mut()).collect::<Result<Vec<_>>>())
            .transpose()?;
        let tokens: Vec<usize> = context.spans.iter().map(|span| span.tokens.len()).collect();

        let projections = [&self.in_proj_qkv, &self.in_proj_z, &self.in_proj_b, &self.in_proj_a];
        let [u, z, b_logit, dt] = forward_all(projections, x);
        let weight = self.conv1d.weight.val();
        let qkv = match &mut caches {
            None => {
                let [channels, _, width] = weight.dims();
                B::causal_conv1d_silu(CausalConv { u, weight }, zeros([b, width - 1, channels], &device)).0
            }
            Some(caches) => {
                for (cache, span) in caches.iter_mut().zip(&context.spans).filter(|(_, span)| span.drafted > 0) {
                    cache.begin_replay(u.clone().slice_dim(1, span.tokens.clone()))?;
                }
                let conv = CausalConv { u, weight };
                DeltaNetCache::update_convs(caches, |tails| B::causal_conv1d_silu_spans(conv, &tokens, tails))?
            }
        };

        let q = B::reshape(qkv.clone().slice_dim(2, 0..kd), [b, s, hk, dk]);
        let k = B::reshape(qkv.clone().slice_dim(2, kd..2 * kd), [b, s, hk, dk]);
        let v = B::reshape(qkv.slice_dim(2, 2 * kd..2 * kd + vd), [b, s, hv, dv]);
        let (dt_bias, a_log) = (self.dt_bias.val(), self.a_log.val());
        let (g, beta) = B::delta_gates(DeltaGates { dt, b: b_logit, dt_bias, a_log });

        let o = match caches {
            None => B::gated_delta_rule(DeltaRule { q, k, v, g, beta }, zeros([b, hv, dk, dv], &device)).0,
            Some(mut caches) => {
                let rule = DeltaRule { q, k, v, g, beta };
                for (cache, span) in caches.iter_mut().zip(&context.spans).filter(|(_, span)| span.drafted > 0) {
                    cache.note_rule(rule_of(&rule, span.tokens.clone()));
                }
                DeltaNetCache::update_states(&mut caches, |states| B::gated_delta_rule_spans(rule, &tokens, states))?
            }
        };

        let [o, z] = [B::reshape(o, [b * s * hv, dv]), B::reshape(z, [b * s * hv, dv])];
        let o = B::rms_norm_gated(o, z, self.norm.as_norm());
        Ok(self.out_proj.forward(B::reshape(o, [b, s, vd])))
    }
}

/// The inputs of some of the tokens.
fn rule_of<B: Backend>(rule: &DeltaRule<B>, tokens: Range<usize>) -> DeltaRule<B> {
    let [q, k, v] = [&rule.q, &rule.k, &rule.v].map(|t| t.clone().slice_dim(1, tokens.clone()));
    let [g, beta] = [&rule.g, &rule.beta].map(|t| t.clone().slice_dim(1, tokens.clone()));
    DeltaRule { q, k, v, g, beta }
}

/// The state of sequences that begin.
fn zeros<B: Backend, const D: usize>(shape: [usize; D], device: &B::Device) -> Tensor<B, D> {
    Tensor::zeros(shape, (device, DType::F32))
}
