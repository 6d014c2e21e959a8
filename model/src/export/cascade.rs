//! Choosing how narrow the rows of each module may be (Nano compact): by what the whole model says afterwards.
//!
//! The rule is that of Nano compact's author where it is known: rows are split by their RMS, the candidates of a module are widths of
//! the narrow rows times numbers of rows that keep 8 bits, and one is accepted while the cosine between the logits that follow given
//! prompts, of the changed and of the original model, is at least `min_cosine`. Modules are taken in order, each on top of those before.
//! What may be lost is spread: after `i` of `m` modules the cosine must be at least `1 - (1 - min_cosine) * i / m`, else the first
//! modules would take all of it.

use std::collections::BTreeMap;

use burn::tensor::Transaction;
use emberlm_quant::CompactBackend;
use emberlm_quant::format::{quantize_int8_rows, quantize_truequant};
use emberlm_quant::host::HostWeight;
use emberlm_quant::kv::KvFormat;

use super::matrix::MatrixFormat;
use crate::causal_lm::{CausalLm, ForwardOptions, LogitsFor};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::Weights;
use crate::error::{Error, Result};
use crate::loader::{self, SourceEntry, WeightOptions, WeightSource};
use crate::nn::Span;
use crate::plan::{PlannedTensor, QuantizeOnLoad};
use crate::pretrained::Pretrained;
use crate::read::{elements, read_back};

/// What is tried, and what is accepted.
#[derive(Clone, Debug)]
pub struct CascadeOptions {
    /// Cosine between the logits after a prompt, of the changed and of the original model: the least over all prompts.
    pub min_cosine: f64,
    /// Widths of narrow rows, of 2, 4, 6 and 8. Files store rows of 6 bits in 8, so that they save nothing over 8.
    pub bits: Vec<u32>,
    /// Shares of the rows that keep 8 bits, from 0 to 1.
    pub kept: Vec<f64>,
}

impl Default for CascadeOptions {
    fn default() -> Self {
        Self { min_cosine: 0.99, bits: vec![2, 4], kept: vec![0.0, 0.125, 0.25, 0.375, 0.5] }
    }
}

/// What became of a module.
#[derive(Clone, Debug)]
pub struct CascadeModule {
    /// Canonical name of its weight.
    pub name: String,
    /// `[outputs, inputs]`.
    pub shape: [usize; 2],
    /// How it is to be written.
    pub format: MatrixFormat,
    /// Cosine of the model with this module and all before it.
    pub cosine: f64,
    /// Candidates that were tried.
    pub tried: usize,
}

impl Pretrained {
    /// Finds a format for each of the matrices `modules`, which must be dense, in the order of the model. `fixed` are matrices whose
    /// rows get 8 bits whatever that does to the cosine. `prompts` are ids of tokens; `progress` is told after every module how many
    /// of how many are done.
    ///
    /// # Errors
    /// [`Error::Option`] for options out of range or without a prompt; what [`load`](Self::load) and [`CausalLm::forward`] name.
    pub fn choose_rows<B: CompactBackend>(
        &self,
        device: &B::Device,
        prompts: &[Vec<u32>],
        options: &CascadeOptions,
        fixed: impl Fn(&PlannedTensor) -> bool,
        modules: impl Fn(&PlannedTensor) -> bool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<CascadeModule>> {
        check(options, prompts)?;
        let tensors = loader::plan(self.architecture(), self.weights(), WeightOptions::default())?.tensors;
        let mut trial =
            Trial { pretrained: self, prompts, source: Replaced::new(self.weights()), device, expected: Vec::new() };
        trial.expected = trial.logits::<B>()?;
        let mut out = Vec::new();
        for tensor in tensors.iter().filter(|tensor| tensor.stored.is_dense() && fixed(tensor)) {
            trial.source.replace(tensor, Candidate::Wide)?;
            let cosine = trial.cosine::<B>()?;
            out.push(module(tensor, Candidate::Wide.format(), cosine, 1));
        }
        let chosen: Vec<&PlannedTensor> = tensors.iter().filter(|t| t.stored.is_dense() && modules(t)).collect();
        for (at, tensor) in chosen.iter().enumerate() {
            let share = at.saturating_add(1) as f64 / chosen.len() as f64;
            let limit = 1.0 - (1.0 - options.min_cosine) * share;
            out.push(trial.choose::<B>(tensor, options, limit)?);
            progress(at.saturating_add(1), chosen.len());
        }
        Ok(out)
    }
}

fn module(tensor: &PlannedTensor, format: MatrixFormat, cosine: f64, tried: usize) -> CascadeModule {
    let shape = [0, 1].map(|at| tensor.shape.get(at).copied().unwrap_or(0));
    CascadeModule { name: tensor.name.clone(), shape, format, cosine, tried }
}

fn check(options: &CascadeOptions, prompts: &[Vec<u32>]) -> Result<()> {
    let fail = |option: &str, message: String| Err(Error::Option { option: option.into(), message });
    if !(0.0..=1.0).contains(&options.min_cosine) {
        return fail("min_cosine", format!("is {}, expected a number from 0 to 1", options.min_cosine));
    }
    if let Some(bits) = options.bits.iter().find(|bits| !matches!(bits, 2 | 4 | 6 | 8)) {
        return fail("bits", format!("is {bits}, expected 2, 4, 6 or 8"));
    }
    if let Some(kept) = options.kept.iter().find(|kept| !(0.0..=1.0).contains(*kept)) {
        return fail("kept", format!("is {kept}, expected a share from 0 to 1"));
    }
    if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
        return fail("prompts", "are none, or one has no tokens".into());
    }
    Ok(())
}

