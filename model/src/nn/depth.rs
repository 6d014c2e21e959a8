//! How deep the tokens of one pass may go, where its sequences ask for different things.

use std::cell::OnceCell;

use burn::tensor::backend::Backend;
use emberlm_quant::halting::HaltRows;

use crate::config::CrestOptions;
use crate::error::{Error, Result};

/// How deep the tokens of one sequence go (CREST); what is not said is as the model's own options say.
///
/// The cache of a sequence holds what its tokens became at the depth that they had, and does not know it: whoever feeds a sequence
/// asks for the same depth in every pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DepthOptions {
    /// The threshold at which a token halts, from 0 to 1. Tokens then halt even where the model's own options have halting off.
    pub threshold: Option<f32>,
    /// Steps to run at most, from 1 to those that were loaded.
    pub steps: Option<usize>,
}

impl DepthOptions {
    /// Checks it against the steps that every layer has; none in a model without adaptive depth.
    ///
    /// # Errors
    /// [`Error::Option`] when a value is out of range, or there is no depth to choose.
    pub(crate) fn check(&self, loaded: Option<usize>) -> Result<()> {
        let refuse = |option: &str, message: String| Err(Error::Option { option: option.into(), message });
        let Some(loaded) = loaded else {
            return match *self == Self::default() {
                true => Ok(()),
                false => refuse("depth", "is asked for, but this model has no adaptive depth: leave it out".into()),
            };
        };
        match *self {
            Self { threshold: Some(threshold), .. } if !(0.0..=1.0).contains(&threshold) => {
                refuse("depth.threshold", format!("is {threshold}, expected a number from 0 to 1"))
            }
            Self { steps: Some(steps), .. } if !(1..=loaded).contains(&steps) => {
                refuse("depth.steps", format!("is {steps}, expected 1 to {loaded}, the steps that the model has"))
            }
            _ => Ok(()),
        }
    }
}

/// Consecutive tokens of a pass that follow the same rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DepthRun {
    /// How many.
    pub tokens: usize,
    /// Steps that they run at most.
    pub steps: usize,
    /// The threshold at which they halt; none where all of them run all these steps.
    pub threshold: Option<f32>,
}

impl DepthRun {
    /// Whether one of its tokens can have stopped before step `k`, counted from 0: then the step is not for all rows.
    pub(crate) fn stops_before(&self, k: usize) -> bool {
        k > 0 && (self.threshold.is_some() || self.steps <= k)
    }
}

/// What the sequences of a pass ask for.
pub(crate) struct PassDepth<B: Backend> {
    /// Of the tokens in order.
    asked: Vec<(usize, DepthOptions)>,
    /// Of a layer; most often those of all layers.
    rows: OnceCell<(Vec<DepthRun>, HaltRows<B>)>,
}

impl<B: Backend> PassDepth<B> {
    /// Of sequences of so many tokens each.
    pub fn new(asked: impl IntoIterator<Item = (usize, DepthOptions)>) -> Self {
        Self { asked: asked.into_iter().collect(), rows: OnceCell::new() }
    }

    /// What the tokens follow in a layer with these options: one run where all follow the same.
    pub fn runs(&self, options: &CrestOptions) -> Vec<DepthRun> {
        runs(&self.asked, options)
    }

    /// The runs token by token.
    pub fn rows(&self, runs: &[DepthRun], device: &B::Device) -> HaltRows<B> {
        let new = || {
            let each = || runs.iter().flat_map(|run| std::iter::repeat_n(run, run.tokens));
            let threshold = each().map(|run| run.threshold.unwrap_or(HaltRows::<B>::NEVER)).collect();
            HaltRows::new(threshold, each().map(|run| run.steps as i64).collect(), device)
        };
        let (of, rows) = self.rows.get_or_init(|| (runs.to_vec(), new()));
        if of == runs { rows.clone() } else { new() }
    }
}

fn runs(asked: &[(usize, DepthOptions)], options: &CrestOptions) -> Vec<DepthRun> {
    let own = options.halt_enabled.then_some(options.halt_threshold);
    let mut runs = Vec::<DepthRun>::new();
    for &(tokens, depth) in asked {
        let steps = depth.steps.unwrap_or(options.num_steps);
        let threshold = depth.threshold.or(own);
        match runs.last_mut() {
            Some(last) if (last.steps, last.threshold) == (steps, threshold) => last.tokens += tokens,
            _ => runs.push(DepthRun { tokens, steps, threshold }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(num_steps: usize, halt_enabled: bool) -> CrestOptions {
        CrestOptions { num_steps, halt_enabled, halt_threshold: 0.5, ..Default::default() }
    }

    fn found(asked: &[(usize, DepthOptions)], options: &CrestOptions) -> Vec<(usize, usize, Option<f32>)> {
        runs(asked, options).iter().map(|run| (run.tokens, run.steps, run.threshold)).collect()
    }

    #[test]
    fn sequences_that_follow_the_same_are_one_run() {
        let asked = |threshold, steps| DepthOptions { threshold, steps };
        let all =
            [(2, asked(None, None)), (3, asked(Some(0.5), None)), (1, asked(None, Some(4))), (4, asked(None, Some(2)))];
        assert_eq!(found(&all[..3], &options(4, true)), [(6, 4, Some(0.5))]);
        assert_eq!(found(&all, &options(4, true)), [(6, 4, Some(0.5)), (4, 2, Some(0.5))]);
        assert_eq!(found(&all, &options(4, false)), [(2, 4, None), (3, 4, Some(0.5)), (1, 4, None), (4, 2, None)]);
    }

    /// A row whose last step was before is among those that a step leaves out, also where no token halts by its gate.
    #[test]
    fn rows_at_their_last_step_do_not_go_on() {
        let run = |steps, threshold| DepthRun { tokens: 1, steps, threshold };
        let stops = |run: DepthRun| [0, 1, 2, 3].map(|k| run.stops_before(k));
        assert_eq!(stops(run(4, None)), [false; 4]);
        assert_eq!(stops(run(2, None)), [false, false, true, true]);
        assert_eq!(stops(run(4, Some(1.0))), [false, true, true, true]);
    }
}
