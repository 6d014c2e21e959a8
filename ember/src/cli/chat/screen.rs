//! An answer as it is shown.
//!
//! # Untrusted input
//! What a model says goes to a terminal without control characters ([`TerminalFilter`]), and to a file or a pipe as it is.

use std::io::{self, IsTerminal, Write};

use crate::cli::depth::{ColourChoice, Colours, level, tinted};
use crate::cli::terminal::TerminalFilter;

/// Where thoughts begin and end where nothing can be dimmed.
const THOUGHTS: [&str; 2] = ["[thinking] ", "[answer] "];

/// What is shown on stdout, and how.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Whether it is a terminal, which the text could steer.
    terminal: bool,
    /// Whether somebody talks on it: then thoughts are shown too.
    pub interactive: bool,
    pub colours: Colours,
}

impl Screen {
    /// Of this process, whose messages are typed or come through a pipe.
    pub fn of_stdout(typed: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let interactive = terminal && typed;
        let colours = if interactive { ColourChoice::Auto.resolve() } else { Colours::None };
        Self { terminal, interactive, colours }
    }

    /// The numbers of steps in their colours.
    pub fn legend(&self, num_steps: usize) -> String {
        let swatch = |steps: usize| tinted(&format!(" {steps} "), Some(level(steps as f64, num_steps)), self.colours);
        (1..=num_steps).map(swatch).collect::<Vec<_>>().join(" ")
    }
}

/// Which part of an answer was shown last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Nothing,
    Thoughts,
    Answer,
}

/// Shows one answer.
#[derive(Debug)]
pub struct Shown {
    screen: Screen,
    /// The steps of the model, where tokens are coloured by them.
    num_steps: Option<usize>,
    filter: TerminalFilter,
    section: Section,
    ends_line: bool,
}

impl Shown {
    /// Nothing yet.
    pub fn new(screen: Screen, num_steps: Option<usize>) -> Self {
        Self { screen, num_steps, filter: TerminalFilter::default(), section: Section::Nothing, ends_line: false }
    }

    /// Shows a part of the thoughts. A program that reads stdout gets the answer alone.
    pub fn thoughts(&mut self, text: &str, mean_steps: Option<f64>) -> io::Result<()> {
        if !self.screen.interactive || text.is_empty() {
            return Ok(());
        }
        let shown = self.filter.push(text);
        let dimmed = match (self.screen.colours, self.level(mean_steps)) {
            (Colours::None, _) => shown,
            (_, None) => format!("\x1b[2m{shown}\x1b[22m"),
            (colours, level) => lines_tinted(&shown, level, colours),
        };
        let head = match (self.section, self.screen.colours) {
            (Section::Thoughts, _) => "",
            (_, Colours::None) => THOUGHTS[0],
            _ => "",
        };
        self.section = Section::Thoughts;
        write(&format!("{head}{dimmed}"))
    }

    /// Shows a part of the answer.
    pub fn answer(&mut self, text: &str, mean_steps: Option<f64>) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.ends_line = text.ends_with('\n');
        if !self.screen.terminal {
            return write(text);
        }
        let shown = self.filter.push(text);
        let tinted = lines_tinted(&shown, self.level(mean_steps), self.screen.colours);
        let head = match (self.section, self.screen.colours) {
            (Section::Thoughts, Colours::None) => format!("\n\n{}", THOUGHTS[1]),
            (Section::Thoughts, _) => "\n\n".to_owned(),
            _ => String::new(),
        };
        self.section = Section::Answer;
        write(&format!("{head}{tinted}"))
    }

    /// Ends the last line.
    pub fn finish(self) -> io::Result<()> {
        if self.ends_line { Ok(()) } else { write("\n") }
    }

    fn level(&self, mean_steps: Option<f64>) -> Option<usize> {
        Some(level(mean_steps?, self.num_steps?))
    }
}

/// A background would run to the end of the line.
fn lines_tinted(text: &str, level: Option<usize>, colours: Colours) -> String {
    text.split('\n').map(|line| tinted(line, level, colours)).collect::<Vec<_>>().join("\n")
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
