//! `ember man`: the manual pages, from the same descriptions as `--help`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::output;
use super::tensor_file::OutputFile;

const ABOUT: &str = "\
Examples:
  ember man | man -l -                        read the page of the program
  ember man ~/.local/share/man/man1           the pages of the program and its commands, for `man ember-generate`";

/// Flags of `ember man`.
#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub struct ManArgs {
    /// Directory for the pages of the program and of every command, made where it is missing; pages of the same name are replaced
    /// [default: the page of the program, to stdout]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs the command for a program with these commands and flags.
pub fn run(args: &ManArgs, program: Command) -> Result<()> {
    // What `ember help COMMAND` says is the page of the command.
    let mut program = program.disable_help_subcommand(true);
    program = program.subcommand_value_name("COMMAND").subcommand_help_heading("COMMANDS");
    // Gives the commands their full names, as `ember generate`.
    program.build();
    match &args.dir {
        None => io::stdout().write_all(&page(&program)?).context(output::STDOUT),
        Some(dir) => pages(&program, dir),
    }
}

/// The page of one command.
fn page(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let version = env!("CARGO_PKG_VERSION");
    let man = Man::new(command.clone()).source(format!("ember {version}")).manual("ember");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    if command.get_subcommands().any(|command| !command.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(text) = command.get_after_long_help().or_else(|| command.get_after_help()) {
        notes(&text.to_string()).to_writer(&mut page)?;
    }
    Ok(page)
}

/// What follows the flags in `--help`. Indented lines are examples and tables, and stay lines; others are paragraphs.
fn notes(text: &str) -> Roff {
    let mut roff = Roff::default();
    roff.control("SH", ["NOTES"]);
    for line in text.lines() {
        if line.is_empty() {
            roff.control("PP", []);
        } else if line.starts_with(' ') {
            roff.control("nf", []).text([roman(line)]).control("fi", []);
        } else {
            roff.text([roman(line)]);
        }
    }
    roff
}

/// Writes the pages of a program.
fn pages(program: &Command, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    let commands = program.get_subcommands().filter(|command| !command.is_hide_set());
    let mut count = 0;
    for command in std::iter::once(program).chain(commands) {
        let path = dir.join(format!("{}.1", command.get_display_name().unwrap_or(command.get_name())));
        OutputFile::create(&path)?.finish_text(&String::from_utf8(page(command)?)?)?;
        count += 1;
    }
    output::note(&format!("{count} pages in {}", dir.display()));
    Ok(())
}
