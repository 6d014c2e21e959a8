//! From what candidates made of the blocks to an order, verdicts and conclusions.

use std::cmp::Ordering;

use super::axes::{OpenOptions, OptionValue};
use super::candidate::{Candidate, Fate};
use super::difference::Difference;
use super::{FEWEST_BLOCKS, ProbeText};
use crate::config::ModelOptions;

/// Nats per token that are no reason to leave the defaults, unless a text tells them from none: 0.2 % of a perplexity.
pub const NEGLIGIBLE: f64 = 0.002;

/// What is told of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has the lowest perplexity; or, of those that differ from it by less than [`NEGLIGIBLE`] and are beaten by none beyond
    /// chance, it departs least from the defaults.
    First,
    /// Its difference from the first may be chance.
    Undecided,
    /// It is worse than the first, beyond chance.
    Worse,
    /// It was worse by several errors, and read no further.
    Dropped,
    /// The model gave logits that are not numbers, or a token of the text no probability.
    NotFinite,
}

/// A candidate in its place.
#[derive(Clone, Debug)]
pub struct Ranked {
    /// Its values and blocks.
    pub candidate: Candidate,
    /// From the first; none for the first itself.
    pub difference: Option<Difference>,
    /// What is told of it.
    pub verdict: Verdict,
}

/// What is told of one option.
#[derive(Clone, Debug, PartialEq)]
pub struct Conclusion {
    /// That of the first candidate.
    pub value: OptionValue,
    /// Other values of which some candidate may be as good; none: the text decides for `value`.
    pub as_good: Vec<OptionValue>,
    /// The value is what counts where nothing is known.
    pub is_default: bool,
    /// The value that counts where nothing is known is worse than this one, beyond chance.
    pub default_is_worse: bool,
}

impl Conclusion {
    /// Whether the text decides: for the value, or against the default, of which the value is then the best replacement.
    pub fn is_decided(&self) -> bool {
        self.as_good.is_empty() || self.default_is_worse
    }
}

/// All candidates, best first.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// The first, then those that may be as good, then those that are worse, each by their difference from the first.
    pub candidates: Vec<Ranked>,
    /// Of every open option, in the order of their axes.
    pub conclusions: Vec<Conclusion>,
    /// Tokens of a block.
    pub block: usize,
    /// Blocks of the text.
    pub blocks: usize,
    /// Seconds that all of it took.
    pub seconds: f64,
}

impl Ranking {
    pub(super) fn new(all: Vec<Candidate>, open: &OpenOptions, text: &ProbeText<'_>, seconds: f64) -> Self {
        let first = first(&all, open).and_then(|first| all.get(first)).cloned();
        let place = |candidate: Candidate| match &first {
            Some(first) if first.values == candidate.values => {
                Ranked { candidate, difference: None, verdict: Verdict::First }
            }
            first => {
                let difference = first.as_ref().map(|first| Difference::of(&candidate.nats, &first.nats));
                let verdict = match candidate.fate {
                    Fate::NotFinite => Verdict::NotFinite,
                    Fate::Dropped => Verdict::Dropped,
                    Fate::InPlay if difference.is_some_and(|difference| difference.is_worse()) => Verdict::Worse,
                    Fate::InPlay => Verdict::Undecided,
                };
                Ranked { candidate, difference, verdict }
            }
        };
        let mut candidates: Vec<Ranked> = all.into_iter().map(place).collect();
        candidates.sort_by(|a, b| a.group().cmp(&b.group()).then_with(|| a.mean().total_cmp(&b.mean())));
        let conclusions = conclusions(&candidates, open);
        Self { candidates, conclusions, block: text.block(), blocks: text.blocks(), seconds }
    }

    /// What is worth stating: the values of the options that the text decides. Of the others the first may be so by chance.
    pub fn options(&self) -> ModelOptions {
        let stated = self.conclusions.iter().filter(|of| of.is_decided());
        OptionValue::all(stated.map(|conclusion| &conclusion.value))
    }

    /// The side file after the probe: [`options`](Self::options), and what `before` states of options that the text does not decide.
    pub fn side_file(&self, before: &ModelOptions) -> ModelOptions {
        self.options().or(before.clone())
    }
}

impl Ranked {
    fn group(&self) -> u8 {
        match self.verdict {
            Verdict::First => 0,
            Verdict::Undecided => 1,
            Verdict::Worse | Verdict::Dropped => 2,
            Verdict::NotFinite => 3,
        }
    }

    fn mean(&self) -> f64 {
        self.difference.map_or(0.0, |difference| difference.mean)
    }
}

