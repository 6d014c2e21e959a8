//! `--format nano`: rows as narrow as the model's answers allow.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use emberlm::model::export::{CascadeModule, CascadeOptions, MatrixFormat};
use emberlm::model::{PlannedTensor, Pretrained, QuantizeOnLoad, TensorRole};
use indicatif::{ProgressBar, ProgressStyle};

use super::rules::Rules;
use crate::cli::args::by_flag;
use crate::cli::backend::{Cpu, CpuDevice};
use crate::cli::output;

/// Texts of several kinds, after which the next token is far from certain.
const PROMPTS: [&str; 8] = [
    "The capital of France is",
    "Water boils at a lower temperature in the mountains because",
    "def fibonacci(n):\n    ",
    "Dear Ms. Miller,\n\nthank you for your letter of",
    "Q: What is 17 times 6?\nA:",
    "She opened the door, and in the light of the lamp she saw",
    "The three most important causes of the war were",
    "{\"name\": \"Anna\", \"age\":",
];
/// Longest file of prompts, in bytes.
const MAX_PROMPTS: u64 = 1 << 20;
/// Longest prompt, in tokens.
const MAX_TOKENS: usize = 512;

/// Flags of `--format nano`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Format nano")]
pub struct NanoArgs {
    /// Cosine between the logits after each prompt, of the original and the quantised model, that must be kept [default: 0.99]
    #[arg(long, value_name = "C", allow_negative_numbers = true)]
    min_cosine: Option<f64>,

    /// Prompts, a line each, UTF-8 [default: eight short ones that are part of the program]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    /// Widths of narrow rows to try, of 2, 4, 6 and 8; rows of 6 bits are stored in 8 [default: 2,4]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    bits: Vec<u32>,
}

impl NanoArgs {
    /// The first flag given, for a message where another format was asked for.
    pub fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--min-cosine", self.min_cosine.is_some()),
            ("--prompts", self.prompts.is_some()),
            ("--bits", !self.bits.is_empty()),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// As the search takes it.
    fn options(&self) -> CascadeOptions {
        let default = CascadeOptions::default();
        CascadeOptions {
            min_cosine: self.min_cosine.unwrap_or(default.min_cosine),
            bits: if self.bits.is_empty() { default.bits.clone() } else { self.bits.clone() },
            ..default
        }
    }
}

/// Finds the formats of all modules.
pub fn choose(args: &NanoArgs, pretrained: &Pretrained, rules: &Rules) -> Result<Vec<CascadeModule>> {
    let prompts = prompts(args.prompts.as_deref(), pretrained)?;
    let options = args.options();
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("choosing rows [{bar:40}] {pos}/{len} modules {eta}") {
        bar.set_style(style.progress_chars("=> "));
    }
    let mut progress = |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let fixed = |tensor: &PlannedTensor| tensor.role != TensorRole::Projection && rules.takes(tensor);
    let modules = |tensor: &PlannedTensor| {
        tensor.role == TensorRole::Projection && !is_input(&tensor.name) && rules.takes(tensor)
    };
    let chosen =
        pretrained.choose_rows::<Cpu>(&CpuDevice::default(), &prompts, &options, fixed, modules, &mut progress);
    bar.finish_and_clear();
    let chosen = chosen.map_err(by_flag).context("cannot choose the rows")?;
    ensure!(!chosen.is_empty(), "there is nothing to do: no matrix is dense and may have integer rows");
    Ok(chosen)
}

/// Projections into queries, keys, values and their like, which the author of Nano compact leaves in half precision.
fn is_input(name: &str) -> bool {
    ["q_proj", "k_proj", "v_proj", "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b"]
        .iter()
        .any(|module| name.split('.').any(|part| part == *module))
}

/// The formats by name.
pub fn formats(chosen: &[CascadeModule]) -> BTreeMap<&str, MatrixFormat> {
    chosen.iter().map(|module| (module.name.as_str(), module.format)).collect()
}

/// A line for each module, on stdout.
pub fn report(chosen: &[CascadeModule]) -> Result<()> {
    let width = chosen.iter().map(|module| module.name.len()).max().unwrap_or(0);
    let mut out =
        format!("{:width$}  {:>13}  {:>6}  {:>10}  {:>8}\n", "module", "shape", "bits", "rows of 8", "cosine");
    for CascadeModule { name, shape: [n, k], format, cosine, .. } in chosen {
        let (bits, kept) = match format {
            MatrixFormat::MixedRows { bits, keep } => (bits.to_string(), keep.to_string()),
            MatrixFormat::Quantized(QuantizeOnLoad::Int8Rows) => ("8".into(), n.to_string()),
            _ => ("kept".into(), "-".into()),
        };
        writeln!(
            out,
            "{:width$}  {:>13}  {bits:>6}  {kept:>10}  {cosine:>8.5}",
            output::printable(name),
            format!("{n} x {k}")
        )?;
    }
    io::stdout().write_all(out.as_bytes()).context(output::STDOUT)
}

/// Ids of the prompts.
fn prompts(file: Option<&Path>, pretrained: &Pretrained) -> Result<Vec<Vec<u32>>> {
    let text = pretrained.text()?;
    let lines: Vec<String> = match file {
        None => PROMPTS.iter().map(|&prompt| prompt.to_owned()).collect(),
        Some(path) => {
            let at = || path.display().to_string();
            let mut content = Vec::new();
            let read = File::open(path).and_then(|file| file.take(MAX_PROMPTS + 1).read_to_end(&mut content));
            read.with_context(at)?;
            ensure!(content.len() as u64 <= MAX_PROMPTS, "{}: is longer than {MAX_PROMPTS} bytes", at());
            let content = String::from_utf8(content).with_context(|| format!("{}: is not UTF-8", at()))?;
            content.lines().map(str::to_owned).filter(|line| !line.trim().is_empty()).collect()
        }
    };
    if lines.is_empty() {
        bail!("{}: holds no prompt", file.map_or_else(String::new, |path| path.display().to_string()));
    }
    let encode = |line: &String| {
        let mut ids = text.encode(line, true)?;
        ids.truncate(MAX_TOKENS);
        Ok(ids)
    };
    lines.iter().map(encode).collect()
}