/// How a module may be stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Candidate {
    /// All rows of 8 bits.
    Wide,
    Mixed {
        bits: u32,
        keep: usize,
    },
}

impl Candidate {
    fn format(self) -> MatrixFormat {
        match self {
            Self::Wide => MatrixFormat::Quantized(QuantizeOnLoad::Int8Rows),
            Self::Mixed { bits, keep } => MatrixFormat::MixedRows { bits, keep },
        }
    }

    fn apply(self, weight: &HostWeight) -> emberlm_quant::Result<HostWeight> {
        match self {
            Self::Wide => quantize_int8_rows(weight),
            Self::Mixed { bits, keep } => quantize_truequant(weight, bits, keep),
        }
    }
}

/// Candidates of a module of `n` rows, the smallest first.
fn candidates(options: &CascadeOptions, n: usize) -> Vec<Candidate> {
    let mut out: Vec<(f64, Candidate)> = Vec::new();
    for &bits in &options.bits {
        for share in &options.kept {
            let keep = ((n as f64 * share).round() as usize).min(n);
            let share = keep as f64 / n.max(1) as f64;
            let size = f64::from(bits) * (1.0 - share) + 8.0 * share;
            if size < 8.0 && !out.iter().any(|(_, known)| *known == Candidate::Mixed { bits, keep }) {
                out.push((size, Candidate::Mixed { bits, keep }));
            }
        }
    }
    out.sort_by(|a, b| a.0.total_cmp(&b.0));
    out.into_iter().map(|(_, candidate)| candidate).chain([Candidate::Wide]).collect()
}

/// A model that is changed module by module.
struct Trial<'a, D> {
    pretrained: &'a Pretrained,
    prompts: &'a [Vec<u32>],
    source: Replaced<'a>,
    device: &'a D,
    /// Logits after each prompt, of the original.
    expected: Vec<Vec<f32>>,
}

impl<D> Trial<'_, D> {
    /// The smallest candidate with which the cosine is at least `limit`. Larger ones are taken to be better, so that halving finds it.
    fn choose<B: CompactBackend<Device = D>>(
        &mut self,
        tensor: &PlannedTensor,
        options: &CascadeOptions,
        limit: f64,
    ) -> Result<CascadeModule> {
        let candidates = candidates(options, tensor.shape.first().copied().unwrap_or(0));
        let (mut low, mut high) = (0, candidates.len());
        let (mut best, mut tried, mut last) = (None, 0usize, None);
        while low < high {
            let middle = low.midpoint(high);
            let Some(&candidate) = candidates.get(middle) else { break };
            self.source.replace(tensor, candidate)?;
            let cosine = self.cosine::<B>()?;
            tried = tried.saturating_add(1);
            last = Some(candidate);
            if cosine >= limit {
                (best, high) = (Some((candidate, cosine)), middle);
            } else {
                low = middle.saturating_add(1);
            }
        }
        let Some((candidate, cosine)) = best else {
            // Not even 8 bits are good enough here: it stays as it is.
            self.source.keep(&tensor.name);
            return Ok(module(tensor, MatrixFormat::AsStored, self.cosine::<B>()?, tried));
        };
        if last != Some(candidate) {
            self.source.replace(tensor, candidate)?;
        }
        Ok(module(tensor, candidate.format(), cosine, tried))
    }

    /// The least cosine over the prompts.
    fn cosine<B: CompactBackend<Device = D>>(&self) -> Result<f64> {
        let found = self.logits::<B>()?;
        Ok(least(found.iter().zip(&self.expected).map(|(found, expected)| cosine(found, expected))))
    }

    /// Logits after each prompt.
    fn logits<B: CompactBackend<Device = D>>(&self) -> Result<Vec<Vec<f32>>> {
        let (architecture, options) = (self.pretrained.architecture(), WeightOptions::default());
        let plan = CausalLm::<B>::plan(architecture, &self.source, options, self.device)?;
        let model = CausalLm::<B>::load(architecture.clone(), &self.source, options, &plan, self.device, None)?;
        let mut caches: Vec<_> = self.prompts.iter().map(|_| model.new_cache(KvFormat::F32)).collect();
        let ids: Vec<u32> = self.prompts.concat();
        let mut spans: Vec<_> =
            self.prompts.iter().zip(&mut caches).map(|(prompt, cache)| Span::new(prompt.len(), cache)).collect();
        let wanted = ForwardOptions { logits: LogitsFor::Last, hidden: false };
        let out = model.forward(model.ids(&ids)?, &mut spans, wanted)?;
        let logits = out.logits.ok_or_else(|| Error::Prompt("it has no logits".into()))?;
        let [_, vocabulary] = logits.dims();
        let numbers: Vec<f32> = elements(read_back(Transaction::default().register(logits))?.next())?;
        Ok(numbers.chunks(vocabulary.max(1)).map(<[f32]>::to_vec).collect())
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

/// The least of some cosines, at most 1; NaN, which is no agreement, where any of them is.
fn least(cosines: impl Iterator<Item = f64>) -> f64 {
    cosines.fold(1.0, |least, cosine| if least.is_nan() || cosine >= least { least } else { cosine })
}

/// A checkpoint some of whose matrices are replaced.
struct Replaced<'a> {
    weights: &'a Weights,
    matrices: BTreeMap<String, (HostWeight, MatrixFormat)>,
}

