//! `ember eval`: how well a model predicts a text.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use emberlm::model::evaluate::{EvaluateOptions, Evaluation, evaluate, tokens_per_pass};
use emberlm::model::text::TextProcessor;
use emberlm::quant::{Activations, CompactBackend};
use serde::Serialize;

use super::args::{CacheType, ComputeArgs, HiddenArgs, ModelArgs, by_flag};
use super::backend::{OpenDevice, WithBackend, on_device};
use super::estimate::{Estimate, cache_in_words};
use super::memory::{TokenizerMemory, peak_rss};
use super::output::counted;
use super::{load, output};

/// Longest text, in bytes.
const MAX_TEXT: u64 = 256 << 20;

/// Tokens that a model sees at most before it begins afresh.
pub const WINDOW: usize = 2048;

const ABOUT: &str = "\
A text that is longer than --context is read in windows, each from an empty cache. Every token that has one before it in its \
window is scored once. Unlike generate, eval computes exactly unless asked otherwise: activations in f32, the cache in f32, \
embedding and head as they are stored (--quant-head auto is none here). --activations int8, --cache-type f16 or q8, --cache-hidden and \
--quant-head int8 measure what each of these costs.

Perplexities compare between programs only when the windows are the same:
  transformers' guide   --stride 512 --window-bos first
  llama-perplexity      --skip N, N being half of --context and one more: the same windows but for a last one that is not \
full, which it leaves out; where there is BOS, it puts BOS in place of the first token of a window, eval before it

Bits per byte compare between tokenizers: the bits of the scored tokens over the bytes of the text that these tokens spell.

With --json one object is printed: perplexity, bits_per_byte, tokens (scored), bytes (of the scored tokens), text_tokens, \
text_bytes, windows, context, stride, skip, window_bos (always, first or never), prefix (the ids before each window, or before \
the text), activations, cache_type, cache_hidden, mean_steps (CREST), seconds, tokens_per_second, estimated_bytes (of memory, \
before loading), peak_rss_bytes.";

/// Flags of `ember eval`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// The text, UTF-8; - reads stdin
    #[arg(short = 'f', long, value_name = "FILE")]
    text: PathBuf,

    /// Tokens that the model sees at most before it begins afresh (2048, or its context when that is shorter)
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    context: Option<u32>,

    /// Tokens from the beginning of one window to that of the next; fewer than a window holds give every token more context and
    /// take longer [default: all that a window holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    stride: Option<u32>,

    /// Tokens at the beginning of each window that are context only
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: u32,

    /// Which windows begin with BOS, the token that begins a text
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    window_bos: WindowBos,

    /// Number format of cached keys and values
    #[arg(long, value_enum, default_value = "f32", value_name = "TYPE")]
    cache_type: CacheType,

    #[command(flatten)]
    hidden: HiddenArgs,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    compute: ComputeArgs,
}

/// Which windows begin with BOS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WindowBos {
    /// Every one if the tokenizer puts BOS before a text, else none
    #[default]
    Auto,
    /// Every one
    Always,
    /// The first one if the tokenizer puts BOS before a text
    First,
    /// None
    Never,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// `exp` of the mean negative log probability of a token.
    perplexity: f64,
    /// Comparable between tokenizers.
    bits_per_byte: f64,
    /// Tokens that were scored.
    tokens: usize,
    /// Of the text that the scored tokens spell.
    bytes: f64,
    text_tokens: usize,
    text_bytes: usize,
    windows: usize,
    context: usize,
    stride: usize,
    skip: usize,
    window_bos: WindowBos,
    prefix: Vec<u32>,
    activations: String,
    cache_type: &'static str,
    cache_hidden: bool,
    /// Steps per layer and token (CREST).
    mean_steps: Option<f64>,
    seconds: f64,
    tokens_per_second: f64,
    /// Memory that was said before loading, and the most that was resident; none where the system does not tell.
    estimated_bytes: usize,
    peak_rss_bytes: Option<u64>,
}

/// Runs the command.
pub fn run(args: &EvalArgs) -> Result<()> {
    on_device(&args.compute.device, Activations::F32, args)
}

impl WithBackend for &EvalArgs {
    type Output = ();

    fn run<B: CompactBackend>(self, device: &OpenDevice<B>) -> Result<()> {
        eval(self, device)
    }
}

fn eval<B: CompactBackend>(args: &EvalArgs, device: &OpenDevice<B>) -> Result<()> {
    let pretrained = load::open_exact(&args.model, &args.compute.depth, args.hidden, device)?;
    let text = read(&args.text)?;
    let processor = load::text(&pretrained)?;
    let tokens = Tokens::new(&processor, &text, args.window_bos)?;
    let all = tokens.ids.len() + tokens.window_prefix.len();
    ensure!(all > 1, "{}: has {}; a perplexity takes at least 2", args.text.display(), output::counted(all, "token"));
    let architecture = pretrained.architecture();
    let limit = architecture.config.max_position_embeddings;
    let context = args.context.map_or(WINDOW.min(limit), |n| n as usize);
    ensure!(context <= limit, "--context {context} is more than the {limit} tokens of the model");
    let options = EvaluateOptions {
        window: Some(context),
        stride: args.stride.map(|stride| stride as usize),
        skip: args.skip as usize,
        prefix: tokens.window_prefix.clone(),
        cache: args.cache_type.into(),
        trace: false,
        ..EvaluateOptions::default()
    };
    options.check(limit).map_err(by_flag)?;
    ensure!(
        tokens.ids.len() > options.skip,
        "no token would be scored: the text has {all} tokens, and --skip {} are context only; give a longer text or a smaller --skip",
        args.skip
    );
    let (mut estimated, mut arithmetic) = (0, String::new());
    let model = load::load(&pretrained, device, |plan| {
        arithmetic = device.arithmetic_with(plan);
        let longest = context.min(all);
        let vocabulary = architecture.config.vocab_size;
        let estimate = Estimate::new(architecture, plan, options.cache, longest, tokens_per_pass(vocabulary));
        let tokenizer = TokenizerMemory::of(&processor);
        let estimate = estimate.with_logits(vocabulary).with_tokenizer(tokenizer);
        estimated = estimate.total;
        estimate.note()
    })?;
    let evaluated = evaluate(&model, &tokens.ids, &options)?;
    let report = Report { estimated_bytes: estimated, ..Report::new(&tokens, &evaluated, &options, args, &arithmetic) };
    let line = if args.json { serde_json::to_string(&report)? } else { report.line() };
    writeln!(io::stdout(), "{line}").context(output::STDOUT)
}

