//! The options that a checkpoint leaves open, and their values.

use crate::config::{
    CodeActivation, CrestConfig, CrestOptions, CrestOverrides, GateInput, HaltMode, HaltWeights, KStage, KvCompression,
    KvOverrides, KvTarget, ModelOptions, StepInput,
};
use crate::pretrained::Pretrained;

/// Thresholds that are tried.
const THRESHOLDS: [f32; 10] = [0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99];

/// One value of one option.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OptionValue {
    /// Of [`CrestOptions`].
    StepInput(StepInput),
    /// Of [`CrestOptions`].
    GateInput(GateInput),
    /// Of [`CrestOptions`].
    HaltMode(HaltMode),
    /// Of [`CrestOptions`].
    HaltWeights(HaltWeights),
    /// Of [`CrestOptions`].
    HaltThreshold(f32),
    /// Of [`KvCompression`].
    Activation(CodeActivation),
    /// Of [`KvCompression`].
    KStage(KStage),
}

impl OptionValue {
    /// The option, as configs spell it.
    pub fn option(&self) -> &'static str {
        match self {
            Self::StepInput(_) => "step_input",
            Self::GateInput(_) => "gate_input",
            Self::HaltMode(_) => "halt_mode",
            Self::HaltWeights(_) => "halt_weights",
            Self::HaltThreshold(_) => "halt_threshold",
            Self::Activation(_) => "activation",
            Self::KStage(_) => "k_stage",
        }
    }

    /// The value, as configs spell it.
    pub fn value(&self) -> String {
        match self {
            Self::StepInput(value) => value.to_string(),
            Self::GateInput(value) => value.to_string(),
            Self::HaltMode(value) => value.to_string(),
            Self::HaltWeights(value) => value.to_string(),
            Self::HaltThreshold(value) => value.to_string(),
            Self::Activation(value) => value.to_string(),
            Self::KStage(value) => value.to_string(),
        }
    }

    /// Options with these values and nothing else.
    pub fn all<'a>(values: impl IntoIterator<Item = &'a Self>) -> ModelOptions {
        let mut out = ModelOptions::default();
        for value in values {
            match *value {
                Self::StepInput(value) => out.crest.step_input = Some(value),
                Self::GateInput(value) => out.crest.gate_input = Some(value),
                Self::HaltMode(value) => out.crest.halt_mode = Some(value),
                Self::HaltWeights(value) => out.crest.halt_weights = Some(value),
                Self::HaltThreshold(value) => out.crest.halt_threshold = Some(value),
                Self::Activation(value) => out.kv_compression.activation = Some(value),
                Self::KStage(value) => out.kv_compression.k_stage = Some(value),
            }
        }
        out
    }
}

/// An open option.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// As configs spell it.
    pub option: &'static str,
    /// Its values, the default first.
    pub values: Vec<OptionValue>,
}

impl Axis {
    fn new(mut values: Vec<OptionValue>, default: OptionValue) -> Self {
        values.retain(|value| *value != default);
        values.insert(0, default);
        Self { option: default.option(), values }
    }

    /// What counts where nothing is known.
    pub fn default(&self) -> Option<OptionValue> {
        self.values.first().copied()
    }

    fn is_threshold(&self) -> bool {
        matches!(self.values.first(), Some(OptionValue::HaltThreshold(_)))
    }
}

/// Why the values of an option are not tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyClosed {
    /// A file of the model states it.
    Stated,
    /// The caller said it.
    Given,
    /// It changes nothing in this model, or not under what else is said.
    NoEffect,
}

/// An option whose values are not tried.
#[derive(Clone, Debug, PartialEq)]
pub struct ClosedOption {
    /// The value in force.
    pub value: OptionValue,
    /// Why.
    pub why: WhyClosed,
}

/// What is open in a checkpoint, and what is not.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The options to be tried.
    pub axes: Vec<Axis>,
    /// The others.
    pub closed: Vec<ClosedOption>,
}

impl OpenOptions {
    /// What no file of the model states and the caller has not said; `all`: what files state, too. What the side file of
    /// [`ModelOptions`] states is open: this is how it is found.
    ///
    /// `given` are the caller's options, which are also in force in `pretrained`.
    pub fn of(pretrained: &Pretrained, given: &ModelOptions, all: bool) -> Self {
        let (architecture, mut out) = (pretrained.architecture(), Self::default());
        if let Some(options) = &architecture.crest {
            let silent = CrestConfig::default();
            let stated = architecture.config.crest.as_ref().unwrap_or(&silent);
            out.crest(options, &stated.clone().into(), &given.crest, all);
        }
        if let Some(compression) = &architecture.kv_compression {
            let stated = architecture.config.kv_compression.clone().unwrap_or_default();
            let stated = KvOverrides { activation: stated.activation, k_stage: stated.k_stage };
            out.compression(compression, stated, given.kv_compression, all);
        }
        out
    }

