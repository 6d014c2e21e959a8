//! `ember verify`: whether a checkpoint is whole, and whether its files fit each other.

mod text;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use emberlm::demo;
use emberlm::model::Progress;
use emberlm::model::checkpoint::OpenOptions;
use emberlm::model::verify::{Finding, Severity, Verification, VerifyOptions, verify, verify_dir};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::model_name::{self, HubArgs};
use super::{output, threads};

const ABOUT: &str = "\
What is looked at:
  files       git-lfs pointers, web pages, empty and cut files, links to nothing in a hub's cache
  hash        contents against the hub's hashes: names of blobs in a hub's cache, or .cache/huggingface of `hf download --local-dir`
  container   header and ranges of every safetensors file
  index       every tensor listed and in its file, total_size
  config      every value; shapes, names and types of the tensors against it
  key         keys of config.json that emberlm does not compute and that may change the numbers
  numbers     NaN, infinite and absurd numbers of every tensor, holes of zeros, rows of one value, norms far from 1
  scales      code books, signs and ranges of the scales of NF4, FP4 and integer rows
  codes       codes that the quantiser cannot have written; row numbers that are no partition
  layers      layers that are copies of each other, or of another scale than all others
  tokenizer   ids against the embedding, end tokens, a text there and back
  template    one question, a conversation, a system message, tools
  generation  generation_config.json

Exit codes: 0 when nothing is wrong (notes do not count), 1 after an error or a warning, 2 when nothing could be looked at.

With --json one object is printed: path, family, clean, errors, warnings, notes (counts), looked_at (files, hashed, tensors, bytes, \
tokens, chats, seconds), findings (severity: error, warning or note; check; file; place: tensor or key; expected; found; advice).";

/// Flags of `ember verify`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct VerifyArgs {
    /// Model directory, or name of a model on a hub [default: a small model that is part of the program]
    #[arg(short, long, value_name = "DIR|NAME")]
    model: Option<PathBuf>,

    #[command(flatten)]
    hub: HubArgs,

    /// Follow links in the model directory that lead out of it; for links that you made, not for a directory from a stranger
    #[arg(long)]
    allow_links: bool,

    /// Look at headers, configs, tokenizer and template alone: seconds for a model of any size
    #[arg(long)]
    quick: bool,

    /// Warnings do not count as damage in the exit code
    #[arg(long)]
    allow_warnings: bool,

    /// Show notes as well
    #[arg(short, long)]
    verbose: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Threads; without it RAYON_NUM_THREADS, or all that the machine runs at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    path: &'a str,
    family: Option<&'static str>,
    clean: bool,
    errors: usize,
    warnings: usize,
    notes: usize,
    looked_at: LookedAt,
    findings: Vec<Found<'a>>,
}

#[derive(Debug, Serialize)]
struct LookedAt {
    files: usize,
    hashed: usize,
    tensors: usize,
    bytes: usize,
    tokens: usize,
    chats: usize,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Found<'a> {
    severity: &'static str,
    check: &'static str,
    file: Option<&'a str>,
    place: Option<&'a str>,
    expected: &'a str,
    found: &'a str,
    advice: &'a str,
}

/// Runs the command; false when something is wrong.
pub fn run(args: &VerifyArgs) -> Result<bool> {
    threads::start(args.threads)?;
    let started = std::time::Instant::now();
    let bar = progress_bar();
    let progress = |progress: Progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    };
    let options = VerifyOptions { hashes: !args.quick, numbers: !args.quick };
    let verified = match &args.model {
        Some(path) => verify(
            &model_name::directory(path, &args.hub)?,
            OpenOptions { allow_links: args.allow_links },
            options,
            &progress,
        )
        .with_context(|| format!("cannot open the model {}", path.display()))?,
        None => {
            let demo = demo::open().context("cannot open the demo model")?;
            verify_dir(demo.weights().checkpoint().dir(), options, &progress)
        }
    };
    bar.finish_and_clear();
    let path = args.model.as_ref().map_or_else(|| "demo".to_owned(), |path| path.display().to_string());
    let wrong = match verified.worst() {
        Some(Severity::Error) => true,
        Some(Severity::Warning) => !args.allow_warnings,
        _ => false,
    };
    let seconds = started.elapsed().as_secs_f64();
    let mut out = io::stdout().lock();
    let written = if args.json {
        serde_json::to_writer(&mut out, &Report::new(&path, &verified, !wrong, seconds))
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        out.write_all(text::text(&path, &verified, args.verbose, args.quick).as_bytes())
    };
    output::unless_closed(written.and_then(|()| out.flush())).context(output::STDOUT)?;
    Ok(!wrong)
}

impl<'a> Report<'a> {
    fn new(path: &'a str, verified: &'a Verification, clean: bool, seconds: f64) -> Self {
        let seen = &verified.looked_at;
        let found = |finding: &'a Finding| Found {
            severity: finding.severity.as_str(),
            check: finding.check.as_str(),
            file: finding.file.as_deref(),
            place: finding.place.as_deref(),
            expected: &finding.expected,
            found: &finding.found,
            advice: &finding.advice,
        };
        Self {
            path,
            family: seen.family.map(|family| family.as_str()),
            clean,
            errors: verified.count(Severity::Error),
            warnings: verified.count(Severity::Warning),
            notes: verified.count(Severity::Note),
            looked_at: LookedAt {
                files: seen.files,
                hashed: seen.hashed,
                tensors: seen.tensors,
                bytes: seen.bytes,
                tokens: seen.tokens,
                chats: seen.chats,
                seconds,
            },
            findings: verified.findings.iter().map(found).collect(),
        }
    }
}

/// Hidden when stderr is no terminal.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "reading [{bar:40}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
