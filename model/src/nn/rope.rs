//! Rotary position embedding: plain, partial, and with every kind of frequency scaling that the configs know.
//!
//! The formulas are those of transformers 5 (`modeling_rope_utils.py`), in f64. Two kinds, `dynamic` and `longrope`, depend on the
//! length of the sequence. As in transformers, a prompt is rotated with the frequencies of its whole length, a token that is
//! generated with those of the length it brings the sequence to, and what is cached stays as it was rotated. (Keys that are compressed before
//! rotation are rotated when they are read, all with the frequencies of the pass that reads them.)

use std::borrow::Cow;
use std::f64::consts::PI;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use emberlm_quant::kv::Rotary;

use crate::config::{DynamicScaling, Llama3Scaling, LongRopeScaling, RopeConfig, RopeScaling, YarnScaling};

/// The inverse frequencies of a model, from which the angles of any position follow.
#[derive(Clone, Debug)]
pub struct RotaryEmbedding {
    /// Of sequences that no scaling by length applies to.
    inverse_frequencies: Vec<f64>,
    by_length: ByLength,
    attention_factor: f64,
    /// Of all sequences of the model.
    table: Arc<Mutex<Table>>,
}

/// Cosines and sines of consecutive positions, kept for those who need all of a sequence for every token.
#[derive(Debug, Default)]
struct Table {
    frequencies: Vec<f64>,
    first: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Consecutive positions of a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Positions {
    /// The first.
    pub start: usize,
    /// How many.
    pub count: usize,
    /// Tokens of the sequence, on which frequencies may depend.
    pub length: usize,
}

/// How frequencies depend on the length of the sequence.
#[derive(Clone, Debug)]
enum ByLength {
    No,
    Dynamic {
        theta: f64,
        scaling: DynamicScaling,
    },
    /// Others for sequences longer than a number of tokens.
    Long {
        inverse_frequencies: Vec<f64>,
        above: usize,
    },
}

impl RotaryEmbedding {
    /// Frequencies `theta^(-2i / rotary_dim)`, scaled where the config says so.
    pub fn new(config: &RopeConfig) -> Self {
        let (theta, dim) = (config.theta, config.rotary_dim);
        let plain = plain(theta, dim);
        let same = |inverse_frequencies| Self {
            inverse_frequencies,
            by_length: ByLength::No,
            attention_factor: 1.0,
            table: Arc::default(),
        };
        match &config.scaling {
            None => same(plain),
            Some(RopeScaling::Linear { factor }) => same(plain.into_iter().map(|f| f / factor).collect()),
            Some(RopeScaling::Llama3(scaling)) => same(llama3(plain, scaling)),
            Some(RopeScaling::Proportional { factor, rotated }) => {
                let stretched = |(i, f): (usize, f64)| if i < *rotated { f / factor } else { 0.0 };
                same(plain.into_iter().enumerate().map(stretched).collect())
            }
            Some(RopeScaling::Dynamic(scaling)) => {
                Self { by_length: ByLength::Dynamic { theta, scaling: scaling.clone() }, ..same(plain) }
            }
            Some(RopeScaling::Yarn(scaling)) => {
                Self { attention_factor: scaling.attention_factor, ..same(yarn(plain, theta, dim, scaling)) }
            }
            Some(RopeScaling::LongRope(scaling)) => {
                let LongRopeScaling { short_factor, long_factor, attention_factor, original_max_position_embeddings } =
                    scaling;
                let divided = |divisors: &[f64]| plain.iter().zip(divisors).map(|(f, divisor)| f / divisor).collect();
                Self {
                    inverse_frequencies: divided(short_factor),
                    by_length: ByLength::Long {
                        inverse_frequencies: divided(long_factor),
                        above: *original_max_position_embeddings,
                    },
                    attention_factor: *attention_factor,
                    table: Arc::default(),
                }
            }
        }
    }

    /// Of a layer that rotates nothing.
    pub(crate) fn none() -> Self {
        let by_length = ByLength::No;
        Self { inverse_frequencies: Vec::new(), by_length, attention_factor: 1.0, table: Arc::default() }
    }

    /// The inverse frequencies for a sequence of `length` tokens, in radians per token.
    pub fn inverse_frequencies(&self, length: usize) -> Cow<'_, [f64]> {
        match &self.by_length {
            ByLength::Dynamic { theta, scaling } if length > scaling.max_position_embeddings => {
                let (factor, dim) = (scaling.factor, 2.0 * self.inverse_frequencies.len() as f64);
                let ratio = length as f64 / scaling.max_position_embeddings as f64;
                let base = theta * (factor * ratio - (factor - 1.0)).powf(dim / (dim - 2.0));
                plain(base, 2 * self.inverse_frequencies.len()).into()
            }
            ByLength::Long { inverse_frequencies, above } if length > *above => inverse_frequencies.into(),
            _ => (&self.inverse_frequencies).into(),
        }
    }

    /// What sines and cosines are multiplied by: 1 unless the scaling says otherwise (`yarn`, `longrope`).
    pub fn attention_factor(&self) -> f64 {
        self.attention_factor
    }

    /// Cosines and sines of positions `start..start + count` in a sequence of `length` tokens, computed in f64.
    pub fn at<B: Backend>(&self, start: usize, count: usize, length: usize, device: &B::Device) -> Rotary<B> {
        self.at_each([Positions { start, count, length }], device)
    }

