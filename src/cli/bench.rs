//! `ember bench`: prefill and decode speed, with the bytes that explain it.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use emberlm::demo;
use emberlm::model::cache::Cache;
use emberlm::model::checkpoint::OpenOptions;
use emberlm::model::config::{CrestOverrides, Family};
use emberlm::model::sampling::{Sampler, SamplingConfig};
use emberlm::model::{
    Architecture, CausalLm, ForwardOptions, LoadPlan, LogitsFor, Part, Pretrained, Span, WeightOptions,
};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;
use emberlm::quant::read::reads;
use emberlm_backends::cpu;
use emberlm_random::{RandomWeights, shapes};
use serde::Serialize;

use super::args::{Activations, CacheType, DeviceArgs, Quant, QuantHead};
use super::backend::{DeviceChoice, Opened, Work, on_device};
use super::memory::peak_rss;
use super::{load, output};

/// Flags of `ember bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Model directory [default: a small model that is part of the program]
    #[arg(short, long, value_name = "DIR", conflicts_with = "shape")]
    model: Option<PathBuf>,

    /// Follow links in the model directory that lead out of it
    #[arg(long)]
    allow_links: bool,

    /// Random weights of a known shape (bench-1b, crest-2b, crest-11b, sky-lite, lean-8b, nano-3b) or of a config.json
    #[arg(long, value_name = "NAME|FILE.json")]
    shape: Option<String>,

    /// Storage of the linear layers
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    quant: Quant,

    /// Storage of the embedding and the head
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    quant_head: QuantHead,

    /// Prompt lengths to measure
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "128,512", value_name = "N,..")]
    n_prompt: Vec<usize>,

    /// Tokens to generate; 0 leaves decoding out
    #[arg(short = 'n', long, default_value_t = 64, value_name = "N")]
    n_gen: usize,

    /// Tokens already in the cache before a measurement
    #[arg(short = 'd', long, default_value_t = 0, value_name = "N")]
    depth: usize,

    /// Fill the cache of `--depth` with random numbers instead of computing it
    #[arg(long, requires = "depth")]
    random_depth: bool,

    /// Thread counts to measure
    #[arg(short, long, value_delimiter = ',', value_name = "N,..", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,

    /// Repetitions of each measurement
    #[arg(short, long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,

    /// Tokens per pass over a prompt
    #[arg(long, default_value_t = 512, value_name = "N")]
    chunk: usize,

    /// Type of activations; on a GPU int8 is f32
    #[arg(long, value_enum, default_value = "int8", value_name = "TYPE")]
    activations: Activations,

    /// Number format of cached keys and values
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    cache_type: CacheType,

    /// Run exactly K steps for every token (CREST); several are measured in turns. Steps beyond the largest K are
    /// not loaded
    #[arg(long, value_delimiter = ',', value_name = "K,..", conflicts_with = "threshold")]
    force_steps: Vec<usize>,

    /// Threshold at which a token halts (CREST)
    #[arg(long, value_name = "T")]
    threshold: Option<f32>,

    /// Device: auto, cpu, wgpu, wgpu:N, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,

    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    results: Vec<Measurement>,
    peak_rss_bytes: u64,
    load_seconds: f64,
    model: String,
    family: String,
    parameters: usize,
    weight_bytes: usize,
    device: String,
    cpu_features: Vec<&'static str>,
    /// `exact` or `int8`; on a GPU `f32`, `f16` or `bf16`.
    activations: String,
    /// What a plain read loop reaches, per thread count, in the same process.
    read_gb_per_second: Vec<(usize, f64)>,
}

