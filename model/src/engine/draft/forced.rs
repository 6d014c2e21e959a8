//! Acceptance that is given, to measure speed.

use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng, SeedableRng};

/// Decides about drafted tokens in place of the model.
#[derive(Clone, Debug)]
pub(in crate::engine) struct ForcedAcceptance {
    rate: f64,
    rng: Pcg64,
}

impl ForcedAcceptance {
    /// Accepts with this probability, the same tokens every time.
    pub fn new(rate: f64) -> Self {
        Self { rate, rng: Pcg64::seed_from_u64(1) }
    }

    /// The token that is taken where the model chose `chosen`.
    pub fn instead_of(&mut self, chosen: u32, drafted: u32) -> u32 {
        const UNIT: f64 = 1.0 / (1u64 << 32) as f64;
        let accepted = f64::from(self.rng.next_u32()) * UNIT < self.rate;
        match accepted {
            true => drafted,
            // Any other one.
            false if chosen == drafted => chosen.checked_sub(1).unwrap_or(1),
            false => chosen,
        }
    }
}
