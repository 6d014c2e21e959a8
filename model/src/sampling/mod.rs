//! Choosing the next token from the logits of one position.
//!
//! The order is that of transformers' `generate`: repetition penalty and other [`LogitsProcessors`], temperature, top-k, top-p,
//! min-p, then one draw. Each truncation sees what the one before it left: top-p counts probability mass among the tokens that
//! top-k kept.
//!
//! - **Repetition penalty**: for every token of prompt and output, a positive logit is divided by the penalty, any other multiplied.
//! - **Temperature** 0 is greedy: the largest logit, the lowest id among equals. Truncation then changes nothing.
//! - **top-k** keeps the `k` largest logits and everything equal to the `k`-th; 0 and `k` above the vocabulary keep all.
//! - **top-p** keeps a token when the tokens above it hold less than `top_p` of the mass, so the best token always stays.
//! - **min-p** keeps tokens of at least `min_p` times the probability of the best one.
//!
//! A seed fixes the tokens on every platform: the generator is PCG64 and the exponential is plain arithmetic of this crate,
//! not the system's mathematics library.
//!
//! # Untrusted input
//! NaN, `+Inf` and logits that are all `-Inf` are [`Error::NonFinite`], never token 0. A single `-Inf` bans that token.

#![cfg_attr(not(test), deny(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used))]

mod exponential;
mod processors;
mod shortlist;
mod truncate;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng, SeedableRng};

use crate::{Error, Result};
use exponential::exp;
use processors::Context;
pub use processors::LogitsProcessors;

/// How the next token is chosen; see the [module](self) for the meaning and order of the parts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingConfig {
    /// Divides the logits. 0 is greedy; at least 0, finite.
    pub temperature: f32,
    /// Tokens kept by rank; 0 keeps all.
    pub top_k: usize,
    /// Probability mass kept, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Least probability relative to the best token, in [0, 1); 0 keeps all.
    pub min_p: f32,
    /// Above 0, finite; 1 changes nothing, above 1 discourages repetition.
    pub repetition_penalty: f32,
    /// Seed of the generator; without one it is drawn from the system, and [`Sampler::seed`] tells it.
    pub seed: Option<u64>,
}

impl Default for SamplingConfig {
    /// Temperature 1 over the whole vocabulary, no penalty, no seed.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: None }
    }
}

impl SamplingConfig {
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
        check(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "top_p",
            self.top_p,
            "a number above 0 and at most 1 (1 turns it off)",
        )?;
        check(
            self.min_p >= 0.0 && self.min_p < 1.0,
            "min_p",
            self.min_p,
            "a number of at least 0 and below 1 (0 turns it off)",
        )?;
        let penalty = self.repetition_penalty;
        check(penalty.is_finite() && penalty > 0.0, "repetition_penalty", penalty, "a positive number (1 turns it off)")
    }
}

/// What is left to do once the penalty is applied.
#[derive(Debug, Clone, Copy)]
enum Strategy {
    Greedy,
    Draw(Truncation),
}

/// The part of the configuration that shapes a draw.
#[derive(Debug, Clone, Copy)]
struct Truncation {
    temperature: f32,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f32>,
}

/// Chooses tokens for one sequence. It owns the random generator and counts the steps.
#[derive(Debug, Clone)]
pub struct Sampler {
    strategy: Strategy,
    repetition_penalty: f32,
    processors: LogitsProcessors,
    /// Tokens that end the text, for the processors.
    end: Vec<u32>,
    seed: u64,
    rng: Pcg64,
    step: usize,
    /// One bit per token of the vocabulary, all clear between calls.
    penalised: Vec<u64>,
    /// Scratch of the draw: the weight of every token, the tokens that may be drawn, and a copy of those to reorder.
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
    scratch: Vec<Candidate>,
}

/// A token that may be drawn, with a weight proportional to its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    id: u32,
    weight: f32,
}

impl Candidate {
    fn new(id: u32, weight: f32) -> Self {
        Self { id, weight }
    }
}

