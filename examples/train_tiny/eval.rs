//! What a trained model can do with held-out text, and how deep it thinks about it.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Int, Tensor};
use emberlm::model::CausalLm;
use emberlm::quant::CompactBackend;
use serde::Serialize;

use crate::data::{Class, Split};
use crate::tokenizer::Tokenizer;
use crate::train::{Batch, Run, Told, numbers, tell, trained};

/// The stream of random numbers that held-out text begins with.
const STREAM: u64 = 1 << 48;
const THRESHOLDS: [f32; 9] = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999];

#[derive(Debug, Serialize)]
pub struct Report {
    pub iterations: usize,
    pub parameters: usize,
    pub tokens: usize,
    /// With the threshold of the config (or all steps, when the run was without halting).
    pub perplexity: f64,
    /// Every step for every token, mixed by the gates.
    pub perplexity_all_steps: f64,
    pub mean_steps: f64,
    pub classes: BTreeMap<&'static str, ClassReport>,
    /// Results that are right from the first to the last token.
    pub exact: BTreeMap<&'static str, Exact>,
    pub thresholds: Vec<Threshold>,
}

#[derive(Debug, Default, Serialize)]
pub struct ClassReport {
    pub tokens: usize,
    pub loss: f64,
    pub accuracy: f64,
    /// Mean steps per layer of the pass that foretells a token: mean and standard deviation over tokens.
    pub steps: f64,
    pub steps_deviation: f64,
    /// Per layer.
    pub layers: Vec<f64>,
}

#[derive(Debug, Default, Serialize)]
pub struct Exact {
    pub results: usize,
    pub right: usize,
}

#[derive(Debug, Serialize)]
pub struct Threshold {
    pub threshold: f32,
    pub perplexity: f64,
    pub mean_steps: f64,
    /// Of a pass over many tokens at once, best of three.
    pub milliseconds_per_token: f64,
}

/// Measures a run on `rows` held-out texts.
pub fn evaluate<B: CompactBackend>(run: &Run, rows: usize, device: &B::Device) -> Result<Report> {
    let mut model = trained::<B>(run, device)?;
    let halting = run.ponder > 0.0 && run.steps > 1;
    let tokenizer = Tokenizer::train(run.seed)?;
    let batches = (0..rows.div_ceil(run.batch))
        .map(|i| {
            let first = STREAM + (i * run.batch) as u64;
            Batch::draw(&tokenizer, run.seed, first, Split::HeldOut, run.batch, run.length)
        })
        .collect::<Result<Vec<_>>>()?;

    model.set_depth(run.steps, false, 1.0)?;
    let perplexity_all_steps = Tokens::measure(&model, &batches).perplexity();
    model.set_depth(run.steps, halting, 0.9)?;
    let tokens = Tokens::measure(&model, &batches);
    let mut thresholds = Vec::new();
    if halting {
        for threshold in THRESHOLDS {
            model.set_depth(run.steps, true, threshold)?;
            let mut best = f64::INFINITY;
            let mut measured = None;
            for _ in 0..3 {
                let started = Instant::now();
                let tokens = Tokens::measure(&model, &batches);
                best = best.min(started.elapsed().as_secs_f64() * 1e3 / tokens.class.len() as f64);
                measured = Some(tokens);
            }
            let Some(tokens) = measured else { continue };
            thresholds.push(Threshold {
                threshold,
                perplexity: tokens.perplexity(),
                mean_steps: tokens.mean_steps(),
                milliseconds_per_token: best,
            });
        }
    }
    Ok(Report {
        iterations: run.iterations,
        parameters: burn::module::Module::num_params(&model),
        tokens: tokens.class.len(),
        perplexity: tokens.perplexity(),
        perplexity_all_steps,
        mean_steps: tokens.mean_steps(),
        classes: tokens.by_class(),
        exact: tokens.exact(run.length),
        thresholds,
    })
}

/// Every token that was predicted.
#[derive(Default)]
struct Tokens {
    class: Vec<Class>,
    loss: Vec<f32>,
    right: Vec<bool>,
    /// Per layer.
    steps: Vec<Vec<f32>>,
}

impl Tokens {
    fn measure<B: CompactBackend>(model: &CausalLm<B>, batches: &[Batch]) -> Self {
        let mut out = Self::default();
        for batch in batches {
            let Told { loss, right, run, .. } = tell(model, batch);
            out.class.extend(batch.targets());
            out.loss.extend(numbers(loss));
            out.right.extend(ints(right).into_iter().map(|right| right == 1));
            out.steps.resize(run.len(), Vec::new());
            for (all, layer) in out.steps.iter_mut().zip(run) {
                all.extend(ints(layer).into_iter().map(|steps| steps as f32));
            }
        }
        out
    }

    fn perplexity(&self) -> f64 {
        (self.loss.iter().map(|&loss| f64::from(loss)).sum::<f64>() / self.loss.len() as f64).exp()
    }

    /// Steps per layer of one token.
    fn steps(&self, token: usize) -> f64 {
        self.steps.iter().map(|layer| f64::from(layer[token])).sum::<f64>() / self.steps.len().max(1) as f64
    }

    fn mean_steps(&self) -> f64 {
        (0..self.class.len()).map(|token| self.steps(token)).sum::<f64>() / self.class.len() as f64
    }

    fn by_class(&self) -> BTreeMap<&'static str, ClassReport> {
        let mut out = BTreeMap::new();
        for class in Class::ALL {
            let tokens: Vec<usize> = (0..self.class.len()).filter(|&i| self.class[i] == class).collect();
            let n = tokens.len() as f64;
            let mean = |value: &dyn Fn(usize) -> f64| tokens.iter().map(|&i| value(i)).sum::<f64>() / n;
            let steps = mean(&|i| self.steps(i));
            let report = ClassReport {
                tokens: tokens.len(),
                loss: mean(&|i| f64::from(self.loss[i])),
                accuracy: mean(&|i| f64::from(u8::from(self.right[i]))),
                steps,
                steps_deviation: mean(&|i| (self.steps(i) - steps).powi(2)).sqrt(),
                layers: self.steps.iter().map(|layer| mean(&|i| f64::from(layer[i]))).collect(),
            };
            out.insert(class.name(), report);
        }
        out
    }

    /// A result is a run of tokens of one kind; one that the end of a text cuts off counts as far as it goes.
    fn exact(&self, length: usize) -> BTreeMap<&'static str, Exact> {
        let kind = |i: usize| match self.class[i] {
            Class::Sum | Class::Carry => Some("addition"),
            Class::Count => Some("counting"),
            Class::Copy => Some("copying"),
            Class::Sort => Some("sorting"),
            Class::Answer => Some("answer"),
            _ => None,
        };
        let mut out: BTreeMap<&'static str, Exact> = BTreeMap::new();
        let mut i = 0;
        while i < self.class.len() {
            let row_end = (i / length + 1) * length;
            let end = (i..row_end).find(|&j| kind(j) != kind(i)).unwrap_or(row_end);
            if let Some(kind) = kind(i) {
                let entry = out.entry(kind).or_default();
                entry.results += 1;
                entry.right += usize::from(self.right[i..end].iter().all(|&right| right));
            }
            i = end;
        }
        out
    }
}

fn ints<B: CompactBackend>(tensor: Tensor<B, 1, Int>) -> Vec<i64> {
    tensor.into_data().convert::<i64>().into_vec().unwrap_or_default()
}