impl<'a> Replaced<'a> {
    fn new(weights: &'a Weights) -> Self {
        Self { weights, matrices: BTreeMap::new() }
    }

    fn replace(&mut self, tensor: &PlannedTensor, candidate: Candidate) -> Result<()> {
        let fail = |error: emberlm_quant::Error| CheckpointError::of_tensor(&tensor.name, error.to_string());
        let weight = candidate.apply(&self.weights.matrix(&tensor.name)?).map_err(fail)?;
        self.matrices.insert(tensor.name.clone(), (weight, candidate.format()));
        Ok(())
    }

    fn keep(&mut self, name: &str) {
        self.matrices.remove(name);
    }
}

impl WeightSource for Replaced<'_> {
    fn entry(&self, name: &str, expected: &[usize]) -> Option<SourceEntry> {
        let entry = WeightSource::entry(self.weights, name, expected)?;
        Some(match self.matrices.get(name) {
            Some((weight, format)) => {
                SourceEntry { storage: format.storage(entry.storage), bytes: weight.bytes(), ..entry }
            }
            None => entry,
        })
    }

    fn optional(&self, name: &str) -> Option<Vec<usize>> {
        WeightSource::optional(self.weights, name)
    }

    fn matrix(&self, name: &str, n: usize, k: usize) -> Result<HostWeight> {
        match self.matrices.get(name) {
            Some((weight, _)) => Ok(weight.clone()),
            None => WeightSource::matrix(self.weights, name, n, k),
        }
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        WeightSource::vector(self.weights, name, len)
    }

    fn names(&self) -> Vec<String> {
        WeightSource::names(self.weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_ascend_and_are_below_eight_bits() {
        let options = CascadeOptions { bits: vec![2, 4, 8], ..CascadeOptions::default() };
        let found = candidates(&options, 8);
        let mixed = |bits, keep| Candidate::Mixed { bits, keep };
        let expected = [
            mixed(2, 0),
            mixed(2, 1),
            mixed(2, 2),
            mixed(4, 0),
            mixed(2, 3),
            mixed(4, 1),
            mixed(2, 4),
            mixed(4, 2),
            mixed(4, 3),
            mixed(4, 4),
            Candidate::Wide,
        ];
        assert_eq!(found, expected);
        // Of one row no share is left.
        assert_eq!(candidates(&options, 1), [mixed(2, 0), mixed(4, 0), Candidate::Wide]);
    }

    #[test]
    fn what_is_no_number_agrees_with_nothing() {
        assert_eq!(cosine(&[1.0, 0.0], &[2.0, 0.0]), 1.0);
        assert!(cosine(&[f32::NAN, 0.0], &[2.0, 0.0]).is_nan());
        assert_eq!(least([0.9, 0.5, 0.7].into_iter()), 0.5);
        // Whichever prompt it is.
        for at in 0..3 {
            let mut cosines = [0.9, 0.9, 0.9];
            cosines[at] = f64::NAN;
            assert!(least(cosines.into_iter()).is_nan(), "prompt {at}");
        }
    }
}
