//! `ember dump`: everything a model computes for given tokens, in a file.

use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Result, anyhow, ensure};
use burn::tensor::Tensor;
use clap::{Args, ValueEnum};
use emberlm::model::cache::Cache;
use emberlm::model::sampling::{Sampler, SamplingConfig};
use emberlm::model::{CausalLm, ForwardOptions, LogitsFor, Span, WeightOptions};
use emberlm::quant::kv::KvFormat;
use emberlm::quant::{Activations, CompactBackend};

use crate::cli::args::{ComputeArgs, HiddenArgs, ModelArgs, by_flag};
use crate::cli::backend::{OpenDevice, WithBackend, on_device};
use crate::cli::tensor_file::{Array, Numbers, OutputFile, Tokens};
use crate::cli::{load, output};

mod record;

use record::{Record, floats};

const ABOUT: &str = "\
IN holds `input_ids` I64 or I32 [B, T] and may hold `attention_mask` I64 or I32 [B, T] (padding on the left only).

OUT gets, with L layers, hidden size D, vocabulary V and K steps; values at padding are 0:
  logits          F32 [B, T, V]
  hidden.{l}      F32 [B, T, D]       0: embedding; l: residual stream after layer l - 1, before the last norm
  final_hidden    F32 [B, T, D]       after the last norm
  crest.steps     I32 [L, B, T]       steps run (CREST; so are the next two)
  crest.halt      F32 [L, B, T, K-1]  halting probability, 0 after the token halted
  crest.weights   F32 [L, B, T, K]    mixing weights
  greedy          I64 [B, N]          with --greedy N

The cache is exact (F32).";

/// Flags of `ember dump`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct DumpArgs {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    hidden: HiddenArgs,

    /// Tokens, a safetensors file
    #[arg(long, value_name = "IN")]
    input: PathBuf,

    /// Where to write; nothing is left there when the command fails
    #[arg(long, value_name = "OUT")]
    out: PathBuf,

    /// Continue every row by N tokens of the largest logit, end tokens included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    greedy: Option<u32>,

    /// Repetition penalty of --greedy over prompt (without padding) and output
    #[arg(long, value_name = "R", default_value_t = 1.0, requires = "greedy", allow_negative_numbers = true)]
    repeat_penalty: f32,

    /// Feed at most N tokens per pass; all at once when absent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,

    /// Prefill K tokens, decode the rest one by one
    #[arg(long, value_name = "K")]
    prefill: Option<usize>,

    /// Rounding of weights that are stored quantised
    #[arg(long, value_enum, default_value_t, value_name = "ROUNDING")]
    rounding: Rounding,

    #[command(flatten)]
    compute: ComputeArgs,
}

/// What quantised weights are multiplied out to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Rounding {
    /// The exact product of code and scale
    #[default]
    Exact,
    /// Rounded to the type the checkpoint states, as the original runtimes do
    Stored,
}

/// Runs the command.
pub fn run(args: &DumpArgs) -> Result<()> {
    on_device(&args.compute.device, Activations::F32, args)
}

impl WithBackend for &DumpArgs {
    type Output = ();

    fn run<B: CompactBackend>(self, device: &OpenDevice<B>) -> Result<()> {
        dump(self, device)
    }
}

