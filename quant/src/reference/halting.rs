//! One step of adaptive depth.

use burn::tensor::activation::sigmoid;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor};

use crate::halting::{HaltMode, HaltRecord, HaltState, HaltStep, HaltWeights};

/// See [`CompactBackend::halt_step`](crate::CompactBackend::halt_step).
pub fn halt_step<B: Backend>(state: HaltState<B>, step: HaltStep<'_, B>) -> (HaltState<B>, HaltRecord<B>) {
    let HaltStep { state: step_state, logit: halt_logit, rule, rows } = step;
    let HaltState { active, remaining, cumulative, steps, output } = state;
    let last = halt_logit.is_none();
    let running = active.clone().float();
    // Tokens whose last step this is, where others have steps to come.
    let at_last = rows.map(|rows| (steps.clone() + 1).greater_equal(rows.steps.clone()));
    let h = match (halt_logit, &at_last) {
        (Some(logit), Some(at_last)) => sigmoid(logit).mask_fill(at_last.clone(), 1.0),
        (Some(logit), None) => sigmoid(logit),
        (None, _) => remaining.ones_like(),
    };
    let p = h.clone() * remaining.clone();
    let reached = match rule.mode {
        HaltMode::Cumulative => cumulative.clone() + p.clone(),
        HaltMode::Step => h.clone(),
    };
    let stop: Tensor<B, 1, Bool> = match (rows, &at_last) {
        _ if last => active.clone(),
        (Some(rows), Some(at_last)) => {
            active.clone().bool_and(reached.greater_equal(rows.threshold.clone()).bool_or(at_last.clone()))
        }
        _ if rule.enabled => active.clone().bool_and(reached.greater_equal_elem(rule.threshold)),
        _ => active.clone().bool_and(active.clone().bool_not()),
    };
    let weight = match rule.weights {
        HaltWeights::Remainder => p.clone().mask_where(stop.clone(), remaining.clone()),
        HaltWeights::Truncate => p.clone(),
        HaltWeights::State => stop.clone().float(),
    };
    let weight = weight * running.clone();
    let next = HaltState {
        output: output + step_state * weight.clone().unsqueeze_dim(1),
        steps: steps + active.clone().int(),
        cumulative: cumulative + p * running.clone(),
        remaining: remaining * (-h.clone() + 1.0),
        active: active.bool_and(stop.bool_not()),
    };
    let probability = (!last).then(|| {
        let h = h * running;
        match at_last {
            Some(at_last) => h.mask_fill(at_last, 0.0),
            None => h,
        }
    });
    (next, HaltRecord { probability, weight })
}
