//! `ember diff`: two models, tensor by tensor, and token by token of a text.

mod report;
mod text;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use emberlm::model::compare::{TextComparison, compare, compare_text};
use emberlm::model::evaluate::{EvaluateOptions, tokens_per_pass};
use emberlm::model::{Pretrained, Progress};
use emberlm::quant::kv::KvFormat;
use emberlm::quant::{Activations, CompactBackend};
use indicatif::{ProgressBar, ProgressStyle};
use report::{Report, TextReport};

use super::args::{CacheType, DepthArgs, HiddenArgs, ModelArgs, Quant, QuantHead, by_flag_of};
use super::backend::{OpenDevice, WithBackend, on_device};
use super::device_args::DeviceArgs;
use super::estimate::{Estimate, caches_hidden};
use super::eval::{self, Tokens, WINDOW, WindowBos};
use super::memory::TokenizerMemory;
use super::model_name::HubArgs;
use super::{load, output, threads};

const ABOUT: &str = "\
Tensors are compared as numbers, whatever each is stored in: BF16 with NF4, integer rows with F32. Errors are relative to A. The \
table has the largest first: the norm of A - B over the norm of A, the cosine of the angle between both, the largest difference of \
two numbers and its place, and the row with the largest relative error.

With --text both models are loaded and read the text in the same windows, as `ember eval` does: activations and cache in f32 unless \
asked otherwise; --other-cache-type and --other-cache-hidden give the second model another cache. KL is the Kullback-Leibler \
divergence of B from A, in nats per token: 0 when both give every token the same probability. Its standard error takes tokens for \
independent. The same top token is the part of the tokens for which both hold the same token most likely.

Exit codes, as of diff(1): 0 when both compute the same (every number is equal, and every key of the configs that counts), 1 when \
not, 2 after an error. How numbers are stored or cached, and who wrote the files, does not count.

With --json one object is printed: a, b (paths), same, tensors (name, shape, storage, identical, relative_error, cosine, \
max_difference, max_at, norm_ratio, not_finite, worst_rows; null is infinite), identical_tensors (how many), reshaped, only_a, only_b, \
config (same, keys: key, a, b, counts), text (tokens, windows, context, kl, kl_error, kl_99, kl_max, same_top, perplexity_a, \
perplexity_b, cache_type_a, cache_type_b, cache_hidden_a, cache_hidden_b; null without --text).

Examples:
  ember diff model-bf16 model-nf4                        what a format changes
  ember diff model-bf16 model-nf4 --text book.txt        what it costs
  ember diff M M --text book.txt --other-cache-hidden    what hidden values in the cache cost
  ember diff before after --top 0 --json                 every tensor, for a program";

/// Flags of `ember diff`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct DiffArgs {
    /// The model that errors are relative to
    #[arg(value_name = "A")]
    first: PathBuf,

    /// The other model
    #[arg(value_name = "B")]
    second: PathBuf,

    /// Tensors to show that differ most; 0 shows all that differ
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,

    /// Follow links in the model directories that lead out of them
    #[arg(long)]
    allow_links: bool,

    #[command(flatten)]
    hub: HubArgs,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Compare what both say about a text, UTF-8; - reads stdin
    #[arg(short = 'f', long, value_name = "FILE", help_heading = "Text")]
    text: Option<PathBuf>,

    /// Tokens that the models see at most before they begin afresh (2048, or their context when that is shorter)
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..), requires = "text", help_heading = "Text")]
    context: Option<u32>,

    /// Which windows begin with BOS, the token that begins a text
    #[arg(long, value_enum, default_value_t, value_name = "WHEN", requires = "text", help_heading = "Text")]
    window_bos: WindowBos,

    /// Number format of cached keys and values
    #[arg(long, value_enum, default_value = "f32", value_name = "TYPE", requires = "text", help_heading = "Text")]
    cache_type: CacheType,

    /// Number format of the second model's cache, to see what another costs: `ember diff M M --text FILE --other-cache-type q8` [default: as the
    /// first]
    #[arg(long, value_enum, value_name = "TYPE", requires = "text", help_heading = "Text")]
    other_cache_type: Option<CacheType>,

    /// Cache hidden values of compressed keys and values (LeanLlama) instead of their codes, in both models
    #[arg(long, requires = "text", help_heading = "Text")]
    cache_hidden: bool,

    /// Cache hidden values in the second model, to see what they cost: `ember diff M M --text FILE --other-cache-hidden` [default: as in the first]
    #[arg(long, requires = "text", help_heading = "Text")]
    other_cache_hidden: bool,

    #[command(flatten)]
    device: DeviceArgs,
}

impl DiffArgs {
    /// Of the first model's cache and of the second's.
    fn cache_types(&self) -> [CacheType; 2] {
        [self.cache_type, self.other_cache_type.unwrap_or(self.cache_type)]
    }

    /// The flags that ask for hidden values in the first model's cache and in the second's.
    fn hidden_flags(&self) -> [Option<&'static str>; 2] {
        let both = self.cache_hidden.then_some("--cache-hidden");
        [both, self.other_cache_hidden.then_some("--other-cache-hidden").or(both)]
    }
}

