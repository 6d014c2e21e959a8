//! The body that every family shares: embedding, layers with two residual branches, a last norm.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use emberlm_quant::CompactBackend;
use emberlm_quant::modules::{Embedding, EmbeddingConfig, SwiGlu, SwiGluConfig};

use super::attention::Attention;
use super::crest::{CrestFfn, CrestFfnConfig, DepthTrace};
use super::delta_net::{GatedDeltaNet, GatedDeltaNetConfig};
use super::forward_context::{ForwardContext, LayerCaches, Span, layer_caches};
use super::norm::{RmsNorm, RmsNormConfig};
use super::rope::RotaryEmbedding;
use crate::architecture::Architecture;
use crate::config::LayerType;
use crate::error::{Error, Result};
use crate::loader::Loader;

/// Embedding, layers and last norm; the fields are named as in checkpoints.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    /// `[vocabulary, hidden]`.
    pub embed_tokens: Embedding<B>,
    /// In order.
    pub layers: Vec<DecoderLayer<B>>,
    /// Before the head.
    pub norm: RmsNorm<B>,
}

/// `x += mixer(norm(x)); x += mlp(norm(x))`.
#[derive(Module, Debug)]
pub struct DecoderLayer<B: Backend> {
    /// Before the mixer.
    pub input_layernorm: RmsNorm<B>,
    /// The mixer of a full-attention layer; exactly one of the two is present.
    pub self_attn: Option<Attention<B>>,
    /// The mixer of a linear-attention layer.
    pub linear_attn: Option<GatedDeltaNet<B>>,
    /// Before the feed-forward block.
    pub post_attention_layernorm: RmsNorm<B>,
    /// The feed-forward block.
    pub mlp: FeedForward<B>,
}

/// The feed-forward block of a layer.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // a handful per model
pub enum FeedForward<B: Backend> {
    /// One MLP.
    Dense(SwiGlu<B>),
    /// Adaptive depth.
    Crest(CrestFfn<B>),
}

/// What a pass through the decoder leaves besides its output.
#[derive(Clone, Debug)]
pub struct Intermediates<B: Backend> {
    /// The residual stream before each layer and after the last, `[b, s, hidden]`; empty unless asked for.
    pub hidden: Vec<Tensor<B, 3>>,
    /// Depth per CREST layer.
    pub depth: Vec<DepthTrace<B>>,
}

impl<B: CompactBackend> Decoder<B> {
    pub(crate) fn load(loader: &Loader<'_, B>, architecture: &Architecture) -> Result<Self> {
        let config = &architecture.config;
        let layer = |i: usize| DecoderLayer::load(&loader.at(&format!("layers.{i}")), architecture, i);
        Ok(Self {
            embed_tokens: loader.embedding("embed_tokens")?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            norm: loader.rms_norm("norm", config.rms_norm_eps)?,
        })
    }

    /// With initial values.
    pub(crate) fn init(architecture: &Architecture, device: &B::Device) -> Result<Self> {
        let config = &architecture.config;
        let layers = (0..config.num_hidden_layers).map(|i| DecoderLayer::init(architecture, i, device));
        Ok(Self {
            embed_tokens: EmbeddingConfig::new(config.vocab_size, config.hidden_size).init(device),
            layers: layers.collect::<Result<_>>()?,
            norm: residual_norm(architecture).init(device),
        })
    }

    /// # Shapes
    /// `[b, s] -> [b, s, hidden]`, after the last norm
    pub(crate) fn forward(
        &self,
        ids: Tensor<B, 2, Int>,
        context: &ForwardContext<B>,
        mut spans: Option<&mut [Span<'_, B>]>,
        keep_hidden: bool,
    ) -> Result<(Tensor<B, 3>, Intermediates<B>)> {
        let mut x = Residual { sum: self.embed_tokens.forward(ids).cast(context.activations), term: None };
        let mut kept = Intermediates { hidden: Vec::new(), depth: Vec::new() };
        for (i, layer) in self.layers.iter().enumerate() {
            if keep_hidden {
                kept.hidden.push(x.clone().value());
            }
            let depth;
            (x, depth) = layer.forward(x, context, layer_caches(&mut spans, i))?;
            kept.depth.extend(depth);
        }
        if keep_hidden {
            kept.hidden.push(x.clone().value());
        }
        Ok((x.normed(&self.norm).1, kept))
    }
}

/// The residual stream: a sum whose last term is added by the norm that reads it.
#[derive(Clone)]
struct Residual<B: Backend> {
    sum: Tensor<B, 3>,
    term: Option<Tensor<B, 3>>,
}

impl<B: CompactBackend> Residual<B> {
    fn plus(self, term: Tensor<B, 3>) -> Self {
        Self { sum: self.value(), term: Some(term) }
    }

    /// With its norm.
    fn normed(self, norm: &RmsNorm<B>) -> (Self, Tensor<B, 3>) {
        let (sum, normed) = match self.term {
            Some(term) => norm.forward_sum(self.sum, term),
            None => (self.sum.clone(), norm.forward(self.sum)),
        };
        (Self { sum, term: None }, normed)
    }

