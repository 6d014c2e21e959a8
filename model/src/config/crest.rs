//! Options of CREST's adaptive depth: what a config states, what the tensors say, what the caller wants, and their union.
//!
//! Most of them are unpublished, so each can be stated in a `crest` object of `config.json`, in a side file `crest.json`
//! (which wins, key by key), in the side file of [`ModelOptions`](super::ModelOptions) or by the caller; what the tensors show cannot be
//! overridden.

use std::fmt;

use emberlm_quant::halting::{HaltMode, HaltWeights};

use super::agreement::agrees;
use super::fields::{Choice, Fields, spelled};
use crate::{Error, Result};

spelled! {
    /// What the MLP of step k is applied to.
    StepInput("step_input") {
        /// `s_k = MLP_k(x)`.
        Parallel = "parallel",
        /// `s_1 = MLP_1(x)`, `s_k = s_{k-1} + MLP_k(x + s_{k-1})`.
        Refine = "refine",
        /// `s_k = MLP_k(s_{k-1})`, `s_0 = x`.
        Sequential = "sequential",
        /// `s_k = s_{k-1} + MLP_k(s_{k-1})`, `s_0 = x`.
        Chained = "chained",
    }
}

spelled! {
    /// What the halting gate reads.
    GateInput("gate_input") {
        /// The state `s_k`.
        State = "state",
        /// The input `x` of the feed-forward block.
        Input = "input",
    }
}

impl Choice for HaltMode {
    const ALL: &'static [Self] = Self::ALL;

    fn spelling(self) -> &'static str {
        self.as_str()
    }
}

impl Choice for HaltWeights {
    const ALL: &'static [Self] = Self::ALL;

    fn spelling(self) -> &'static str {
        self.as_str()
    }
}

/// The options that a config states; `None` where it states none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CrestConfig {
    /// Steps to run at most.
    pub num_steps: Option<usize>,
    /// What each step reads.
    pub step_input: Option<StepInput>,
    /// What the gate reads.
    pub gate_input: Option<GateInput>,
    /// One gate for all steps.
    pub gate_shared: Option<bool>,
    /// Width of a two-layer gate; `Some(None)`: stated to have one layer.
    pub gate_hidden: Option<Option<usize>>,
    /// Whether gates have biases.
    pub gate_bias: Option<bool>,
    /// When a token halts.
    pub halt_mode: Option<HaltMode>,
    /// The threshold of `halt_mode`, in [0, 1].
    pub halt_threshold: Option<f32>,
    /// How states are mixed.
    pub halt_weights: Option<HaltWeights>,
    /// Whether tokens halt at all.
    pub halt_enabled: Option<bool>,
    /// Keys of the object that mean nothing to emberlm.
    pub ignored: Vec<String>,
}

const KEYS: [&str; 10] = [
    "num_steps",
    "step_input",
    "gate_input",
    "gate_shared",
    "gate_hidden",
    "gate_bias",
    "halt_mode",
    "halt_threshold",
    "halt_weights",
    "halt_enabled",
];

/// Steps of the largest model that is accepted.
const MAX_STEPS: usize = 64;

impl CrestConfig {
    /// Side file that states options, in a model directory.
    pub const FILE: &str = "crest.json";

    /// The object that states them in other files.
    pub(super) const GROUP: &str = "crest";