fn conclusions(candidates: &[Ranked], open: &OpenOptions) -> Vec<Conclusion> {
    let Some(first) = candidates.first() else { return Vec::new() };
    let undecided = || candidates.iter().filter(|ranked| ranked.verdict == Verdict::Undecided);
    let axes = open.axes.iter().zip(&first.candidate.values).enumerate();
    let conclusion = |(i, (axis, &value)): (usize, (&super::Axis, &OptionValue))| {
        let others = undecided().filter_map(|ranked| ranked.candidate.values.get(i));
        let as_good = axis.values.iter().filter(|&other| *other != value && others.clone().any(|o| o == other));
        let as_good: Vec<OptionValue> = as_good.copied().collect();
        let default = axis.default();
        let default_is_worse = default.is_some_and(|default| default != value && !as_good.contains(&default));
        Conclusion { value, as_good, is_default: default == Some(value), default_is_worse }
    };
    axes.map(conclusion).collect()
}

/// The lowest perplexity, over the blocks that all have read who are in play.
pub(super) fn lowest(all: &[Candidate]) -> Option<usize> {
    let in_play = || all.iter().enumerate().filter(|(_, candidate)| candidate.is_in_play() && candidate.blocks() > 0);
    let least = in_play().map(|(_, candidate)| candidate.blocks()).min()?;
    let sum = |candidate: &Candidate| candidate.nats.iter().take(least).sum::<f64>();
    in_play().min_by(|(_, a), (_, b)| sum(a).total_cmp(&sum(b))).map(|(i, _)| i)
}

/// The lowest perplexity, or of those that differ from it by less than [`NEGLIGIBLE`], and are beaten by none beyond chance, the one
/// that departs least from the defaults.
pub(super) fn first(all: &[Candidate], open: &OpenOptions) -> Option<usize> {
    let lowest = lowest(all)?;
    let best = all.get(lowest)?;
    let in_play = || all.iter().enumerate().filter(|(_, candidate)| candidate.is_in_play() && candidate.blocks() > 0);
    let beaten =
        |candidate: &Candidate| in_play().any(|(_, other)| Difference::of(&candidate.nats, &other.nats).is_worse());
    let near = in_play().filter(|(_, candidate)| Difference::of(&candidate.nats, &best.nats).mean < NEGLIGIBLE);
    let order = |(_, a): &(usize, &Candidate), (_, b): &(usize, &Candidate)| -> Ordering {
        let departures = open.departures(&a.values).cmp(&open.departures(&b.values));
        departures.then_with(|| Difference::of(&a.nats, &b.nats).mean.total_cmp(&0.0))
    };
    near.filter(|(_, candidate)| !beaten(candidate)).min_by(order).map(|(i, _)| i).or(Some(lowest))
}