    fn crest(&mut self, options: &CrestOptions, stated: &CrestOverrides, given: &CrestOverrides, all: bool) {
        use OptionValue as V;
        let default = CrestOptions::default();
        // With one step there is no gate, and with two the first step decides whatever the mode.
        let (gates, modes) = (options.num_steps > 1, options.num_steps > 2);
        let halts = gates && options.halt_enabled;
        let mut add = |values, default, now, effect, stated: bool, given: bool| {
            self.add(Axis::new(values, default), now, why_closed(effect, stated && !all, given));
        };
        add(
            StepInput::ALL.iter().map(|&value| V::StepInput(value)).collect(),
            V::StepInput(default.step_input),
            V::StepInput(options.step_input),
            true,
            stated.step_input.is_some(),
            given.step_input.is_some(),
        );
        add(
            GateInput::ALL.iter().map(|&value| V::GateInput(value)).collect(),
            V::GateInput(default.gate_input),
            V::GateInput(options.gate_input),
            gates,
            stated.gate_input.is_some(),
            given.gate_input.is_some(),
        );
        add(
            HaltMode::ALL.iter().map(|&value| V::HaltMode(value)).collect(),
            V::HaltMode(default.halt_mode),
            V::HaltMode(options.halt_mode),
            halts && modes,
            stated.halt_mode.is_some(),
            given.halt_mode.is_some(),
        );
        add(
            HaltWeights::ALL.iter().map(|&value| V::HaltWeights(value)).collect(),
            V::HaltWeights(default.halt_weights),
            V::HaltWeights(options.halt_weights),
            gates,
            stated.halt_weights.is_some(),
            given.halt_weights.is_some(),
        );
        add(
            THRESHOLDS.map(V::HaltThreshold).into(),
            V::HaltThreshold(default.halt_threshold),
            V::HaltThreshold(options.halt_threshold),
            halts,
            stated.halt_threshold.is_some(),
            given.halt_threshold.is_some(),
        );
    }

    fn compression(&mut self, compression: &KvCompression, stated: KvOverrides, given: KvOverrides, all: bool) {
        use OptionValue as V;
        let codecs = || compression.layers.values().flatten();
        let mut add = |values, default, now, effect, stated: bool, given: bool| {
            self.add(Axis::new(values, default), now, why_closed(effect, stated && !all, given));
        };
        add(
            CodeActivation::ALL.iter().map(|&value| V::Activation(value)).collect(),
            V::Activation(CodeActivation::Gelu),
            V::Activation(compression.activation),
            codecs().any(|(_, codec)| codec.hidden_dim.is_some()),
            stated.activation.is_some(),
            given.activation.is_some(),
        );
        add(
            KStage::ALL.iter().map(|&value| V::KStage(value)).collect(),
            V::KStage(KStage::PostRope),
            V::KStage(compression.k_stage),
            codecs().any(|(&target, _)| target == KvTarget::Key),
            stated.k_stage.is_some(),
            given.k_stage.is_some(),
        );
    }

    fn add(&mut self, axis: Axis, now: OptionValue, closed: Option<WhyClosed>) {
        match closed {
            Some(why) => self.closed.push(ClosedOption { value: now, why }),
            None => self.axes.push(axis),
        }
    }

    /// Every combination of values, the threshold at its default; the defaults come first.
    pub(super) fn forms(&self) -> Vec<Vec<OptionValue>> {
        self.combinations(self.axes.iter().find(|axis| axis.is_threshold()).and_then(Axis::default))
    }

    /// As [`forms`](Self::forms), at the threshold of `values`.
    pub(super) fn forms_at(&self, values: &[OptionValue]) -> Vec<Vec<OptionValue>> {
        self.combinations(values.iter().copied().find(|value| matches!(value, OptionValue::HaltThreshold(_))))
    }

    /// These values with all that decides when tokens halt: every threshold with every `gate_input` and `halt_mode`, which shift what
    /// a threshold means. None where the threshold is not open.
    pub(super) fn halting_of(&self, values: &[OptionValue]) -> Vec<Vec<OptionValue>> {
        if !self.axes.iter().any(Axis::is_threshold) {
            return Vec::new();
        }
        use OptionValue as V;
        let axes = self.axes.iter().zip(values);
        product(axes.map(|(axis, value)| match value {
            V::HaltThreshold(_) | V::GateInput(_) | V::HaltMode(_) => axis.values.clone(),
            other => vec![*other],
        }))
    }

    fn combinations(&self, threshold: Option<OptionValue>) -> Vec<Vec<OptionValue>> {
        if self.axes.is_empty() {
            return Vec::new();
        }
        product(self.axes.iter().map(|axis| match threshold {
            Some(threshold) if axis.is_threshold() => vec![threshold],
            _ => axis.values.clone(),
        }))
    }

    /// How many of these values are not the defaults.
    pub(super) fn departures(&self, values: &[OptionValue]) -> usize {
        self.axes.iter().zip(values).filter(|(axis, value)| axis.default() != Some(**value)).count()
    }
}

/// One of each, in every combination; the first of each comes first.
fn product(axes: impl Iterator<Item = Vec<OptionValue>>) -> Vec<Vec<OptionValue>> {
    axes.fold(vec![Vec::new()], |out, values| {
        let with = |before: &Vec<OptionValue>| -> Vec<Vec<OptionValue>> {
            values.iter().map(|value| before.iter().copied().chain([*value]).collect()).collect()
        };
        out.iter().flat_map(with).collect()
    })
}

fn why_closed(effect: bool, stated: bool, given: bool) -> Option<WhyClosed> {
    match (effect, stated, given) {
        (_, _, true) => Some(WhyClosed::Given),
        (_, true, _) => Some(WhyClosed::Stated),
        (false, ..) => Some(WhyClosed::NoEffect),
        _ => None,
    }
}
