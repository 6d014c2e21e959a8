//! The command line: text goes to stdout, everything else to stderr.
//!
//! Exit codes: 0 when the work is done (a closed pipe included), 1 after an error, 2 when the command line is wrong, 130 after
//! Ctrl-C. `verify` and `diff` as diff(1): 1 when something is wrong or different, 2 after an error.

#![cfg_attr(not(test), deny(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used))]

mod args;
mod backend;
mod bench;
mod chat;
mod chat_input;
mod completions;
mod convert;
mod depth;
mod device_args;
mod diff;
mod doctor;
#[cfg(feature = "hub")]
mod download;
mod dump;
mod estimate;
mod eval;
mod export;
mod generate;
mod generation_args;
mod habits;
mod info;
mod input;
mod load;
mod man;
mod memory;
mod model_name;
#[cfg(feature = "hub")]
mod models;
mod output;
mod probe;
#[cfg(feature = "hub")]
mod pull;
mod quantize;
mod render;
pub mod sampling;
#[cfg(feature = "serve")]
mod serve;
mod tensor_file;
mod terminal;
mod threads;
mod tokenize;
mod tokenizer_args;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser, Subcommand};

/// Exit code after Ctrl-C: 128 and the number of the signal, as shells have it.
const INTERRUPTED: u8 = 130;

/// Columns of help at most; a narrower terminal has fewer.
const HELP_WIDTH: usize = 100;

/// Exit code of a wrong command line, as clap has it.
const USAGE: u8 = 2;

/// Exit code of a comparison that could not be made, as `diff` has it.
const TROUBLE: u8 = 2;

