//! The ways in which rotary frequencies are stretched for long contexts, with every parameter that transformers 5 reads.

use super::fields::Fields;
use super::limits::MAX_POSITIONS;
use crate::Result;
use crate::checkpoint::names::shown;

/// What the keys of the embedding are read beside.
pub(super) struct RopeContext {
    /// The body is that of Qwen3.5: a quarter of each head is rotated where nothing is stated.
    pub hybrid: bool,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
}

/// Frequency scaling for long contexts.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Every frequency is divided by the factor.
    Linear {
        /// What all wavelengths are stretched by.
        factor: f64,
    },
    /// The base grows with the sequence once it is longer than the model's context (NTK-aware).
    Dynamic(DynamicScaling),
    /// High frequencies are kept, low ones divided, those between interpolated; the rotation is scaled.
    Yarn(YarnScaling),
    /// One divisor per frequency, from one of two lists by the length of the sequence; the rotation is scaled.
    LongRope(LongRopeScaling),
    /// Llama 3.1's.
    Llama3(Llama3Scaling),
    /// A first part of the frequencies of a whole head; the others are 0.
    Proportional {
        /// What all wavelengths are stretched by.
        factor: f64,
        /// Frequencies above 0.
        rotated: usize,
    },
}

/// Dynamic NTK scaling: base `theta * (factor * length / max - (factor - 1))^(dim / (dim - 2))` for sequences longer than `max`.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicScaling {
    /// How steeply the base grows.
    pub factor: f64,
    /// `max_position_embeddings` as stated, in tokens; up to there nothing changes.
    pub max_position_embeddings: usize,
}

/// YaRN: <https://arxiv.org/abs/2309.00071>.
#[derive(Clone, Debug, PartialEq)]
pub struct YarnScaling {
    /// What long wavelengths are stretched by.
    pub factor: f64,
    /// Scale of sines and cosines, as stated or from `factor`, `mscale` and `mscale_all_dim`.
    pub attention_factor: f64,
    /// Frequencies with more rotations than this in the original context are kept.
    pub beta_fast: f64,
    /// Frequencies with fewer rotations than this are divided by the factor.
    pub beta_slow: f64,
    /// Context length of the model before scaling, in tokens.
    pub original_max_position_embeddings: usize,
    /// The bounds of the interpolated frequencies are rounded outwards to whole ones.
    pub truncate: bool,
}

/// LongRoPE: <https://arxiv.org/abs/2402.13753>.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRopeScaling {
    /// Divisors for sequences up to `original_max_position_embeddings`, one per frequency.
    pub short_factor: Vec<f64>,
    /// Divisors for longer sequences, one per frequency.
    pub long_factor: Vec<f64>,
    /// Scale of sines and cosines, as stated or from `factor`, for sequences of any length.
    pub attention_factor: f64,
    /// Context length of the model before scaling, in tokens.
    pub original_max_position_embeddings: usize,
}

/// Llama 3.1's frequency scaling: long wavelengths are divided by `factor`, short ones kept, those between interpolated.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// What long wavelengths are stretched by.
    pub factor: f64,
    /// Wavelengths above `original / low_freq_factor` are stretched in full.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Context length of the model before scaling, in tokens.
    pub original_max_position_embeddings: usize,
}

impl RopeScaling {
    /// Reads the parameters of a type. `partial` is the fraction of a head that is stated, `original` the key
    /// `original_max_position_embeddings` beside the object.
    pub(super) fn read(
        object: &Fields,
        kind: &str,
        theta: f64,
        rotary_dim: usize,
        partial: Option<f64>,
        original: Option<usize>,
        context: &RopeContext,
    ) -> Result<Option<Self>> {
        let original = || -> Result<usize> {
            let inner = object.size("original_max_position_embeddings", MAX_POSITIONS)?;
            Ok(original.or(inner).unwrap_or(context.max_position_embeddings))
        };
        let needs = |allowed: bool, message: &str| match allowed {
            true => Ok(()),
            false => Err(object.error("rope_type", format!("\"{kind}\" {message}"))),
        };
        Ok(Some(match kind {
            "default" => return Ok(None),
            // Three position streams that are equal for text.
            "mrope" if context.hybrid => return Ok(None),
            "linear" => Self::Linear { factor: object.required("factor", stretch)? },
            "dynamic" => {
                needs(rotary_dim > 2, "needs more than two rotated dimensions")?;
                Self::Dynamic(DynamicScaling {
                    factor: object.required("factor", stretch)?,
                    max_position_embeddings: context.max_position_embeddings,
                })
            }
            "yarn" => {
                needs(theta > 1.0, "needs a rope_theta above 1")?;
                Self::Yarn(YarnScaling::read(object, original()?, context)?)
            }
            "longrope" => Self::LongRope(LongRopeScaling::read(object, rotary_dim, original()?, context)?),
            "llama3" => Self::Llama3(Llama3Scaling::read(object, original()?)?),
            "proportional" => {
                let rotated = (partial.unwrap_or(1.0) * context.head_dim as f64 / 2.0) as usize;
                Self::Proportional { factor: stretch(object, "factor")?.unwrap_or(1.0), rotated }
            }
            other => {
                let message = format!(
                    "\"{}\" is not supported: emberlm computes default, linear, dynamic, yarn, longrope, llama3 and proportional",
                    shown(other)
                );
                return Err(object.error("rope_type", message));
            }
        }))
    }

