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

impl HaltState {
    /// # Panics
    /// If a buffer does not have its shape and type.
    fn check(&self, m: usize, h: usize) {
        let per_token = [
            ("active", &self.active),
            ("remaining", &self.remaining),
            ("cumulative", &self.cumulative),
            ("steps", &self.steps),
        ];
        per_token.iter().for_each(|(name, buffer)| buffer.check(name, &[m]));
        self.output.check("output", &[m, h]);
        self.remaining.check_type("remaining", f32_type());
        self.cumulative.check_type("cumulative", f32_type());
    }

    fn arg<A: Int, I: Int, O: Float, R: Runtime>(&self) -> StateLaunch<A, I, O, R> {
        let Self { active, remaining, cumulative, steps, output } = self;
        StateLaunch::new(active.arg(), remaining.arg(), cumulative.arg(), steps.arg(), output.arg())
    }
}

/// A [`HaltState`] as the argument of a kernel.
#[derive(CubeType, CubeLaunch)]
struct State<A: Int, I: Int, O: Float> {
    active: Array<A>,
    remaining: Array<f32>,
    cumulative: Array<f32>,
    steps: Array<I>,
    output: Array<O>,
}

/// [`HaltRows`] as the argument of a kernel.
#[derive(CubeType, CubeLaunch)]
struct Rows<I: Int> {
    threshold: Array<f32>,
    steps: Array<I>,
}

/// Before the first step: every token runs, nothing is mixed yet.
///
/// # Shapes
/// The buffers of `state`, for `m` tokens of width `h`
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn start_halting<R: Runtime>(client: &ComputeClient<R>, state: &HaltState, m: usize, h: usize) {
    state.check(m, h);
    if state.output.len == 0 {
        return;
    }
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        start_kernel::launch_unchecked::<R>(
            client,
            grid_of_units(m * h),
            CubeDim::new_1d(UNITS),
            state.arg(),
            m as u32,
            h as u32,
            state.active.dtype,
            state.steps.dtype,
            state.output.dtype,
        );
    }
}

#[cube(launch_unchecked)]
fn start_kernel<A: Int, I: Int, O: Float>(
    state: &mut State<A, I, O>,
    m: u32,
    h: u32,
    #[define(A)] _active_type: StorageType,
    #[define(I)] _steps_type: StorageType,
    #[define(O)] _output_type: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < (m * h) as usize {
        state.output[at] = O::cast_from(0.0f32);
    }
    if at < m as usize {
        state.active[at] = A::from_int(1);
        state.remaining[at] = 1.0;
        state.cumulative[at] = 0.0;
        state.steps[at] = I::from_int(0);
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
    state.check(m, h);
    step_state.check("step_state", &[m, h]);
    weight.check("weight", &[m]);
    weight.check_type("weight", f32_type());
    let rows = gate.and_then(|gate| gate.rows);
    if let Some(HaltGate { logit, probability, .. }) = gate {
        logit.check("logit", &[m]);
        probability.check("probability", &[m]);
        probability.check_type("probability", f32_type());
    }
    if let Some(rows) = rows {
        rows.threshold.check("threshold", &[m]);
        rows.threshold.check_type("threshold", f32_type());
        rows.steps.check("steps", &[m]);
        rows.steps.check_type("steps", state.steps.dtype);
    }
    if m == 0 {
        return;
    }
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        step_kernel::launch_unchecked::<R>(
            client,
            grid(m),
            CubeDim::new_1d(UNITS),
            state.arg(),
            step_state.arg(),
            gate.map(|gate| gate.logit.arg()).into(),
            rows.map(|rows| RowsLaunch::new(rows.threshold.arg(), rows.steps.arg())).into(),
            gate.map(|gate| gate.probability.arg()).into(),
            weight.arg(),
            m as u32,
            h as u32,
            threshold,
            gate.is_none(),
            (enabled || rows.is_some()).then_some(mode),
            weights,
            state.active.dtype,
            state.steps.dtype,
            state.output.dtype,
            step_state.dtype,
            gate.map_or(f32_type(), |gate| gate.logit.dtype),
        );
    }
}

/// A cube takes a token. Every unit works out the same weight; the first one writes the token's numbers. At the last step, of all or of
/// a token, the gate is 1.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn step_kernel<A: Int, I: Int, O: Float, F: Float, L: Float>(
    state: &mut State<A, I, O>,
    step_state: &Array<F>,
    logit: &ComptimeOption<Array<L>>,
    rows: &ComptimeOption<Rows<I>>,
    probability: &mut ComptimeOption<Array<f32>>,
    weight: &mut Array<f32>,
    m: u32,
    h: u32,
    threshold: f32,
    #[comptime] last: bool,
    #[comptime] mode: Option<HaltMode>,
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
    let running = state.active[token] != A::from_int(0);
    let left = state.remaining[token];
    let sum = state.cumulative[token];
    let mut threshold = threshold;
    let mut at_last = last.runtime();
    #[comptime]
    if let ComptimeOption::Some(rows) = rows {
        threshold = rows.threshold[token];
        at_last = state.steps[token] + I::from_int(1) >= rows.steps[token];
    }
    let mut gate = 1.0f32.runtime();
    #[comptime]
    if let ComptimeOption::Some(logit) = logit {
        let open = 1.0 / (1.0 + f32::exp(-f32::cast_from(logit[token])));
        gate = select(at_last, 1.0f32, open);
    }
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
    mix::<O, F>(&mut state.output, step_state, token as u32, share, h);
    sync_cube(); // all have read what the first unit writes now
    if UNIT_POS == 0 {
        weight[token] = share;
        #[comptime]
        if let ComptimeOption::Some(probability) = probability {
            probability[token] = select(running && !at_last, gate, 0.0f32);
        }
        if running {
            state.steps[token] += I::from_int(1);
            state.cumulative[token] = sum + p;
            state.remaining[token] = left * (1.0 - gate);
            if stop {
                state.active[token] = A::from_int(0);
            }
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
