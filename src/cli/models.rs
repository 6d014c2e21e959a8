//! `ember models`: what the cache holds.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use emberlm::hub::{CachedModel, Hub, HubOptions, SHORT_NAMES};
use emberlm::model::checkpoint::Checkpoint;
use serde::Serialize;

use super::{download, output};

const ABOUT: &str = "\
The cache is that of huggingface_hub: HF_HUB_CACHE, else the folder hub in HF_HOME, else ~/.cache/huggingface/hub.

With --json an array is printed, one object per model and commit: name, short_name, commit, revisions, path, bytes, complete (config and weights \
are there), family (null for what ember cannot load).";

/// Flags of `ember models`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct ModelsArgs {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// A line of the list.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    short_name: Option<&'static str>,
    family: Option<String>,
    bytes: u64,
    complete: bool,
    revisions: Vec<String>,
    commit: String,
    path: PathBuf,
}

impl Row {
    fn new(model: CachedModel) -> Self {
        // Headers are read, weights are not.
        let config = Checkpoint::open(&model.path).and_then(|checkpoint| checkpoint.config());
        let short = SHORT_NAMES.iter().find(|short| short.repository == model.repository);
        Self {
            family: config.ok().map(|config| config.family.to_string()),
            short_name: short.map(|short| short.name),
            name: model.repository,
            bytes: model.bytes,
            complete: model.complete,
            revisions: model.revisions,
            commit: model.commit,
            path: model.path,
        }
    }
}

/// Runs the command.
pub fn run(args: &ModelsArgs) -> Result<()> {
    let hub = Hub::new(HubOptions::from_env()?)?;
    let rows: Vec<Row> = hub.models()?.into_iter().map(Row::new).collect();
    let mut out = io::stdout().lock();
    let write = |out: &mut io::StdoutLock| -> Result<()> {
        if args.json {
            serde_json::to_writer_pretty(&mut *out, &rows)?;
            writeln!(out)?;
        } else {
            out.write_all(table(&rows).as_bytes())?;
        }
        Ok(out.flush()?)
    };
    write(&mut out).context(output::STDOUT)?;
    let cache = output::printable(&hub.options().cache.display().to_string());
    if !args.json && rows.is_empty() {
        output::note(&format!(
            "no models in {cache}: download one with `ember pull NAME`, for example `ember pull sky-lite`"
        ));
    } else if !args.json {
        let total = rows.iter().map(|row| row.bytes).sum();
        output::note(&format!("{} in {cache}", download::bytes(total)));
    }
    Ok(())
}

/// Aligned columns; empty without rows.
fn table(rows: &[Row]) -> String {
    let mut lines = vec![["NAME", "FAMILY", "SIZE", "REVISION"].map(String::from)];
    for row in rows {
        let name = row.short_name.map_or_else(|| row.name.clone(), |short| format!("{} ({short})", row.name));
        let family = match (&row.family, row.complete) {
            (_, false) => "incomplete".into(),
            (Some(family), true) => family.clone(),
            (None, true) => "not supported".into(),
        };
        let commit = row.commit.get(..7).unwrap_or_default();
        let revision =
            if row.revisions.is_empty() { commit.into() } else { format!("{} ({commit})", row.revisions.join(", ")) };
        lines.push([name, family, download::bytes(row.bytes), revision].map(|cell| output::printable(&cell)));
    }
    if rows.is_empty() {
        return String::new();
    }
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let (name, family, size) = (width(0), width(1), width(2));
    let line = |[a, b, c, d]: &[String; 4]| format!("{a:name$}  {b:family$}  {c:>size$}  {d}\n");
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |name: &str, short_name, complete: bool, revisions: &[&str]| Row {
            name: name.into(),
            short_name,
            family: complete.then(|| "LeanLlama".into()),
            bytes: 5 << 30,
            complete,
            revisions: revisions.iter().map(|name| (*name).to_owned()).collect(),
            commit: "0123456789abcdef0123456789abcdef01234567".into(),
            path: PathBuf::new(),
        };
        let rows = [
            row("miike-ai/LeanLlama-8B-INT4", Some("lean-8b"), true, &["main"]),
            row("a/\u{1b}[2Jb", None, false, &[]),
        ];
        let expected = "\
NAME                                  FAMILY          SIZE  REVISION
miike-ai/LeanLlama-8B-INT4 (lean-8b)  LeanLlama   5.00 GiB  main (0123456)
a/\\u{1b}[2Jb                          incomplete  5.00 GiB  0123456
";
        assert_eq!(table(&rows), expected);
        assert_eq!(table(&[]), "");
    }
}
