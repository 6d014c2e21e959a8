//! Tokens that may be drawn, and the draw.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use rand_pcg::Pcg64;
use rand_pcg::rand_core::Rng;

use super::exponential::exp;

/// A token that may be drawn, with a weight proportional to its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) weight: f32,
}

impl Candidate {
    pub(super) fn new(id: u32, weight: f32) -> Self {
        Self { id, weight }
    }
}

/// A weight proportional to the probability; the best token weighs 1.
#[inline]
pub(super) fn weigh(logit: f32, largest: f32, temperature: f32) -> f32 {
    exp((logit - largest) / temperature)
}

/// The weights of all tokens. A loop of its own, so that it is compiled to vector instructions.
#[inline(never)]
pub(super) fn weigh_all(logits: &[f32], largest: f32, temperature: f32, weights: &mut Vec<f32>) {
    weights.clear();
    weights.extend(logits.iter().map(|&l| weigh(l, largest, temperature)));
}

/// Draws among the candidates of at least `min_p` times the weight of the best, which is exp(0) = 1.
pub(super) fn draw_above(candidates: &mut Vec<Candidate>, min_p: Option<f32>, rng: &mut Pcg64) -> Option<u32> {
    if let Some(min_p) = min_p {
        candidates.retain(|c| c.weight >= min_p);
    }
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    candidate_at(candidates.iter().copied(), uniform(rng) * total)
}

/// The candidate in whose interval `rest` lies, where each has an interval as long as its weight and they follow each other from 0.
pub(super) fn candidate_at(candidates: impl Iterator<Item = Candidate>, mut rest: f64) -> Option<u32> {
    let mut last = None;
    for candidate in candidates.filter(|c| c.weight > 0.0) {
        rest -= f64::from(candidate.weight);
        last = Some(candidate.id);
        if rest < 0.0 {
            break;
        }
    }
    last
}

/// Uniform in [0, 1) with 53 random bits.
pub(super) fn uniform(rng: &mut Pcg64) -> f64 {
    const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
    (rng.next_u64() >> 11) as f64 * UNIT
}

/// A seed that differs between runs: the standard library keys its hash maps from the system's entropy.
///
/// 53 bits of it: a seed is written as a JSON number, and many readers hold such a number as a double.
pub(super) fn seed_from_system() -> u64 {
    RandomState::new().build_hasher().finish() >> 11
}
