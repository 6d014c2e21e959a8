//! One step of adaptive depth.

use burn::tensor::activation::sigmoid;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor};

use crate::halting::{HaltMode, HaltRecord, HaltRule, HaltState, HaltWeights};

/// See [`CompactBackend::halt_step`](crate::CompactBackend::halt_step).
pub fn halt_step<B: Backend>(
    state: HaltState<B>,
    step_state: Tensor<B, 2>,
    halt_logit: Option<Tensor<B, 1>>,
    rule: HaltRule,
) -> (HaltState<B>, HaltRecord<B>) {
    let HaltState { active, remaining, cumulative, steps, output } = state;
    let last = halt_logit.is_none();
    let running = active.clone().float();
    let h = match halt_logit {
        Some(logit) => sigmoid(logit),
        None => remaining.ones_like(),
    };
    let p = h.clone() * remaining.clone();
    let reached = match rule.mode {
        HaltMode::Cumulative => cumulative.clone() + p.clone(),
        HaltMode::Step => h.clone(),
    };
    let stop: Tensor<B, 1, Bool> = if last {
        active.clone()
    } else if rule.enabled {
        active.clone().bool_and(reached.greater_equal_elem(rule.threshold))
    } else {
        active.clone().bool_and(active.clone().bool_not())
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
    (next, HaltRecord { probability: (!last).then(|| h * running), weight })
}
