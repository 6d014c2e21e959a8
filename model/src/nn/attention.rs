//! Full attention: rotary positions, grouped key-value heads, and what a family adds to it.
//!
//! Qwen2 adds biases to the query, key and value projections (Llama and Qwen3.5 where `attention_bias` is true), Qwen3.5 adds norms of
//! queries and keys and a gate on the output, LeanLlama compresses the cached keys and values. A field that a family lacks is `None`.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use emberlm_quant::CompactBackend;
use emberlm_quant::kv::{KeyValue, KvParts, KvStore, Rotary};
use emberlm_quant::modules::{Linear, LinearConfig, forward_all};
use emberlm_quant::ops::{AttentionShape, AttentionSpan, CachedKv, NewTokens};

use super::forward_context::{ForwardContext, LayerCaches};
use super::kv_compressor::KvCompressor;
use super::norm::{RmsNorm, RmsNormConfig};
use super::rope::RotaryEmbedding;
use crate::architecture::Architecture;
use crate::cache::AttentionCache;
use crate::config::{KStage, KvCompression, KvTarget, ModelConfig};
use crate::error::Result;
use crate::loader::Loader;

/// Grouped-query attention of one layer.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// Queries; with an output gate, per head `head_dim` query rows, then `head_dim` gate rows.
    pub q_proj: Linear<B>,
    /// Keys.
    pub k_proj: Linear<B>,
    /// Values.
    pub v_proj: Linear<B>,
    /// Back to the hidden size.
    pub o_proj: Linear<B>,
    /// Per head, before rotation.
    pub q_norm: Option<RmsNorm<B>>,
    /// Per head, before rotation.
    pub k_norm: Option<RmsNorm<B>>,
    /// Keys are cached as codes.
    pub k_compressor: Option<KvCompressor<B>>,
    /// Values are cached as codes.
    pub v_compressor: Option<KvCompressor<B>>,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    output_gate: bool,
    #[module(skip)]
    k_stage: KStage,
}

/// How an [`Attention`] begins.
#[derive(Config, Debug)]
pub struct AttentionConfig {
    /// Inputs and outputs.
    pub hidden_size: usize,
    /// Heads of the queries: a multiple of those of keys and values.
    pub num_attention_heads: usize,
    /// Heads of keys and values, each for as many of the queries.
    pub num_key_value_heads: usize,
    /// Numbers per head, at least those that are rotated.
    pub head_dim: usize,
    /// Queries, keys and values with biases.
    #[config(default = false)]
    pub qkv_bias: bool,
    /// The output with a bias.
    #[config(default = false)]
    pub o_bias: bool,
    /// Queries and keys are normed per head, with zero-centred weights.
    #[config(default = false)]
    pub qk_norm: bool,
    /// Of these norms.
    #[config(default = 1e-6)]
    pub rms_norm_eps: f64,
    /// The output is multiplied by the sigmoid of a gate.
    #[config(default = false)]
    pub output_gate: bool,
}

impl AttentionConfig {
    /// That of every attention layer of a model, without the compressors.
    pub fn of(config: &ModelConfig) -> Self {
        let heads = (config.num_attention_heads, config.num_key_value_heads);
        Self::new(config.hidden_size, heads.0, heads.1, config.head_dim)
            .with_qkv_bias(config.qkv_bias)
            .with_o_bias(config.o_bias)
            .with_qk_norm(config.family.is_hybrid())
            .with_rms_norm_eps(config.rms_norm_eps)
            .with_output_gate(config.attn_output_gate)
    }

    /// The layer with the initial values of [`LinearConfig`].
    pub fn init<B: Backend>(&self, device: &B::Device) -> Attention<B> {
        let &Self { hidden_size: h, num_attention_heads: nh, num_key_value_heads: nkv, head_dim: hd, .. } = self;
        let linear = |inputs, outputs, bias| LinearConfig::new(inputs, outputs).with_bias(bias).init(device);
        let gated = if self.output_gate { 2 * hd } else { hd };
        let norm = RmsNormConfig::new(hd).with_eps(self.rms_norm_eps).with_unit_offset(true);
        let norm = || self.qk_norm.then(|| norm.init(device));
        Attention {
            q_proj: linear(h, nh * gated, self.qkv_bias),
            k_proj: linear(h, nkv * hd, self.qkv_bias),
            v_proj: linear(h, nkv * hd, self.qkv_bias),
            o_proj: linear(nh * hd, h, self.o_bias),
            q_norm: norm(),
            k_norm: norm(),
            k_compressor: None,
            v_compressor: None,
            num_attention_heads: nh,
            num_key_value_heads: nkv,
            head_dim: hd,
            output_gate: self.output_gate,
            k_stage: KStage::PostRope,
        }
    }
}

