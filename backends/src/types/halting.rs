//! The rule of adaptive depth.

/// When a token stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HaltMode {
    /// The sum of `p_j` up to this step reaches the threshold.
    #[default]
    Cumulative,
    /// This step's `h_k` reaches the threshold.
    Step,
}

/// How the states of the steps run are mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HaltWeights {
    /// The last step run takes what is left.
    #[default]
    Remainder,
    /// Every step keeps its `p_k`; what is left is lost.
    Truncate,
    /// The last state alone.
    State,
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
