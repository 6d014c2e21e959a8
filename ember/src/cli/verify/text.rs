//! What `ember verify` prints for people.

use std::fmt::Write as _;

use emberlm::model::verify::{Finding, Severity, Verification};

use crate::cli::output;

/// Findings that are printed; JSON has all of them.
const MOST: usize = 100;
/// Columns before the texts of a finding.
const INDENT: usize = 11;
/// Narrowest text that is still broken into lines.
const NARROWEST: usize = 40;

/// Everything that was found, then what was looked at and the verdict.
pub fn text(path: &str, verified: &Verification, notes: bool, quick: bool) -> String {
    let mut out = String::new();
    let shown = |finding: &&Finding| notes || finding.severity > Severity::Note;
    let findings: Vec<&Finding> = verified.findings.iter().filter(shown).collect();
    for finding in findings.iter().take(MOST) {
        write_finding(&mut out, finding);
    }
    if let Some(more) = findings.len().checked_sub(MOST).filter(|&more| more > 0) {
        let _ = writeln!(out, "and {more} more, all of them with --json\n");
    }
    let _ = writeln!(out, "{}: {}", output::printable(path), looked_at(verified, quick));
    let count = |severity| verified.count(severity);
    let (errors, warnings, hidden) = (count(Severity::Error), count(Severity::Warning), count(Severity::Note));
    let verdict = match (errors, warnings) {
        (0, 0) => "nothing is wrong".to_owned(),
        (0, warnings) => format!("{} to look at", plural(warnings, "warning")),
        (errors, 0) => plural(errors, "error"),
        (errors, warnings) => format!("{}, {}", plural(errors, "error"), plural(warnings, "warning")),
    };
    let more = match hidden {
        0 => String::new(),
        _ if notes => format!(", {}", plural(hidden, "note")),
        hidden => format!(" ({}, shown with --verbose)", plural(hidden, "note")),
    };
    let _ = writeln!(out, "{verdict}{more}");
    out
}

fn write_finding(out: &mut String, finding: &Finding) {
    let place: Vec<&str> = finding.file.iter().chain(&finding.place).map(String::as_str).collect();
    let head = if place.is_empty() { String::new() } else { format!("  {}", output::printable(&place.join(": "))) };
    let _ = writeln!(out, "{:<7}  {}{head}", finding.severity.as_str(), finding.check.as_str());
    for (label, text) in [("found", &finding.found), ("expected", &finding.expected), ("do", &finding.advice)] {
        if !text.is_empty() {
            let text = wrapped(&output::printable(text), width());
            let _ = writeln!(out, "{label:>8}   {text}");
        }
    }
    out.push('\n');
}

fn looked_at(verified: &Verification, quick: bool) -> String {
    let seen = &verified.looked_at;
    let mut parts = Vec::new();
    parts.push(seen.family.map_or_else(|| "unknown family".to_owned(), |family| family.as_str().to_owned()));
    parts.push(format!("{} of weights", plural(seen.files, "file")));
    if quick {
        parts.push("no number read (--quick)".to_owned());
    } else {
        parts.push(format!("{} ({})", plural(seen.tensors, "tensor"), output::bytes(seen.bytes)));
        parts.push(match seen.hashed {
            0 => "no hash known".to_owned(),
            hashed => format!("{} compared with the hub's hash", plural(hashed, "file")),
        });
    }
    parts.push(format!("{} in the tokenizer", plural(seen.tokens, "token")));
    parts.push(match seen.chats {
        0 => "no chat template".to_owned(),
        chats => format!("{} rendered", plural(chats, "chat")),
    });
    parts.join(", ")
}

fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Columns for a text on a terminal; none elsewhere.
fn width() -> Option<usize> {
    let (terminal_size::Width(columns), _) = terminal_size::terminal_size_of(std::io::stdout())?;
    usize::from(columns).checked_sub(INDENT).filter(|&columns| columns >= NARROWEST)
}

/// A text in lines of so many columns, broken between words.
fn wrapped(text: &str, width: Option<usize>) -> String {
    let Some(width) = width else { return text.to_owned() };
    let (mut out, mut column) = (String::new(), 0);
    for word in text.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', INDENT));
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrapped("a bc def g", None), "a bc def g");
        assert_eq!(wrapped("a bc def g", Some(4)), "a bc\n           def\n           g");
        assert_eq!(wrapped("longer than it", Some(4)), "longer\n           than\n           it");
    }
}
