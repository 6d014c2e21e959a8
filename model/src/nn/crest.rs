//! The CREST feed-forward block: K independent MLPs and a gate that decides, per token, how many of them run.
//!
//! For one token with input `x`, step `k` makes a state `s_k` (four variants, [`StepInput`]), the gate says how much of the
//! answer it is, and the output is the mixture of the states run ([`HaltRule`]). A token that has halted costs nothing.

use burn::module::{Initializer, Module};
use burn::tensor::activation::silu;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use emberlm_quant::CompactBackend;
use emberlm_quant::halting::{HaltRule, HaltStep};
use emberlm_quant::modules::{Linear, LinearConfig, SwiGlu, SwiGluConfig};

use super::depth::{DepthOptions, DepthRun, PassDepth};
use crate::config::{CrestOptions, GateInput, StepInput};
use crate::error::{Error, Result};
use crate::loader::Loader;

/// K MLPs, their gates and the rule by which tokens halt.
#[derive(Module, Debug)]
pub struct CrestFfn<B: Backend> {
    /// The MLPs, in order.
    pub steps: Vec<SwiGlu<B>>,
    /// One gate for all steps.
    pub halt_gate: Option<HaltGate<B>>,
    /// One gate per step but the last.
    pub halt_gates: Vec<HaltGate<B>>,
    #[module(skip)]
    options: CrestOptions,
}

/// `Linear(h, 1)`, or `Linear(h, r)`, SiLU, `Linear(r, 1)`; the sigmoid is applied by the halting step.
#[derive(Module, Debug)]
pub struct HaltGate<B: Backend> {
    /// The first of two layers.
    pub hidden: Option<Linear<B>>,
    /// `[1, h]` or `[1, r]`.
    pub output: Linear<B>,
}

/// How a [`CrestFfn`] begins.
#[derive(Clone, Debug)]
pub struct CrestFfnConfig {
    /// Each of its MLPs.
    pub mlp: SwiGluConfig,
    /// How many there are, their gates, and the rule by which tokens halt.
    pub options: CrestOptions,
}

impl CrestFfnConfig {
    /// Of this many numbers per token, and between the layers of each MLP.
    pub fn new(hidden_size: usize, intermediate_size: usize, options: CrestOptions) -> Self {
        Self { mlp: SwiGluConfig::new(hidden_size, intermediate_size), options }
    }

    /// The block with the initial values of [`LinearConfig`]; gates begin near even odds.
    ///
    /// # Errors
    /// [`Error::Option`] when there are no steps.
    pub fn init<B: CompactBackend>(&self, device: &B::Device) -> Result<CrestFfn<B>> {
        let Self { mlp, options } = self;
        let even = Initializer::Normal { mean: 0.0, std: 0.02 };
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).with_bias(options.gate_bias);
        let gate = || HaltGate {
            hidden: options.gate_hidden.map(|width| linear(mlp.hidden_size, width).init(device)),
            output: linear(options.gate_hidden.unwrap_or(mlp.hidden_size), 1)
                .with_initializer(even.clone())
                .init(device),
        };
        let last = options.num_steps.saturating_sub(1);
        let gates = if options.gate_shared { last.min(1) } else { last };
        let steps = (0..options.num_steps).map(|_| mlp.init(device)).collect();
        CrestFfn::new(steps, (0..gates).map(|_| gate()).collect(), options.clone())
    }
}

/// How deep each token of one layer went.
#[derive(Clone, Debug)]
pub struct DepthTrace<B: Backend> {
    /// `[m]`: steps run, 1 to K.
    pub steps: Tensor<B, 1, Int>,
    /// Per step but the last, `[m]`: halting probability `h_k`; 0 after the token halted, and at a last step of its own.
    pub halt: Vec<Tensor<B, 1>>,
    /// Per step, `[m]`: mixing weight.
    pub weights: Vec<Tensor<B, 1>>,
    /// What the tokens followed, in order.
    pub runs: Vec<DepthRun>,
}

impl<B: CompactBackend> CrestFfn<B> {
    /// A block from its parts: at least `options.num_steps` MLPs, and one gate for all steps or one for each but the last, as
    /// `options.gate_shared` says.
    ///
    /// # Errors
    /// [`Error::Option`] when there are no steps, or MLPs or gates are missing.
    pub fn new(steps: Vec<SwiGlu<B>>, mut gates: Vec<HaltGate<B>>, options: CrestOptions) -> Result<Self> {
        let fail = |option: &str, message: String| Err(Error::Option { option: option.into(), message });
        if !(1..=steps.len()).contains(&options.num_steps) {
            return fail(
                "num_steps",
                format!("is {}, expected 1 to {}, the MLPs given", options.num_steps, steps.len()),
            );
        }
        let needed = if options.gate_shared { 1 } else { options.num_steps - 1 };
        if options.num_steps > 1 && gates.len() < needed {
            return fail("gates", format!("has {}, expected {needed}", gates.len()));
        }
        let halt_gate = if options.gate_shared { gates.drain(..).next() } else { None };
        Ok(Self { steps, halt_gate, halt_gates: gates, options })
    }

