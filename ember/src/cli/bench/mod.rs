//! `ember bench`: prefill and decode speed, with the bytes that explain it.

mod args;
mod measure;
mod report;

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
pub use args::BenchArgs;
use emberlm::backends::cpu;
use emberlm::demo;
use emberlm::model::checkpoint::OpenOptions;
use emberlm::model::config::{CrestOverrides, Family};
use emberlm::model::{Architecture, CausalLm, LoadPlan, Pretrained, WeightOptions};
use emberlm::quant::{Activations, CompactBackend};
use emberlm_random::{RandomWeights, shapes};
use measure::Bench;
use report::{Report, table};

use super::args::by_flag_of;
use super::backend::{OpenDevice, WithBackend, on_device};
use super::device_args::DeviceArgs;
use super::memory::peak_rss;
use super::{load, model_name, output};

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<()> {
    let device = DeviceArgs { device: args.device, activations: args.activations, threads: None };
    on_device(&device, Activations::Auto, args)
}

impl WithBackend for &BenchArgs {
    type Output = ();

    fn run<B: CompactBackend>(self, device: &OpenDevice<B>) -> Result<()> {
        bench(self, device)
    }
}

fn bench<B: CompactBackend>(args: &BenchArgs, device: &OpenDevice<B>) -> Result<()> {
    let depth = CrestOverrides {
        num_steps: args.force_steps.iter().copied().max(),
        halt_enabled: (!args.force_steps.is_empty()).then_some(false),
        halt_threshold: args.threshold,
        ..Default::default()
    };
    let started = Instant::now();
    let Loaded { name, plan, mut model, known_ids } = load(args, &depth, device)?;
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
        activations: device.arithmetic_with(&plan),
        cache_hidden: args.hidden.cache_hidden,
        read_gb_per_second: Vec::new(),
    };
    let counts = match &device.gpu {
        // The processor only feeds a GPU.
        Some(_) => vec![1],
        None if args.threads.is_empty() => vec![cpu::threads()],
        None => args.threads.iter().map(|&threads| threads.into()).collect(),
    };
    for &threads in &counts {
        let mut bench = Bench { args, model: &mut model, plan: &plan, known_ids, threads, device };
        let results = if device.gpu.is_some() {
            bench.run_all()?
        } else {
            cpu::with_threads(threads, || bench.run_all()).with_context(|| format!("--threads {threads}"))??
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
    std::io::stdout().write_all(text.as_bytes()).context(output::STDOUT)
}

/// Names flags where the library names options.
fn by_flag(error: emberlm::model::Error) -> anyhow::Error {
    let flags = [
        ("crest.num_steps", "--force-steps"),
        ("crest.halt_enabled", "--force-steps"),
        ("depth.steps", "--force-steps"),
        ("crest.halt_threshold", "--threshold"),
        ("cache_hidden", "--cache-hidden"),
    ];
    by_flag_of(&flags, error)
}

/// Above four times the last-level cache of the machines that this is used on, in bytes.
const READ_BUFFER: usize = 512 << 20;

/// What is measured.
struct Loaded<B: CompactBackend> {
    name: String,
    plan: LoadPlan,
    model: CausalLm<B>,
    /// Ids below this have a row in the embedding.
    known_ids: usize,
}

fn load<B: CompactBackend>(args: &BenchArgs, depth: &CrestOverrides, device: &OpenDevice<B>) -> Result<Loaded<B>> {
    let storage = load::Storage { quant: args.quant(), head: args.quant_head, in_memory: args.no_mmap };
    let quantize = storage.quant.option();
    let Some(name) = args.shape.clone() else {
        let pretrained = match &args.model {
            Some(name) => {
                let path = model_name::directory(name, &args.hub)?;
                Pretrained::open_with(path, OpenOptions { allow_links: args.allow_links })?
            }
            None => demo::open()?,
        };
        let mut pretrained = pretrained.depth(depth).map_err(by_flag)?;
        if args.hidden.cache_hidden {
            pretrained = pretrained.cache_hidden().map_err(by_flag)?;
        }
        fits(args, pretrained.architecture())?;
        let pretrained = load::prepare(pretrained, storage, device)?;
        let plan = pretrained.plan::<B>(&device.device)?;
        let name = pretrained.directory().display().to_string();
        let known_ids = pretrained.architecture().config.vocab_size;
        return Ok(Loaded { name, plan, model: pretrained.load(&device.device)?, known_ids });
    };
    let mut architecture = shapes::shape(&name, depth).map_err(by_flag)?;
    if args.hidden.cache_hidden {
        architecture.cache_hidden().map_err(by_flag)?;
    }
    fits(args, &architecture)?;
    // The storage that the family is published in, unless another one is asked for.
    let nano = architecture.config.family == Family::Qwen2 && quantize.is_none() && name.starts_with("nano");
    let weights = if nano {
        RandomWeights::nano(&architecture, SEED)
    } else {
        let weights = RandomWeights::new(&architecture, quantize, storage.head.option(quantize.is_some()), SEED);
        let as_stored = storage.embedding::<B>(&architecture, quantize.is_some()).is_none();
        match as_stored && load::is_in_place::<B>(&architecture) {
            true => weights.embedding_in_place(),
            false => weights,
        }
    };
    let known_ids = weights.known_ids();
    let options = WeightOptions::default();
    let plan = CausalLm::<B>::plan(&architecture, &weights, options, &device.device)?;
    output::note(&format!("{name}: making {} of random weights", output::bytes(plan.weight_bytes())));
    let mut model = CausalLm::load(architecture, &weights, options, &plan, &device.device, None)?;
    model.set_activations(device.activations)?;
    Ok(Loaded { name, plan, model, known_ids })
}

/// Whether everything to be measured fits the context, and drafts the model.
fn fits(args: &BenchArgs, architecture: &Architecture) -> Result<()> {
    let context = architecture.config.max_position_embeddings;
    let longest = args.n_prompt.iter().chain(&args.n_gen).copied().max().unwrap_or(0);
    ensure!(longest > 0, "-p 0 and -n 0 leave nothing to measure");
    ensure!(!args.force_steps.contains(&0), "--force-steps is 0, expected numbers from 1 on");
    let needed = args.context.iter().copied().max().unwrap_or(0).saturating_add(longest);
    ensure!(needed <= context, "{needed} tokens do not fit the context of {context}");
    args.draft(architecture.crest.as_ref().map(|crest| crest.num_steps)).map(drop)
}

const SEED: u64 = 42;
