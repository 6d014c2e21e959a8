//! Rotary position embedding: base, width and the llama3 frequency scaling, in the spellings of transformers 4 and 5.

use super::Family;
use super::fields::Fields;
use crate::Result;

/// Rotary position embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many leading dimensions of a head are rotated; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Frequency scaling for long contexts.
    pub scaling: Option<Llama3Scaling>,
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

impl RopeConfig {
    pub(super) fn read(text: &Fields, family: Family, head_dim: usize) -> Result<Self> {
        let hybrid = family.is_hybrid();
        let parameters = text.object("rope_parameters")?;
        let scaling = text.object("rope_scaling")?;
        let object = parameters.as_ref().or(scaling.as_ref());

        let positive =
            |f: &Fields, key: &str| f.number(key, "a number above 0, at most 1e12", |x| (1e-6..=1e12).contains(&x));
        let inner = object.map_or(Ok(None), |o| positive(o, "rope_theta"))?;
        let flat = positive(text, "rope_theta")?;
        if let (Some(a), Some(b)) = (inner, flat)
            && a != b
        {
            return Err(text.error("rope_theta", format!("is {b}, but the rope parameters say {a}")));
        }
        let theta = inner.or(flat).unwrap_or(if hybrid { 1e7 } else { 1e4 });

        let fraction =
            |f: &Fields| f.number("partial_rotary_factor", "a number above 0, at most 1", |x| x > 0.0 && x <= 1.0);
        let inner = object.map_or(Ok(None), fraction)?;
        let factor = inner.or(fraction(text)?).unwrap_or(if hybrid { 0.25 } else { 1.0 });
        // Truncation as in transformers: int(head_dim * factor).
        let rotary_dim = (head_dim as f64 * factor) as usize;
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            let message =
                format!("{factor} of head_dim {head_dim} is {rotary_dim} rotated dimensions, expected an even number");
            return Err(text.error("partial_rotary_factor", message));
        }

        let scaling = match object {
            Some(o) => Llama3Scaling::read(o, family)?,
            None => None,
        };
        Ok(Self { theta, rotary_dim, scaling })
    }
}

impl Llama3Scaling {
    fn read(object: &Fields, family: Family) -> Result<Option<Self>> {
        let kind = object.text("rope_type")?.or(object.text("type")?).unwrap_or("default");
        match kind {
            "default" => return Ok(None),
            // Three position streams that are equal for text.
            "mrope" if family.is_hybrid() => return Ok(None),
            "llama3" => {}
            other => {
                let message = format!(
                    "\"{}\" is not supported: emberlm computes default and llama3",
                    crate::checkpoint::names::shown(other)
                );
                return Err(object.error("rope_type", message));
            }
        }
        let factor = |key| {
            object.required(key, |f, key| f.number(key, "a number from 1e-3 to 1e6", |x| (1e-3..=1e6).contains(&x)))
        };
        let out = Self {
            factor: factor("factor")?,
            low_freq_factor: factor("low_freq_factor")?,
            high_freq_factor: factor("high_freq_factor")?,
            original_max_position_embeddings: object
                .required("original_max_position_embeddings", |f, key| f.size(key, super::MAX_POSITIONS))?,
        };
        if out.high_freq_factor <= out.low_freq_factor {
            return Err(object.error("high_freq_factor", "must be larger than low_freq_factor"));
        }
        if out.factor < 1.0 {
            return Err(object.error("factor", format!("is {}, expected at least 1", out.factor)));
        }
        Ok(Some(out))
    }
}
