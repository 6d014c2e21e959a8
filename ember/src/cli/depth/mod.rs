//! `ember depth`: how deep a model with adaptive depth thinks about each token of a text.

mod colour;
mod map;
mod picture;
mod sweep;
mod terminal;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use emberlm::model::evaluate::{EvaluateOptions, evaluate, tokens_per_pass};
use emberlm::quant::kv::KvFormat;
use emberlm::quant::{Activations, CompactBackend};
use serde::Serialize;

pub use self::colour::{ColourChoice, Colours};
use self::map::DepthMap;
pub use self::map::level;
use self::sweep::Threshold;
pub use self::terminal::tinted;
use super::args::{ComputeArgs, HiddenArgs, ModelArgs};
use super::backend::{OpenDevice, WithBackend, on_device};
use super::estimate::Estimate;
use super::memory::TokenizerMemory;
use super::tensor_file::OutputFile;
use super::{load, output};

const ABOUT: &str = "\
What is shown for a token is the pass that predicted it: its mean steps per layer colour the text, the steps of every layer the \
heat map (layers downwards, tokens to the right). Nothing predicts the first token; the last column, marked with three dots, \
is the pass that predicts what comes after the text.

Colours: as many as the terminal says it has (COLORTERM, TERM), none into a file or pipe or when NO_COLOR is set.

With --json one object is printed: model, layers, num_steps (K), halt_threshold, mean_steps, perplexity, and per token its id, \
text, log_probability, mean_steps, steps (per layer) and halt (per layer, the halting probability of every step but the last; \
0 after the token halted); next: the same for what comes after the text; with --sweep, sweep: a list of threshold, mean_steps, \
perplexity, milliseconds_per_token.";

/// Flags of `ember depth`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct DepthCommandArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// The text; - reads it from stdin, without its last line break
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,

    /// Write the heat map as a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Write the heat map as a page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Also measure perplexity, steps and time of the text over thresholds from 0.5 to 0.999
    #[arg(long)]
    sweep: bool,

    /// Print the numbers as one JSON object
    #[arg(long)]
    json: bool,

    /// Colours of the terminal
    #[arg(long, visible_alias = "colour", value_enum, default_value_t, value_name = "WHEN")]
    color: ColourChoice,

    /// Columns to use [default: the variable COLUMNS, else those of the terminal, else 80]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(20..))]
    width: Option<u16>,

    #[command(flatten)]
    compute: ComputeArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    map: &'a DepthMap,
    #[serde(skip_serializing_if = "Option::is_none")]
    sweep: Option<&'a [Threshold]>,
}

/// Runs the command.
pub fn run(args: &DepthCommandArgs) -> Result<()> {
    on_device(&args.compute.device, Activations::Auto, args)
}

impl WithBackend for &DepthCommandArgs {
    type Output = ();

    fn run<B: CompactBackend>(self, device: &OpenDevice<B>) -> Result<()> {
        show(self, device)
    }
}

fn show<B: CompactBackend>(args: &DepthCommandArgs, device: &OpenDevice<B>) -> Result<()> {
    if let (Some(svg), Some(html)) = (&args.svg, &args.html) {
        ensure!(!is_same(svg, html), "--svg and --html are both {}: name two files", svg.display());
    }
    let pretrained = load::open_prepared(&args.model, &args.compute.depth, HiddenArgs::default(), device)?;
    let architecture = pretrained.architecture();
    let Some(crest) = architecture.crest.clone() else {
        bail!("depth is for models with adaptive depth; this is {}", architecture.config.family);
    };
    let text = load::text(&pretrained)?;
    let prompt = super::input::given_or_stdin(&args.prompt)?;
    let ids = text.encode(&prompt, true)?;
    ensure!(!ids.is_empty(), "the prompt has no tokens: give some text with -p");
    ensure!(
        !args.sweep || ids.len() > 1,
        "--sweep measures how tokens are predicted: the text has one token, and takes two"
    );
    let limit = architecture.config.max_position_embeddings;
    ensure!(
        ids.len() <= limit,
        "the text has {} tokens, but the context of this model is {limit}; shorten it",
        ids.len()
    );
    let mut model = load::load(&pretrained, device, |plan| {
        let vocabulary = architecture.config.vocab_size;
        let estimate = Estimate::new(architecture, plan, KvFormat::F32, ids.len(), tokens_per_pass(vocabulary));
        let estimate = estimate.with_logits(vocabulary).with_depths(architecture, DepthMap::COPIES);
        estimate.with_tokenizer(TokenizerMemory::of(&text)).note()
    })?;
    let evaluated = evaluate(&model, &ids, &EvaluateOptions::default())?;
    let map = DepthMap::new(&load::name(&pretrained), &crest, &text, &ids, &evaluated)?;
    let sweep = args.sweep.then(|| sweep::measure(&mut model, &crest, &ids)).transpose()?;

    if let Some(path) = &args.svg {
        write(path, &picture::svg(&map))?;
    }
    if let Some(path) = &args.html {
        write(path, &picture::html(&map, sweep.as_deref()))?;
    }
    let shown = if args.json {
        serde_json::to_string(&Report { map: &map, sweep: sweep.as_deref() })? + "\n"
    } else {
        let width = args.width.map_or_else(terminal_width, usize::from);
        let map = terminal::paint(&map, args.color.resolve(), width);
        map + &sweep.as_deref().map_or_else(String::new, |sweep| format!("\n{}", sweep::table(sweep)))
    };
    let mut out = io::stdout().lock();
    out.write_all(shown.as_bytes()).and_then(|()| out.flush()).context(output::STDOUT)
}

/// Whether two paths are of one file, which need not exist.
fn is_same(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::canonicalize(path).ok().or_else(|| Some(std::fs::canonicalize(folder).ok()?.join(path.file_name()?)))
    };
    place(one).is_some_and(|one| place(other) == Some(one))
}

/// What the variable COLUMNS says, which shells set but do not export, else what the terminal has.
fn terminal_width() -> usize {
    let exported =
        std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|&columns| columns > 0);
    let terminal = || terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
    exported.or_else(terminal).unwrap_or(80).max(20)
}

fn write(path: &Path, contents: &str) -> Result<()> {
    // A device or a pipe holds nothing that a full disk could cost.
    if path.exists() && !path.is_file() && !path.is_dir() {
        std::fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    } else {
        OutputFile::create(path)?.finish_text(contents)?;
    }
    output::note(&format!("wrote {}", path.display()));
    Ok(())
}