    pub(crate) fn load(loader: &Loader<'_, B>, options: &CrestOptions) -> Result<Self> {
        let steps = (0..options.num_steps).map(|k| loader.at(&format!("steps.{k}")).swiglu()).collect::<Result<_>>()?;
        let gate = |name: String| HaltGate::load(&loader.at(&name), options);
        let (halt_gate, halt_gates) = match (options.num_steps - 1, options.gate_shared) {
            (0, _) => (None, Vec::new()),
            (_, true) => (Some(gate("halt_gate".into())?), Vec::new()),
            (gates, false) => (None, (0..gates).map(|k| gate(format!("halt_gates.{k}"))).collect::<Result<_>>()?),
        };
        Ok(Self { steps, halt_gate, halt_gates, options: options.clone() })
    }

    /// The options in force.
    pub fn options(&self) -> &CrestOptions {
        &self.options
    }

    /// The most steps that can be run: those that were loaded with their gates.
    pub fn max_steps(&self) -> usize {
        match &self.halt_gate {
            Some(_) => self.steps.len(),
            None => self.steps.len().min(self.halt_gates.len() + 1),
        }
    }

    /// Changes how deep tokens go. The number of steps is limited to [those there are](Self::max_steps).
    pub fn set_depth(&mut self, num_steps: usize, halt_enabled: bool, halt_threshold: f32) {
        self.options.num_steps = num_steps.clamp(1, self.max_steps());
        self.options.halt_enabled = halt_enabled;
        self.options.halt_threshold = halt_threshold;
    }

    /// Changes all options but the form of the gates; they are those of a model with at least these steps and gates.
    pub(crate) fn set_options(&mut self, options: &CrestOptions) {
        self.options = CrestOptions { num_steps: options.num_steps.clamp(1, self.max_steps()), ..options.clone() };
    }

    /// Applies the block to every row.
    ///
    /// # Shapes
    /// `[m, h] -> [m, h]`
    pub fn forward(&self, x: Tensor<B, 2>) -> (Tensor<B, 2>, DepthTrace<B>) {
        let [m, _] = x.dims();
        self.forward_at(x, &PassDepth::new([(m, DepthOptions::default())]))
    }

    /// [`forward`](Self::forward) where sequences ask for depths of their own.
    pub(crate) fn forward_at(&self, x: Tensor<B, 2>, depth: &PassDepth<B>) -> (Tensor<B, 2>, DepthTrace<B>) {
        let options = &self.options;
        let ([m, h], device) = (x.dims(), x.device());
        let runs = depth.runs(options);
        let rows = (runs.len() > 1).then(|| depth.rows(&runs, &device));
        let threshold = runs.first().and_then(|run| run.threshold);
        let rule = HaltRule {
            mode: options.halt_mode,
            weights: options.halt_weights,
            enabled: threshold.is_some(),
            threshold: threshold.unwrap_or(options.halt_threshold),
        };
        let num_steps = runs.iter().map(|run| run.steps).max().unwrap_or(options.num_steps);
        let last = num_steps - 1;
        let mut tokens = B::start_halting(m, h, &device);
        let mut s = x.clone();
        let (mut halt, mut weights) = (Vec::new(), Vec::new());
        for (k, mlp) in self.steps[..=last].iter().enumerate() {
            let active = runs.iter().any(|run| run.stops_before(k)).then(|| tokens.active.clone());
            s = match options.step_input {
                StepInput::Parallel => B::swiglu_mlp(x.clone(), mlp, active),
                StepInput::Sequential => B::swiglu_mlp(s, mlp, active),
                StepInput::Chained => s.clone() + B::swiglu_mlp(s, mlp, active),
                StepInput::Refine if k == 0 => B::swiglu_mlp(x.clone(), mlp, active),
                StepInput::Refine => s.clone() + B::swiglu_mlp(x.clone() + s, mlp, active),
            };
            let logit = (k < last).then(|| {
                let input = match options.gate_input {
                    GateInput::State => s.clone(),
                    GateInput::Input => x.clone(),
                };
                self.gate(k).forward(input)
            });
            let step = HaltStep { state: s.clone(), logit, rule, rows: rows.as_ref() };
            let (next, record) = B::halt_step(tokens, step);
            tokens = next;
            halt.extend(record.probability);
            weights.push(record.weight);
        }
        (tokens.output.cast(x.dtype()), DepthTrace { steps: tokens.steps, halt, weights, runs })
    }

    fn gate(&self, k: usize) -> &HaltGate<B> {
        self.halt_gate.as_ref().unwrap_or_else(|| &self.halt_gates[k])
    }
}

impl<B: CompactBackend> HaltGate<B> {
    fn load(loader: &Loader<'_, B>, options: &CrestOptions) -> Result<Self> {
        Ok(match options.gate_hidden {
            None => Self { hidden: None, output: loader.linear("")? },
            Some(_) => Self { hidden: Some(loader.linear("0")?), output: loader.linear("2")? },
        })
    }

    /// The gate before its sigmoid: `[m, h] -> [m]`.
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 1> {
        let x = match &self.hidden {
            Some(hidden) => silu(hidden.forward(x)),
            None => x,
        };
        self.output.forward(x).squeeze_dim(1)
    }
}