    pub(super) fn read(object: &Fields) -> Result<Self> {
        let gate_hidden = object.size("gate_hidden", super::limits::MAX_WIDTH)?;
        let threshold = object.number("halt_threshold", "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?;
        let ignored = object.keys().filter(|key| !KEYS.contains(&key.as_str())).cloned().collect();
        Ok(Self {
            num_steps: object.size("num_steps", MAX_STEPS)?,
            step_input: object.choice("step_input")?,
            gate_input: object.choice("gate_input")?,
            gate_shared: object.boolean("gate_shared")?,
            gate_hidden: if object.is_null("gate_hidden") { Some(None) } else { gate_hidden.map(Some) },
            gate_bias: object.boolean("gate_bias")?,
            halt_mode: object.choice("halt_mode")?,
            halt_threshold: threshold.map(|x| x as f32),
            halt_weights: object.choice("halt_weights")?,
            halt_enabled: object.boolean("halt_enabled")?,
            ignored,
        })
    }

    /// The side file is ours: a key that means nothing is a typing mistake.
    pub(super) fn read_side_file(object: &Fields) -> Result<Self> {
        let out = Self::read(object)?;
        match out.ignored.first() {
            Some(key) => Err(object.error(key, format!("is not an option, expected one of {}", KEYS.join(", ")))),
            None => Ok(out),
        }
    }

    /// These options; where one is not stated, that of `other`.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            num_steps: self.num_steps.or(other.num_steps),
            step_input: self.step_input.or(other.step_input),
            gate_input: self.gate_input.or(other.gate_input),
            gate_shared: self.gate_shared.or(other.gate_shared),
            gate_hidden: self.gate_hidden.or(other.gate_hidden),
            gate_bias: self.gate_bias.or(other.gate_bias),
            halt_mode: self.halt_mode.or(other.halt_mode),
            halt_threshold: self.halt_threshold.or(other.halt_threshold),
            halt_weights: self.halt_weights.or(other.halt_weights),
            halt_enabled: self.halt_enabled.or(other.halt_enabled),
            ignored: if self.ignored.is_empty() { other.ignored } else { self.ignored },
        }
    }
}

/// What the tensors of a checkpoint show about its adaptive depth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredCrest {
    /// MLPs per layer, K.
    pub num_steps: usize,
    /// One gate per layer, rather than one per step. Always so for K = 2, where the two cannot be told apart.
    pub gate_shared: bool,
    /// Width of two-layer gates.
    pub gate_hidden: Option<usize>,
    /// Whether gates have biases.
    pub gate_bias: bool,
}

impl fmt::Display for DiscoveredCrest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gates = if self.gate_shared { "one gate" } else { "a gate per step" };
        let layers =
            self.gate_hidden.map_or_else(|| "one layer".to_owned(), |hidden| format!("two layers over {hidden}"));
        let biases = if self.gate_bias { "biases" } else { "no biases" };
        write!(f, "{} steps, {gates} of {layers}, {biases}", self.num_steps)
    }
}

/// What the caller wants different; `None` keeps what the checkpoint says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CrestOverrides {
    /// Steps to run at most, from 1 to K; fewer drop the last steps.
    pub num_steps: Option<usize>,
    /// What each step reads.
    pub step_input: Option<StepInput>,
    /// What the gate reads.
    pub gate_input: Option<GateInput>,
    /// When a token halts.
    pub halt_mode: Option<HaltMode>,
    /// The threshold of `halt_mode`, in [0, 1].
    pub halt_threshold: Option<f32>,
    /// How states are mixed.
    pub halt_weights: Option<HaltWeights>,
    /// Whether tokens halt at all.
    pub halt_enabled: Option<bool>,
}

impl From<CrestConfig> for CrestOverrides {
    /// Those of a config that a caller may say too.
    fn from(config: CrestConfig) -> Self {
        Self {
            num_steps: config.num_steps,
            step_input: config.step_input,
            gate_input: config.gate_input,
            halt_mode: config.halt_mode,
            halt_threshold: config.halt_threshold,
            halt_weights: config.halt_weights,
            halt_enabled: config.halt_enabled,
        }
    }
}

impl CrestOverrides {
    /// These options; where one is not said, that of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            num_steps: self.num_steps.or(other.num_steps),
            step_input: self.step_input.or(other.step_input),
            gate_input: self.gate_input.or(other.gate_input),
            halt_mode: self.halt_mode.or(other.halt_mode),
            halt_threshold: self.halt_threshold.or(other.halt_threshold),
            halt_weights: self.halt_weights.or(other.halt_weights),
            halt_enabled: self.halt_enabled.or(other.halt_enabled),
        }
    }
}

/// The options that a model runs with.
#[derive(Clone, Debug, PartialEq)]
pub struct CrestOptions {
    /// Steps to run at most.
    pub num_steps: usize,
    /// What each step reads.
    pub step_input: StepInput,
    /// What the gate reads.
    pub gate_input: GateInput,
    /// One gate for all steps, or one per step.
    pub gate_shared: bool,
    /// Width of two-layer gates.
    pub gate_hidden: Option<usize>,
    /// Whether gates have biases.
    pub gate_bias: bool,
    /// When a token halts.
    pub halt_mode: HaltMode,
    /// The threshold of `halt_mode`, in [0, 1].
    pub halt_threshold: f32,
    /// How states are mixed when a token halts.
    pub halt_weights: HaltWeights,
    /// Whether tokens halt at all; without, every token runs `num_steps`.
    pub halt_enabled: bool,
}

