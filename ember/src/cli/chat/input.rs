//! What the user types, or what comes through a pipe: messages and commands.

use std::fs::{self, File};
use std::io::{self, BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::{Behavior, Config, DefaultEditor};

use super::command::is_command;
use crate::cli::output;

/// Begins and ends a message of several lines.
const FENCE: &str = "\"\"\"";

/// Longest message, in bytes.
const LONGEST: usize = 64 << 20;

/// Messages that the history remembers.
const REMEMBERED: usize = 1000;

const PROMPT: &str = "> ";
const CONTINUED: &str = "... ";

/// One thing that was said.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    Message(String),
    Command(String),
    /// Ctrl-C at a prompt.
    Interrupted,
    End,
}

/// Where lines come from.
pub struct Input {
    source: Source,
}

enum Source {
    Terminal {
        editor: Box<DefaultEditor>,
        history: Option<PathBuf>,
    },
    Pipe,
    #[cfg(test)]
    Lines(std::collections::VecDeque<&'static str>),
}

enum Line {
    Text(String),
    Interrupted,
    End,
}

/// Whether the history will find its place, which it takes at the end alone.
fn check_writable(path: &Path) -> Result<()> {
    let told = || format!("cannot write the history {}", path.display());
    if path.exists() {
        File::options().append(true).open(path).with_context(told)?;
    } else {
        File::options().write(true).create_new(true).open(path).with_context(told)?;
        fs::remove_file(path).with_context(told)?;
    }
    Ok(())
}

impl Input {
    /// The terminal if stdin is one, with what `history` remembers of former runs; else the lines of a pipe.
    ///
    /// # Errors
    /// When the history cannot be read, or could not be written at the end.
    pub fn open(history: Option<&Path>) -> Result<Self> {
        if !io::stdin().is_terminal() {
            ensure!(history.is_none(), "--history is for a terminal, and stdin is none");
            return Ok(Self { source: Source::Pipe });
        }
        // Where answers go into a file, the prompt does not.
        let behavior = if io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder().behavior(behavior).build();
        let mut editor = DefaultEditor::with_config(config).context("cannot use the terminal")?;
        editor.set_max_history_size(REMEMBERED).context("the history takes no messages")?;
        history.map_or(Ok(()), check_writable)?;
        if let Some(path) = history.filter(|path| path.exists()) {
            editor.load_history(path).with_context(|| format!("cannot read the history {}", path.display()))?;
        }
        Ok(Self { source: Source::Terminal { editor: Box::new(editor), history: history.map(Path::to_path_buf) } })
    }

    /// Whether a person types.
    pub fn is_terminal(&self) -> bool {
        matches!(self.source, Source::Terminal { .. })
    }

    /// The next message or command. Empty lines are passed over.
    ///
    /// # Errors
    /// When the input cannot be read, is no UTF-8 or too long, or ends inside a message of several lines.
    pub fn next(&mut self) -> Result<Entry> {
        loop {
            let text = match self.line(PROMPT)? {
                Line::Text(text) => text,
                Line::Interrupted => return Ok(Entry::Interrupted),
                Line::End => return Ok(Entry::End),
            };
            let (text, fenced) = match text.strip_prefix(FENCE) {
                Some(first) => (self.fenced(first)?, true),
                None => (self.continued(text)?, false),
            };
            let Some(text) = text.filter(|text| !text.trim().is_empty()) else { continue };
            if !fenced && is_command(&text) {
                self.remember(&text)?;
                return Ok(Entry::Command(text));
            }
            // Called back, it is the same message again.
            let plain = !fenced || !(is_command(&text) || text.ends_with('\\') || text.starts_with(FENCE));
            let quoted = if plain { text.clone() } else { format!("{FENCE}\n{text}\n{FENCE}") };
            self.remember(&quoted)?;
            return Ok(Entry::Message(text));
        }
    }

    /// A message that goes on after each line that ends with a backslash; none where it was given up.
    fn continued(&mut self, first: String) -> Result<Option<String>> {
        let mut text = first;
        while text.ends_with('\\') {
            text.pop();
            match self.line(CONTINUED)? {
                Line::Text(more) => {
                    text.push('\n');
                    text.push_str(&more);
                }
                // A last line that ends so says what it says.
                Line::End if !self.is_terminal() => return Ok(Some(text)),
                Line::Interrupted | Line::End => return Ok(None),
            }
            ensure!(text.len() <= LONGEST, "the message is longer than {}", output::bytes(LONGEST));
        }
        Ok(Some(text))
    }

