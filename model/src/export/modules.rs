//! The tensors of a model in memory, under the names of checkpoints: the mirror of loading.

use burn::module::Param;
use burn::tensor::{Tensor, TensorData, Transaction};
use emberlm_quant::CompactBackend;
use emberlm_quant::modules::{Linear, SwiGlu};
use emberlm_quant::packed::PackedWeight;

use crate::causal_lm::CausalLm;
use crate::error::Result;
use crate::nn::{Attention, CrestFfn, DecoderLayer, FeedForward, GatedDeltaNet, HaltGate, KvCompressor, RmsNorm};
use crate::read::read_back;

/// What a model holds under a name.
pub(super) enum Held<'a, B: CompactBackend> {
    /// A matrix.
    Weight(&'a PackedWeight<B>),
    /// Plain numbers.
    Vector(&'a Param<Tensor<B, 1>>),
    /// Taps of a convolution.
    Taps(&'a Param<Tensor<B, 3>>),
}

impl<B: CompactBackend> Held<'_, B> {
    /// Shape and numbers of what is no matrix.
    pub(super) fn numbers(&self) -> Result<Option<TensorData>> {
        let transaction = match self {
            Self::Weight(_) => return Ok(None),
            Self::Vector(tensor) => Transaction::<B>::default().register(tensor.val()),
            Self::Taps(tensor) => Transaction::<B>::default().register(tensor.val()),
        };
        Ok(read_back(transaction)?.next())
    }
}

/// Every tensor of a model.
pub(super) fn tensors<B: CompactBackend>(model: &CausalLm<B>) -> Vec<(String, Held<'_, B>)> {
    let mut out = Vec::new();
    let mut list = List { out: &mut out, path: "model".into() };
    list.push("embed_tokens.weight", Held::Weight(&model.model.embed_tokens.weight));
    for (i, layer) in model.model.layers.iter().enumerate() {
        list.at(&format!("layers.{i}")).layer(layer);
    }
    list.norm("norm", &model.model.norm);
    if let Some(head) = &model.lm_head {
        list.path.clear();
        list.linear("lm_head", head);
    }
    out
}

/// One place of the names.
struct List<'l, 'a, B: CompactBackend> {
    out: &'l mut Vec<(String, Held<'a, B>)>,
    path: String,
}

impl<'a, B: CompactBackend> List<'_, 'a, B> {
    fn at(&mut self, name: &str) -> List<'_, 'a, B> {
        let path = self.name(name);
        List { out: self.out, path }
    }

    fn name(&self, leaf: &str) -> String {
        if self.path.is_empty() { leaf.into() } else { format!("{}.{leaf}", self.path) }
    }

    fn push(&mut self, name: &str, held: Held<'a, B>) {
        let name = self.name(name);
        self.out.push((name, held));
    }

    fn norm(&mut self, name: &str, norm: &'a RmsNorm<B>) {
        self.push(&format!("{name}.weight"), Held::Vector(&norm.weight));
    }

    fn linear(&mut self, name: &str, linear: &'a Linear<B>) {
        self.push(&format!("{name}.weight"), Held::Weight(&linear.weight));
        if let Some(bias) = &linear.bias {
            self.push(&format!("{name}.bias"), Held::Vector(bias));
        }
    }

    /// One linear, or two that are elements 0 and 2 of a sequence.
    fn two_layers(&mut self, name: &str, hidden: Option<&'a Linear<B>>, output: &'a Linear<B>) {
        match hidden {
            None => self.linear(name, output),
            Some(hidden) => {
                self.linear(&format!("{name}.0"), hidden);
                self.linear(&format!("{name}.2"), output);
            }
        }
    }

    fn layer(&mut self, layer: &'a DecoderLayer<B>) {
        self.norm("input_layernorm", &layer.input_layernorm);
        if let Some(attention) = &layer.self_attn {
            self.at("self_attn").attention(attention);
        }
        if let Some(delta_net) = &layer.linear_attn {
            self.at("linear_attn").delta_net(delta_net);
        }
        self.norm("post_attention_layernorm", &layer.post_attention_layernorm);
        match &layer.mlp {
            FeedForward::Dense(mlp) => self.at("mlp").swiglu(mlp),
            FeedForward::Crest(mlp) => self.at("mlp").crest(mlp),
        }
    }

    fn attention(&mut self, attention: &'a Attention<B>) {
        self.linear("q_proj", &attention.q_proj);
        self.linear("k_proj", &attention.k_proj);
        self.linear("v_proj", &attention.v_proj);
        self.linear("o_proj", &attention.o_proj);
        for (name, norm) in [("q_norm", &attention.q_norm), ("k_norm", &attention.k_norm)] {
            norm.iter().for_each(|norm| self.norm(name, norm));
        }
        for (name, codec) in [("k_compressor", &attention.k_compressor), ("v_compressor", &attention.v_compressor)] {
            codec.iter().for_each(|codec| self.at(name).compressor(codec));
        }
    }

    fn compressor(&mut self, codec: &'a KvCompressor<B>) {
        self.linear("encoder", &codec.encoder);
        self.two_layers("decoder", codec.decoder.hidden.as_ref(), &codec.decoder.output);
    }

    fn delta_net(&mut self, mixer: &'a GatedDeltaNet<B>) {
        self.linear("in_proj_qkv", &mixer.in_proj_qkv);
        self.linear("in_proj_z", &mixer.in_proj_z);
        self.linear("in_proj_b", &mixer.in_proj_b);
        self.linear("in_proj_a", &mixer.in_proj_a);
        self.push("conv1d.weight", Held::Taps(&mixer.conv1d.weight));
        self.push("A_log", Held::Vector(&mixer.a_log));
        self.push("dt_bias", Held::Vector(&mixer.dt_bias));
        self.norm("norm", &mixer.norm);
        self.linear("out_proj", &mixer.out_proj);
    }

    fn swiglu(&mut self, mlp: &'a SwiGlu<B>) {
        self.linear("gate_proj", &mlp.gate_proj);
        self.linear("up_proj", &mlp.up_proj);
        self.linear("down_proj", &mlp.down_proj);
    }

    fn crest(&mut self, mlp: &'a CrestFfn<B>) {
        for (k, step) in mlp.steps.iter().enumerate() {
            self.at(&format!("steps.{k}")).swiglu(step);
        }
        let gate = |list: &mut Self, name: &str, gate: &'a HaltGate<B>| {
            list.two_layers(name, gate.hidden.as_ref(), &gate.output);
        };
        mlp.halt_gate.iter().for_each(|shared| gate(self, "halt_gate", shared));
        for (k, one) in mlp.halt_gates.iter().enumerate() {
            gate(self, &format!("halt_gates.{k}"), one);
        }
    }
}
