//! `ember probe`: which values of options that no file of a model states predict a text best.

mod report;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use emberlm::model::Pretrained;
use emberlm::model::config::ModelOptions;
use emberlm::model::evaluate::tokens_per_pass;
use emberlm::model::probe::{Candidate, OpenOptions, OptionValue, ProbeProgress, ProbeText, Ranking, probe};
use emberlm::quant::kv::KvFormat;
use emberlm::quant::{Activations, CompactBackend};
use indicatif::{ProgressBar, ProgressStyle};

use self::report::Report;
use super::args::{ComputeArgs, HiddenArgs, ModelArgs};
use super::backend::{OpenDevice, WithBackend, on_device};
use super::estimate::Estimate;
use super::eval::{Tokens, WindowBos, read};
use super::memory::TokenizerMemory;
use super::{load, output};

const ABOUT: &str = "\
Options of CREST (step_input, gate_input, halt_mode, halt_weights, halt_threshold) and of cache compressors (activation, k_stage) change \
what a model computes, but not every checkpoint states them, and a wrong one can look almost right. Those that no file states are \
tried: every combination, and thresholds for the best of them. What a flag says (--steps, --threshold, --no-halt) is not tried.

The text should be of the kind that the model was trained on: a few thousand tokens of its language are enough to tell most options \
apart. It is cut into blocks, which every candidate reads from an empty cache. A difference is the mean over the blocks that both \
read, in nats per token, with its standard error. What is more than three errors from the first is worse; what is worse by four is \
dropped and reads no further (with few blocks, more errors are asked for). The lowest perplexity comes first; but of candidates that \
differ from it by less than 0.2 % and are not distinguishable, the one nearest to the defaults does.

A halting threshold is also a choice: more steps take longer and seldom predict worse. The column steps tells them; --threshold keeps \
one.

--write states in ember.json in the model directory what the text decides, where it counts from then on; flags still win. The text \
decides an option when every other value is worse beyond chance, or its default is. Other options stay as they are; when there is \
nothing else, nothing is written. Remove the file to go back to the defaults.

With --json one object is printed: candidates (rank, options, perplexity, difference and error in nats per token, blocks, mean_steps, \
seconds, verdict: first, undecided, worse, dropped or not_finite), conclusions (option, value, as_good, default, decided), closed (option, value, \
why: stated, given or no_effect), block, blocks, tokens, text_tokens, activations, seconds, written (the file, or null).";

/// Flags of `ember probe`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct ProbeArgs {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    hidden: HiddenArgs,

    /// The text, UTF-8; - reads stdin
    #[arg(short = 'f', long, value_name = "FILE")]
    text: PathBuf,

    /// State what the text decides in ember.json in the model directory
    #[arg(long)]
    write: bool,

    /// Try options that files state, too
    #[arg(long, conflicts_with = "write")]
    all: bool,

    /// Tokens of a block [default: a 32nd of the text, at least 32, at most 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    block: Option<u32>,

    /// Blocks of the text to read at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..))]
    blocks: u32,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    compute: ComputeArgs,
}

/// Runs the command.
pub fn run(args: &ProbeArgs) -> Result<()> {
    on_device(&args.compute.device, Activations::F32, args)
}

impl WithBackend for &ProbeArgs {
    type Output = ();

