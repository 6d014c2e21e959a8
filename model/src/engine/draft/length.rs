//! How many tokens to draft, by the share that was accepted of late.

/// Share that is supposed before anything was drafted.
const BEGINNING: f64 = 0.9;

/// Weight of one drafted token in the share.
const WEIGHT: f64 = 0.125;

/// Tokens without a draft before one is tried, where none seemed worth it.
const TRIED_EVERY: u32 = 16;

/// What a sequence knows of its drafts.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct DraftLength {
    /// Of the tokens that were looked at: those up to the first that was not accepted.
    acceptance: f64,
    /// Tokens since a draft was thought worth it.
    without: u32,
}

impl Default for DraftLength {
    fn default() -> Self {
        Self { acceptance: BEGINNING, without: 0 }
    }
}

impl DraftLength {
    /// Tokens to draft, `most` at most: each of them is accepted with a probability of at least `worthwhile`, if the share stays.
    pub fn next(&mut self, worthwhile: f64, most: usize) -> usize {
        let mut probability = self.acceptance;
        let mut tokens = 0;
        while tokens < most && probability >= worthwhile {
            probability *= self.acceptance;
            tokens += 1;
        }
        if tokens > 0 || most == 0 {
            return tokens;
        }
        self.without += 1;
        if self.without < TRIED_EVERY {
            return 0;
        }
        self.without = 0;
        1
    }

    /// Learns what became of a draft.
    pub fn learn(&mut self, drafted: usize, accepted: usize) {
        for i in 0..drafted.min(accepted + 1) {
            let hit = if i < accepted { 1.0 } else { 0.0 };
            self.acceptance += WEIGHT * (hit - self.acceptance);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_drafts_grow_and_bad_ones_stop() {
        let mut length = DraftLength::default();
        assert_eq!((length.next(0.5, 8), length.next(0.75, 8), length.next(0.5, 2)), (6, 2, 2));
        for _ in 0..20 {
            let n = length.next(0.5, 8);
            length.learn(n, n);
        }
        assert_eq!((length.next(0.5, 8), length.next(0.5, 0)), (8, 0));
        let mut drafted = 0;
        for _ in 0..100 {
            let n = length.next(0.5, 8);
            length.learn(n, 0);
            drafted += usize::from(n > 0);
        }
        // Half a dozen until it gives up, and then one of sixteen.
        assert!((6..16).contains(&drafted), "{drafted}");
        let mut tries = 0;
        while length.next(0.5, 8) < 2 {
            length.learn(1, 1);
            tries += 1;
        }
        assert!(tries < 80, "{tries}");
    }

    /// Half of the tokens accepted: two are drafted where a quarter is enough, one where it takes a half.
    #[test]
    fn the_length_follows_the_share() {
        let length = DraftLength { acceptance: 0.5, without: 0 };
        let next = |worthwhile| { length }.next(worthwhile, 8);
        assert_eq!((next(0.25), next(0.5), next(0.6)), (2, 1, 0));
    }
}
