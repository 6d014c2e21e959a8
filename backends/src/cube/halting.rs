//! One step of adaptive depth, decided on the device.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::launch::{Buffer, UNITS, f32_type, grid, grid_of_units};
use crate::types::{HaltMode, HaltRule, HaltWeights};

/// The shape and the rule of a step.
#[derive(Clone, Copy, Debug)]
pub struct HaltStep {
    /// Tokens.
    pub m: usize,
    /// Elements of a state.
    pub h: usize,
    /// When tokens stop, and how states are mixed.
    pub rule: HaltRule,
}

/// What a token carries from step to step; all of it is updated in place.
#[derive(Clone, Debug)]
pub struct HaltState {
    /// `[m]` integers: not 0 until the token has stopped.
    pub active: Buffer,
    /// `[m]` F32: `prod (1 - h_j)` over the steps run.
    pub remaining: Buffer,
    /// `[m]` F32: `sum p_j` over the steps run.
    pub cumulative: Buffer,
    /// `[m]` integers: steps run.
    pub steps: Buffer,
    /// `[m, h]`: the mixture so far.
    pub output: Buffer,
}

/// What decides whether tokens stop at a step that is not the last of all.
#[derive(Clone, Copy, Debug)]
pub struct HaltGate<'a> {
    /// `[m]`: the gate before its sigmoid.
    pub logit: &'a Buffer,
    /// `[m]` F32, written: `h_k`; 0 for tokens that had stopped before, and at the last step of a token.
    pub probability: &'a Buffer,
    /// Where tokens differ; the threshold of the rule does not count then.
    pub rows: Option<&'a HaltRows>,
}

/// What each token follows, where they do not all follow the threshold of one rule.
#[derive(Clone, Debug)]
pub struct HaltRows {
    /// `[m]` F32: the threshold; above 1 for one that runs all of its steps.
    pub threshold: Buffer,
    /// `[m]` integers as those of [`HaltState::steps`]: the step, counted from 1, that is the token's last one.
    pub steps: Buffer,
}

/// Before the first step: every token runs, nothing is mixed yet.
///
/// # Shapes
/// The buffers of `state`, for `m` tokens of width `h`
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn start_halting<R: Runtime>(client: &ComputeClient<R>, state: &HaltState, m: usize, h: usize) {
    let per_token = [
        ("active", &state.active),
        ("remaining", &state.remaining),
        ("cumulative", &state.cumulative),
        ("steps", &state.steps),
    ];
    per_token.iter().for_each(|(name, buffer)| buffer.check(name, &[m]));
    state.output.check("output", &[m, h]);
    state.remaining.check_type("remaining", f32_type());
    state.cumulative.check_type("cumulative", f32_type());
    if state.output.len == 0 {
        return;
    }
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        start_kernel::launch_unchecked::<R>(
            client,
            grid_of_units(m * h),
            CubeDim::new_1d(UNITS),
            state.active.arg(),
            state.remaining.arg(),
            state.cumulative.arg(),
            state.steps.arg(),
            state.output.arg(),
            m as u32,
            h as u32,
            state.active.dtype,
            state.steps.dtype,
            state.output.dtype,
        );
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn start_kernel<A: Int, I: Int, O: Float>(
    active: &mut Array<A>,
    remaining: &mut Array<f32>,
    cumulative: &mut Array<f32>,
    steps: &mut Array<I>,
    output: &mut Array<O>,
    m: u32,
    h: u32,
    #[define(A)] _active_type: StorageType,
    #[define(I)] _steps_type: StorageType,
    #[define(O)] _output_type: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < (m * h) as usize {
        output[at] = O::cast_from(0.0f32);
    }
    if at < m as usize {
        active[at] = A::from_int(1);
        remaining[at] = 1.0;
        cumulative[at] = 0.0;
        steps[at] = I::from_int(0);
    }
}

/// Mixes the state of one step into the output and decides which tokens go on. Without a gate this is the
/// last step of all.
///
/// # Shapes
/// `step_state [m, h]`, `weight [m]` F32, 0 for tokens that had stopped before.
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn halt_step<R: Runtime>(
    client: &ComputeClient<R>,
    state: &HaltState,
    step_state: &Buffer,
    gate: Option<HaltGate<'_>>,
    weight: &Buffer,
    p: HaltStep,
) {
    let HaltStep { m, h, rule: HaltRule { mode, weights, enabled, threshold } } = p;
    let per_token = [
        ("active", &state.active),
        ("remaining", &state.remaining),
        ("cumulative", &state.cumulative),
        ("steps", &state.steps),
        ("weight", weight),
    ];
    per_token.iter().for_each(|(name, buffer)| buffer.check(name, &[m]));
    state.output.check("output", &[m, h]);
    step_state.check("step_state", &[m, h]);
    let floats = [("remaining", &state.remaining), ("cumulative", &state.cumulative), ("weight", weight)];
    floats.iter().for_each(|(name, buffer)| buffer.check_type(name, f32_type()));
    if m == 0 {
        return;
    }
    let state_args = (state.active.arg(), state.remaining.arg(), state.cumulative.arg(), state.steps.arg());
    let (active, remaining, cumulative, steps) = state_args;
    // SAFETY: the lengths were checked, and the kernels stay inside them.
    unsafe {
        match gate {
            Some(HaltGate { logit, probability, rows }) => {
                logit.check("logit", &[m]);
                probability.check("probability", &[m]);
                probability.check_type("probability", f32_type());
                if let Some(rows) = rows {
                    rows.threshold.check("threshold", &[m]);
                    rows.threshold.check_type("threshold", f32_type());
                    rows.steps.check("steps", &[m]);
                    rows.steps.check_type("steps", state.steps.dtype);
                }
                // Read only where there are rows.
                let (thresholds, last_steps) = rows.map_or((logit, logit), |rows| (&rows.threshold, &rows.steps));
                gated_step_kernel::launch_unchecked::<R>(
                    client,
                    grid(m),
                    CubeDim::new_1d(UNITS),
                    active,
                    remaining,
                    cumulative,
                    steps,
                    state.output.arg(),
                    step_state.arg(),
                    logit.arg(),
                    thresholds.arg(),
                    last_steps.arg(),
                    probability.arg(),
                    weight.arg(),
                    m as u32,
                    h as u32,
                    threshold,
                    (enabled || rows.is_some()).then_some(mode),
                    rows.is_some(),
                    weights,
                    state.active.dtype,
                    state.steps.dtype,
                    state.output.dtype,
                    step_state.dtype,
                    logit.dtype,
                );
            }
            None => last_step_kernel::launch_unchecked::<R>(
                client,
                grid(m),
                CubeDim::new_1d(UNITS),
                active,
                remaining,
                cumulative,
                steps,
                state.output.arg(),
                step_state.arg(),
                weight.arg(),
                m as u32,
                h as u32,
                weights,
                state.active.dtype,
                state.steps.dtype,
                state.output.dtype,
                step_state.dtype,
            ),
        }
    }
}

