//! Text from a model on a terminal.
//!
//! # Untrusted input
//! A model may have been trained, or be talked into, writing escape sequences: these could rename the window, write to the
//! clipboard or hide text. On a terminal they are left out; into a file or a pipe text goes unchanged.

/// Longest sequence that is left out whole. What claims to be longer is text again, so that a sequence without an end does
/// not hide the rest of the answer.
const LONGEST: usize = 256;

/// Leaves control characters and escape sequences out of a text that comes in pieces.
#[derive(Debug, Default)]
pub struct TerminalFilter {
    state: State,
    /// Characters of the current sequence.
    length: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC and an intermediate character, as in a choice of character set.
    Intermediate,
    /// After ESC [: parameters, then one final character.
    Control,
    /// After ESC ], P, X, ^ or _: a string that BEL or ESC \ ends.
    String,
}

impl TerminalFilter {
    /// The part of the next piece that may be shown.
    pub fn push(&mut self, piece: &str) -> String {
        piece.chars().filter(|&c| self.shows(c)).collect()
    }

    fn shows(&mut self, c: char) -> bool {
        self.length += 1;
        if self.length > LONGEST || c == '\n' {
            self.state = State::Text;
        }
        let (state, shown) = match (self.state, c) {
            (_, '\x1b') => (State::Escape, false),
            (_, '\u{9b}') => (State::Control, false),
            (_, '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}') => (State::String, false),
            (State::Text, '\n' | '\t') => (State::Text, true),
            (State::Text, c) => (State::Text, !c.is_control()),
            (State::Escape, '[') => (State::Control, false),
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => (State::String, false),
            (State::Escape | State::Intermediate, ' '..='/') => (State::Intermediate, false),
            (State::Escape | State::Intermediate, _) => (State::Text, false),
            (State::Control, '@'..='~') => (State::Text, false),
            (State::Control, _) => (State::Control, false),
            (State::String, '\x07' | '\u{9c}') => (State::Text, false),
            (State::String, _) => (State::String, false),
        };
        if self.state == State::Text || state == State::Text {
            self.length = 0;
        }
        self.state = state;
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_left_out_however_they_are_cut() {
        let text =
            "a\x1b[31;1mb\x1b]0;title\x07c\x1b]52;c;AAAA\x1b\\d\u{9b}2Je\x1b(Bf\r\x08\x7fg\th\u{9d}x\u{9c}\nü\x1bcz";
        let expected = "abcdefg\th\nüz";
        assert_eq!(TerminalFilter::default().push(text), expected);
        let mut filter = TerminalFilter::default();
        let by_char: String = text.chars().map(|c| filter.push(&c.to_string())).collect();
        assert_eq!(by_char, expected);
    }

    #[test]
    fn a_sequence_without_an_end_hides_little() {
        let mut filter = TerminalFilter::default();
        assert_eq!(filter.push("\x1b]0;hidden\nshown"), "\nshown");
        let long = format!("\x1b]{}", "x".repeat(1000));
        assert_eq!(filter.push(&long).len(), 1000 - LONGEST + 1);
        assert_eq!(filter.push("\x1b[0mend"), "end");
    }
}