/// Runs the command; false when the models differ.
pub fn run(args: &DiffArgs) -> Result<bool> {
    let [first, second] = args.hidden_flags();
    let (a, b) = (open(args, &args.first, first)?, open(args, &args.second, second)?);
    if args.text.is_none() {
        threads::start(args.device.threads)?;
        return report(args, &a, &b, None);
    }
    on_device(&args.device, Activations::F32, Both { args, a, b })
}

/// Opens a model; a flag may ask for hidden values in its cache.
fn open(args: &DiffArgs, path: &std::path::Path, hidden: Option<&str>) -> Result<Pretrained> {
    let model = ModelArgs {
        model: Some(path.to_owned()),
        allow_links: args.allow_links,
        no_mmap: false,
        quant: Some(Quant::NONE),
        quant_head: QuantHead::As(Quant::NONE),
        hub: args.hub.clone(),
    };
    let opened =
        load::open(&model, &DepthArgs { steps: None, threshold: None, no_halt: false }, HiddenArgs::default())?;
    match hidden {
        Some(flag) => opened.cache_hidden().map_err(|error| by_flag_of(&[("cache_hidden", flag)], error)),
        None => Ok(opened),
    }
}

/// Compares the files and writes what was found.
fn report(args: &DiffArgs, a: &Pretrained, b: &Pretrained, text: Option<TextReport>) -> Result<bool> {
    let bar = progress_bar();
    let progress = |progress: Progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    };
    let compared = compare(a, b, &progress);
    bar.finish_and_clear();
    let compared = compared.context("cannot compare the models")?;
    let same = compared.is_same();
    let [first, second] = [&args.first, &args.second].map(|path| path.display().to_string());
    let mut out = io::stdout().lock();
    let written = if args.json {
        let report = Report::new([&first, &second], &compared, args.top, text.as_ref());
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from).and_then(|()| writeln!(out))
    } else {
        let written = text::text([(&first, a), (&second, b)], &compared, args.top, text.as_ref());
        out.write_all(written.as_bytes())
    };
    output::unless_closed(written.and_then(|()| out.flush())).context(output::STDOUT)?;
    Ok(same)
}

/// Two models that read a text.
struct Both<'a> {
    args: &'a DiffArgs,
    a: Pretrained,
    b: Pretrained,
}

impl WithBackend for Both<'_> {
    type Output = bool;

    fn run<B: CompactBackend>(self, device: &OpenDevice<B>) -> Result<bool> {
        let Self { args, a, b } = self;
        let prepare = |model| load::prepare(model, load::Storage::STORED, device);
        let (a, b) = (prepare(a)?, prepare(b)?);
        let text = read_text(args, &a, &b, device)?;
        report(args, &a, &b, Some(text))
    }
}

fn read_text<B: CompactBackend>(
    args: &DiffArgs,
    a: &Pretrained,
    b: &Pretrained,
    device: &OpenDevice<B>,
) -> Result<TextReport> {
    let path = args.text.as_deref().context("no text")?;
    let text = eval::read(path)?;
    let (processor, other) = (a.text()?, b.text()?);
    let tokens = Tokens::new(&processor, &text, args.window_bos)?;
    let others = Tokens::new(&other, &text, args.window_bos)?;
    ensure!(
        tokens.ids == others.ids && tokens.window_prefix == others.window_prefix,
        "the models read {} as different tokens: what they say about it cannot be compared token by token",
        path.display()
    );
    let all = tokens.ids.len() + tokens.window_prefix.len();
    ensure!(all > 1, "{}: has {}; a comparison takes at least 2", path.display(), output::counted(all, "token"));
    let limits = [a, b].map(|model| model.architecture().config.max_position_embeddings);
    let limit = limits.into_iter().min().unwrap_or(WINDOW);
    let context = args.context.map_or(WINDOW.min(limit), |n| n as usize);
    ensure!(context <= limit, "--context {context} is more than the {limit} tokens of the models");
    let caches = args.cache_types().map(KvFormat::from);
    let options = EvaluateOptions {
        window: Some(context),
        prefix: tokens.window_prefix.clone(),
        cache: caches[0],
        trace: false,
        ..EvaluateOptions::default()
    };
    let mut before = None;
    let mut load_one = |model: &Pretrained, cache: KvFormat| {
        load::load(model, device, |plan| {
            let vocabulary = model.architecture().config.vocab_size;
            let longest = context.min(all);
            let estimate = Estimate::new(model.architecture(), plan, cache, longest, tokens_per_pass(vocabulary));
            let tokenizer = TokenizerMemory::of(&processor);
            let estimate = estimate.with_logits(vocabulary).with_tokenizer(tokenizer);
            let both = match before.replace(estimate) {
                Some(first) => format!("; both models: about {}", output::bytes(estimate.beside(&first))),
                None => String::new(),
            };
            format!("{}{both}", estimate.note())
        })
    };
    let first = load_one(a, caches[0])?;
    let second = load_one(b, caches[1])?;
    let compared: TextComparison = compare_text(&first, &second, &tokens.ids, &options, caches[1])?;
    ensure!(!compared.divergences.is_empty(), "no token was scored: give a longer text");
    let hidden = [a, b].map(|model| caches_hidden(model.architecture()));
    Ok(TextReport::new(&compared, context, caches.map(KvFormat::as_str), hidden))
}

/// Hidden when stderr is no terminal.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "comparing [{bar:40}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