impl Sampler {
    /// A sampler at step 0.
    ///
    /// # Errors
    /// [`Error::Option`] where [`SamplingConfig::validate`] fails.
    pub fn new(config: &SamplingConfig) -> Result<Self> {
        config.validate()?;
        let strategy = if config.is_greedy() {
            Strategy::Greedy
        } else {
            Strategy::Draw(Truncation {
                temperature: config.temperature,
                top_k: (config.top_k > 0).then_some(config.top_k),
                top_p: (config.top_p < 1.0).then_some(f64::from(config.top_p)),
                min_p: (config.min_p > 0.0).then_some(config.min_p),
            })
        };
        let seed = config.seed.unwrap_or_else(seed_from_system);
        Ok(Self {
            strategy,
            repetition_penalty: config.repetition_penalty,
            processors: LogitsProcessors::default(),
            end: Vec::new(),
            seed,
            rng: Pcg64::seed_from_u64(seed),
            step: 0,
            penalised: Vec::new(),
            weights: Vec::new(),
            candidates: Vec::new(),
            scratch: Vec::new(),
        })
    }

    /// With these changes to the logits, in a text that the tokens of `end` end.
    pub fn with_processors(mut self, processors: LogitsProcessors, end: &[u32]) -> Self {
        self.processors = processors;
        self.end = end.to_vec();
        self
    }

    /// The seed in use; giving it to [`SamplingConfig::seed`] repeats the run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Tokens chosen so far.
    pub fn step(&self) -> usize {
        self.step
    }

    /// Starts over: step 0 and the generator at its seed.
    pub fn reset(&mut self) {
        self.rng = Pcg64::seed_from_u64(self.seed);
        self.step = 0;
    }

    /// Chooses one token. `logits` is one row of the vocabulary and is changed by penalty and processors; `seen` holds prompt and
    /// output without padding, in order where a processor looks at it. Ids beyond the vocabulary have no logit and are passed over.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with the step when a logit is NaN or `+Inf`, or when all are `-Inf`.
    pub fn sample(&mut self, logits: &mut [f32], seen: &[u32]) -> Result<u32> {
        let context = Context { seen, generated: self.step, end: &self.end };
        self.processors.before_penalty(logits, context);
        if self.repetition_penalty != 1.0 {
            penalise(self.repetition_penalty, &mut self.penalised, logits, seen);
        }
        self.processors.after_penalty(logits, context);
        let (best, largest) = largest(logits, self.step)?;
        let id = match self.strategy {
            Strategy::Greedy => best,
            Strategy::Draw(truncation) => self.draw(logits, largest, truncation).unwrap_or(best),
        };
        self.step += 1;
        Ok(id)
    }

    /// Draws among the tokens that the truncations keep, in the order of their ids.
    fn draw(&mut self, logits: &[f32], largest: f32, truncation: Truncation) -> Option<u32> {
        let Truncation { temperature, top_k, top_p, min_p } = truncation;
        let candidates = &mut self.candidates;
        candidates.clear();
        if let Some(k) = top_k.filter(|&k| k < logits.len()) {
            let floor = truncate::kth_largest(logits, k);
            let kept = (0u32..).zip(logits).filter(|&(_, &l)| l >= floor);
            candidates.extend(kept.map(|(id, &l)| Candidate::new(id, weigh(l, largest, temperature))));
        } else {
            weigh_all(logits, largest, temperature, &mut self.weights);
            let total = truncate::sum(&self.weights);
            if top_p.is_none() && min_p.is_none() {
                let all = (0u32..).zip(&self.weights);
                let all = all.map(|(id, &weight)| Candidate::new(id, weight));
                return pick(all, uniform(&mut self.rng) * total);
            }
            // Tokens below this weight hold less than 1 - top_p together, so none of them is in the nucleus.
            let outside = top_p.map_or(0.0, |p| (1.0 - p) * total / logits.len() as f64);
            let kept = (0u32..).zip(&self.weights);
            let kept = kept.filter(|&(_, &weight)| f64::from(weight) >= outside);
            candidates.extend(kept.map(|(id, &weight)| Candidate::new(id, weight)));
            if let Some(top_p) = top_p {
                truncate::keep_heaviest(candidates, &mut self.scratch, top_p * total);
            }
            return pick_above(candidates, min_p, &mut self.rng);
        }
        self.draw_candidate(truncation)
    }

    /// Draws among the candidates, in the order of their ids, after what top-p and min-p leave of them.
    fn draw_candidate(&mut self, truncation: Truncation) -> Option<u32> {
        let candidates = &mut self.candidates;
        if let Some(top_p) = truncation.top_p {
            let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
            truncate::keep_heaviest(candidates, &mut self.scratch, top_p * total);
        }
        pick_above(candidates, truncation.min_p, &mut self.rng)
    }
}

