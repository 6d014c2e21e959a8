//! The command line: text goes to stdout, everything else to stderr.
//!
//! Exit codes: 0 when the work is done (a closed pipe included), 1 after an error, 2 when the command line is wrong.

mod args;
mod backend;
mod bench;
mod dump;
mod load;
mod output;
mod tensor_file;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Compact language models: CREST, Nano compact, LeanLlama
#[derive(Debug, Parser)]
#[command(name = "ember", version, arg_required_else_help = true, infer_subcommands = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure prefill and decode speed, of a checkpoint or of random weights
    Bench(Box<bench::BenchArgs>),
    /// Write what a model computes for given tokens, for comparison with another implementation
    Dump(Box<dump::DumpArgs>),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Bench(args) => bench::run(&args),
        Command::Dump(args) => dump::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough, as in `ember ... | head`.
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is closed too.
            let _ = writeln!(std::io::stderr(), "error: {}", output::with_causes(&error));
            ExitCode::FAILURE
        }
    }
}
