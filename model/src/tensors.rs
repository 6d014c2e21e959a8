//! The tensors of a model as a list: what plans, loads, writes or makes up weights reads it, and nothing else states a shape.

use crate::architecture::Architecture;
use crate::checkpoint::layer_of;
use crate::config::{Family, KvTarget, LayerType, LinearAttentionConfig};

/// What a tensor is to its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorRole {
    /// The table of the tokens, `[vocabulary, hidden]`.
    Embedding,
    /// The head, `[vocabulary, hidden]`.
    Head,
    /// A matrix `[outputs, inputs]` of a layer, which quantisation at load takes.
    Projection,
    /// A matrix `[outputs, inputs]` that quantisation at load leaves alone: halting gates, compressors of cached keys and values.
    SmallProjection,
    /// A bias, `[outputs]`.
    Bias,
    /// The weight of a norm, `[width]`.
    Norm {
        /// What is applied is 1 + the weight.
        unit_offset: bool,
    },
    /// The taps of a causal convolution, `[channels, 1, taps]`.
    Convolution,
    /// `A_log` of a delta rule, `[heads]`: the logarithm of a rate of decay.
    LogDecay,
    /// `dt_bias` of a delta rule, `[heads]`.
    DecayBias,
}

impl TensorRole {
    /// Whether it is a matrix that may be stored quantised.
    pub fn is_matrix(self) -> bool {
        matches!(self, Self::Embedding | Self::Head | Self::Projection | Self::SmallProjection)
    }
}

/// Parts of a model, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ModelPart {
    /// Token embedding (and the head, when tied).
    Embedding,
    /// Full and linear attention.
    Attention,
    /// MLPs and their gates.
    FeedForward,
    /// Norms between the blocks.
    Norms,
    /// The untied head.
    Head,
}

impl std::fmt::Display for ModelPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::FeedForward => "feed-forward",
            Self::Norms => "norms",
            Self::Head => "head",
        })
    }
}

/// A tensor that a model has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Canonical name, that of a checkpoint.
    pub name: String,
    /// Its shape, whatever the stored one is.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: TensorRole,
    /// Which part of the model it belongs to.
    pub part: ModelPart,
    /// Whether a model without it is one, too: a bias of the integer modules of Nano compact, where the tensors decide.
    pub optional: bool,
}

impl Architecture {
    /// Every tensor of the model, layer by layer.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let (config, h) = (&self.config, self.config.hidden_size);
        let mut out = Vec::new();
        let mut list = List { out: &mut out, path: "model".into(), part: ModelPart::Embedding };
        list.push("embed_tokens.weight", &[config.vocab_size, h], TensorRole::Embedding);
        for (layer, &kind) in config.layer_types.iter().enumerate() {
            let mut layer_list = list.at(&format!("layers.{layer}"), ModelPart::Norms);
            self.layer(&mut layer_list, layer, kind);
        }
        list.at("norm", ModelPart::Norms).norm("", h, config.family.is_hybrid());
        if !self.tied_head {
            list.path.clear();
            list.at("lm_head", ModelPart::Head).push("weight", &[config.vocab_size, h], TensorRole::Head);
        }
        out
    }

    /// Whether a checkpoint may hold the tensor although the model has no use for it: a head beside a tied embedding, and steps beyond
    /// those that are run.
    pub fn leaves_out(&self, name: &str) -> bool {
        if self.tied_head && name.starts_with("lm_head.") {
            return true;
        }
        let (Some(crest), Some((_, rest))) = (&self.crest, layer_of(name)) else { return false };
        let Some((kind, rest)) = rest.strip_prefix("mlp.").and_then(|rest| rest.split_once('.')) else { return false };
        let index = || rest.split('.').next().and_then(|index| index.parse::<usize>().ok());
        let gates = crest.num_steps.saturating_sub(1);
        match kind {
            "steps" => index().is_some_and(|k| k >= crest.num_steps),
            "halt_gates" => index().is_some_and(|k| k >= gates),
            "halt_gate" => gates == 0,
            _ => false,
        }
    }

    fn layer(&self, list: &mut List<'_>, layer: usize, kind: LayerType) {
        let (h, hybrid) = (self.config.hidden_size, self.config.family.is_hybrid());
        list.norm("input_layernorm", h, hybrid);
        match (kind, &self.config.linear_attention) {
            (LayerType::LinearAttention, Some(dims)) => {
                self.delta_net(&mut list.at("linear_attn", ModelPart::Attention), dims);
            }
            _ => self.attention(&mut list.at("self_attn", ModelPart::Attention), layer),
        }
        list.norm("post_attention_layernorm", h, hybrid);
        let mut mlp = list.at("mlp", ModelPart::FeedForward);
        let Some(crest) = &self.crest else { return self.swiglu(&mut mlp) };
        for step in 0..crest.num_steps {
            self.swiglu(&mut mlp.at(&format!("steps.{step}"), ModelPart::FeedForward));
        }
        let gates = crest.num_steps.saturating_sub(1);
        let gates = match crest.gate_shared {
            true => vec!["halt_gate".to_owned(); gates.min(1)],
            false => (0..gates).map(|gate| format!("halt_gates.{gate}")).collect(),
        };
        for gate in gates {
            mlp.two_layers(&gate, [1, h], crest.gate_hidden, crest.gate_bias);
        }
    }

    fn attention(&self, list: &mut List<'_>, layer: usize) {
        let config = &self.config;
        let (h, hd, hybrid) = (config.hidden_size, config.head_dim, config.family.is_hybrid());
        let queries = config.num_attention_heads.saturating_mul(hd);
        let gated = if config.attn_output_gate { queries.saturating_mul(2) } else { queries };
        let bias = Bias::when(config.qkv_bias);
        list.projection("q_proj", [gated, h], bias);
        list.projection("k_proj", [config.kv_dim(), h], bias);
        list.projection("v_proj", [config.kv_dim(), h], bias);
        list.projection("o_proj", [h, queries], self.integer_module_bias(config.o_bias));
        // The Qwen3.5 body norms queries and keys, the others do not.
        if hybrid {
            list.norm("q_norm", hd, hybrid);
            list.norm("k_norm", hd, hybrid);
        }
        for (name, target) in [("k_compressor", KvTarget::Key), ("v_compressor", KvTarget::Value)] {
            if let Some(codec) = self.kv_compression.as_ref().and_then(|codecs| codecs.codec(layer, target)) {
                let mut list = list.at(name, ModelPart::Attention);
                let (code, width) = (codec.code_dim, codec.width);
                list.small_projection("encoder", [code, width], codec.encoder_bias);
                list.two_layers("decoder", [width, code], codec.hidden_dim, codec.decoder_bias);
            }
        }
    }

    fn delta_net(&self, list: &mut List<'_>, dims: &LinearAttentionConfig) {
        let (h, heads, values) = (self.config.hidden_size, dims.num_value_heads, dims.value_width());
        let channels = dims.key_width().saturating_mul(2).saturating_add(values);
        list.projection("in_proj_qkv", [channels, h], Bias::None);
        list.projection("in_proj_z", [values, h], Bias::None);
        list.projection("in_proj_b", [heads, h], Bias::None);
        list.projection("in_proj_a", [heads, h], Bias::None);
        list.push("conv1d.weight", &[channels, 1, dims.conv_kernel_dim], TensorRole::Convolution);
        list.push("A_log", &[heads], TensorRole::LogDecay);
        list.push("dt_bias", &[heads], TensorRole::DecayBias);
        // This one is plain in every family.
        list.norm("norm", dims.value_head_dim, false);
        list.projection("out_proj", [h, values], Bias::None);
    }

    fn swiglu(&self, list: &mut List<'_>) {
        let (h, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let bias = self.integer_module_bias(self.config.mlp_bias);
        list.projection("gate_proj", [inner, h], bias);
        list.projection("up_proj", [inner, h], bias);
        list.projection("down_proj", [h, inner], bias);
    }

    /// Which of the integer modules of Nano compact have biases is said module by module.
    fn integer_module_bias(&self, stated: bool) -> Bias {
        if self.config.family == Family::NanoCompact { Bias::IfPresent } else { Bias::when(stated) }
    }
}