impl<B: CompactBackend> Attention<B> {
    /// With keys or values (or both) kept as codes.
    pub fn with_compressors(mut self, k: Option<KvCompressor<B>>, v: Option<KvCompressor<B>>, k_stage: KStage) -> Self {
        (self.k_compressor, self.v_compressor, self.k_stage) = (k, v, k_stage);
        self
    }

    /// As `architecture` has it in this layer, with initial values.
    pub(crate) fn init(architecture: &Architecture, layer: usize, device: &B::Device) -> Self {
        let compression = architecture.kv_compression.as_ref();
        let compressor = |target| {
            let compression = compression?;
            let codec = compression.codec(layer, target)?;
            let mut compressor = codec.init(compression.activation, device);
            compressor.set_options(compression, target);
            Some(compressor)
        };
        let stage = compression.map_or(KStage::PostRope, |compression| compression.k_stage);
        let attention = AttentionConfig::of(&architecture.config).init(device);
        attention.with_compressors(compressor(KvTarget::Key), compressor(KvTarget::Value), stage)
    }

    /// Attends from every token of each row to those before it; each row begins a sequence. What training runs.
    ///
    /// # Shapes
    /// `[b, s, hidden] -> [b, s, hidden]`
    ///
    /// # Errors
    /// Never as it is: the signature is that of a pass with caches, which can fail.
    ///
    /// # Panics
    /// When `x` is not as wide as the layer, heads of keys and values do not divide those of queries, or more numbers are rotated than a head has.
    pub fn forward_uncached(&self, x: Tensor<B, 3>, rotary: &RotaryEmbedding) -> Result<Tensor<B, 3>> {
        let context = ForwardContext::uncached(&x, rotary);
        self.forward(x, &context, None)
    }

    pub(crate) fn load(loader: &Loader<'_, B>, architecture: &Architecture, layer: usize) -> Result<Self> {
        let config = &architecture.config;
        // The Qwen3.5 body norms queries and keys, the others do not.
        let norm = |name| config.family.is_hybrid().then(|| loader.rms_norm(name, config.rms_norm_eps)).transpose();
        let compression = architecture.kv_compression.as_ref();
        let compressor = |name, target| match compression.and_then(|c| Some((c, c.codec(layer, target)?))) {
            Some((compression, codec)) => KvCompressor::load(&loader.at(name), compression, target, codec).map(Some),
            None => Ok(None),
        };
        Ok(Self {
            q_proj: loader.linear("q_proj")?,
            k_proj: loader.linear("k_proj")?,
            v_proj: loader.linear("v_proj")?,
            o_proj: loader.linear("o_proj")?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            k_compressor: compressor("k_compressor", KvTarget::Key)?,
            v_compressor: compressor("v_compressor", KvTarget::Value)?,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            output_gate: config.attn_output_gate,
            k_stage: compression.map_or(KStage::PostRope, |c| c.k_stage),
        })
    }

    /// Changes what compressors compute and where; their weights stay.
    pub(crate) fn set_options(&mut self, compression: &KvCompression) {
        self.k_stage = compression.k_stage;
        for (compressor, target) in [(&mut self.k_compressor, KvTarget::Key), (&mut self.v_compressor, KvTarget::Value)]
        {
            compressor.iter_mut().for_each(|compressor| compressor.set_options(compression, target));
        }
    }

