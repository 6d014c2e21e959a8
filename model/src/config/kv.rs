//! Learned compression of the key and value cache: what a config states, what the tensors show, and the union.

use std::collections::{BTreeMap, BTreeSet};

use emberlm_quant::kv::CodeActivation;

use super::agreement::{Spelled, agrees};
use super::fields::{Choice, Fields, spelled};
use crate::Result;
use crate::checkpoint::names::shown;

spelled! {
    /// What is compressed.
    KvTarget("targets") {
        /// Keys.
        Key = "k" | "key" | "keys",
        /// Values.
        Value = "v" | "value" | "values",
    }
}

spelled! {
    /// Where keys are compressed.
    KStage("k_stage") {
        /// After rotation, as they are cached.
        PostRope = "post_rope",
        /// Before; the reconstruction is rotated.
        PreRope = "pre_rope",
    }
}

impl Spelled for KvTarget {
    fn spelled(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Choice for CodeActivation {
    const ALL: &'static [Self] = Self::ALL;

    fn spelling(self) -> &'static str {
        self.as_str()
    }

    fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::Gelu | Self::Relu => &[],
            Self::GeluTanh => &["gelu_pytorch_tanh", "gelu_new"],
            Self::Silu => &["swish"],
        }
    }
}

/// The options that a config states (`kv_compression`); `None` where it states none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvCompressionConfig {
    /// Compressed layers.
    pub layers: Option<BTreeSet<usize>>,
    /// Keys, values or both.
    pub targets: Option<BTreeSet<KvTarget>>,
    /// Numbers per token and target in the cache.
    pub code_dim: Option<usize>,
    /// Width of the decoder's hidden layer; `Some(None)`: stated to be linear.
    pub hidden_dim: Option<Option<usize>>,
    /// Activation of the decoder.
    pub activation: Option<CodeActivation>,
    /// Whether encoders have biases.
    pub encoder_bias: Option<bool>,
    /// Whether decoders have biases.
    pub decoder_bias: Option<bool>,
    /// Where keys are compressed.
    pub k_stage: Option<KStage>,
}

impl KvCompressionConfig {
    pub(super) fn read(object: &Fields, layers: usize, kv_dim: usize) -> Result<Self> {
        let target = |name: &str| {
            let message = || format!("has \"{}\", expected only \"k\" and \"v\"", shown(name));
            name.parse::<KvTarget>().map_err(|_| object.error("targets", message()))
        };
        let targets =
            object.strings("targets")?.map(|names| names.into_iter().map(target).collect::<Result<BTreeSet<_>>>());
        let last = layers.saturating_sub(1);
        let hidden = object.size("hidden_dim", super::limits::MAX_WIDTH)?;
        Ok(Self {
            layers: object.integers("layers", last)?.map(|layers| layers.into_iter().collect()),
            targets: targets.transpose()?,
            code_dim: object.size("code_dim", kv_dim.saturating_sub(1))?,
            hidden_dim: if object.is_null("hidden_dim") { Some(None) } else { hidden.map(Some) },
            activation: object.choice("activation")?,
            encoder_bias: object.boolean("encoder_bias")?,
            decoder_bias: object.boolean("decoder_bias")?,
            k_stage: object.choice("k_stage")?,
        })
    }
}

/// What the caller wants different; `None` keeps what the checkpoint says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvOverrides {
    /// Activation of the decoders.
    pub activation: Option<CodeActivation>,
    /// Where keys are compressed.
    pub k_stage: Option<KStage>,
}

/// The compressor of one target in one layer: `code = E y (+ b)`, `y' = W2 act(W1 code + b1) + b2` or `y' = D code (+ b)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCodec {
    /// Numbers in the code, r.
    pub code_dim: usize,
    /// What it compresses: all kv heads of a token together, or one head of `head_dim` numbers at a time.
    pub width: usize,
    /// Width of the decoder's hidden layer; `None`: the decoder is linear.
    pub hidden_dim: Option<usize>,
    /// Whether the encoder has a bias.
    pub encoder_bias: bool,
    /// Whether the decoder has biases.
    pub decoder_bias: bool,
}