    fn value(self) -> Tensor<B, 3> {
        match self.term {
            Some(term) => self.sum + term,
            None => self.sum,
        }
    }
}

impl<B: CompactBackend> DecoderLayer<B> {
    fn load(loader: &Loader<'_, B>, architecture: &Architecture, i: usize) -> Result<Self> {
        let Architecture { config, crest, .. } = architecture;
        let mlp = loader.at("mlp");
        let (self_attn, linear_attn) = match (&config.layer_types[i], &config.linear_attention) {
            (LayerType::LinearAttention, Some(dims)) => {
                (None, Some(GatedDeltaNet::load(&loader.at("linear_attn"), config, dims)?))
            }
            _ => (Some(Attention::load(&loader.at("self_attn"), architecture, i)?), None),
        };
        Ok(Self {
            input_layernorm: loader.rms_norm("input_layernorm", config.rms_norm_eps)?,
            self_attn,
            linear_attn,
            post_attention_layernorm: loader.rms_norm("post_attention_layernorm", config.rms_norm_eps)?,
            mlp: match crest {
                Some(options) => FeedForward::Crest(CrestFfn::load(&mlp, options)?),
                None => FeedForward::Dense(mlp.swiglu()?),
            },
        })
    }

    /// Layer `i` of a model with initial values.
    ///
    /// # Errors
    /// [`Error::Option`] when there is no such layer, or the options of adaptive depth cannot be.
    pub fn init(architecture: &Architecture, i: usize, device: &B::Device) -> Result<Self> {
        let Architecture { config, crest, .. } = architecture;
        let Some(kind) = config.layer_types.get(i) else {
            let message = format!("is {i}, but there are {}, counted from 0", config.layer_types.len());
            return Err(Error::Option { option: "layer".into(), message });
        };
        let (self_attn, linear_attn) = match (kind, &config.linear_attention) {
            (LayerType::LinearAttention, Some(dims)) => {
                (None, Some(GatedDeltaNetConfig::of(config, dims).init(device)))
            }
            _ => (Some(Attention::init(architecture, i, device)), None),
        };
        let mlp = SwiGluConfig::new(config.hidden_size, config.intermediate_size).with_bias(config.mlp_bias);
        let mlp = match crest {
            Some(options) => FeedForward::Crest(CrestFfnConfig { mlp, options: options.clone() }.init(device)?),
            None => FeedForward::Dense(mlp.init(device)),
        };
        let norm = residual_norm(architecture);
        let (input_layernorm, post_attention_layernorm) = (norm.init(device), norm.init(device));
        Ok(Self { input_layernorm, self_attn, linear_attn, post_attention_layernorm, mlp })
    }

    /// Applies the layer to rows that begin a sequence each and leave nothing behind, and says how deep tokens went where depth is
    /// adaptive. What training runs.
    ///
    /// # Shapes
    /// `[b, s, hidden] -> [b, s, hidden]`
    ///
    /// # Errors
    /// [`Error::Option`] when the layer has no mixer.
    pub fn forward_uncached(
        &self,
        x: Tensor<B, 3>,
        rotary: &RotaryEmbedding,
    ) -> Result<(Tensor<B, 3>, Option<DepthTrace<B>>)> {
        let context = ForwardContext::uncached(&x, rotary);
        let (x, depth) = self.forward(Residual { sum: x, term: None }, &context, None)?;
        Ok((x.value(), depth))
    }

    fn forward(
        &self,
        x: Residual<B>,
        context: &ForwardContext<B>,
        caches: LayerCaches<'_, B>,
    ) -> Result<(Residual<B>, Option<DepthTrace<B>>)> {
        let (x, normed) = x.normed(&self.input_layernorm);
        let [b, s, h] = normed.dims();
        let mixed = match (&self.self_attn, &self.linear_attn) {
            (Some(attention), _) => attention.forward(normed, context, caches)?,
            (None, Some(delta_net)) => delta_net.forward(normed, context, caches)?,
            (None, None) => {
                return Err(Error::Option { option: "layers".into(), message: "has a layer without a mixer".into() });
            }
        };
        let (x, normed) = x.plus(mixed).normed(&self.post_attention_layernorm);
        let normed = B::reshape(normed, [b * s, h]);
        let (y, depth) = match &self.mlp {
            FeedForward::Dense(mlp) => (mlp.forward(normed), None),
            FeedForward::Crest(mlp) => {
                let (y, depth) = mlp.forward_at(normed, &context.depth);
                (y, Some(depth))
            }
        };
        Ok((x.plus(B::reshape(y, [b, s, h])), depth))
    }
}

/// The norms of the residual stream.
fn residual_norm(architecture: &Architecture) -> RmsNormConfig {
    let config = &architecture.config;
    RmsNormConfig::new(config.hidden_size).with_eps(config.rms_norm_eps).with_unit_offset(config.family.is_hybrid())
}
