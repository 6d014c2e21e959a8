//! One token after another for one sequence.

use rand_pcg::Pcg64;
use rand_pcg::rand_core::SeedableRng;

use super::candidates::{Candidate, candidate_at, draw_above, seed_from_system, uniform, weigh, weigh_all};
use super::config::{SamplingConfig, Strategy, Truncation};
use super::logits::{largest, penalise};
use super::processors::{Context, LogitsProcessors};
use super::truncate;
use crate::Result;

/// Chooses tokens for one sequence. It owns the random generator and counts the steps.
#[derive(Debug, Clone)]
pub struct Sampler {
    pub(super) strategy: Strategy,
    pub(super) repetition_penalty: f32,
    pub(super) processors: LogitsProcessors,
    /// Tokens that end the text, for the processors.
    end: Vec<u32>,
    seed: u64,
    rng: Pcg64,
    pub(super) step: usize,
    /// One bit per token of the vocabulary, all clear between calls.
    penalised: Vec<u64>,
    /// Scratch of the draw: the weight of every token, the tokens that may be drawn, and a copy of those to reorder.
    weights: Vec<f32>,
    pub(super) candidates: Vec<Candidate>,
    scratch: Vec<Candidate>,
}

impl Sampler {
    /// A sampler at step 0.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) where [`SamplingConfig::validate`] fails.
    pub fn new(config: &SamplingConfig) -> Result<Self> {
        config.validate()?;
        let seed = config.seed.unwrap_or_else(seed_from_system);
        Ok(Self {
            strategy: Strategy::new(config),
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

    /// A copy that chooses what this one would, without the memory that it works in.
    pub(crate) fn without_scratch(&self) -> Self {
        let Self { strategy, repetition_penalty, seed, step, .. } = *self;
        let (processors, end, rng) = (self.processors.clone(), self.end.clone(), self.rng.clone());
        let (penalised, weights, candidates, scratch) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { strategy, repetition_penalty, processors, end, seed, rng, step, penalised, weights, candidates, scratch }
    }

    /// The seed in use; giving it to [`SamplingConfig::seed`] repeats the run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The seed in use where a token was drawn with it: where none was, it repeats nothing.
    pub fn drawn_seed(&self) -> Option<u64> {
        (self.step > 0 && matches!(self.strategy, Strategy::Draw(_))).then_some(self.seed)
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
    /// [`Error::NonFinite`](crate::Error::NonFinite) with the step when a logit is NaN or `+Inf`, or when all are `-Inf`.
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
                return candidate_at(all, uniform(&mut self.rng) * total);
            }
            // Tokens below this weight hold less than 1 - top_p together, so none of them is in the nucleus.
            let outside = top_p.map_or(0.0, |p| (1.0 - p) * total / logits.len() as f64);
            let kept = (0u32..).zip(&self.weights);
            let kept = kept.filter(|&(_, &weight)| f64::from(weight) >= outside);
            candidates.extend(kept.map(|(id, &weight)| Candidate::new(id, weight)));
            if let Some(top_p) = top_p {
                truncate::keep_heaviest(candidates, &mut self.scratch, top_p * total);
            }
            return draw_above(candidates, min_p, &mut self.rng);
        }
        self.draw_candidate(truncation)
    }

    /// Draws among the candidates, in the order of their ids, after what top-p and min-p leave of them.
    pub(super) fn draw_candidate(&mut self, truncation: Truncation) -> Option<u32> {
        let candidates = &mut self.candidates;
        if let Some(top_p) = truncation.top_p {
            let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
            truncate::keep_heaviest(candidates, &mut self.scratch, top_p * total);
        }
        draw_above(candidates, truncation.min_p, &mut self.rng)
    }
}
