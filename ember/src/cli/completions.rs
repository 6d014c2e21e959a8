//! `ember completions`: what makes a shell complete the command line.

use std::io::{self, Write};

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;

use super::output;

const ABOUT: &str = "\
Where shells look for it:
  bash         ember completions bash > ~/.local/share/bash-completion/completions/ember
  zsh          ember completions zsh > DIR/_ember, DIR being one of $fpath
  fish         ember completions fish > ~/.config/fish/completions/ember.fish
  PowerShell   ember completions powershell | Out-String | Invoke-Expression, in the file that $PROFILE names
  elvish       eval (ember completions elvish | slurp), in ~/.config/elvish/rc.elv";

/// Flags of `ember completions`.
#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Runs the command for a program with these commands and flags.
pub fn run(args: &CompletionsArgs, program: &mut Command) -> Result<()> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, program, name, &mut script);
    io::stdout().write_all(&script).context(output::STDOUT)
}