/// Takes candidates out of play that are hopeless beside the best.
pub(super) fn drop_hopeless(all: &mut [Candidate]) {
    let Some(best) = lowest(all).and_then(|best| all.get(best)).map(|best| best.nats.clone()) else { return };
    for candidate in all.iter_mut().filter(|candidate| candidate.is_in_play()) {
        // Before, chance may make one look hopeless.
        let seen = candidate.blocks().min(best.len());
        if seen * 2 >= FEWEST_BLOCKS && Difference::of(&candidate.nats, &best).is_hopeless() {
            candidate.fate = Fate::Dropped;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HaltWeights, StepInput};
    use crate::probe::Axis;

    fn open() -> OpenOptions {
        let inputs = StepInput::ALL.iter().map(|&value| OptionValue::StepInput(value)).collect();
        let weights = HaltWeights::ALL.iter().map(|&value| OptionValue::HaltWeights(value)).collect();
        let axes =
            vec![Axis { option: "step_input", values: inputs }, Axis { option: "halt_weights", values: weights }];
        OpenOptions { axes, closed: Vec::new() }
    }

    fn candidate(input: StepInput, weights: HaltWeights, nats: impl Fn(u32) -> f64, blocks: u32) -> Candidate {
        let mut out = Candidate::new(vec![OptionValue::StepInput(input), OptionValue::HaltWeights(weights)]);
        out.nats = (0..blocks).map(nats).collect();
        out
    }

    /// Blocks of unequal difficulty.
    fn hard(i: u32) -> f64 {
        3.0 + f64::from(i % 5)
    }

    /// Something that has no mean.
    fn noise(i: u32) -> f64 {
        if i.is_multiple_of(2) { 0.01 } else { -0.01 }
    }

    fn ranking(all: Vec<Candidate>) -> Ranking {
        let ids = vec![0; 1024];
        let text = ProbeText::new(&ids, Some(32), 32, Vec::new()).expect("a text");
        Ranking::new(all, &open(), &text, 0.0)
    }

    #[test]
    fn where_little_is_lost_the_defaults_come_first() {
        use HaltWeights::{Remainder, State, Truncate};
        use StepInput::{Chained, Parallel, Refine};
        let ranked = ranking(vec![
            candidate(Chained, State, hard, 32),
            // One departure less, and hardly higher.
            candidate(Chained, Remainder, |i| hard(i) + noise(i) + 0.001, 32),
            candidate(Chained, Truncate, |i| hard(i) + 0.2 + noise(i), 32),
            candidate(Parallel, Remainder, |i| hard(i) + 0.5 + noise(i), 32),
            candidate(Refine, Remainder, |i| hard(i) + 0.4 + noise(i), 32),
        ]);
        let verdicts: Vec<Verdict> = ranked.candidates.iter().map(|ranked| ranked.verdict).collect();
        assert_eq!(
            verdicts,
            [Verdict::First, Verdict::Undecided, Verdict::Worse, Verdict::Worse, Verdict::Worse],
            "{ranked:#?}"
        );
        assert_eq!(ranked.candidates[0].candidate.values[1], OptionValue::HaltWeights(Remainder));
        assert_eq!(ranked.conclusions[0].as_good, []);
        assert_eq!(ranked.conclusions[1].as_good, [OptionValue::HaltWeights(State)]);
        // The weights stay open, and are the default.
        let stated = ranked.options();
        assert_eq!((stated.crest.step_input, stated.crest.halt_weights), (Some(Chained), None));
    }

    /// What is more than a little lower comes first, also where it may be chance; then it is not stated.
    #[test]
    fn the_lowest_perplexity_comes_first() {
        use HaltWeights::Remainder;
        use StepInput::{Chained, Parallel};
        let ranked = ranking(vec![
            candidate(Parallel, Remainder, |i| hard(i) + if i == 3 { 0.2 } else { 0.0 }, 32),
            candidate(Chained, Remainder, hard, 32),
        ]);
        assert_eq!(ranked.candidates[0].candidate.values[0], OptionValue::StepInput(Chained));
        assert_eq!(ranked.candidates[1].verdict, Verdict::Undecided);
        assert_eq!(ranked.options().crest.step_input, None);
        let before = OptionValue::all(&[OptionValue::StepInput(Parallel)]);
        assert_eq!(ranked.side_file(&before).crest.step_input, Some(Parallel), "what is stated stays");
    }

    /// Without one of two values that may be as good, a default would count that is worse than both.
    #[test]
    fn what_is_decided_against_the_default_is_stated() {
        use HaltWeights::Remainder;
        use StepInput::{Chained, Parallel, Refine};
        let ranked = ranking(vec![
            candidate(Parallel, Remainder, |i| hard(i) + 0.5 + noise(i), 32),
            candidate(Chained, Remainder, hard, 32),
            candidate(Refine, Remainder, |i| hard(i) + noise(i), 32),
        ]);
        assert_eq!(ranked.conclusions[0].as_good.len(), 1);
        assert!(ranked.options().crest.step_input.is_some_and(|input| input != Parallel));
    }

    #[test]
    fn the_hopeless_are_dropped_and_nobody_else() {
        use HaltWeights::{Remainder, Truncate};
        use StepInput::{Chained, Parallel, Refine};
        let mut all = vec![
            candidate(Parallel, Remainder, hard, 6),
            candidate(Chained, Remainder, |i| hard(i) + 1.0 + noise(i), 6),
            candidate(Refine, Remainder, |i| hard(i) + noise(i), 6),
            // Far off on average, but as likely by chance.
            candidate(Refine, Truncate, |i| hard(i) + if i == 1 { 9.0 } else { 0.0 }, 6),
        ];
        drop_hopeless(&mut all);
        let fates: Vec<Fate> = all.iter().map(|candidate| candidate.fate).collect();
        assert_eq!(fates, [Fate::InPlay, Fate::Dropped, Fate::InPlay, Fate::InPlay]);
        let mut early = vec![
            candidate(Parallel, Remainder, hard, 3),
            candidate(Chained, Remainder, |i| hard(i) + 1.0 + 1e-9 * noise(i), 3),
        ];
        drop_hopeless(&mut early);
        assert_eq!(early[1].fate, Fate::InPlay, "after three blocks");
    }
}
