//! Choosing a token where the logits are on a device: only what the choice needs is read back.

use burn::tensor::{Tensor, Transaction};
use emberlm_quant::CompactBackend;

use super::candidates::{Candidate, weigh};
use super::config::Strategy;
use super::logits::keep_allowed;
use super::sampler::Sampler;
use crate::read::{elements, floats, read_back};
use crate::{Error, Result};

impl Sampler {
    /// Chooses one token as [`sample`](Self::sample) does, from logits `[1, vocabulary]` on a device.
    ///
    /// # Errors
    /// As [`sample`](Self::sample); [`Error::Option`] when the logits are not one row.
    pub fn choose<B: CompactBackend>(&mut self, logits: Tensor<B, 2>, seen: &[u32]) -> Result<u32> {
        let [_, vocabulary] = one_row(&logits)?;
        if let Some(count) = self.shortlist(vocabulary).filter(|&count| count <= B::TOP_K_ON_DEVICE) {
            let (values, ids) = B::top_k(logits.clone(), count);
            let mut data = read_back(Transaction::default().register(values).register(ids))?;
            let values: Vec<f32> = elements(data.next())?;
            let ids: Vec<u32> = elements::<i64>(data.next())?.into_iter().map(|id| id.unsigned_abs() as u32).collect();
            if let Some(id) = self.choose_among(&values, &ids) {
                return Ok(id);
            }
        }
        self.sample(&mut floats(logits)?, seen)
    }

    /// As [`choose`](Self::choose), among the tokens whose bit is set, the lowest bit of the first word for id 0. The logits of the
    /// others, and of those beyond the last word, are as `-Inf`.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn choose_allowed<B: CompactBackend>(
        &mut self,
        logits: Tensor<B, 2>,
        seen: &[u32],
        allowed: &[u32],
    ) -> Result<u32> {
        one_row(&logits)?;
        let mut logits = floats(logits)?;
        keep_allowed(&mut logits, allowed);
        self.sample(&mut logits, seen)
    }

    /// How many of the largest logits a choice needs; none where it needs all of them.
    fn shortlist(&self, vocabulary: usize) -> Option<usize> {
        // Whatever changes single logits can change which are the largest.
        if self.repetition_penalty != 1.0 || !self.processors.is_neutral() {
            return None;
        }
        match self.strategy {
            Strategy::Greedy => Some(1),
            // One more tells whether others are equal to the k-th, which are kept too.
            Strategy::Draw(truncation) => truncation.top_k.filter(|&k| k < vocabulary).map(|k| k + 1),
        }
    }

    /// Chooses among the largest logits, the largest first; none where all of the logits have to be looked at: to say what is
    /// wrong with them, or because more of them are equal to the k-th.
    fn choose_among(&mut self, values: &[f32], ids: &[u32]) -> Option<u32> {
        let (&largest, &best) = values.first().zip(ids.first())?;
        if !largest.is_finite() {
            return None;
        }
        let id = match self.strategy {
            Strategy::Greedy => best,
            Strategy::Draw(truncation) => {
                let (kept, beyond) = (values.split_last()?.1, *values.last()?);
                if *kept.last()? == beyond {
                    return None;
                }
                self.candidates.clear();
                let weights = kept.iter().map(|&logit| weigh(logit, largest, truncation.temperature));
                self.candidates.extend(ids.iter().zip(weights).map(|(&id, weight)| Candidate::new(id, weight)));
                self.candidates.sort_unstable_by_key(|candidate| candidate.id);
                self.draw_candidate(truncation).unwrap_or(best)
            }
        };
        self.step += 1;
        Some(id)
    }
}

/// The shape of logits that a choice is made from: of one token.
fn one_row<B: CompactBackend>(logits: &Tensor<B, 2>) -> Result<[usize; 2]> {
    match logits.dims() {
        shape @ [1, _] => Ok(shape),
        [rows, _] => {
            let message = format!("are of {rows} tokens; one is chosen from those of one");
            Err(Error::Option { option: "logits".into(), message })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{LogitsProcessors, SamplingConfig};

    /// Logits of 500 tokens; rounded ones have equals nearly everywhere.
    fn logits(step: usize, coarse: bool) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + step * 104_729) % 1009) as f32 / 60.0;
        (0..500).map(|i| if coarse { number(i).round() } else { number(i) }).collect()
    }

    /// The `count` largest and their ids.
    fn largest(logits: &[f32], count: usize) -> (Vec<f32>, Vec<u32>) {
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        ids.truncate(count);
        (ids.iter().map(|&id| logits[id as usize]).collect(), ids)
    }

    #[test]
    fn tokens_are_those_of_all_logits() {
        let drawn = SamplingConfig { temperature: 1.3, seed: Some(5), ..SamplingConfig::default() };
        let configs = [
            SamplingConfig::greedy(),
            SamplingConfig { top_k: 1, ..drawn },
            SamplingConfig { top_k: 40, ..drawn },
            SamplingConfig { top_k: 40, top_p: 0.8, ..drawn },
            SamplingConfig { top_k: 60, min_p: 0.2, temperature: 0.6, ..drawn },
            SamplingConfig { top_k: 499, top_p: 0.9, min_p: 0.01, ..drawn },
        ];
        for config in configs {
            for coarse in [false, true] {
                let (mut short, mut whole) = (Sampler::new(&config).unwrap(), Sampler::new(&config).unwrap());
                let mut by_few = 0;
                for step in 0..300 {
                    let mut logits = logits(step, coarse);
                    let (values, ids) = largest(&logits, short.shortlist(500).unwrap());
                    let few = short.choose_among(&values, &ids);
                    by_few += usize::from(few.is_some());
                    let got = few.unwrap_or_else(|| short.sample(&mut logits, &[]).unwrap());
                    assert_eq!(got, whole.sample(&mut logits, &[]).unwrap(), "{config:?}, step {step}");
                    assert_eq!(short.step(), whole.step());
                }
                // Equals at the border send a draw to all of the logits, and nothing else does.
                assert_eq!(by_few == 300, config.is_greedy() || !coarse, "{config:?}: {by_few} of 300 by few");
            }
        }
    }

    #[test]
    fn what_few_logits_cannot_tell() {
        let needed = |config: SamplingConfig| Sampler::new(&config).unwrap().shortlist(500);
        let config = SamplingConfig { top_k: 20, ..SamplingConfig::default() };
        assert_eq!(needed(config), Some(21));
        assert_eq!(needed(SamplingConfig { top_k: 500, ..config }), None);
        assert_eq!(needed(SamplingConfig { top_k: 0, ..config }), None);
        assert_eq!(needed(SamplingConfig { repetition_penalty: 1.1, ..config }), None);
        assert_eq!(needed(SamplingConfig { repetition_penalty: 1.1, ..SamplingConfig::greedy() }), None);
        let processors = LogitsProcessors { suppress_tokens: vec![3], ..LogitsProcessors::default() };
        let suppressing = Sampler::new(&SamplingConfig::greedy()).unwrap().with_processors(processors, &[]);
        assert_eq!(suppressing.shortlist(500), None);
        let mut sampler = Sampler::new(&SamplingConfig::greedy()).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!((sampler.choose_among(&[bad], &[3]), sampler.step()), (None, 0), "{bad}");
        }
    }
}