/// Compact language models: CREST, Nano compact, LeanLlama
#[derive(Debug, Parser)]
#[command(name = "ember", version, arg_required_else_help = true, infer_subcommands = false, max_term_width = HELP_WIDTH)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Continue a prompt, or answer it with --chat
    Generate(Box<generate::GenerateArgs>),
    /// Talk with a model, on a terminal or through pipes
    Chat(Box<chat::ChatArgs>),
    /// Serve a model over HTTP: OpenAI's API, for many clients at once
    #[cfg(feature = "serve")]
    Serve(Box<serve::ServeArgs>),
    /// Download a model from a hub into the cache
    #[cfg(feature = "hub")]
    Pull(pull::PullArgs),
    /// List the models in the cache
    #[cfg(feature = "hub")]
    Models(models::ModelsArgs),
    /// Show what a model directory holds and what running it takes
    Info(Box<info::InfoArgs>),
    /// Check that a model is whole and that its files fit each other
    Verify(Box<verify::VerifyArgs>),
    /// Write a smaller copy of a model: NF4, int8, integer rows
    Quantize(Box<quantize::QuantizeArgs>),
    /// Write a copy of a model with dense weights, from any format
    Convert(convert::ConvertArgs),
    /// Compare two models: tensors, configs, what they say about a text
    Diff(Box<diff::DiffArgs>),
    /// Measure how well a model predicts a text
    Eval(Box<eval::EvalArgs>),
    /// Find options that no file of a model states, by a text
    Probe(Box<probe::ProbeArgs>),
    /// Show how deep a model thinks about each token of a text (CREST)
    Depth(Box<depth::DepthCommandArgs>),
    /// Measure prefill and decode speed, of a model or random weights
    Bench(Box<bench::BenchArgs>),
    /// List the devices, and test one
    Doctor(doctor::DoctorArgs),
    /// Show the tokens of a text or of a chat
    Tokenize(Box<tokenize::TokenizeArgs>),
    /// Show the prompt that a chat becomes
    Render(Box<render::RenderArgs>),
    /// Write what a model computes, to compare with another program
    Dump(Box<dump::DumpArgs>),
    /// Print what makes a shell complete commands and flags
    Completions(completions::CompletionsArgs),
    /// Write the manual pages
    Man(man::ManArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let args = match habits::translate(std::env::args_os().collect(), &Cli::command()) {
        Ok(translated) => {
            translated.notes.iter().for_each(|note| output::note(&format!("note: {}", output::printable(note))));
            translated.args
        }
        Err(message) => {
            output::note(&format!("error: {}\n\nFor more information, try '--help'.", output::printable(&message)));
            return ExitCode::from(USAGE);
        }
    };
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(mut error) => {
            let mut program = Cli::command();
            let mut tip = habits::tip_for_stray_word(&error, &args, &program);
            if let Some(other) = habits::tip_for_flag_of_others(&error, &args, &program) {
                tip = Some(other);
                error.remove(ContextKind::SuggestedArg);
                // What was suggested is in the usage too.
                program.build();
                if let Some(command) = args.get(1).and_then(|name| program.find_subcommand_mut(name)) {
                    error.insert(ContextKind::Usage, ContextValue::StyledStr(command.render_usage()));
                }
            }
            if let Some(tip) = tip {
                error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
            }
            return said(&error);
        }
    };
    log(&cli.command);
    if let Err(error) = emberlm::backends::environment::check() {
        let _ = writeln!(std::io::stderr(), "error: {error}");
        return ExitCode::FAILURE;
    }
    let result = match cli.command {
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(&args),
        Command::Info(args) => info::run(&args).map(|()| true),
        #[cfg(feature = "hub")]
        Command::Pull(args) => pull::run(&args).map(|()| true),
        #[cfg(feature = "hub")]
        Command::Models(args) => models::run(&args).map(|()| true),
        Command::Bench(args) => bench::run(&args).map(|()| true),
        Command::Doctor(args) => doctor::run(&args).map(|()| true),
        Command::Eval(args) => eval::run(&args).map(|()| true),
        Command::Probe(args) => probe::run(&args).map(|()| true),
        Command::Quantize(args) => quantize::run(&args).map(|()| true),
        Command::Convert(args) => convert::run(&args).map(|()| true),
        Command::Depth(args) => depth::run(&args).map(|()| true),
        Command::Dump(args) => dump::run(&args).map(|()| true),
        Command::Tokenize(args) => tokenize::run(&args).map(|()| true),
        Command::Render(args) => render::run(&args).map(|()| true),
        Command::Completions(args) => completions::run(&args, &mut Cli::command()).map(|()| true),
        Command::Man(args) => man::run(&args, Cli::command()).map(|()| true),
        Command::Verify(args) => return compared(verify::run(&args)),
        Command::Diff(args) => return compared(diff::run(&args)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(INTERRUPTED),
        // The reader has seen enough, as in `ember ... | head`.
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // When stderr is closed too, there is nowhere left to report the error.
            let _ = writeln!(std::io::stderr(), "error: {}", output::with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// Prints help, the version, or what is wrong with the arguments, each where it belongs. The exit code is that of the parser, unless help
/// that was asked for could not be written.
fn said(what: &clap::Error) -> ExitCode {
    match what.print().context(output::STDOUT) {
        Err(error) if !what.use_stderr() && !output::is_closed_pipe(&error) => {
            let _ = writeln!(std::io::stderr(), "error: {}", output::with_causes(&error));
            ExitCode::FAILURE
        }
        _ => ExitCode::from(u8::try_from(what.exit_code()).unwrap_or(USAGE)),
    }
}

/// The exit code of a comparison, as `diff` has it: 0 when all is as it should be, 1 when not, 2 when it could not be made.
/// Whether anyone reads what was found makes no difference.
fn compared(result: anyhow::Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {}", output::with_causes(&error));
            ExitCode::from(TROUBLE)
        }
    }
}

/// Warnings of the library: what was found odd but could be used. A server also tells of every request, and when; how much, its flag says.
fn log(command: &Command) {
    use tracing_subscriber::filter::LevelFilter;
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).with_ansi(false);
    #[cfg(feature = "serve")]
    if let Command::Serve(args) = command {
        lines.with_max_level(LevelFilter::from(args.log_level)).init();
        return;
    }
    // What the library warns of is among the findings.
    let level = if matches!(command, Command::Verify(_)) { LevelFilter::ERROR } else { LevelFilter::WARN };
    lines.with_max_level(level).without_time().init();
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::Args;

    use super::*;

    /// Headings of the help with the flags that belong there, by the groups that have them.
    fn headings() -> Vec<(&'static str, Vec<String>)> {
        let group = |heading, group: clap::Command| {
            let own = group.get_arguments().filter(|arg| arg.get_help_heading() == Some(heading));
            let own: Vec<String> = own.map(|arg| arg.get_id().to_string()).collect();
            assert!(!own.is_empty(), "nothing is under {heading:?}");
            (heading, own)
        };
        let none = || clap::Command::new("ember");
        let of = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        vec![
            #[cfg(feature = "hub")]
            group("Models by name", model_name::HubArgs::augment_args(none())),
            group("Drafts (speculative decoding)", args::DraftArgs::augment_args(none())),
            group("Adaptive depth (CREST)", args::DepthArgs::augment_args(none())),
            group("Device", device_args::DeviceArgs::augment_args(none())),
            group("Chat", chat_input::ChatArgs::augment_args(none())),
            group(
                "Sampling (default: by generation_config.json; greedy without its do_sample)",
                sampling::SamplingArgs::augment_args(none()),
            ),
            ("Format nano", of(&["min_cosine", "prompts", "bits"])),
            (
                "Text",
                of(&[
                    "text",
                    "context",
                    "window_bos",
                    "cache_type",
                    "other_cache_type",
                    "cache_hidden",
                    "other_cache_hidden",
                ]),
            ),
            ("Drafts (measured beside decoding without them)", of(&["draft_acceptance"])),
        ]
    }

    /// The heading of a group of flags would be that of all flags after it, unless each flag of the group has it for itself or none comes after.
    #[test]
    fn every_flag_is_under_the_heading_of_its_group() {
        let program = Cli::command();
        let headings = headings();
        let mut seen = HashSet::new();
        for command in program.get_subcommands() {
            for arg in command.get_arguments() {
                let Some(heading) = arg.get_help_heading() else { continue };
                let group = headings.iter().find(|(known, _)| *known == heading);
                let belongs = group.is_some_and(|(_, own)| own.iter().any(|id| id == arg.get_id()));
                assert!(belongs, "{}: {} is under {heading:?}", command.get_name(), arg.get_id());
                seen.insert(heading.to_owned());
            }
        }
        for (heading, _) in &headings {
            assert!(seen.contains(*heading), "no command has flags under {heading:?}");
        }
    }
}