/// A cube takes a token. Every unit works out the same weight; the first one writes the token's numbers.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn gated_step_kernel<A: Int, I: Int, O: Float, F: Float, L: Float>(
    active: &mut Array<A>,
    remaining: &mut Array<f32>,
    cumulative: &mut Array<f32>,
    steps: &mut Array<I>,
    output: &mut Array<O>,
    step_state: &Array<F>,
    logit: &Array<L>,
    thresholds: &Array<f32>,
    last_steps: &Array<I>,
    probability: &mut Array<f32>,
    weight: &mut Array<f32>,
    m: u32,
    h: u32,
    threshold: f32,
    #[comptime] mode: Option<HaltMode>,
    #[comptime] by_row: bool,
    #[comptime] weights: HaltWeights,
    #[define(A)] _active_type: StorageType,
    #[define(I)] _steps_type: StorageType,
    #[define(O)] _output_type: StorageType,
    #[define(F)] _state_type: StorageType,
    #[define(L)] _logit_type: StorageType,
) {
    let token = CUBE_POS;
    if token >= m as usize {
        terminate!();
    }
    let running = active[token] != A::from_int(0);
    let left = remaining[token];
    let sum = cumulative[token];
    let mut threshold = threshold;
    let mut at_last = false.runtime();
    if comptime!(by_row) {
        threshold = thresholds[token];
        at_last = steps[token] + I::from_int(1) >= last_steps[token];
    }
    let gate = 1.0 / (1.0 + f32::exp(-f32::cast_from(logit[token])));
    let gate = select(at_last, 1.0f32, gate);
    let p = gate * left;
    let reached = match comptime!(mode) {
        Some(HaltMode::Cumulative) => sum + p >= threshold,
        Some(HaltMode::Step) => gate >= threshold,
        None => false.runtime(),
    };
    let stop = reached || at_last;
    let share = match weights {
        HaltWeights::Remainder => select(stop, left, p),
        HaltWeights::Truncate => p,
        HaltWeights::State => select(stop, 1.0f32, 0.0f32),
    };
    let share = select(running, share, 0.0f32);
    mix::<O, F>(output, step_state, token as u32, share, h);
    sync_cube(); // all have read what the first unit writes now
    if UNIT_POS == 0 {
        weight[token] = share;
        probability[token] = select(running && !at_last, gate, 0.0f32);
        if running {
            steps[token] += I::from_int(1);
            cumulative[token] = sum + p;
            remaining[token] = left * (1.0 - gate);
            if stop {
                active[token] = A::from_int(0);
            }
        }
    }
}

/// As [`gated_step_kernel`] where `h = 1`: all that still run stop here.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn last_step_kernel<A: Int, I: Int, O: Float, F: Float>(
    active: &mut Array<A>,
    remaining: &mut Array<f32>,
    cumulative: &mut Array<f32>,
    steps: &mut Array<I>,
    output: &mut Array<O>,
    step_state: &Array<F>,
    weight: &mut Array<f32>,
    m: u32,
    h: u32,
    #[comptime] weights: HaltWeights,
    #[define(A)] _active_type: StorageType,
    #[define(I)] _steps_type: StorageType,
    #[define(O)] _output_type: StorageType,
    #[define(F)] _state_type: StorageType,
) {
    let token = CUBE_POS;
    if token >= m as usize {
        terminate!();
    }
    let running = active[token] != A::from_int(0);
    let left = remaining[token];
    let share = match weights {
        HaltWeights::Remainder => left,
        HaltWeights::Truncate => left,
        HaltWeights::State => 1.0f32.runtime(),
    };
    let share = select(running, share, 0.0f32);
    mix::<O, F>(output, step_state, token as u32, share, h);
    sync_cube();
    if UNIT_POS == 0 {
        weight[token] = share;
        if running {
            steps[token] += I::from_int(1);
            cumulative[token] += left;
            remaining[token] = 0.0;
            active[token] = A::from_int(0);
        }
    }
}

/// `output += share * step_state` for one token; a token that has stopped is not read.
#[cube]
fn mix<O: Float, F: Float>(output: &mut Array<O>, step_state: &Array<F>, token: u32, share: f32, h: u32) {
    let end = select(share == 0.0, 0u32, h);
    let mut i = UNIT_POS;
    while i < end {
        let at = (token * h + i) as usize;
        let sum = f32::cast_from(output[at]) + share * f32::cast_from(step_state[at]);
        output[at] = O::cast_from(sum);
        i += UNITS;
    }
}
