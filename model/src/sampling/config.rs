//! The options of sampling.

use std::ops::RangeInclusive;

use crate::{Error, Result};

/// How the next token is chosen; see the [module](super) for the meaning and order of the parts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingConfig {
    /// Divides the logits. 0 is greedy; at least 0, finite.
    pub temperature: f32,
    /// Tokens kept by rank; 0 keeps all.
    pub top_k: usize,
    /// Probability mass kept, in [0, 1]; 0 keeps the most likely token, 1 keeps all.
    pub top_p: f32,
    /// Least probability relative to the best token, in [0, 1]; 0 keeps all, 1 those that are as likely as the best.
    pub min_p: f32,
    /// Above 0, finite; 1 changes nothing, above 1 discourages repetition.
    pub repetition_penalty: f32,
    /// Seed of the generator; without one it is drawn from the system, and [`Sampler::seed`](super::Sampler::seed) returns it.
    pub seed: Option<u64>,
}

impl Default for SamplingConfig {
    /// Temperature 1 over the whole vocabulary, no penalty, no seed.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: None }
    }
}

impl SamplingConfig {
    /// What [`top_p`](Self::top_p) and [`min_p`](Self::min_p) may be, whoever gives them. Clients of OpenAI's API send a `top_p` of 0, and
    /// llama.cpp and transformers take it too.
    pub const SHARES: RangeInclusive<f64> = 0.0..=1.0;

    /// The largest logit at every step.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether the choice is the largest logit, without a draw.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Option`] with the first value that is out of range.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, option: &str, found: f32, allowed: &str| {
            if ok {
                return Ok(());
            }
            Err(Error::Option { option: option.to_owned(), message: format!("{found} is not allowed; use {allowed}") })
        };
        let temperature = self.temperature;
        check(
            temperature.is_finite() && temperature >= 0.0,
            "temperature",
            temperature,
            "0 for greedy decoding or a positive number",
        )?;
        let is_share = |x: f32| Self::SHARES.contains(&x.into());
        check(is_share(self.top_p), "top_p", self.top_p, "a number from 0 to 1 (1 turns it off)")?;
        check(is_share(self.min_p), "min_p", self.min_p, "a number from 0 to 1 (0 turns it off)")?;
        let penalty = self.repetition_penalty;
        check(penalty.is_normal() && penalty > 0.0, "repetition_penalty", penalty, "a positive number (1 turns it off)")
    }
}

/// What is left to do once the penalty is applied.
#[derive(Debug, Clone, Copy)]
pub(super) enum Strategy {
    Greedy,
    Draw(Truncation),
}

/// The part of the configuration that shapes a draw.
#[derive(Debug, Clone, Copy)]
pub(super) struct Truncation {
    pub(super) temperature: f32,
    pub(super) top_k: Option<usize>,
    pub(super) top_p: Option<f64>,
    pub(super) min_p: Option<f32>,
}

impl Strategy {
    /// What a valid config asks for.
    pub(super) fn new(config: &SamplingConfig) -> Self {
        if config.is_greedy() {
            return Self::Greedy;
        }
        Self::Draw(Truncation {
            temperature: config.temperature,
            top_k: (config.top_k > 0).then_some(config.top_k),
            top_p: (config.top_p < 1.0).then_some(f64::from(config.top_p)),
            min_p: (config.min_p > 0.0).then_some(config.min_p),
        })
    }
}