/// A weight proportional to the probability; the best token weighs 1.
#[inline]
fn weigh(logit: f32, largest: f32, temperature: f32) -> f32 {
    exp((logit - largest) / temperature)
}

/// The weights of all tokens. A loop of its own, so that it is compiled to vector instructions.
#[inline(never)]
fn weigh_all(logits: &[f32], largest: f32, temperature: f32, weights: &mut Vec<f32>) {
    weights.clear();
    weights.extend(logits.iter().map(|&l| weigh(l, largest, temperature)));
}

/// Draws among the candidates of at least `min_p` times the weight of the best, which is exp(0) = 1.
fn pick_above(candidates: &mut Vec<Candidate>, min_p: Option<f32>, rng: &mut Pcg64) -> Option<u32> {
    if let Some(min_p) = min_p {
        candidates.retain(|c| c.weight >= min_p);
    }
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    pick(candidates.iter().copied(), uniform(rng) * total)
}

/// The candidate at `rest` on the line on which the weights lie end to end.
fn pick(candidates: impl Iterator<Item = Candidate>, mut rest: f64) -> Option<u32> {
    let mut last = None;
    for candidate in candidates.filter(|c| c.weight > 0.0) {
        rest -= f64::from(candidate.weight);
        last = Some(candidate.id);
        if rest < 0.0 {
            break;
        }
    }
    last
}

/// Applies the repetition penalty once to every distinct id of `seen`. `penalised` has one bit per token, all clear between calls.
fn penalise(penalty: f32, penalised: &mut Vec<u64>, logits: &mut [f32], seen: &[u32]) {
    penalised.resize(logits.len().div_ceil(64), 0);
    for &id in seen {
        let index = id as usize;
        let (Some(logit), Some(word)) = (logits.get_mut(index), penalised.get_mut(index / 64)) else {
            continue;
        };
        let bit = 1u64 << (index % 64);
        if *word & bit == 0 {
            *word |= bit;
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
    for &id in seen {
        if let Some(word) = penalised.get_mut(id as usize / 64) {
            *word = 0;
        }
    }
}

/// Id and value of the largest logit, the lowest id among equals.
fn largest(logits: &[f32], step: usize) -> Result<(u32, f32)> {
    let error = |message: String| Error::NonFinite { step, message };
    let (largest, nan) = truncate::largest(logits);
    if nan || largest == f32::INFINITY {
        let bad = |l: &f32| l.is_nan() || *l == f32::INFINITY;
        let count = logits.iter().filter(|l| bad(l)).count();
        let first = logits.iter().position(bad).unwrap_or_default();
        let value = logits.get(first).copied().unwrap_or(f32::NAN);
        return Err(error(format!(
            "{count} of {} are NaN or +Inf, the first is {value} for token {first}; the weights or the arithmetic type may be damaged",
            logits.len()
        )));
    }
    let best = logits.iter().position(|&l| l == largest);
    match best.map(u32::try_from) {
        Some(Ok(id)) if largest > f32::NEG_INFINITY => Ok((id, largest)),
        _ => Err(error(format!(
            "all {} are -Inf, so no token is possible (rules of generation_config.json can ban tokens)",
            logits.len()
        ))),
    }
}

/// `log softmax` of one row in f64, for perplexity and reported log-probabilities.
///
/// # Errors
/// [`Error::NonFinite`] with `step` when a logit is NaN or `+Inf`, or when all are `-Inf`.
pub fn log_softmax(logits: &[f32], step: usize) -> Result<Vec<f64>> {
    let (_, largest) = largest(logits, step)?;
    let largest = f64::from(largest);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - largest).exp()).sum();
    let log_sum = largest + sum.ln();
    Ok(logits.iter().map(|&l| f64::from(l) - log_sum).collect())
}

/// Uniform in [0, 1) with 53 random bits.
fn uniform(rng: &mut Pcg64) -> f64 {
    const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
    (rng.next_u64() >> 11) as f64 * UNIT
}

/// A seed that differs between runs: the standard library keys its hash maps from the system's entropy.
///
/// 53 bits of it: a seed is written as a JSON number, and many readers hold such a number as a double.
fn seed_from_system() -> u64 {
    RandomState::new().build_hasher().finish() >> 11
}
