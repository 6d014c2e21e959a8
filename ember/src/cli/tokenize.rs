//! `ember tokenize`: the tokens of a text or of a chat.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use clap::Args;
use emberlm::model::text::{SpecialText, SpecialToken, TextProcessor, TokenKind};
use serde::Serialize;

use super::chat_input::{ChatArgs, note_unread};
use super::depth::{ColourChoice, Colours};
use super::input::TextArgs;
use super::output::{self, counted};
use super::tokenizer_args::TokenizerArgs;

const ABOUT: &str = "\
Examples:
  ember tokenize -m DIR -p \"The quick brown fox\"      a text, with the special tokens around it
  ember tokenize -m DIR -f notes.txt --ids            ids alone, for another program
  ember tokenize -m DIR -p hi --chat                  the prompt that generate --chat makes of it
  ember tokenize -m DIR --messages chat.json --json   a chat, as JSON
  ember tokenize -m DIR -p \"a <|im_end|> b\" --literal  special tokens as the characters they are spelled with

A token is shown as the text it gives, or as its bytes (\\xf0\\x9f) where these are no whole characters.

With --json one object is printed: count, ids, tokens (per token id, token as the vocabulary spells it, text that it gives, bytes where these are no text, kind: \
ordinary, added or special), and the model's special_tokens (bos, eos, pad, unk).";

/// Flags of `ember tokenize`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct TokenizeArgs {
    #[command(flatten)]
    tokenizer: TokenizerArgs,

    #[command(flatten)]
    text: TextArgs,

    /// Leave out the tokens that the tokenizer puts around a text, such as BOS
    #[arg(long, visible_alias = "no-bos", conflicts_with_all = ["chat", "messages"])]
    no_special: bool,

    /// Take special tokens in the text as ordinary text; in a chat, in what users and tools say
    #[arg(long, visible_alias = "no-parse-special")]
    literal: bool,

    /// Put the text into the model's chat template, as a message of the user
    #[arg(long, conflicts_with = "messages")]
    chat: bool,

    /// Print the ids alone, in one line
    #[arg(long)]
    ids: bool,

    /// Print one JSON object
    #[arg(long, conflicts_with = "ids")]
    json: bool,

    #[command(flatten)]
    options: ChatArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    count: usize,
    ids: &'a [u32],
    tokens: Vec<Row>,
    special_tokens: Roles<'a>,
}

#[derive(Debug, Serialize)]
struct Row {
    id: u32,
    /// As the vocabulary spells it.
    token: String,
    /// What it gives.
    text: String,
    /// Its bytes, where they are no whole text.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<Vec<u8>>,
    kind: &'static str,
    /// Whether the embedding has no row for it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    beyond_embedding: bool,
}

#[derive(Debug, Serialize)]
struct Roles<'a> {
    bos: Option<Role<'a>>,
    eos: Option<Role<'a>>,
    pad: Option<Role<'a>>,
    unk: Option<Role<'a>>,
}

#[derive(Debug, Serialize)]
struct Role<'a> {
    text: &'a str,
    id: Option<u32>,
}

/// Runs the command.
pub fn run(args: &TokenizeArgs) -> Result<()> {
    let text = args.tokenizer.open()?;
    let rows = text.embedding();
    // Tokens beyond the embedding are shown, not refused.
    let text = text.without_embedding();
    let given = || args.text.read();
    let ids = if args.chat || args.options.has_messages() {
        let (messages, mut options) = args.options.chat(given)?;
        if args.literal {
            options.special_text = SpecialText::Literal;
        }
        let ids = text.encode_chat(&messages, &options)?;
        note_unread(&text, &messages, &options)?;
        ids
    } else if let Some(flag) = args.options.given() {
        bail!("{flag} is for chats: add --chat, or give the chat with --messages FILE");
    } else if args.literal {
        text.encode_literal(&given()?, !args.no_special)?
    } else {
        text.encode(&given()?, !args.no_special)?
    };
    let tokens = ids.iter().map(|&id| row(&text, id, rows)).collect::<Result<Vec<Row>>>()?;
    let special = tokens.iter().filter(|token| token.kind == "special").count();
    let beyond = tokens.iter().filter(|token| token.beyond_embedding).count();
    let bytes = text.decode(&ids, true)?.len();
    write(args, &text, &ids, tokens).context(output::STDOUT)?;

    let rate = match ids.len() - special {
        0 => String::new(),
        ordinary => format!("; {:.2} bytes of text per other token", bytes as f64 / ordinary as f64),
    };
    output::note(&format!("{}, {special} special{rate}", counted(ids.len(), "token")));
    if let (1.., Some(rows)) = (beyond, rows) {
        output::note(&format!("{beyond} are beyond the embedding of {rows} rows: the model cannot be given this text"));
    }
    Ok(())
}

fn row(text: &TextProcessor, id: u32, rows: Option<usize>) -> Result<Row> {
    let kind = match text.kind(id) {
        TokenKind::Ordinary => "ordinary",
        TokenKind::Added => "added",
        TokenKind::Special => "special",
    };
    Ok(Row {
        id,
        token: text.token(id).unwrap_or_default(),
        bytes: text.bytes(id).filter(|bytes| std::str::from_utf8(bytes).is_err()),
        text: text.decode(&[id], false)?,
        kind,
        beyond_embedding: rows.is_some_and(|rows| id as usize >= rows),
    })
}

fn write(args: &TokenizeArgs, text: &TextProcessor, ids: &[u32], tokens: Vec<Row>) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.ids {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(out, "{}", ids.join(" "))?;
    } else if args.json {
        let special = text.special_tokens();
        let role = |token: &'_ Option<SpecialToken>| token.clone();
        let roles = [role(&special.bos), role(&special.eos), role(&special.pad), role(&special.unk)];
        let [bos, eos, pad, unk] =
            roles.each_ref().map(|token| token.as_ref().map(|token| Role { text: token.text.as_str(), id: token.id }));
        let report = Report { count: ids.len(), ids, tokens, special_tokens: Roles { bos, eos, pad, unk } };
        serde_json::to_writer(&mut out, &report)?;
        writeln!(out)?;
    } else {
        table(&mut out, &tokens, ColourChoice::Auto.resolve() != Colours::None)?;
    }
    out.flush()
}

/// One line per token: position, id, text, and what is unusual about it.
fn table(out: &mut impl Write, tokens: &[Row], colours: bool) -> io::Result<()> {
    let paint = |code: &str, text: String| if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text };
    let width = |largest: usize| largest.to_string().len().max(2);
    let at = width(tokens.len().saturating_sub(1));
    let id = width(tokens.iter().map(|token| token.id as usize).max().unwrap_or(0));
    for (i, token) in tokens.iter().enumerate() {
        let mut note = match token.kind {
            "ordinary" => String::new(),
            kind => format!("  {kind}"),
        };
        if token.beyond_embedding {
            note.push_str("  beyond the embedding");
        }
        let text = shown(token);
        let text = if token.kind == "ordinary" { text } else { paint("36", text) };
        let place = paint("2", format!("{i:>at$}"));
        writeln!(out, "{place}  {:>id$}  {text}{}", token.id, paint("2", note).trim_end())?;
    }
    Ok(())
}

/// A token between quotes: the text it gives, its bytes where these are no whole text, or its spelling where a decoder would drop
/// the space at its front.
fn shown(token: &Row) -> String {
    let mut out = String::from("\"");
    if let Some(bytes) = &token.bytes {
        bytes.iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
        return out + "\"";
    }
    let text = if token.text.is_empty() || token.token.contains('▁') { &token.token } else { &token.text };
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if output::steers_terminal(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
