//! Trains the model that is packaged with emberlm, from nothing: text, tokenizer and weights follow from a seed.
//!
//! `cargo run --release --example train_tiny -- train --out DIR`; `examples/train_tiny.md` says what came out.

mod data;
mod eval;
mod exercises;
mod model;
mod plot;
mod random;
mod story;
mod tokenizer;
mod train;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[cfg(feature = "flex")]
type Cpu = burn_flex::Flex;
#[cfg(not(feature = "flex"))]
type Cpu = burn_ndarray::NdArray<f32>;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model
    Train(train::Run),
    /// Measure a run on held-out text; writes eval.json into it
    Eval {
        /// Directory of the run
        run: PathBuf,
        /// Texts to measure
        #[arg(long, default_value_t = 400)]
        rows: usize,
    },
    /// Write the checkpoint of a run as a model directory
    Export {
        /// Directory of the run
        run: PathBuf,
        /// Where to
        #[arg(long)]
        to: PathBuf,
    },
    /// Draw the curves of runs
    Plot {
        /// Directories of the runs
        runs: Vec<PathBuf>,
        /// The picture
        #[arg(long)]
        svg: PathBuf,
    },
    /// Print documents of the training text, or of the held-out text
    Text {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(short, default_value_t = 10)]
        n: u64,
        #[arg(long)]
        held_out: bool,
    },
}

/// Classes whose depth is drawn.
const DRAWN: [&str; 8] =
    ["punctuation", "word", "open choice", "repeated name", "copying", "sum digit", "carried digit", "answer"];

fn main() -> Result<()> {
    let device = Default::default();
    match Cli::parse().command {
        Command::Train(run) => println!("loss {:.4}", train::train::<Cpu>(&run, &device)?),
        Command::Eval { run: directory, rows } => {
            let report = eval::evaluate::<Cpu>(&read(&directory)?, rows, &device)?;
            let json = serde_json::to_string_pretty(&report)?;
            std::fs::write(directory.join("eval.json"), &json)?;
            println!("{json}");
        }
        Command::Export { run: directory, to } => {
            let run = read(&directory)?;
            std::fs::create_dir_all(&to)?;
            tokenizer::Tokenizer::train(run.seed)?.save(&to)?;
            run.shape().save(&train::trained::<Cpu>(&run, &device)?, &to)?;
        }
        Command::Plot { runs, svg } => plot::plot(&runs, &DRAWN, &svg)?,
        Command::Text { seed, n, held_out } => {
            let split = if held_out { data::Split::HeldOut } else { data::Split::Train };
            for i in 0..n {
                println!("{}\n", data::document(&mut random::Random::new(seed, i), split).text);
            }
        }
    }
    Ok(())
}

/// The flags of a run. The directory may have moved since.
fn read(directory: &Path) -> Result<train::Run> {
    let path = directory.join("run.json");
    let json = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(train::Run { out: directory.to_owned(), ..serde_json::from_slice(&json)? })
}
