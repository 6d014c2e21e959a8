//! Seeded numbers, the same on every platform.

use emberlm::quant::random::SplitMix64;

/// A small generator; tests need repeatable numbers, not good ones.
pub struct Random(SplitMix64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    fn next(&mut self) -> u64 {
        self.0.next_word()
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// About normal, by the sum of four uniform numbers.
    pub fn normal(&mut self, count: usize) -> Vec<f32> {
        let mut uniform = || (self.next() >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
        (0..count).map(|_| (uniform() + uniform() + uniform() + uniform()) * 1.7).collect()
    }
}