    /// Attends from new tokens to all of their sequence that came before.
    ///
    /// # Shapes
    /// `[b, s, hidden] -> [b, s, hidden]`
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        context: &ForwardContext<B>,
        caches: LayerCaches<'_, B>,
    ) -> Result<Tensor<B, 3>> {
        let [b, s, _] = x.dims();
        let (nh, nkv, hd) = (self.num_attention_heads, self.num_key_value_heads, self.head_dim);

        let [q, k, v] = forward_all([&self.q_proj, &self.k_proj, &self.v_proj], x);
        let (q, gate) = if self.output_gate {
            let q = B::reshape(q, [b, s, nh, 2 * hd]);
            let gate = B::reshape(q.clone().slice_dim(3, hd..2 * hd), [b * s * nh, hd]);
            (q.slice_dim(3, 0..hd), Some(gate))
        } else {
            (B::reshape(q, [b, s, nh, hd]), None)
        };
        let [k, v] = [k, v].map(|t| B::reshape(t, [b, s, nkv, hd]));
        let [q, k] = self.normed(q, k);
        let [q, k] = if self.rotates_decoded_keys() {
            [B::rotary(q, &context.rotary), k]
        } else {
            B::rotary_all([q, k], &context.rotary)
        };
        let [k, v] = [(k, &self.k_compressor), (v, &self.v_compressor)].map(|(x, compressor)| match compressor {
            Some(compressor) => compressor.encode(x),
            None => x,
        });
        let o = match caches {
            None => {
                let [k, v] = [k, v].map(|t| KvStore::F32(t.swap_dims(1, 2)));
                self.attend(q, context, &[((&k).into(), (&v).into())])
            }
            Some(caches) => {
                let mut caches = caches.into_iter().map(|cache| cache.attention_mut()).collect::<Result<Vec<_>>>()?;
                let new = context.spans.iter().map(|span| NewTokens { tokens: span.tokens.len(), at: span.past });
                AttentionCache::append(&mut caches, [k, v], &new.collect::<Vec<_>>())?;
                let stores = caches.iter().map(|cache| Ok((cache.k()?, cache.v()?)));
                self.attend(q, context, &stores.collect::<Result<Vec<_>>>()?)
            }
        };
        let o = match gate {
            Some(gate) => B::reshape(B::sigmoid_gate(B::reshape(o, [b * s * nh, hd]), gate), [b, s, nh, hd]),
            None => o,
        };
        Ok(self.o_proj.forward(B::reshape(o, [b, s, nh * hd])))
    }

    /// Queries and keys with the norms of their heads, where a family has them.
    fn normed(&self, q: Tensor<B, 4>, k: Tensor<B, 4>) -> [Tensor<B, 4>; 2] {
        let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) else {
            return [(&self.q_norm, q), (&self.k_norm, k)].map(|(norm, x)| match norm {
                Some(norm) => norm.forward(x),
                None => x,
            });
        };
        let dims = [q.dims(), k.dims()];
        let [q, k] = [q, k].map(|x| {
            let [b, s, heads, hd] = x.dims();
            B::reshape(x, [b * s * heads, hd])
        });
        let [q, k] = B::rms_norm_all([(q, q_norm.as_norm()), (k, k_norm.as_norm())]);
        [B::reshape(q, dims[0]), B::reshape(k, dims[1])]
    }

    /// Keys compressed before rotation are rotated after decoding, all of them.
    fn rotates_decoded_keys(&self) -> bool {
        self.k_compressor.is_some() && self.k_stage == KStage::PreRope
    }

    /// Attends from the queries of each span to what is stored of its sequence, new tokens included: keys and values.
    ///
    /// # Shapes
    /// `[b, s, heads, head_dim] -> [b, s, heads, head_dim]`
    fn attend(
        &self,
        q: Tensor<B, 4>,
        context: &ForwardContext<B>,
        stores: &[(KvParts<'_, B>, KvParts<'_, B>)],
    ) -> Tensor<B, 4> {
        let rotates = self.rotates_decoded_keys();
        let rotaries: Vec<_> = context.spans.iter().map(|span| rotates.then(|| span.rotary_from_start())).collect();
        let scale = (self.head_dim as f64).powf(-0.5);
        let spans = context.spans.iter().zip(stores).zip(&rotaries).map(|((span, (k, v)), rotary)| AttentionSpan {
            tokens: span.tokens.len(),
            kv: CachedKv {
                k: key_value(*k, &self.k_compressor, rotary.as_ref()),
                v: key_value(*v, &self.v_compressor, None),
                shape: AttentionShape { past: span.past, kv_heads: self.num_key_value_heads, scale },
            },
        });
        B::cached_attention_spans(q, &spans.collect::<Vec<_>>())
    }
}

fn key_value<'a, B: CompactBackend>(
    parts: KvParts<'a, B>,
    compressor: &'a Option<KvCompressor<B>>,
    rotary: Option<&'a Rotary<B>>,
) -> KeyValue<'a, B> {
    match compressor {
        Some(compressor) => compressor.key_value(parts, rotary),
        None => KeyValue::Plain(parts),
    }
}
