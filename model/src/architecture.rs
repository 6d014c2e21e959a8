//! What is to be built: a config with everything decided that it left open.

use std::collections::BTreeMap;

use emberlm_quant::kv::KvFormat;

use crate::cache::{KvShape, LayerCacheShape};
use crate::config::{CrestOptions, KvCodec, KvCompression, KvTarget, LayerType, ModelConfig};
use crate::error::{Error, Result};

/// A model's sizes and options, with those resolved that only the tensors tell.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// The validated config.
    pub config: ModelConfig,
    /// Adaptive depth (CREST).
    pub crest: Option<CrestOptions>,
    /// Cache compression (LeanLlama).
    pub kv_compression: Option<KvCompression>,
    /// The head is the embedding.
    pub tied_head: bool,
}

impl Architecture {
    /// What every layer keeps in a cache.
    pub fn cache_shapes(&self) -> Vec<LayerCacheShape> {
        (0..).zip(&self.config.layer_types).map(|(layer, &kind)| self.cache_shape(layer, kind)).collect()
    }

    /// Bytes of the cache of one sequence of so many tokens, before there is a model. A cache that grows has room to spare, and is for a moment
    /// there twice.
    pub fn cache_bytes(&self, tokens: usize, format: KvFormat) -> usize {
        let of_layer = |shape: &LayerCacheShape| {
            shape.bytes_per_token(format).saturating_mul(tokens).saturating_add(shape.fixed_bytes())
        };
        self.cache_shapes().iter().map(of_layer).fold(0, usize::saturating_add)
    }

    fn cache_shape(&self, layer: usize, kind: LayerType) -> LayerCacheShape {
        let config = &self.config;
        if let (LayerType::LinearAttention, Some(dims)) = (kind, &config.linear_attention) {
            return LayerCacheShape::DeltaNet {
                conv_tail: dims.conv_kernel_dim - 1,
                conv_channels: 2 * dims.key_width() + dims.value_width(),
                state: [dims.num_value_heads, dims.key_head_dim, dims.value_head_dim],
            };
        }
        let stored = |target| match self.kv_compression.as_ref().and_then(|c| Some((c, c.codec(layer, target)?))) {
            Some((compression, codec)) => {
                let count = config.kv_dim() / codec.width;
                match compression.cached_hidden(target, codec) {
                    Some(width) => KvShape::Heads { heads: count, width },
                    None => KvShape::Codes { count, width: codec.code_dim },
                }
            }
            None => KvShape::Heads { heads: config.num_key_value_heads, width: config.head_dim },
        };
        LayerCacheShape::Attention { k: stored(KvTarget::Key), v: stored(KvTarget::Value) }
    }

    /// Bytes of the keys and values that a pass decodes before it attends to `tokens`, in one layer after the other: those of the layer with most.
    /// They are of keys that are rotated after decoding and of codes per head; on the processor other codes are decoded where they are read. (A
    /// GPU decodes them, too, for a prompt.)
    pub fn decoded_bytes(&self, tokens: usize) -> usize {
        let Some(compression) = &self.kv_compression else { return 0 };
        let (width, rotary) = (self.config.kv_dim(), self.config.rope.rotary_dim);
        let numbers = |(&target, codec): (&KvTarget, &KvCodec)| match compression.rotates_decoded(target) {
            // And their cosines and sines.
            true => width + rotary,
            false if codec.width < width => width,
            false => 0,
        };
        let of_layer = |codecs: &BTreeMap<KvTarget, KvCodec>| codecs.iter().map(numbers).sum();
        let most: usize = compression.layers.values().map(of_layer).max().unwrap_or(0);
        most.saturating_mul(size_of::<f32>()).saturating_mul(tokens)
    }

    /// Caches hidden values of decoders in place of codes: see [`KvCompression::cache_hidden`].
    ///
    /// # Errors
    /// [`Error::Option`] when hidden values [take the place](KvCompression::caches_hidden) of no codes; nothing is changed then.
    pub fn cache_hidden(&mut self) -> Result<()> {
        let family = self.config.family;
        let Some(compression) = &mut self.kv_compression else {
            let message =
                format!("is for models whose cache is compressed (LeanLlama); this is {family}, whose cache is not");
            return Err(Error::Option { option: "cache_hidden".into(), message });
        };
        let hidden = KvCompression { cache_hidden: true, ..compression.clone() };
        let mut codecs = hidden.layers.values().flatten();
        if codecs.any(|(&target, codec)| hidden.cached_hidden(target, codec).is_some()) {
            *compression = hidden;
            return Ok(());
        }
        let message = "is given, but no code of this model has hidden values that are fewer than what it stands for, and keys that are rotated \
                       after decoding are cached as codes";
        let message = message.into();
        Err(Error::Option { option: "cache_hidden".into(), message })
    }

    /// Checks that there are ids, and that every one is in the vocabulary.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocabulary = self.config.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(id) => Err(Error::Prompt(format!("token {id} is outside the vocabulary of {vocabulary}"))),
            None if ids.is_empty() => Err(Error::Prompt("it has no tokens".into())),
            None => Ok(()),
        }
    }

    /// Checks a prompt that comes after `past` tokens: its ids, and that it ends in the context.
    pub(crate) fn check_prompt(&self, ids: &[u32], past: usize) -> Result<()> {
        self.check_ids(ids)?;
        let (total, limit) = (past.saturating_add(ids.len()), self.config.max_position_embeddings);
        if total > limit {
            let message = format!("{total} tokens, but the context of this model is {limit}; shorten it");
            return Err(Error::Prompt(message));
        }
        Ok(())
    }

    /// Where the path of a field in the modules is not the name of its tensor in a checkpoint: pairs of module path (enum
    /// variants left out) and checkpoint name, as parts of names. For `burn-store`, whose key remapping takes them either way
    /// round; weights that are plain floats need nothing else.
    pub fn field_names(&self) -> Vec<(String, String)> {
        let mut pairs = vec![(".a_log".to_string(), ".A_log".to_string())];
        if let Some(crest) = &self.crest {
            let gates: Vec<String> = match crest.gate_shared {
                true => vec![".halt_gate.".into()],
                false => (0..crest.num_steps).map(|k| format!(".halt_gates.{k}.")).collect(),
            };
            for gate in gates {
                pairs.extend(two_layers(&gate, crest.gate_hidden.is_some()));
            }
        }
        for (layer, codecs) in self.kv_compression.iter().flat_map(|c| &c.layers) {
            for (target, codec) in codecs {
                let letter = match target {
                    KvTarget::Key => "k",
                    KvTarget::Value => "v",
                };
                let decoder = format!(".{layer}.self_attn.{letter}_compressor.decoder.");
                pairs.extend(two_layers(&decoder, codec.hidden_dim.is_some()));
            }
        }
        pairs
    }
}

/// `hidden` and `output` are elements 0 and 2 of a sequence; an output alone has no name of its own.
fn two_layers(path: &str, hidden: bool) -> Vec<(String, String)> {
    match hidden {
        true => [("hidden", "0"), ("output", "2")].map(|(a, b)| (format!("{path}{a}."), format!("{path}{b}."))).into(),
        false => vec![(format!("{path}output."), path.to_string())],
    }
}
