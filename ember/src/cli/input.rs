//! Texts that a command reads: from a flag, a file or stdin.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::output;

/// Largest prompt read from stdin, in bytes.
const MAX_PROMPT: u64 = 64 << 20;

/// Largest file, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// The name of a file in messages.
pub fn shown(path: &Path) -> String {
    if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() }
}

/// A text file; `-` is stdin.
pub fn read(path: &Path) -> Result<String> {
    let shown = shown(path);
    let open = || -> io::Result<Box<dyn Read>> {
        Ok(if path == Path::new("-") { Box::new(io::stdin().lock()) } else { Box::new(File::open(path)?) })
    };
    let mut bytes = Vec::new();
    let read = open().and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read {shown}"))?;
    ensure!(bytes.len() as u64 <= MAX_FILE, "{shown} is longer than {}", output::bytes(MAX_FILE as usize));
    String::from_utf8(bytes).with_context(|| format!("{shown} is not UTF-8"))
}

/// A text from `-p`, from `-f`, or else from stdin.
#[derive(Debug, Args)]
pub struct TextArgs {
    /// The text, or what the user of a chat says; - reads it from stdin, without its last line break
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "file")]
    prompt: Option<String>,

    /// A file with it, all of it; stdin is read where neither is given
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl TextArgs {
    /// The text. A `-` stands for stdin.
    ///
    /// # Errors
    /// When it cannot be read, is too long or no UTF-8, or stdin is a terminal that was not asked for.
    pub fn read(&self) -> Result<String> {
        match (self.prompt.as_deref(), &self.file) {
            (Some(prompt), _) if prompt != "-" => Ok(prompt.to_owned()),
            (None, Some(file)) => read(file),
            (prompt, _) => {
                let waits = prompt.is_none() && io::stdin().is_terminal();
                ensure!(!waits, "there is no text: give one with -p, a file with -f, or pipe one in");
                given_or_stdin("-")
            }
        }
    }
}

/// A prompt as it is given; - stands for what is on stdin, without its last line break.
pub fn given_or_stdin(prompt: &str) -> Result<String> {
    let mut text = given_or_all_of_stdin(prompt)?;
    if prompt == "-" && text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// A prompt as it is given; - stands for all that is on stdin.
pub fn given_or_all_of_stdin(prompt: &str) -> Result<String> {
    if prompt != "-" {
        return Ok(prompt.to_owned());
    }
    let mut bytes = Vec::new();
    io::stdin().lock().take(MAX_PROMPT + 1).read_to_end(&mut bytes).context("cannot read the prompt from stdin")?;
    if bytes.len() as u64 > MAX_PROMPT {
        bail!("the prompt on stdin is longer than {}", output::bytes(MAX_PROMPT as usize));
    }
    String::from_utf8(bytes).context("the prompt on stdin is not UTF-8")
}
