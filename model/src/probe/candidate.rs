//! A combination of values, and what it made of the blocks that it read.

use super::axes::OptionValue;
use crate::evaluate::Evaluation;

/// Whether a candidate reads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It does.
    InPlay,
    /// It was worse by several errors.
    Dropped,
    /// The model gave logits that are not numbers, or a token of the text no probability.
    NotFinite,
}

/// A combination of values, and what it made of the blocks that it read.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// One of every axis, in their order.
    pub values: Vec<OptionValue>,
    /// Mean negative log probability of the tokens of each block, in nats.
    pub nats: Vec<f64>,
    /// Whether it reads on.
    pub fate: Fate,
    /// Seconds that its passes took.
    pub seconds: f64,
    /// Sum of the mean steps of the blocks (CREST).
    steps: Option<f64>,
}

impl Candidate {
    pub(super) fn new(values: Vec<OptionValue>) -> Self {
        Self { values, nats: Vec::new(), fate: Fate::InPlay, seconds: 0.0, steps: None }
    }

    /// Blocks that were read.
    pub fn blocks(&self) -> usize {
        self.nats.len()
    }

    /// Over the blocks that were read; NaN before the first.
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// Steps per layer and token, on average; none without adaptive depth.
    pub fn mean_steps(&self) -> Option<f64> {
        self.steps.map(|steps| steps / self.blocks() as f64)
    }

    /// Nats per token.
    pub(super) fn mean(&self) -> f64 {
        self.nats.iter().sum::<f64>() / self.blocks() as f64
    }

    pub(super) fn is_in_play(&self) -> bool {
        self.fate == Fate::InPlay
    }

    /// 0 before the first.
    pub(super) fn seconds_per_block(&self) -> f64 {
        self.seconds / self.blocks().max(1) as f64
    }

    pub(super) fn add(&mut self, block: &Evaluation) {
        let nats = block.nats() / block.log_probabilities.len() as f64;
        self.seconds += block.seconds;
        if !nats.is_finite() {
            self.fate = Fate::NotFinite;
            return;
        }
        self.nats.push(nats);
        if let Some(steps) = block.mean_steps() {
            self.steps = Some(self.steps.unwrap_or(0.0) + steps);
        }
    }
}