    /// [`at`](Self::at) of several sequences, one after the other.
    pub(crate) fn at_each<B: Backend>(
        &self,
        sequences: impl IntoIterator<Item = Positions>,
        device: &B::Device,
    ) -> Rotary<B> {
        let (mut all, mut cos, mut sin) = (0, Vec::new(), Vec::new());
        for Positions { start, count, length } in sequences {
            let mut table =
                Table { frequencies: self.inverse_frequencies(length).into(), first: start, ..Table::default() };
            table.extend(start + count, self.attention_factor);
            all += count;
            cos.append(&mut table.cos);
            sin.append(&mut table.sin);
        }
        rotary([all, self.inverse_frequencies.len()], cos, sin, device)
    }

    /// As [`at`](Self::at), of what was computed before as far as it goes: 8 bytes of memory per position and frequency, for as long as the
    /// model lives.
    pub(crate) fn at_again<B: Backend>(
        &self,
        start: usize,
        count: usize,
        length: usize,
        device: &B::Device,
    ) -> Rotary<B> {
        let frequencies = self.inverse_frequencies(length);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if start < table.first || start > table.end() || *table.frequencies != *frequencies {
            *table = Table { frequencies: frequencies.into(), first: start, ..Table::default() };
        }
        table.extend(start + count, self.attention_factor);
        let r = table.frequencies.len();
        let of = |values: &[f32]| values.iter().skip((start - table.first) * r).take(count * r).copied().collect();
        rotary([count, r], of(&table.cos), of(&table.sin), device)
    }
}

impl Table {
    /// One past the last position.
    fn end(&self) -> usize {
        self.first + self.cos.len().checked_div(self.frequencies.len()).unwrap_or(0)
    }

    /// Computes the positions up to `end` that are missing.
    fn extend(&mut self, end: usize, attention_factor: f64) {
        for position in self.end()..end {
            for frequency in &self.frequencies {
                let (s, c) = (position as f64 * frequency).sin_cos();
                self.cos.push((c * attention_factor) as f32);
                self.sin.push((s * attention_factor) as f32);
            }
        }
    }
}

fn rotary<B: Backend>(shape: [usize; 2], cos: Vec<f32>, sin: Vec<f32>, device: &B::Device) -> Rotary<B> {
    let tensor = |values| Tensor::from_data(TensorData::new(values, shape), (device, DType::F32));
    Rotary { cos: tensor(cos), sin: tensor(sin) }
}

/// `theta^(-2i / dim)`.
fn plain(theta: f64, dim: usize) -> Vec<f64> {
    (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64)).collect()
}

/// Long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
fn llama3(plain: Vec<f64>, scaling: &Llama3Scaling) -> Vec<f64> {
    let original = scaling.original_max_position_embeddings as f64;
    let stretched = |f: f64| {
        let turns = original * f / (2.0 * PI);
        if turns < scaling.low_freq_factor {
            f / scaling.factor
        } else if turns > scaling.high_freq_factor {
            f
        } else {
            let smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
            (1.0 - smooth) * f / scaling.factor + smooth * f
        }
    };
    plain.into_iter().map(stretched).collect()
}

/// Frequencies up to the one that turns `beta_fast` times in the original context are kept, those from the one that turns
/// `beta_slow` times on are divided by `factor`, and a ramp lies between.
fn yarn(plain: Vec<f64>, theta: f64, dim: usize, scaling: &YarnScaling) -> Vec<f64> {
    let dim = dim as f64;
    let original = scaling.original_max_position_embeddings as f64;
    // Index of the frequency that turns so many times in the original context.
    let index = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (low, high) = (index(scaling.beta_fast), index(scaling.beta_slow));
    let (low, high) = if scaling.truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(dim - 1.0));
    // One that is empty is as in transformers.
    let width = if low == high { 0.001 } else { high - low };
    let stretched = |(i, f): (usize, f64)| {
        let interpolated = ((i as f64 - low) / width).clamp(0.0, 1.0);
        f / scaling.factor * interpolated + f * (1.0 - interpolated)
    };
    plain.into_iter().enumerate().map(stretched).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::DType;

    type B = burn_ndarray::NdArray<f32>;

    fn numbers(rotary: Rotary<B>) -> [Vec<f32>; 2] {
        [rotary.cos, rotary.sin].map(|t| t.cast(DType::F32).into_data().into_vec().expect("floats"))
    }

    /// What is kept is what would be computed, bit for bit: a sequence that grows, others beside it, one that begins elsewhere, and
    /// frequencies that depend on the length.
    #[test]
    fn tables_that_are_kept_are_those_that_are_computed() {
        let dynamic = DynamicScaling { factor: 2.0, max_position_embeddings: 50 };
        for scaling in [None, Some(RopeScaling::Linear { factor: 4.0 }), Some(RopeScaling::Dynamic(dynamic))] {
            let embedding = RotaryEmbedding::new(&RopeConfig { theta: 1e4, rotary_dim: 16, scaling });
            let clone = embedding.clone();
            for (start, count) in
                [(0, 7), (0, 8), (0, 60), (0, 61), (3, 9), (0, 100), (70, 40), (500, 3), (0, 5), (2, 300)]
            {
                let length = start + count;
                let want = numbers(embedding.at(start, count, length, &Default::default()));
                assert_eq!(want[0].len(), count * 8);
                assert_eq!(
                    numbers(clone.at_again(start, count, length, &Default::default())),
                    want,
                    "{start} + {count}"
                );
            }
        }
    }
}