fn dump<B: CompactBackend>(args: &DumpArgs, device: &OpenDevice<B>) -> Result<()> {
    let same = |path: &PathBuf| std::fs::canonicalize(path).ok();
    ensure!(
        same(&args.out).is_none_or(|out| same(&args.input) != Some(out)),
        "--out {} would replace the input",
        args.out.display()
    );
    let pretrained = load::open(&args.model, &args.compute.depth, args.hidden)?;
    let config = pretrained.architecture().config.clone();
    let tokens = Tokens::read(&args.input, config.vocab_size)?;
    let (t, n) = (tokens.rows.first().map_or(0, Vec::len), args.greedy.map_or(0, |n| n as usize));
    let limit = config.max_position_embeddings;
    // The last generated token is not fed back.
    let needed = t.saturating_add(n.saturating_sub(1));
    ensure!(
        needed <= limit,
        "{t} tokens of input and {n} to generate do not fit the context of {limit}; use fewer tokens"
    );
    let sampling = SamplingConfig { repetition_penalty: args.repeat_penalty, ..SamplingConfig::greedy() };
    sampling.validate().map_err(by_flag)?;
    let out = OutputFile::create(&args.out)?;

    // What is compared with other programs changes only on demand.
    let head = args.model.quant_head.option(false);
    let options = WeightOptions {
        quantize: args.model.quant().option(),
        quantize_head: head,
        quantize_embedding: head,
        in_memory: args.model.no_mmap,
        round_to_stored: args.rounding == Rounding::Stored,
        ..WeightOptions::default()
    };
    let pretrained = pretrained.weight_options(options).activations(device.activations);
    let model = load::load(&pretrained, device, |_| String::new())?;
    let mut caches = Vec::new();
    for &pad in &tokens.left_pad {
        let mut cache = model.new_cache(KvFormat::F32);
        // Positions count slots, as transformers counts them without position ids.
        cache.begin_at(pad)?;
        cache.expect(args.prefill.unwrap_or(t).min(t).saturating_sub(pad));
        caches.push(cache);
    }
    let mut record = Record::new(&tokens);
    let mut last = None;
    for pass in passes(t, args.prefill.unwrap_or(t), args.chunk.map_or(t, |n| n as usize)) {
        let slots: Vec<Range<usize>> = tokens.left_pad.iter().map(|&pad| pad.max(pass.start)..pass.end).collect();
        let rows = tokens.rows.iter().zip(&slots).filter_map(|(row, slots)| row.get(slots.clone()));
        let ids: Vec<u32> = rows.flatten().copied().collect();
        if ids.is_empty() {
            continue;
        }
        let spans = caches.iter_mut().zip(&slots).filter(|(_, slots)| !slots.is_empty());
        let mut spans: Vec<_> = spans.map(|(cache, slots)| Span::new(slots.len(), cache)).collect();
        let options = ForwardOptions { logits: LogitsFor::All, hidden: true };
        let result = model.forward(model.ids(&ids)?, &mut spans, options)?;
        last = record.add(&slots, result)?;
    }
    let mut tensors = record.finish();
    if let Some(logits) = last.filter(|_| n > 0) {
        tensors.push(("greedy".into(), greedy(&model, &mut caches, &tokens, logits, n, &sampling)?));
    }
    let bytes = out.finish(&tensors)?;
    output::note(&format!("{}: {} tensors, {bytes} bytes", args.out.display(), tensors.len()));
    Ok(())
}

/// The first `prefill` of `t` tokens in chunks, the others one by one.
fn passes(t: usize, prefill: usize, chunk: usize) -> Vec<Range<usize>> {
    let prefill = prefill.min(t);
    let chunks = (0..prefill).step_by(chunk.max(1)).map(|start| start..prefill.min(start.saturating_add(chunk)));
    chunks.chain((prefill..t).map(|i| i..i + 1)).collect()
}

/// Continues every row by `n` tokens, from the logits of the last prompt token.
fn greedy<B: CompactBackend>(
    model: &CausalLm<B>,
    caches: &mut [Cache<B>],
    tokens: &Tokens,
    logits: Tensor<B, 2>,
    n: usize,
    sampling: &SamplingConfig,
) -> Result<Array> {
    let b = tokens.rows.len();
    let mut seen: Vec<Vec<u32>> =
        tokens.rows.iter().zip(&tokens.left_pad).map(|(row, &pad)| row.iter().skip(pad).copied().collect()).collect();
    let mut samplers = seen.iter().map(|_| Sampler::new(sampling)).collect::<emberlm::model::Result<Vec<_>>>()?;
    let (mut logits, mut next) = (logits, Vec::new());
    for step in 0..n {
        if step > 0 {
            let mut spans: Vec<_> = caches.iter_mut().map(|cache| Span::new(1, cache)).collect();
            let options = ForwardOptions { logits: LogitsFor::Last, hidden: false };
            let out = model.forward(model.ids(&next)?, &mut spans, options)?;
            logits = out.logits.ok_or_else(|| anyhow!("the pass gave no logits"))?;
        }
        let [_, v] = logits.dims();
        let mut values = floats(logits.clone())?;
        next.clear();
        for ((row, seen), sampler) in values.chunks_mut(v).zip(&mut seen).zip(&mut samplers) {
            let id = sampler.sample(row, seen)?;
            seen.push(id);
            next.push(id);
        }
    }
    let generated = seen.iter().flat_map(|seen| seen.iter().skip(seen.len() - n).map(|&id| id.into()));
    Ok(Array { shape: vec![b, n], numbers: Numbers::I64(generated.collect()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_cover_the_prompt_once() {
        assert_eq!(passes(2, 2, 2), vec![0..2; 1]);
        assert_eq!(passes(5, 9, 2), [0..2, 2..4, 4..5]);
        assert_eq!(passes(5, 3, 2), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(passes(2, 0, usize::MAX), [0..1, 1..2]);
    }
}