/// Whether a linear has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bias {
    None,
    Required,
    IfPresent,
}

impl Bias {
    /// Required or absent, as a config says.
    fn when(stated: bool) -> Self {
        if stated { Self::Required } else { Self::None }
    }
}

/// One place of the tensor names.
struct List<'a> {
    out: &'a mut Vec<TensorSpec>,
    path: String,
    part: ModelPart,
}

impl List<'_> {
    /// The place `name` below this one.
    fn at(&mut self, name: &str, part: ModelPart) -> List<'_> {
        let path = self.name(name);
        List { out: self.out, path, part }
    }

    fn name(&self, leaf: &str) -> String {
        match (self.path.as_str(), leaf) {
            ("", leaf) => leaf.to_owned(),
            (path, "") => path.to_owned(),
            (path, leaf) => format!("{path}.{leaf}"),
        }
    }

    fn push(&mut self, name: &str, shape: &[usize], role: TensorRole) {
        let (name, shape) = (self.name(name), shape.to_vec());
        self.out.push(TensorSpec { name, shape, role, part: self.part, optional: false });
    }

    fn norm(&mut self, name: &str, width: usize, unit_offset: bool) {
        let part = self.part;
        self.at(name, part).push("weight", &[width], TensorRole::Norm { unit_offset });
    }

    fn projection(&mut self, name: &str, shape: [usize; 2], bias: Bias) {
        self.linear(name, shape, TensorRole::Projection, bias);
    }

    fn small_projection(&mut self, name: &str, shape: [usize; 2], bias: bool) {
        self.linear(name, shape, TensorRole::SmallProjection, Bias::when(bias));
    }

    /// A small linear, or two with `hidden` elements between them, which are elements 0 and 2 of a sequence.
    fn two_layers(&mut self, name: &str, [outputs, inputs]: [usize; 2], hidden: Option<usize>, bias: bool) {
        match hidden {
            None => self.small_projection(name, [outputs, inputs], bias),
            Some(hidden) => {
                self.small_projection(&format!("{name}.0"), [hidden, inputs], bias);
                self.small_projection(&format!("{name}.2"), [outputs, hidden], bias);
            }
        }
    }

    fn linear(&mut self, name: &str, shape: [usize; 2], role: TensorRole, bias: Bias) {
        let part = self.part;
        let mut list = self.at(name, part);
        list.push("weight", &shape, role);
        if bias != Bias::None {
            list.push("bias", &shape[..1], TensorRole::Bias);
            let optional = bias == Bias::IfPresent;
            list.out.iter_mut().next_back().into_iter().for_each(|tensor| tensor.optional = optional);
        }
    }
}
