//! Writing a model directory: what it takes on stderr first, a progress bar, and what was written on stdout.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use emberlm::model::Progress;
use emberlm::model::export::{ExportOptions, ExportPlan, check_target, free_space};
use indicatif::{ProgressBar, ProgressStyle};

use super::args::{ModelArgs, Quant, QuantHead};
use super::model_name::HubArgs;
use super::output;

/// The model that is read.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// Model directory (config.json, safetensors files, tokenizer.json), or name of a model on a hub
    #[arg(short, long, value_name = "DIR|NAME")]
    model: PathBuf,

    /// Follow links in the model directory that lead out of it; for links that you made, not for a directory from a stranger
    #[arg(long)]
    allow_links: bool,

    #[command(flatten)]
    hub: HubArgs,
}

impl SourceArgs {
    /// As other commands have it.
    pub fn model(&self) -> ModelArgs {
        let (quant, quant_head) = (Some(Quant::NONE), QuantHead::As(Quant::NONE));
        let (model, hub) = (Some(self.model.clone()), self.hub.clone());
        ModelArgs { model, allow_links: self.allow_links, no_mmap: false, quant, quant_head, hub }
    }
}

/// The directory that is written.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Directory to make; it must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    to: PathBuf,

    /// Most bytes of tensors in a file, as transformers counts, headers aside: a number, or one with KB, MB, GB, KiB, MiB or GiB [default:
    /// 5GB]
    #[arg(long, value_name = "SIZE")]
    pub shard_size: Option<Size>,

    /// Say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Threads; without it RAYON_NUM_THREADS, or all that the machine runs at once. Where the system refuses some, fewer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

impl OutputArgs {
    /// Asks, before anything is read or computed, whether the directory can be made; for a dry run, too.
    pub fn check(&self) -> Result<()> {
        check_target(&self.to).with_context(|| self.cannot())
    }

    /// Most bytes of tensors in a file.
    pub fn shard_bytes(&self) -> u64 {
        self.shard_size.map_or_else(|| ExportOptions::default().shard_bytes, |size| size.0)
    }

    fn cannot(&self) -> String {
        format!("cannot write {}", self.to.display())
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, u64); 8] = [
            ("kib", 1 << 10),
            ("mib", 1 << 20),
            ("gib", 1 << 30),
            ("kb", 1000),
            ("mb", 1_000_000),
            ("gb", 1_000_000_000),
            ("b", 1),
            ("", 1),
        ];
        let lower = text.trim().to_ascii_lowercase();
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((lower.strip_suffix(name)?.trim_end(), *unit)))
            .unwrap_or((&lower, 1));
        let number: f64 = number.parse().map_err(|_| format!("{text:?} is no size, such as 5GB or 500MiB"))?;
        let bytes = number * unit as f64;
        if !(1.0..1e18).contains(&bytes) {
            return Err(format!("{text:?} is no size of a file"));
        }
        Ok(Self(bytes as u64))
    }
}

/// Writes what was planned.
pub fn write(plan: &ExportPlan<'_>, args: &OutputArgs) -> Result<()> {
    for line in formats(plan) {
        output::note(&line);
    }
    if let Some(line) = left_out(plan) {
        output::note(&line);
    }
    let free = free_space(&args.to).map_or_else(String::new, |free| format!(", {} are free", size(free)));
    output::note(&format!(
        "reads {}, holds {}, writes {} in {}{free}",
        output::bytes(plan.source_bytes()),
        size(plan.memory_bytes()),
        size(plan.bytes()),
        files(plan.shard_count()),
    ));
    if args.dry_run {
        return Ok(());
    }
    let (start, bar) = (Instant::now(), progress_bar());
    let mut progress = |progress: Progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    };
    let written = plan.write(&args.to, &mut progress);
    bar.finish_and_clear();
    let written = written.with_context(|| args.cannot())?;
    if written.resumed > 0 {
        output::note(&format!("{} had been finished before", files(written.resumed)));
    }
    let seconds = start.elapsed().as_secs_f64();
    let read = plan.source_bytes() as f64 / seconds.max(1e-9);
    let line = format!(
        "{}: {} in {}, {seconds:.1} s, {}/s read",
        args.to.display(),
        size(plan.bytes()),
        files(written.shards),
        output::bytes(read as usize)
    );
    writeln!(io::stdout(), "{line}").context(output::STDOUT)
}

/// A line for each change of storage: how many matrices, from and to how many bytes.
fn formats(plan: &ExportPlan<'_>) -> Vec<String> {
    let mut groups: BTreeMap<(String, String), (usize, usize, u64)> = BTreeMap::new();
    for matrix in plan.matrices() {
        let group = groups.entry((matrix.stored.to_string(), matrix.written.to_string())).or_default();
        *group = (group.0 + 1, group.1 + matrix.stored_bytes, group.2 + matrix.bytes);
    }
    let lines = groups.into_iter().map(|((stored, written), (count, from, to))| {
        let matrices = if count == 1 { "matrix" } else { "matrices" };
        match stored == written {
            true => format!("{count:>6} {matrices} {stored}, kept: {}", size(to)),
            false => format!("{count:>6} {matrices} {stored} -> {written}: {} -> {}", output::bytes(from), size(to)),
        }
    });
    lines.collect()
}

/// What of the source is not written.
fn left_out(plan: &ExportPlan<'_>) -> Option<String> {
    let names = plan.left_out();
    let first = names.first()?;
    let tensors = if names.len() == 1 { "tensor" } else { "tensors" };
    let more = if names.len() == 1 { "" } else { " and others" };
    Some(format!(
        "{:>6} {tensors} left out, the model has no use for them: {}{more}",
        names.len(),
        output::printable(first)
    ))
}

fn files(count: usize) -> String {
    if count == 1 { "1 file".into() } else { format!("{count} files") }
}

fn size(bytes: u64) -> String {
    output::bytes(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// Hidden when stderr is no terminal.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "writing [{bar:40}] {binary_bytes}/{binary_total_bytes} read {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("5GB", 5_000_000_000), ("1.5 GiB", 1_610_612_736), ("500mb", 500_000_000), ("4096", 4096), ("1b", 1)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "GB", "0", "-1", "nan", "inf", "1e30", "5 parsecs", "5TB?"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