/// A text as the model reads it.
pub struct Tokens {
    pub ids: Vec<u32>,
    /// Of the text, per id.
    bytes: Vec<f64>,
    /// Before every window.
    pub window_prefix: Vec<u32>,
    /// Before the text: the first of `ids`.
    text_prefix: Vec<u32>,
    bos: WindowBos,
}

impl Tokens {
    pub fn new(processor: &TextProcessor, text: &str, bos: WindowBos) -> Result<Self> {
        let plain = processor.encode(text, false)?;
        let around = processor.encode(text, true)?;
        // What the tokenizer puts before the text, and after it.
        let at = around.windows(plain.len().max(1)).position(|ids| ids == plain).unwrap_or(0);
        let (mut prefix, rest) = around.split_at(if plain.is_empty() { around.len() } else { at });
        let bos = match bos {
            WindowBos::Auto if prefix.is_empty() => WindowBos::Never,
            WindowBos::Auto => WindowBos::Always,
            WindowBos::First if prefix.is_empty() => WindowBos::Never,
            other => other,
        };
        let named = processor.special_tokens().bos.as_ref().and_then(|token| token.id);
        if bos == WindowBos::Always && prefix.is_empty() {
            prefix = named.as_slice();
            ensure!(
                !prefix.is_empty(),
                "--window-bos always: the tokenizer of this model has no BOS token; leave it out"
            );
        }
        let (window_prefix, text_prefix) = match bos {
            WindowBos::Always => (prefix, &[][..]),
            WindowBos::First => (&[][..], prefix),
            _ => (&[][..], &[][..]),
        };
        let ids = [text_prefix, rest].concat();
        // Tokens around the text spell nothing of it.
        let mut bytes = vec![0.0; text_prefix.len()];
        bytes.extend(processor.bytes_of_tokens(text, &plain));
        bytes.resize(ids.len(), 0.0);
        Ok(Self { ids, bytes, window_prefix: window_prefix.to_vec(), text_prefix: text_prefix.to_vec(), bos })
    }
}

impl Report {
    fn new(
        tokens: &Tokens,
        evaluated: &Evaluation,
        options: &EvaluateOptions,
        args: &EvalArgs,
        activations: &str,
    ) -> Self {
        let scored = evaluated.scored.iter();
        let bytes: f64 = scored.filter_map(|&place| tokens.bytes.get(place)).sum();
        let context = options.window.unwrap_or_default();
        let held = context.saturating_sub(tokens.window_prefix.len());
        Self {
            perplexity: evaluated.perplexity(),
            bits_per_byte: evaluated.nats() / std::f64::consts::LN_2 / bytes,
            tokens: evaluated.scored.len(),
            bytes,
            text_tokens: tokens.ids.len(),
            text_bytes: tokens.bytes.iter().sum::<f64>().round() as usize,
            windows: evaluated.windows,
            context,
            stride: options.stride.unwrap_or(held),
            skip: options.skip,
            window_bos: tokens.bos,
            prefix: [tokens.window_prefix.as_slice(), &tokens.text_prefix].concat(),
            activations: activations.to_owned(),
            cache_type: options.cache.as_str(),
            cache_hidden: args.hidden.cache_hidden,
            mean_steps: evaluated.mean_steps(),
            seconds: evaluated.seconds,
            tokens_per_second: evaluated.read as f64 / evaluated.seconds,
            estimated_bytes: 0,
            peak_rss_bytes: peak_rss(),
        }
    }

    fn line(&self) -> String {
        let bos = match self.window_bos {
            WindowBos::Always => ", BOS before each",
            WindowBos::First => ", BOS before the text",
            _ => ", no BOS",
        };
        let stride = match self.stride + self.prefix.len() {
            stride if stride >= self.context => String::new(),
            _ => format!(", one every {}", self.stride),
        };
        let skip = if self.skip > 0 {
            format!(", the first {} of each skipped", counted(self.skip, "token"))
        } else {
            String::new()
        };
        let steps = self.mean_steps.map_or_else(String::new, |steps| format!(", {steps:.2} steps per layer"));
        format!(
            "perplexity {:.4} over {} ({} of {}{stride}{bos}{skip}), {:.4} bits per byte{steps}, \
             {}, {}, {:.0} tokens/s",
            self.perplexity,
            counted(self.tokens, "token"),
            counted(self.windows, "window"),
            self.context,
            self.bits_per_byte,
            if self.activations == "exact" {
                "exact arithmetic".to_owned()
            } else {
                format!("{} activations", self.activations)
            },
            cache_in_words(self.cache_type, self.cache_hidden),
            self.tokens_per_second
        )
    }
}

/// A text in UTF-8 of up to 256 MiB; `-` is stdin.
pub fn read(path: &Path) -> Result<String> {
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
