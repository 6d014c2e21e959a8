//! Rotary position embedding: base, width and frequency scaling, in the spellings of transformers 4 and 5.
//!
//! Which value counts where two are stated is as in transformers 5 (`RotaryEmbeddingConfigMixin` in `modeling_rope_utils.py`):
//! `rope_scaling` replaces `rope_parameters` as a whole, a base inside the object in force wins over `rope_theta` beside it, and
//! `original_max_position_embeddings` beside the object wins over the one inside.

use super::fields::Fields;
use super::limits::MAX_POSITIONS;
use super::notes::Notes;
use super::rope_scaling::{RopeContext, RopeScaling};
use crate::Result;

/// The base where none is stated: that of transformers for every family.
const DEFAULT_THETA: f64 = 1e4;

/// Rotary position embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many leading dimensions of a head are rotated; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Frequency scaling for long contexts.
    pub scaling: Option<RopeScaling>,
}

impl RopeConfig {
    /// Reads the keys of a text config; `notes` takes what was assumed or not used.
    pub(super) fn read(text: &Fields, context: &RopeContext, notes: &mut Notes) -> Result<Self> {
        let parameters = text.object("rope_parameters")?;
        let stated_scaling = text.object("rope_scaling")?.filter(|scaling| scaling.keys().next().is_some());
        let object = stated_scaling.as_ref().or(parameters.as_ref());
        if let Some(key) = object.and_then(Fields::nested_key) {
            let message = "is an object: parameters for each kind of layer are not supported for this model type";
            return Err(object.unwrap_or(text).error(key, message));
        }
        let theta = theta(text, object, stated_scaling.is_some().then_some(parameters.as_ref()).flatten(), notes)?;

        let fraction =
            |f: &Fields| f.number("partial_rotary_factor", "a number above 0, at most 1", |x| x > 0.0 && x <= 1.0);
        let inner = object.map_or(Ok(None), fraction)?;
        let factor = inner.or(fraction(text)?).or(context.hybrid.then_some(0.25));
        let kind = match object {
            Some(object) => object.text("rope_type")?.or(object.text("type")?).unwrap_or("default"),
            None => "default",
        };
        // Truncation as in transformers: int(head_dim * factor).
        let part = |factor: f64| (context.head_dim as f64 * factor) as usize;
        let rotary_dim = match (factor, context.hybrid) {
            (None, _) => context.head_dim,
            (Some(_), _) if kind == "proportional" => context.head_dim,
            (Some(factor), true) => part(factor),
            (Some(factor), false) if part(factor) == context.head_dim => context.head_dim,
            (Some(factor), false) if kind == "default" => {
                notes
                    .unused
                    .push(format!("partial_rotary_factor {factor} is not used: this model type rotates whole heads"));
                context.head_dim
            }
            (Some(factor), false) => {
                let message = format!("is {factor}: this model type rotates whole heads");
                return Err(text.error("partial_rotary_factor", message));
            }
        };
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            let message = format!(
                "{rotary_dim} of the {} dimensions of a head would be rotated, expected an even number",
                context.head_dim
            );
            return Err(text.error("partial_rotary_factor", message));
        }
        let scaling = match object {
            Some(object) => {
                let original = text.size("original_max_position_embeddings", MAX_POSITIONS)?;
                RopeScaling::read(object, kind, theta, rotary_dim, factor, original, context)?
            }
            None => None,
        };
        Ok(Self { theta, rotary_dim, scaling })
    }

    /// Tokens that the model may see, of which `max_position_embeddings` are stated: more where scaling stretches them.
    pub(super) fn context(&self, max_position_embeddings: usize) -> usize {
        let stretched = self.scaling.as_ref().map_or(0, |scaling| scaling.context(max_position_embeddings));
        stretched.clamp(max_position_embeddings, MAX_POSITIONS.max(max_position_embeddings))
    }
}

impl std::fmt::Display for RopeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { theta, rotary_dim, scaling } = self;
        write!(f, "theta {theta}, {rotary_dim} dimensions of a head")?;
        match scaling {
            Some(scaling) => write!(f, ", {scaling}"),
            None => Ok(()),
        }
    }
}

/// The base: the one inside the object in force, the one beside it, or the default. `replaced` is an object that is not in force.
fn theta(text: &Fields, object: Option<&Fields>, replaced: Option<&Fields>, notes: &mut Notes) -> Result<f64> {
    let positive =
        |f: &Fields| f.number("rope_theta", "a number above 0, at most 1e12", |x| (1e-6..=1e12).contains(&x));
    let inner = object.map_or(Ok(None), positive)?;
    let flat = positive(text)?;
    let replaced = replaced.map_or(Ok(None), positive)?;
    let theta = inner.or(flat).unwrap_or(DEFAULT_THETA);
    if inner.or(flat).is_none() {
        notes.assumed.push(format!("rope_theta is not stated: {DEFAULT_THETA} is assumed, as in transformers"));
    }
    if let (Some(inner), Some(flat)) = (inner, flat)
        && inner != flat
    {
        notes
            .unused
            .push(format!("rope_theta is stated twice: the {inner} in the rope parameters is used, not {flat}"));
    }
    if let Some(other) = replaced.filter(|&other| other != theta) {
        notes.unused.push(format!("rope_theta {other} of rope_parameters is not used: rope_scaling takes their place, as in transformers; the base is {theta}"));
    }
    Ok(theta)
}