/// One test at one thread count.
#[derive(Debug, Serialize)]
struct Measurement {
    /// `pp128`: a prompt of 128 tokens; `tg64`: 64 tokens one at a time.
    test: String,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    threads: usize,
    /// Median.
    tokens_per_second: f64,
    best_tokens_per_second: f64,
    /// Weights that one token reads (for a prompt: that the whole pass reads, per token).
    bytes_per_token: f64,
    gb_per_second: f64,
    /// Steps per layer and token (CREST).
    mean_steps: Option<f64>,
    cache_bytes: usize,
    /// Kernels of this project per pass (a token, or a whole prompt); none on the CPU. Those of burn's own operations (copies,
    /// small element-wise ones) are not counted: CubeCL keeps no count.
    launches: Option<f64>,
    /// How often a pass waited for the device to give numbers back (a generated token once, for its id); none on the CPU.
    read_backs: Option<f64>,
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<()> {
    let device = DeviceArgs { device: args.device, activations: Some(args.activations), threads: None };
    on_device(&device, args.activations, args)
}

impl Work for &BenchArgs {
    type Output = ();

    fn run<B: CompactBackend>(self, device: &Opened<B>) -> Result<()> {
        bench(self, device)
    }
}

fn bench<B: CompactBackend>(args: &BenchArgs, device: &Opened<B>) -> Result<()> {
    let depth = CrestOverrides {
        num_steps: args.force_steps.iter().copied().max(),
        halt_enabled: (!args.force_steps.is_empty()).then_some(false),
        halt_threshold: args.threshold,
        ..Default::default()
    };
    let started = Instant::now();
    let (name, plan, mut model) = load(args, &depth, device)?;
    model.set_activations(device.activations)?;
    let _ = B::sync(&device.device);
    let load_seconds = started.elapsed().as_secs_f64();
    let family = model.architecture().config.family;
    output::note(&format!(
        "{name}: {} parameters, {} of weights, loaded in {load_seconds:.1} s",
        output::count(plan.parameters()),
        output::bytes(plan.weight_bytes())
    ));

    let mut report = Report {
        results: Vec::new(),
        peak_rss_bytes: 0,
        load_seconds,
        model: name,
        family: family.to_string(),
        parameters: plan.parameters(),
        weight_bytes: plan.weight_bytes(),
        device: device.name.clone(),
        cpu_features: cpu::features(),
        activations: device.arithmetic(),
        read_gb_per_second: Vec::new(),
    };
    let counts = match &device.gpu {
        // The processor only feeds a GPU.
        Some(_) => vec![1],
        None if args.threads.is_empty() => vec![cpu::threads()],
        None => args.threads.iter().map(|&threads| threads.into()).collect(),
    };
    for &threads in &counts {
        let mut bench = Bench { args, model: &mut model, plan: &plan, threads, device };
        let results = if device.gpu.is_some() {
            bench.all()?
        } else {
            cpu::with_threads(threads, || bench.all()).with_context(|| format!("--threads {threads}"))??
        };
        report.results.extend(results);
        // Before the buffer below adds to it.
        report.peak_rss_bytes = report.peak_rss_bytes.max(peak_rss().unwrap_or(0));
    }
    match &device.gpu {
        Some(gpu) => report.read_gb_per_second.push((1, (gpu.read_bandwidth)() / 1e9)),
        None => {
            for &threads in &counts {
                let speed = cpu::with_threads(threads, || cpu::read_bandwidth(READ_BUFFER, 3))
                    .with_context(|| format!("--threads {threads}"))?;
                report.read_gb_per_second.push((threads, speed));
            }
        }
    }
    let text = if args.json { serde_json::to_string(&report)? + "\n" } else { table(&report) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Above four times the last-level cache of the machines that this is used on, in bytes.
const READ_BUFFER: usize = 512 << 20;

fn load<B: CompactBackend>(
    args: &BenchArgs,
    depth: &CrestOverrides,
    device: &Opened<B>,
) -> Result<(String, LoadPlan, CausalLm<B>)> {
    let quantize = args.quant.option();
    let Some(name) = args.shape.clone() else {
        let pretrained = match &args.model {
            Some(path) => Pretrained::open_with(path, depth, OpenOptions { allow_links: args.allow_links })?,
            None => demo::open(depth)?,
        };
        fits(args, pretrained.architecture())?;
        let options = load::weight_options::<B>(args.quant, args.quant_head, &pretrained, &device.device)?;
        let plan = pretrained.plan::<B>(options, &device.device)?;
        let name = pretrained.directory().display().to_string();
        return Ok((name, plan, pretrained.load(options, &device.device, None)?));
    };
    let architecture = shapes::shape(&name, depth)?;
    fits(args, &architecture)?;
    // The storage that the family is published in, unless another one is asked for.
    let nano = architecture.config.family == Family::Qwen2 && quantize.is_none() && name.starts_with("nano");
    let weights = if nano {
        RandomWeights::nano(&architecture, SEED)
    } else {
        RandomWeights::new(&architecture, quantize, args.quant_head.option(quantize.is_some()), SEED)
    };
    let options = WeightOptions::default();
    let plan = CausalLm::<B>::plan(&architecture, &weights, options, &device.device)?;
    output::note(&format!("{name}: making {} of random weights", output::bytes(plan.weight_bytes())));
    let model = CausalLm::load(architecture, &weights, options, &plan, &device.device, None)?;
    Ok((name, plan, model))
}

/// Whether everything to be measured fits the context.
fn fits(args: &BenchArgs, architecture: &Architecture) -> Result<()> {
    let context = architecture.config.max_position_embeddings;
    let longest = args.n_prompt.iter().copied().chain([args.n_gen]).max().unwrap_or(0);
    let needed = args.depth.saturating_add(longest);
    ensure!(needed <= context, "{needed} tokens do not fit the context of {context}");
    Ok(())
}

const SEED: u64 = 42;

/// Of the process so far.
#[derive(Clone, Copy, Default)]
struct Counts {
    launches: u64,
    read_backs: u64,
}

struct Bench<'a, B: CompactBackend> {
    args: &'a BenchArgs,
    model: &'a mut CausalLm<B>,
    plan: &'a LoadPlan,
    threads: usize,
    device: &'a Opened<B>,
}

/// What is repeated.
#[derive(Clone, Copy)]
enum Test {
    /// One pass over so many tokens from an empty cache, logits of the last.
    Prompt(usize),
    /// So many greedy tokens, one at a time.
    Generation(usize),
}

/// The repetitions of one test at one depth; the first is for warming up.
#[derive(Default)]
struct Runs {
    seconds: Vec<f64>,
    /// Of the last one.
    before: Counts,
    after: Counts,
    ids: Vec<u32>,
    cache_bytes: usize,
}

impl<B: CompactBackend> Bench<'_, B> {
    /// Every test at every depth, by depth. Depths take turns, so that a machine whose speed drifts treats them alike.
    fn all(&mut self) -> Result<Vec<Measurement>> {
        let prompts = self.args.n_prompt.iter().filter(|&&n| n > 0).map(|&n| Test::Prompt(n));
        let generation = (self.args.n_gen > 0).then_some(Test::Generation(self.args.n_gen));
        let depths = self.depths();
        let mut measurements: Vec<Vec<Measurement>> = depths.iter().map(|_| Vec::new()).collect();
        for test in prompts.chain(generation) {
            let mut cache = self.model.new_cache(self.args.cache_type.into());
            let mut runs: Vec<Runs> = depths.iter().map(|_| Runs::default()).collect();
            for _ in 0..=self.args.repetitions {
                for (&depth, runs) in depths.iter().zip(&mut runs) {
                    self.set_depth(depth);
                    self.once(test, &mut cache, runs)?;
                }
            }
            for ((&depth, runs), measurements) in depths.iter().zip(&runs).zip(&mut measurements) {
                self.set_depth(depth);
                measurements.push(self.measurement(test, runs)?);
            }
        }
        Ok(measurements.into_iter().flatten().collect())
    }

    /// The steps to force, or the model's own rule.
    fn depths(&self) -> Vec<Option<usize>> {
        let forced: Vec<_> = self.args.force_steps.iter().copied().map(Some).collect();
        if forced.is_empty() { vec![None] } else { forced }
    }

    fn set_depth(&mut self, steps: Option<usize>) {
        if let Some(steps) = steps {
            self.model.set_depth(steps, false, 1.0);
        }
    }

    fn once(&self, test: Test, cache: &mut Cache<B>, runs: &mut Runs) -> Result<()> {
        self.fill(cache)?;
        let prompt = match test {
            Test::Prompt(n) => self.ids(n),
            Test::Generation(_) => self.ids(1),
        };
        let mut sampler = Sampler::new(&SamplingConfig::greedy())?;
        runs.ids.clear();
        runs.before = self.finished();
        let start = Instant::now();
        match test {
            Test::Prompt(_) => {
                self.model.prefill(&prompt, cache, self.args.chunk)?;
                runs.ids = prompt;
            }
            Test::Generation(n) => {
                let mut id = prompt.first().copied().unwrap_or_default();
                for _ in 0..n {
                    let logits = self.model.decode(id, cache)?;
                    id = sampler.choose(logits, &[])?;
                    runs.ids.push(id);
                }
            }
        }
        runs.after = self.finished();
        runs.seconds.push(start.elapsed().as_secs_f64());
        runs.cache_bytes = cache.bytes();
        Ok(())
    }

    /// Waits until everything is computed, and tells how many kernels were launched and how often numbers were read so far.
    fn finished(&self) -> Counts {
        // An error shows in whatever is read next.
        let _ = B::sync(&self.device.device);
        Counts { launches: self.device.gpu.as_ref().map_or(0, |gpu| (gpu.launches)()), read_backs: reads() }
    }

    /// Launches and read-backs per pass.
    fn counts(&self, before: Counts, after: Counts, passes: usize) -> Option<[f64; 2]> {
        let launches = after.launches - before.launches;
        let read_backs = after.read_backs - before.read_backs;
        self.device.gpu.as_ref().map(|_| [launches, read_backs].map(|count| count as f64 / passes as f64))
    }

    /// Empties the cache and puts in the tokens that a measurement starts from.
    fn fill(&self, cache: &mut Cache<B>) -> Result<()> {
        cache.reset();
        if self.args.random_depth {
            cache.append_random(self.args.depth)?;
        } else if self.args.depth > 0 {
            self.model.prefill(&self.ids(self.args.depth), cache, self.args.chunk)?;
        }
        Ok(())
    }

    fn ids(&self, n: usize) -> Vec<u32> {
        let vocabulary = self.model.architecture().config.vocab_size;
        (0..n)
            .map(|i| ((i * 7919 + 13) % vocabulary.saturating_sub(300).max(1) + 300.min(vocabulary / 2)) as u32)
            .collect()
    }

    /// Steps per layer and token when these tokens are run.
    fn mean_steps(&self, ids: &[u32]) -> Result<Option<f64>> {
        if self.model.architecture().crest.is_none() {
            return Ok(None);
        }
        let mut cache = self.model.new_cache(KvFormat::F32);
        let options = ForwardOptions { logits: LogitsFor::Nothing, hidden: false };
        let mut spans = [Span { tokens: ids.len(), cache: &mut cache }];
        let depth = self.model.forward(self.model.ids(ids)?, &mut spans, options)?.depth;
        let steps: Vec<f64> = depth
            .iter()
            .flat_map(|layer| layer.steps.to_data().convert::<f64>().into_vec::<f64>().unwrap_or_default())
            .collect();
        Ok(Some(steps.iter().sum::<f64>() / steps.len().max(1) as f64))
    }

    /// Bytes of weights that one pass reads: all but the rows of an untied embedding that are not looked up, and of CREST's MLPs
    /// the share that runs.
    fn weight_bytes(&self, mean_steps: Option<f64>) -> f64 {
        let architecture = self.model.architecture();
        let steps = architecture.crest.as_ref().map_or(1, |crest| crest.num_steps) as f64;
        let share = mean_steps.map_or(1.0, |mean| mean / steps);
        let read = self.plan.tensors.iter().map(|tensor| {
            let bytes = tensor.bytes as f64;
            match tensor.part() {
                Part::Embedding if !architecture.tied_head => 0.0,
                Part::FeedForward => bytes * share,
                _ => bytes,
            }
        });
        read.sum()
    }

    fn measurement(&self, test: Test, runs: &Runs) -> Result<Measurement> {
        let (name, n_prompt, n_gen) = match test {
            Test::Prompt(n) => (format!("pp{n}"), n, 0),
            Test::Generation(n) => (format!("tg{n}"), 0, n),
        };
        let tokens = (n_prompt + n_gen) as f64;
        let passes = match test {
            Test::Prompt(n) => n.div_ceil(self.args.chunk.max(1)),
            Test::Generation(n) => n,
        };
        let counted = if n_gen > 0 { passes } else { 1 };
        let counts = self.counts(runs.before, runs.after, counted);
        let mean_steps = self.mean_steps(&runs.ids)?;
        let bytes_per_token = self.weight_bytes(mean_steps) * passes as f64 / tokens;
        let mut seconds: Vec<f64> = runs.seconds.iter().skip(1).copied().collect();
        seconds.sort_by(f64::total_cmp);
        let nth = |i: usize| seconds.get(i).copied().unwrap_or(f64::NAN);
        let tokens_per_second = tokens / nth(seconds.len() / 2);
        Ok(Measurement {
            test: name,
            n_prompt,
            n_gen,
            n_depth: self.args.depth,
            threads: self.threads,
            tokens_per_second,
            best_tokens_per_second: tokens / nth(0),
            bytes_per_token,
            gb_per_second: tokens_per_second * bytes_per_token / 1e9,
            mean_steps,
            cache_bytes: runs.cache_bytes,
            launches: counts.map(|[launches, _]| launches),
            read_backs: counts.map(|[_, read_backs]| read_backs),
        })
    }
}

fn table(report: &Report) -> String {
    use std::fmt::Write as _;
    let mut out = format!(
        "{:<8} {:>7} {:>12} {:>12} {:>14} {:>9}",
        "test", "threads", "tokens/s", "best", "MB per token", "GB/s"
    );
    if report.results.iter().any(|result| result.mean_steps.is_some()) {
        out.push_str("   steps");
    }
    for result in &report.results {
        let Measurement {
            test,
            threads,
            tokens_per_second,
            best_tokens_per_second,
            bytes_per_token,
            gb_per_second,
            ..
        } = result;
        let mb = bytes_per_token / 1e6;
        // A small model's are not zero.
        let digits = |value: f64| if value < 1.0 { 3 } else { 1 };
        let (mb_digits, gb_digits) = (digits(mb), digits(*gb_per_second));
        let _ = write!(
            out,
            "\n{test:<8} {threads:>7} {tokens_per_second:>12.2} {best_tokens_per_second:>12.2} {mb:>14.mb_digits$} {gb_per_second:>9.gb_digits$}"
        );
        if let Some(steps) = result.mean_steps {
            let _ = write!(out, " {steps:>7.2}");
        }
        if let Some(launches) = result.launches {
            let _ = write!(out, "   {launches:.0} launches, {:.0} read-backs", result.read_backs.unwrap_or_default());
        }
    }
    for (threads, speed) in &report.read_gb_per_second {
        let _ = write!(out, "\nplain read, {threads} threads: {speed:.1} GB/s");
    }
    let _ = write!(
        out,
        "\nload {:.2} s, peak memory {}, {} ({})\n",
        report.load_seconds,
        output::bytes(report.peak_rss_bytes as usize),
        report.device,
        report.cpu_features.join(" ")
    );
    out
}