impl Default for CrestOptions {
    /// The defaults for a checkpoint that states nothing, with one step. An upcycled dense model is exactly the dense model
    /// under these.
    fn default() -> Self {
        Self {
            num_steps: 1,
            step_input: StepInput::Parallel,
            gate_input: GateInput::State,
            gate_shared: true,
            gate_hidden: None,
            gate_bias: true,
            halt_mode: HaltMode::Cumulative,
            halt_threshold: 0.9,
            halt_weights: HaltWeights::Remainder,
            halt_enabled: true,
        }
    }
}

impl CrestOptions {
    /// The options of a checkpoint: defaults, then what the tensors show, then what is stated, then the caller's.
    ///
    /// # Errors
    /// [`Error::Option`] when a stated value contradicts the tensors, or a value is out of range.
    pub fn resolve(stated: &CrestConfig, found: &DiscoveredCrest, overrides: &CrestOverrides) -> Result<Self> {
        const KEY: &str = CrestConfig::GROUP;
        // With two steps there is one gate either way.
        if found.num_steps > 2 {
            agrees(KEY, "gate_shared", stated.gate_shared.as_ref(), &found.gate_shared)?;
        }
        if found.num_steps > 1 {
            agrees(KEY, "gate_hidden", stated.gate_hidden.as_ref(), &found.gate_hidden)?;
            agrees(KEY, "gate_bias", stated.gate_bias.as_ref(), &found.gate_bias)?;
        }
        let default = Self::default();
        let out = Self {
            num_steps: overrides.num_steps.or(stated.num_steps).unwrap_or(found.num_steps),
            step_input: overrides.step_input.or(stated.step_input).unwrap_or(default.step_input),
            gate_input: overrides.gate_input.or(stated.gate_input).unwrap_or(default.gate_input),
            gate_shared: found.gate_shared,
            gate_hidden: found.gate_hidden,
            gate_bias: found.gate_bias,
            halt_mode: overrides.halt_mode.or(stated.halt_mode).unwrap_or(default.halt_mode),
            halt_threshold: overrides.halt_threshold.or(stated.halt_threshold).unwrap_or(default.halt_threshold),
            halt_weights: overrides.halt_weights.or(stated.halt_weights).unwrap_or(default.halt_weights),
            halt_enabled: overrides.halt_enabled.or(stated.halt_enabled).unwrap_or(default.halt_enabled),
        };
        out.check(found.num_steps)?;
        Ok(out)
    }

    /// With what is said; the form of the gates stays.
    ///
    /// # Errors
    /// [`Error::Option`] when a value is out of range for a model of `steps` steps.
    pub(crate) fn with(&self, overrides: &CrestOverrides, steps: usize) -> Result<Self> {
        let out = Self {
            num_steps: overrides.num_steps.unwrap_or(self.num_steps),
            step_input: overrides.step_input.unwrap_or(self.step_input),
            gate_input: overrides.gate_input.unwrap_or(self.gate_input),
            halt_mode: overrides.halt_mode.unwrap_or(self.halt_mode),
            halt_threshold: overrides.halt_threshold.unwrap_or(self.halt_threshold),
            halt_weights: overrides.halt_weights.unwrap_or(self.halt_weights),
            halt_enabled: overrides.halt_enabled.unwrap_or(self.halt_enabled),
            ..*self
        };
        out.check(steps)?;
        Ok(out)
    }

    fn check(&self, steps: usize) -> Result<()> {
        if !(1..=steps).contains(&self.num_steps) {
            let message = format!("is {}, but the checkpoint holds {steps} steps", self.num_steps);
            return Err(Error::Option { option: "crest.num_steps".into(), message });
        }
        if !(0.0..=1.0).contains(&self.halt_threshold) {
            let message = format!("is {}, expected a number from 0 to 1", self.halt_threshold);
            return Err(Error::Option { option: "crest.halt_threshold".into(), message });
        }
        Ok(())
    }
}
