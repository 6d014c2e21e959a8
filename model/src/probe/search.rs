//! Which candidates are compared.

use super::axes::OpenOptions;
use super::candidate::Candidate;
use super::ranking;
use crate::error::{Error, Result};

/// Times that candidates are added at most.
const ROUNDS: usize = 4;

/// Candidates that `compare` has compared: every combination at the default threshold, then what those that came first suggest, until
/// they suggest nothing new.
///
/// # Errors
/// Those of `compare`; [`Error::NonFinite`] when no candidate is left in play.
pub(super) fn candidates(
    open: &OpenOptions,
    mut compare: impl FnMut(&mut Vec<Candidate>) -> Result<()>,
) -> Result<Vec<Candidate>> {
    let mut all: Vec<Candidate> = open.forms().into_iter().map(Candidate::new).collect();
    compare(&mut all)?;
    for _ in 0..ROUNDS {
        let Some(first) = ranking::first(&all, open) else {
            return Err(Error::NonFinite { step: 0, message: "under every candidate".into() });
        };
        let Some(first) = all.get(first) else { break };
        let known = |values: &[_]| all.iter().any(|candidate| candidate.values == values);
        let mut further = open.halting_of(&first.values);
        further.retain(|values| !known(values));
        if further.is_empty() {
            // A threshold that is better: the other options again under it.
            further = open.forms_at(&first.values);
            further.retain(|values| !known(values));
        }
        if further.is_empty() {
            break;
        }
        all.extend(further.into_iter().map(Candidate::new));
        compare(&mut all)?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{GateInput, StepInput};
    use crate::probe::{Axis, Fate, OptionValue};
    use OptionValue as V;

    fn open() -> OpenOptions {
        let axis = |values: Vec<OptionValue>| Axis { option: values[0].option(), values };
        let axes = vec![
            axis(StepInput::ALL.iter().map(|&value| V::StepInput(value)).collect()),
            axis(GateInput::ALL.iter().map(|&value| V::GateInput(value)).collect()),
            axis([0.9, 0.5, 0.3].map(V::HaltThreshold).into()),
        ];
        OpenOptions { axes, closed: Vec::new() }
    }

    /// What is found where a candidate reads eight blocks of `nats`, and how often candidates were compared.
    fn found(open: &OpenOptions, nats: impl Fn(&[OptionValue]) -> f64) -> (Vec<OptionValue>, usize) {
        let mut compared = 0;
        let all = candidates(open, |all| {
            compared += 1;
            for candidate in all.iter_mut().filter(|candidate| candidate.blocks() == 0) {
                candidate.nats = vec![nats(&candidate.values); 8];
            }
            Ok(())
        });
        let all = all.expect("candidates");
        let first = ranking::first(&all, open).expect("a first");
        (all[first].values.clone(), compared)
    }

    /// Where the default threshold hides which step input is right, that shows under a better threshold, which shows first.
    #[test]
    fn other_options_are_tried_again_under_a_better_threshold() {
        let (open, [right, default]) = (open(), [StepInput::ALL[1], StepInput::ALL[0]]);
        let nats = |values: &[OptionValue]| {
            let halts = values[2] == V::HaltThreshold(0.3);
            let input = match values[0] {
                V::StepInput(input) if input == right => {
                    if halts {
                        0.0
                    } else {
                        0.6
                    }
                }
                V::StepInput(input) if input == default => 0.3,
                _ => 0.9,
            };
            3.0 + input + if halts { 0.0 } else { 0.5 }
        };
        let (first, compared) = found(&open, nats);
        assert_eq!((first[0], first[2]), (V::StepInput(right), V::HaltThreshold(0.3)));
        // At the default threshold, all thresholds, the other options, and the thresholds again beside the step input.
        assert_eq!(compared, 4);
    }

    #[test]
    fn nothing_is_tried_twice() {
        let open = open();
        let (first, compared) = found(&open, |values| 3.0 + open.departures(values) as f64);
        assert_eq!(open.departures(&first), 0);
        assert_eq!(compared, 2);
        let mut all = Vec::new();
        candidates(&open, |now| {
            now.iter_mut().for_each(|candidate| candidate.nats = vec![3.0; 8]);
            all = now.iter().map(|candidate| candidate.values.clone()).collect();
            Ok(())
        })
        .expect("candidates");
        for (i, values) in all.iter().enumerate() {
            assert!(!all[..i].contains(values), "{values:?} twice");
        }
    }

    #[test]
    fn where_no_candidate_is_finite_there_is_an_error() {
        let out = candidates(&open(), |all| {
            all.iter_mut().for_each(|candidate| candidate.fate = Fate::NotFinite);
            Ok(())
        });
        assert!(matches!(out, Err(Error::NonFinite { .. })), "{out:?}");
    }
}
