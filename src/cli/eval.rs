//! `ember eval`: how well a model foretells a text.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use emberlm::model::evaluate::{EvaluateOptions, evaluate};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;
use serde::Serialize;

use super::args::{Activations, DepthArgs, DeviceArgs, ModelArgs};
use super::backend::{Opened, Work, on_device};
use super::estimate::Estimate;
use super::{load, output};

/// Longest text, in bytes.
const MAX_TEXT: u64 = 256 << 20;

/// Tokens that a model sees at most before it begins afresh.
const WINDOW: usize = 2048;

/// Flags of `ember eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// The text, UTF-8; - reads stdin
    #[arg(short = 'f', long, value_name = "FILE")]
    text: PathBuf,

    /// Tokens that the model sees at most before it begins afresh (2048, or its context when that is shorter)
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    context: Option<u32>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    depth: DepthArgs,

    #[command(flatten)]
    device: DeviceArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// `exp` of the mean negative log probability of a token.
    perplexity: f64,
    /// Tokens that were foretold: all but the first of each window.
    tokens: usize,
    windows: usize,
    context: usize,
    /// Of the whole text; comparable between tokenizers.
    bits_per_byte: f64,
    /// Steps per layer and token (CREST).
    mean_steps: Option<f64>,
    seconds: f64,
    tokens_per_second: f64,
}

/// Runs the command.
pub fn run(args: &EvalArgs) -> Result<()> {
    on_device(&args.device, Activations::Int8, args)
}

impl Work for &EvalArgs {
    type Output = ();

    fn run<B: CompactBackend>(self, device: &Opened<B>) -> Result<()> {
        eval(self, device)
    }
}

fn eval<B: CompactBackend>(args: &EvalArgs, device: &Opened<B>) -> Result<()> {
    let pretrained = load::open(&args.model, &args.depth)?;
    let text = read(&args.text)?;
    let ids = pretrained.text()?.encode(&text, true)?;
    ensure!(ids.len() > 1, "{}: has {} tokens; a perplexity takes at least 2", args.text.display(), ids.len());
    let architecture = pretrained.architecture();
    let limit = architecture.config.max_position_embeddings;
    let context = args.context.map_or(WINDOW.min(limit), |n| n as usize);
    ensure!(context <= limit, "--context {context} is more than the {limit} tokens of the model");
    let (quant, head) = (args.model.quant, args.model.quant_head);
    let weights = load::weight_options::<B>(quant, head, &pretrained, &device.device)?;
    let model = load::load(&pretrained, weights, device, |plan| {
        Estimate::new(architecture, plan, KvFormat::F32, context.min(ids.len()), context.min(ids.len())).note()
    })?;
    let evaluated = evaluate(&model, &ids, EvaluateOptions { window: Some(context), chunk: None })?;
    let nats = -evaluated.log_probabilities.iter().map(|&p| f64::from(p)).sum::<f64>();
    let report = Report {
        perplexity: evaluated.perplexity(),
        tokens: evaluated.log_probabilities.len(),
        windows: ids.len().div_ceil(context),
        context,
        bits_per_byte: nats / std::f64::consts::LN_2 / text.len() as f64,
        mean_steps: evaluated.mean_steps(),
        seconds: evaluated.seconds,
        tokens_per_second: ids.len() as f64 / evaluated.seconds,
    };
    let line = if args.json { serde_json::to_string(&report)? } else { report.line() };
    writeln!(io::stdout(), "{line}").context(output::STDOUT)
}

impl Report {
    fn line(&self) -> String {
        let steps = self.mean_steps.map_or_else(String::new, |steps| format!(", {steps:.2} steps per layer"));
        format!(
            "perplexity {:.4} over {} tokens ({} windows of {}), {:.4} bits per byte{steps}, {:.0} tokens/s",
            self.perplexity, self.tokens, self.windows, self.context, self.bits_per_byte, self.tokens_per_second
        )
    }
}

fn read(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let shown = path.display();
    let mut limit = |input: &mut dyn Read| input.take(MAX_TEXT + 1).read_to_end(&mut bytes);
    if path.as_os_str() == "-" {
        limit(&mut io::stdin().lock()).context("cannot read the text from stdin")?;
    } else {
        let mut file = std::fs::File::open(path).with_context(|| format!("cannot open {shown}"))?;
        limit(&mut file).with_context(|| format!("cannot read {shown}"))?;
    }
    ensure!(bytes.len() as u64 <= MAX_TEXT, "{shown}: is longer than {}", output::bytes(MAX_TEXT as usize));
    String::from_utf8(bytes).with_context(|| format!("{shown}: is not UTF-8"))
}
