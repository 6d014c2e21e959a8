//! The rule of adaptive depth.

use std::fmt;

/// When a token stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HaltMode {
    /// The sum of `p_j` up to this step reaches the threshold.
    #[default]
    Cumulative,
    /// This step's `h_k` reaches the threshold.
    Step,
}

/// How the states of the steps run are mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HaltWeights {
    /// The last step run takes what is left.
    #[default]
    Remainder,
    /// Every step keeps its `p_k`; what is left is lost.
    Truncate,
    /// The last state alone.
    State,
}

impl HaltMode {
    /// Every variant.
    pub const ALL: &'static [Self] = &[Self::Cumulative, Self::Step];

    /// The spelling in configs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cumulative => "cumulative",
            Self::Step => "step",
        }
    }
}

impl HaltWeights {
    /// Every variant.
    pub const ALL: &'static [Self] = &[Self::Remainder, Self::Truncate, Self::State];

    /// The spelling in configs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Remainder => "remainder",
            Self::Truncate => "truncate",
            Self::State => "state",
        }
    }
}

impl fmt::Display for HaltMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for HaltWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The rule by which tokens halt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HaltRule {
    /// When a token stops.
    pub mode: HaltMode,
    /// How states are mixed.
    pub weights: HaltWeights,
    /// False: every token runs every step.
    pub enabled: bool,
    /// In `[0, 1]`.
    pub threshold: f32,
}