    /// A message up to the end of its fence; none where it was given up.
    fn fenced(&mut self, first: &str) -> Result<Option<String>> {
        let mut text = first.to_owned();
        loop {
            if let Some(whole) = text.trim_end().strip_suffix(FENCE) {
                let whole = whole.strip_prefix('\n').unwrap_or(whole);
                return Ok(Some(whole.strip_suffix('\n').unwrap_or(whole).to_owned()));
            }
            match self.line(CONTINUED)? {
                Line::Text(more) => {
                    text.push('\n');
                    text.push_str(&more);
                }
                Line::End if !self.is_terminal() => bail!("the input ends inside a message that {FENCE} began"),
                Line::Interrupted | Line::End => return Ok(None),
            }
            ensure!(text.len() <= LONGEST, "the message is longer than {}", output::bytes(LONGEST));
        }
    }

    fn line(&mut self, prompt: &str) -> Result<Line> {
        match &mut self.source {
            Source::Terminal { editor, .. } => match editor.readline(prompt) {
                // A paste may bring line ends of its own.
                Ok(text) => Ok(Line::Text(text.replace("\r\n", "\n").replace('\r', "\n"))),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("cannot read from the terminal"),
            },
            Source::Pipe => read_line(&mut io::stdin().lock()),
            #[cfg(test)]
            Source::Lines(lines) => Ok(lines.pop_front().map_or(Line::End, |line| Line::Text(line.to_owned()))),
        }
    }

    fn remember(&mut self, text: &str) -> Result<()> {
        if let Source::Terminal { editor, .. } = &mut self.source {
            editor.add_history_entry(text).context("the history takes no message")?;
        }
        Ok(())
    }

    /// Writes the history where a file for it was given.
    ///
    /// # Errors
    /// With the name of the file.
    pub fn save_history(&mut self) -> Result<()> {
        if let Source::Terminal { editor, history: Some(path) } = &mut self.source {
            editor.append_history(path).with_context(|| format!("cannot write the history {}", path.display()))?;
        }
        Ok(())
    }
}

/// A line of a pipe, without its end.
fn read_line(reader: &mut impl BufRead) -> Result<Line> {
    let mut bytes = Vec::new();
    let mut limited = reader.take(LONGEST as u64 + 2);
    limited.read_until(b'\n', &mut bytes).context("cannot read stdin")?;
    if bytes.is_empty() {
        return Ok(Line::End);
    }
    if bytes.pop_if(|byte| *byte == b'\n').is_some() {
        bytes.pop_if(|byte| *byte == b'\r');
    }
    ensure!(bytes.len() <= LONGEST, "a line of stdin is longer than {}", output::bytes(LONGEST));
    Ok(Line::Text(String::from_utf8(bytes).context("a line of stdin is not UTF-8")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(lines: &[&'static str]) -> Result<Vec<Entry>> {
        let mut input = Input { source: Source::Lines(lines.iter().copied().collect()) };
        let mut entries = Vec::new();
        loop {
            match input.next()? {
                Entry::End => return Ok(entries),
                entry => entries.push(entry),
            }
        }
    }

    #[test]
    fn messages_may_have_several_lines() {
        let message = |text: &str| Entry::Message(text.to_owned());
        let all = entries(&[
            "one",
            "",
            "  ",
            "two\\",
            "lines\\",
            "more",
            "\"\"\"",
            "/not a command",
            "",
            "end\\",
            "\"\"\"",
            "\"\"\"short\"\"\"",
            "\"\"\"a",
            "b\"\"\"",
            "/help",
            "last\\",
        ]);
        let expected = [
            message("one"),
            message("two\nlines\nmore"),
            message("/not a command\n\nend\\"),
            message("short"),
            message("a\nb"),
            Entry::Command("/help".to_owned()),
            message("last"),
        ];
        assert_eq!(all.unwrap(), expected);
        let error = entries(&["\"\"\"", "x"]).unwrap_err().to_string();
        assert!(error.contains("ends inside a message"), "{error}");
    }

    #[test]
    fn lines_of_a_pipe_lose_their_ends() {
        let mut reader = io::Cursor::new(b"a\r\nb\n\nc".to_vec());
        let mut lines = Vec::new();
        while let Line::Text(line) = read_line(&mut reader).unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, ["a", "b", "", "c"]);
        assert!(read_line(&mut io::Cursor::new(b"\xff\n".to_vec())).is_err());
    }
}