    fn run<B: CompactBackend>(self, device: &OpenDevice<B>) -> Result<()> {
        let pretrained = load::open_exact(&self.model, &self.compute.depth, self.hidden, device)?;
        let given = ModelOptions { crest: self.compute.depth.overrides(), ..ModelOptions::default() };
        let text = read(&self.text)?;
        let open = OpenOptions::of(&pretrained, &given, self.all);
        if open.axes.is_empty() {
            return nothing_open(self, &open, &pretrained, device);
        }
        if self.write {
            ensure!(
                self.model.model.is_some(),
                "--write: the demo model is part of the program; give a directory with -m"
            );
            // Before the work.
            ModelOptions::check_writable(pretrained.directory()).with_context(|| {
                format!(
                    "--write: {} cannot be written in; leave --write out, or use a copy",
                    pretrained.directory().display()
                )
            })?;
        }
        let processor = load::text(&pretrained)?;
        let Tokens { ids, window_prefix, .. } = Tokens::new(&processor, &text, WindowBos::Auto)?;
        let context = pretrained.architecture().config.max_position_embeddings;
        let longest = context.saturating_sub(window_prefix.len());
        let block = self.block.map(|block| block as usize);
        ensure!(
            block.is_none_or(|block| block <= longest),
            "--block {} is more than the {longest} tokens of the model's context",
            block.unwrap_or_default()
        );
        let prefix = window_prefix.len();
        let text = ProbeText::new(&ids, block, self.blocks as usize, window_prefix)
            .with_context(|| format!("{}", self.text.display()))?;
        let mut model = load::load(&pretrained, device, |plan| {
            let vocabulary = pretrained.architecture().config.vocab_size;
            let per_pass = tokens_per_pass(vocabulary);
            let longest = text.block() + prefix;
            let estimate = Estimate::new(pretrained.architecture(), plan, KvFormat::F32, longest, per_pass);
            estimate.with_logits(vocabulary).with_tokenizer(TokenizerMemory::of(&processor)).note()
        })?;
        output::note(&format!(
            "not stated: {}; at most {} blocks of {} tokens, of a text of {}",
            open.axes.iter().map(|axis| axis.option).collect::<Vec<_>>().join(", "),
            text.blocks(),
            text.block(),
            ids.len()
        ));
        let bar = progress_bar();
        let ranking = probe(&mut model, &open, &text, |progress| show(&bar, &progress));
        bar.finish_and_clear();
        let ranking = ranking?;
        let written = if self.write { write_side_file(&ranking, &pretrained)? } else { None };
        let report = Report::new(&ranking, &open, ids.len(), device.arithmetic(), written);
        print(self, &report)?;
        // With --all and for the demo model there is no --write.
        if !self.write && !self.all && self.model.model.is_some() && !ranking.options().is_empty() {
            output::note("--write states what is decided in ember.json in the model directory");
        }
        Ok(())
    }
}

/// Whether there is a file to write, and its path when it is written.
fn write_side_file(ranking: &Ranking, pretrained: &Pretrained) -> Result<Option<PathBuf>> {
    if ranking.options().is_empty() {
        output::note("nothing is written: the text decides no option");
        return Ok(None);
    }
    let side_file = ranking.side_file(&pretrained.architecture().config.side_file);
    side_file.write(pretrained.directory()).context("--write")?;
    Ok(Some(pretrained.directory().join(ModelOptions::FILE)))
}

fn nothing_open<B: CompactBackend>(
    args: &ProbeArgs,
    open: &OpenOptions,
    pretrained: &Pretrained,
    device: &OpenDevice<B>,
) -> Result<()> {
    let family = pretrained.architecture().config.family;
    if open.closed.is_empty() {
        bail!(
            "there is nothing to probe: {family} has no options that files leave open (CREST and cache compressors have)"
        );
    }
    print(args, &Report::without_candidates(open, device.arithmetic()))?;
    if args.write {
        output::note("nothing is written: no option is open");
    }
    Ok(())
}

fn print(args: &ProbeArgs, report: &Report) -> Result<()> {
    let mut text = if args.json { serde_json::to_string(report)? } else { report.text() };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    io::stdout().lock().write_all(text.as_bytes()).context(output::STDOUT)
}

/// Hidden when stderr is no terminal.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "probing [{bar:30}] {pos}/{len} blocks, {elapsed} of {duration}, {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

fn show(bar: &ProgressBar, progress: &ProbeProgress<'_>) {
    bar.set_length(progress.total as u64);
    bar.set_position(progress.done as u64);
    let best = progress.best.map_or_else(String::new, |best| format!(", best {}", values(best)));
    bar.set_message(format!("{} of {} candidates left{best}", progress.left, progress.candidates));
}

fn values(candidate: &Candidate) -> String {
    candidate.values.iter().map(OptionValue::value).collect::<Vec<_>>().join(" ")
}
