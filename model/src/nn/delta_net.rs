//! Gated DeltaNet, the linear attention of Qwen3.5.
//!
//! Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule" (2024), with Qwen3.5's
//! projections.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use emberlm_quant::CompactBackend;
use emberlm_quant::modules::{Linear, forward_all};
use emberlm_quant::ops::DeltaRule;

use super::forward_context::ForwardContext;
use super::norm::RmsNorm;
use crate::cache::DeltaNetCache;
use crate::config::{LinearAttentionConfig, ModelConfig};
use crate::error::Result;
use crate::loader::{Bias, Loader};

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

impl<B: CompactBackend> GatedDeltaNet<B> {
    pub(crate) fn load(loader: &Loader<'_, B>, config: &ModelConfig, dims: &LinearAttentionConfig) -> Result<Self> {
        let h = config.hidden_size;
        let (kd, vd, hv) = (dims.key_width(), dims.value_width(), dims.num_value_heads);
        let channels = 2 * kd + vd;
        Ok(Self {
            in_proj_qkv: loader.linear("in_proj_qkv", channels, h, Bias::None)?,
            in_proj_z: loader.linear("in_proj_z", vd, h, Bias::None)?,
            in_proj_b: loader.linear("in_proj_b", hv, h, Bias::None)?,
            in_proj_a: loader.linear("in_proj_a", hv, h, Bias::None)?,
            conv1d: CausalConv1d { weight: loader.at("conv1d").tensor("weight", [channels, 1, dims.conv_kernel_dim])? },
            a_log: loader.tensor("A_log", [hv])?,
            dt_bias: loader.tensor("dt_bias", [hv])?,
            norm: RmsNorm {
                weight: loader.at("norm").tensor("weight", [dims.value_head_dim])?,
                eps: config.rms_norm_eps,
                unit_offset: false,
            },
            out_proj: loader.linear("out_proj", h, vd, Bias::None)?,
            dims: dims.clone(),
        })
    }

    /// Updates the state with new tokens and reads it for each.
    ///
    /// # Shapes
    /// `[b, s, hidden] -> [b, s, hidden]`
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        context: &ForwardContext<B>,
        cache: &mut DeltaNetCache<B>,
    ) -> Tensor<B, 3> {
        let [b, s, _] = x.dims();
        let LinearAttentionConfig {
            num_key_heads: hk, num_value_heads: hv, key_head_dim: dk, value_head_dim: dv, ..
        } = self.dims;
        let (kd, vd) = (hk * dk, hv * dv);
        // Padding must leave the convolution and the state as if it were not there.
        let x = match &context.token_mask {
            Some(mask) => {
                let mask = mask.clone().cast(x.dtype());
                x * mask
            }
            None => x,
        };

        let projections = [&self.in_proj_qkv, &self.in_proj_z, &self.in_proj_b, &self.in_proj_a];
        let [u, z, beta, dt] = forward_all(projections, x);
        let (qkv, tail) = B::causal_conv1d_silu(u, cache.take_conv(), self.conv1d.weight.val());
        cache.conv = Some(tail);

        let q = B::reshape(qkv.clone().slice_dim(2, 0..kd), [b, s, hk, dk]);
        let k = B::reshape(qkv.clone().slice_dim(2, kd..2 * kd), [b, s, hk, dk]);
        let v = B::reshape(qkv.slice_dim(2, 2 * kd..2 * kd + vd), [b, s, hv, dv]);
        let (g, beta) = B::delta_gates(dt, beta, self.dt_bias.val(), self.a_log.val());

        let (o, state) = B::gated_delta_rule(DeltaRule { q, k, v, g, beta }, cache.take_state());
        cache.state = Some(state);

        let [o, z] = [B::reshape(o, [b * s * hv, dv]), B::reshape(z, [b * s * hv, dv])];
        let o = B::rms_norm_gated(o, z, self.norm.weight.val(), self.norm.eps);
        self.out_proj.forward(B::reshape(o, [b, s, vd]))
    }
}