    /// Tokens that a context of `max` is stretched to, where the type says so.
    pub(super) fn context(&self, max: usize) -> usize {
        let times = |tokens: usize, factor: f64| (tokens as f64 * factor) as usize;
        match self {
            Self::Linear { factor } => times(max, *factor),
            Self::Dynamic(dynamic) => times(max, dynamic.factor),
            Self::Yarn(yarn) => times(yarn.original_max_position_embeddings, yarn.factor),
            Self::LongRope(_) | Self::Llama3(_) | Self::Proportional { .. } => max,
        }
    }
}

impl std::fmt::Display for RopeScaling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Linear { factor } => write!(f, "linear by {factor}"),
            Self::Dynamic(dynamic) => {
                write!(f, "dynamic by {} beyond {} tokens", dynamic.factor, dynamic.max_position_embeddings)
            }
            Self::Yarn(yarn) => {
                write!(f, "yarn by {} from {} tokens", yarn.factor, yarn.original_max_position_embeddings)
            }
            Self::LongRope(long) => write!(f, "longrope, long beyond {} tokens", long.original_max_position_embeddings),
            Self::Llama3(llama3) => {
                write!(f, "llama3 by {} from {} tokens", llama3.factor, llama3.original_max_position_embeddings)
            }
            Self::Proportional { factor, rotated } => write!(f, "proportional by {factor}, {rotated} frequencies"),
        }
    }
}

/// A factor by which contexts are stretched.
fn stretch(fields: &Fields, key: &str) -> Result<Option<f64>> {
    fields.number(key, "a number from 1 to 1e6", |x| (1.0..=1e6).contains(&x))
}

/// A scale or a divisor.
fn positive(fields: &Fields, key: &str) -> Result<Option<f64>> {
    fields.number(key, "a number above 0, at most 1e6", |x| x > 0.0 && x <= 1e6)
}

/// `stretch`, or where it is null the ratio of the context to the one before scaling.
fn stretch_or_ratio(object: &Fields, original: usize, context: &RopeContext) -> Result<f64> {
    if let Some(factor) = stretch(object, "factor")? {
        return Ok(factor);
    }
    let ratio = context.max_position_embeddings as f64 / original as f64;
    if ratio < 1.0 {
        let message = format!(
            "is not stated, and the context of {} is shorter than the original one of {original}",
            context.max_position_embeddings
        );
        return Err(object.error("factor", message));
    }
    Ok(ratio)
}

impl YarnScaling {
    fn read(object: &Fields, original: usize, context: &RopeContext) -> Result<Self> {
        if stretch(object, "factor")?.is_none() && !object.is_null("factor") {
            return Err(
                object.error("factor", "is missing: yarn needs a number from 1, or null for the ratio of the contexts")
            );
        }
        let factor = stretch_or_ratio(object, original, context)?;
        // 0 counts as not stated, as in transformers.
        let scale = |key| object.number(key, "a number from 0 to 1e6", |x| (0.0..=1e6).contains(&x));
        let nonzero = |key| scale(key).map(|x| x.filter(|&x| x > 0.0));
        let magnitude = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let implied = match (nonzero("mscale")?, nonzero("mscale_all_dim")?) {
            (Some(mscale), Some(all)) => magnitude(mscale) / magnitude(all),
            _ => magnitude(1.0),
        };
        let out = Self {
            factor,
            attention_factor: positive(object, "attention_factor")?.unwrap_or(implied),
            beta_fast: nonzero("beta_fast")?.unwrap_or(32.0),
            beta_slow: nonzero("beta_slow")?.unwrap_or(1.0),
            original_max_position_embeddings: original,
            truncate: object.boolean("truncate")?.unwrap_or(true),
        };
        if out.beta_fast < out.beta_slow {
            let message = format!("is {}, expected at least beta_slow, {}", out.beta_fast, out.beta_slow);
            return Err(object.error("beta_fast", message));
        }
        Ok(out)
    }
}

impl LongRopeScaling {
    fn read(object: &Fields, rotary_dim: usize, original: usize, context: &RopeContext) -> Result<Self> {
        let frequencies = rotary_dim / 2;
        let divisors = |key: &str| -> Result<Vec<f64>> {
            let expected = "only numbers from 1e-6 to 1e6 in the array";
            let list = object.required(key, |f, key| f.numbers(key, expected, |x| (1e-6..=1e6).contains(&x)))?;
            if list.len() != frequencies {
                let message =
                    format!("has {} numbers, expected {frequencies}, one for each two rotated dimensions", list.len());
                return Err(object.error(key, message));
            }
            Ok(list)
        };
        let attention_factor = match positive(object, "attention_factor")? {
            Some(stated) => stated,
            None => match stretch_or_ratio(object, original, context)? {
                factor if factor <= 1.0 => 1.0,
                _ if original < 2 => {
                    return Err(
                        object.error("original_max_position_embeddings", format!("is {original}, expected at least 2"))
                    );
                }
                factor => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
            },
        };
        Ok(Self {
            short_factor: divisors("short_factor")?,
            long_factor: divisors("long_factor")?,
            attention_factor,
            original_max_position_embeddings: original,
        })
    }
}

impl Llama3Scaling {
    fn read(object: &Fields, original: usize) -> Result<Self> {
        let factor = |key| {
            object.required(key, |f, key| f.number(key, "a number from 1e-3 to 1e6", |x| (1e-3..=1e6).contains(&x)))
        };
        let out = Self {
            factor: object.required("factor", stretch)?,
            low_freq_factor: factor("low_freq_factor")?,
            high_freq_factor: factor("high_freq_factor")?,
            original_max_position_embeddings: original,
        };
        if out.high_freq_factor <= out.low_freq_factor {
            return Err(object.error("high_freq_factor", "must be larger than low_freq_factor"));
        }
        Ok(out)
    }
}
