//! How deep the tokens of a pass went, read back from the device.

use burn::tensor::Transaction;
use emberlm_quant::CompactBackend;

use crate::causal_lm::ForwardOutput;
use crate::error::Result;
use crate::nn::DepthTrace;
use crate::read::{elements, read_back};

/// Of which tokens of a sequence the depth is told (CREST). It is read back from the device, and takes memory for every token, layer and step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trace {
    /// Of none.
    #[default]
    Off,
    /// Of the passes that choose tokens.
    Chosen,
    /// Of every token that is computed, those of the prompt too.
    All,
}

/// How deep one token went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenDepth {
    /// Per layer: steps run.
    pub steps: Vec<u32>,
    /// Per layer: halting probability of each step but the last; 0 after the token halted.
    pub halt: Vec<Vec<f32>>,
}

impl TokenDepth {
    /// Steps per layer, on average.
    pub fn mean_steps(&self) -> f64 {
        self.steps.iter().map(|&steps| f64::from(steps)).sum::<f64>() / self.steps.len().max(1) as f64
    }
}

/// Depth of these tokens of a pass, which ascend.
pub(crate) fn token_depths<B: CompactBackend>(out: &ForwardOutput<B>, rows: &[usize]) -> Result<Vec<TokenDepth>> {
    let mut tokens = vec![TokenDepth::default(); rows.len()];
    if out.depth.is_empty() || rows.is_empty() {
        return Ok(tokens);
    }
    let everything = out.depth.iter().fold(Transaction::default(), |all, DepthTrace { steps, halt, .. }| {
        halt.iter().fold(all.register(steps.clone()), |all, halt| all.register(halt.clone()))
    });
    let mut data = read_back(everything)?;
    for DepthTrace { halt, runs, .. } in &out.depth {
        let steps: Vec<i64> = elements(data.next())?;
        let halt: Vec<Vec<f32>> = halt.iter().map(|_| elements(data.next())).collect::<Result<_>>()?;
        // Others in the pass may run more steps than a token could.
        let most = runs.iter().flat_map(|run| std::iter::repeat_n(run.steps, run.tokens));
        let mut of_rows = steps.iter().zip(most).enumerate();
        let mut next = 0;
        for (token, &row) in tokens.iter_mut().zip(rows) {
            let Some((_, (&steps, most))) = of_rows.nth(row - next) else { break };
            next = row + 1;
            token.steps.push(steps.unsigned_abs() as u32);
            token.halt.push(halt.iter().take(most.saturating_sub(1)).filter_map(|h| h.get(row).copied()).collect());
        }
    }
    Ok(tokens)
}
