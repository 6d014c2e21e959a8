//! `ember render`: the prompt that a chat becomes.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use super::chat_input::{ChatArgs, note_unread};
use super::input::TextArgs;
use super::output::{self, counted};
use super::terminal::TerminalFilter;
use super::tokenizer_args::TokenizerArgs;

const ABOUT: &str = "\
Examples:
  ember render -m DIR -p \"What is a river?\"                     a question
  ember render -m DIR -p hi --system \"Be brief.\" --no-think      with flags for the template
  ember render -m DIR --messages chat.json --tools tools.json   a chat with tools
  ember render -m DIR -p hi --date 2026-01-31                   what the prompt is on another day
  ember render -m DIR -p hi | ember generate -m DIR --rendered -p -  what generate --chat does, in two steps

A file of messages: [{\"role\": \"system\", \"content\": \"Be brief.\"}, {\"role\": \"user\", \"content\": \"hello\"}]

The prompt goes to stdout as it is, without a line break of its own (on a terminal one is added). `ember tokenize` shows the \
tokens of the same chat.";

/// Flags of `ember render`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct RenderArgs {
    #[command(flatten)]
    tokenizer: TokenizerArgs,

    #[command(flatten)]
    text: TextArgs,

    /// Print one JSON object: prompt, and its number of tokens
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    chat: ChatArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    prompt: &'a str,
    tokens: usize,
}

/// Runs the command.
pub fn run(args: &RenderArgs) -> Result<()> {
    let text = args.tokenizer.open()?;
    let (messages, options) = args.chat.chat(|| args.text.read())?;
    let prompt = text.render_chat(&messages, &options)?;
    note_unread(&text, &messages, &options)?;
    // A prompt with a token that the model lacks is worth a look too.
    let tokens = text.without_embedding().encode(&prompt, false)?.len();
    let write = || -> io::Result<()> {
        let mut out = io::stdout().lock();
        if args.json {
            serde_json::to_writer(&mut out, &Report { prompt: &prompt, tokens })?;
            writeln!(out)?;
        } else if out.is_terminal() {
            out.write_all(TerminalFilter::default().push(&prompt).as_bytes())?;
            if !prompt.ends_with('\n') {
                writeln!(out)?;
            }
        } else {
            out.write_all(prompt.as_bytes())?;
        }
        out.flush()
    };
    write().context(output::STDOUT)?;
    let last = if prompt.ends_with('\n') { "; ends with a line break" } else { "" };
    output::note(&format!("{}, {}{last}", counted(tokens, "token"), counted(prompt.chars().count(), "character")));
    Ok(())
}