/// The compressors that the tensors hold: layer, then target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoveredKvCompression {
    /// Compressed layers.
    pub layers: BTreeMap<usize, BTreeMap<KvTarget, KvCodec>>,
}

/// The compression that a model runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvCompression {
    /// Compressed layers, each with one or two targets.
    pub layers: BTreeMap<usize, BTreeMap<KvTarget, KvCodec>>,
    /// Activation of the decoders.
    pub activation: CodeActivation,
    /// Where keys are compressed.
    pub k_stage: KStage,
    /// Whether [hidden values](Self::caches_hidden) of the decoders are cached in place of codes, in the format of the cache: more memory, and less
    /// to compute for every token.
    pub cache_hidden: bool,
}

impl KvCompression {
    /// Whether `hidden` values are cached in place of each code that stands for `width` numbers: where they are asked for, are fewer, and are not
    /// decoded in every pass all the same, as keys are that are rotated afterwards.
    pub fn caches_hidden(&self, target: KvTarget, hidden: usize, width: usize) -> bool {
        self.cache_hidden && hidden < width && !self.rotates_decoded(target)
    }

    /// Whether these are rotated after decoding, all of them in every pass.
    pub fn rotates_decoded(&self, target: KvTarget) -> bool {
        target == KvTarget::Key && self.k_stage == KStage::PreRope
    }

    /// Hidden values that are [cached](Self::caches_hidden) for every code of a codec; none where the codes are.
    pub fn cached_hidden(&self, target: KvTarget, codec: &KvCodec) -> Option<usize> {
        codec.hidden_dim.filter(|&hidden| self.caches_hidden(target, hidden, codec.width))
    }

    /// With what is said; what the tensors show stays.
    #[must_use]
    pub fn with(mut self, overrides: KvOverrides) -> Self {
        self.activation = overrides.activation.unwrap_or(self.activation);
        self.k_stage = overrides.k_stage.unwrap_or(self.k_stage);
        self
    }

    /// The codec of a layer and target, if that is compressed.
    pub fn codec(&self, layer: usize, target: KvTarget) -> Option<&KvCodec> {
        self.layers.get(&layer)?.get(&target)
    }

    /// The compression of a checkpoint; `None` when it has none.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) when a stated value contradicts the tensors.
    pub fn resolve(
        stated: Option<&KvCompressionConfig>,
        found: Option<&DiscoveredKvCompression>,
    ) -> Result<Option<Self>> {
        const KEY: &str = "kv_compression";
        let silent = KvCompressionConfig::default();
        let stated = stated.unwrap_or(&silent);
        let empty = DiscoveredKvCompression::default();
        let found = found.unwrap_or(&empty);
        let layers: BTreeSet<usize> = found.layers.keys().copied().collect();
        agrees(KEY, "layers", stated.layers.as_ref(), &layers)?;
        for (layer, codecs) in &found.layers {
            let targets: BTreeSet<KvTarget> = codecs.keys().copied().collect();
            agrees(KEY, &format!("targets (layer {layer})"), stated.targets.as_ref(), &targets)?;
            for (target, codec) in codecs {
                let at = |key| format!("{key} (layer {layer}, {target})");
                agrees(KEY, &at("code_dim"), stated.code_dim.as_ref(), &codec.code_dim)?;
                agrees(KEY, &at("hidden_dim"), stated.hidden_dim.as_ref(), &codec.hidden_dim)?;
                agrees(KEY, &at("encoder_bias"), stated.encoder_bias.as_ref(), &codec.encoder_bias)?;
                agrees(KEY, &at("decoder_bias"), stated.decoder_bias.as_ref(), &codec.decoder_bias)?;
            }
        }
        Ok((!layers.is_empty()).then(|| Self {
            layers: found.layers.clone(),
            activation: stated.activation.unwrap_or(CodeActivation::Gelu),
            k_stage: stated.k_stage.unwrap_or(KStage::PostRope),
            cache_hidden: false,
        }))
    }
}
