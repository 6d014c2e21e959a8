//! How results, numbers and errors are written.

use std::io::{self, Write};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// What failed when stdout cannot be written.
pub const STDOUT: &str = "cannot write to stdout";

/// Whether the reader of stdout is gone, which is no error.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    // An error of serde_json is none of io, though it may hold one.
    error.chain().any(|cause| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let kind = kind.or_else(|| cause.downcast_ref::<serde_json::Error>()?.io_error_kind());
        kind == Some(io::ErrorKind::BrokenPipe)
    })
}

/// Lets a reader that is gone be, where the exit code tells what was found.
///
/// # Errors
/// When stdout cannot be written for another reason.
pub fn unless_closed(written: io::Result<()>) -> io::Result<()> {
    written.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

/// Longest error, in bytes: a name or a message out of a file may be as long as the file.
const LONGEST_ERROR: usize = 8 << 10;

/// An error and its causes in one line, each cause once; without its middle when it is too long to read.
pub fn with_causes(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        let cause = after_known_place(&message, &cause);
        // Messages that already quote their cause are common.
        if !message.contains(cause) {
            message.push_str(": ");
            message.push_str(cause);
        }
    }
    if message.len() > LONGEST_ERROR {
        // What failed stands at the end, where at the beginning.
        let (from, to) = (LONGEST_ERROR / 2, message.len() - LONGEST_ERROR / 2);
        let (from, to) = (message.floor_char_boundary(from), message.ceil_char_boundary(to));
        message.replace_range(from..to, &format!(" ... ({} bytes left out) ... ", to - from));
    }
    printable(&message)
}

/// A cause without the place that it begins with, or without the directory of that file, where the message before names it: what failed is
/// often what the cause is about.
fn after_known_place<'a>(message: &str, cause: &'a str) -> &'a str {
    let Some((place, rest)) = cause.split_once(": ") else { return cause };
    if names_place(message, place) {
        return rest;
    }
    let known = |at: &usize| place.get(..*at).is_some_and(|directory| names_place(message, directory));
    let mut separators = place.rmatch_indices(std::path::is_separator).map(|(at, _)| at);
    separators.find(known).and_then(|at| cause.get(at + 1..)).unwrap_or(cause)
}

/// Whether a message names a place, and after it nothing but flags that were given.
fn names_place(message: &str, place: &str) -> bool {
    let stands = |(at, _): (usize, &str)| {
        let (Some(before), Some(after)) = (message.get(..at), message.get(at + place.len()..)) else { return false };
        let after = after.trim_start_matches(std::path::is_separator);
        before.ends_with(' ') && (after.is_empty() || after.starts_with(" with --"))
    };
    !place.is_empty() && message.match_indices(place).any(stands)
}

/// Whether a character could steer a terminal: control characters, and those that turn the order of the text around them, which may then
/// read as something else.
pub fn steers_terminal(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text from a file with the characters escaped that could steer a terminal.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers_terminal(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// `count` of a thing, which has its plain plural: `1 token`, `2 tokens`.
pub fn counted(count: usize, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}

/// A note on stderr; a closed stderr is no reason to stop.
pub fn note(message: &str) {
    let width = terminal_size::terminal_size_of(io::stderr()).map(|(width, _)| usize::from(width.0));
    let _ = match width.filter(|&width| width >= NARROWEST) {
        Some(width) => writeln!(io::stderr(), "{}", wrapped(message, width)),
        None => writeln!(io::stderr(), "{message}"),
    };
}

/// Columns of a terminal below which nothing is gained by breaking lines between words.
const NARROWEST: usize = 40;

/// Lines that are too long for a terminal end between words; what follows is indented. Lines with colours stay as they are.
fn wrapped(message: &str, width: usize) -> String {
    const INDENT: &str = "  ";
    let mut out = String::with_capacity(message.len());
    for (i, line) in message.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let mut rest = line;
        let mut room = width;
        // The last column stays free: some terminals break a line that fills it.
        while rest.width() >= room && !line.contains('\u{1b}') {
            let mut used = 0;
            let fits = rest.char_indices().take_while(|(_, c)| {
                used += c.width().unwrap_or(0);
                used < room
            });
            let end = fits.last().map_or(0, |(at, c)| at + c.len_utf8());
            let word_ends = rest.get(end..).is_some_and(|next| next.starts_with(' '));
            let space = if word_ends { Some(end) } else { rest.get(..end).and_then(|part| part.rfind(' ')) };
            let Some((head, tail)) = space.and_then(|at| rest.split_at_checked(at)) else { break };
            if head.trim().is_empty() {
                break;
            }
            out.push_str(head.trim_end());
            out.push('\n');
            out.push_str(INDENT);
            rest = tail.trim_start();
            room = width - INDENT.len();
        }
        out.push_str(rest);
    }
    out
}

/// Bytes with a binary unit, three digits.
pub fn bytes(bytes: usize) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        // What would be shown as 1000 or more goes to the next unit.
        if value < 999.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {unit}")
}

/// A count with a unit, as `8.03 B` parameters.
pub fn count(count: usize) -> String {
    let value = count as f64;
    match count {
        0..1_000 => count.to_string(),
        1_000..1_000_000 => format!("{:.1} K", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", value / 1e6),
        _ => format!("{:.2} B", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0, 1023, 1024, 10 << 10, 1_023_999, 1 << 20, 5_905_580_032].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.00 KiB", "10.0 KiB", "0.98 MiB", "1.00 MiB", "5.50 GiB"]);
        assert_eq!([999, 1_500, 3_085_938_688].map(count), ["999", "1.5 K", "3.09 B"]);
    }

    #[test]
    fn long_lines_end_between_words() {
        for (text, width, shown) in [
            ("a short line", 40, "a short line"),
            ("one two three four", 10, "one two\n  three\n  four"),
            ("one two\nthree four five", 12, "one two\nthree four\n  five"),
            ("name       what it does", 16, "name       what\n  it does"),
            // What has no spaces is left to the terminal.
            ("/a/path/without/any/space and", 12, "/a/path/without/any/space and"),
            ("\u{65e5}\u{672c} \u{8a9e}\u{8a9e} x", 8, "\u{65e5}\u{672c}\n  \u{8a9e}\u{8a9e}\n  x"),
            ("\u{1b}[31mone\u{1b}[0m two three", 10, "\u{1b}[31mone\u{1b}[0m two three"),
            ("", 40, ""),
        ] {
            assert_eq!(wrapped(text, width), shown, "{text:?} in {width}");
        }
    }

    #[test]
    fn places_are_named_once() {
        let said =
            |context: &'static str, cause: &'static str| with_causes(&anyhow::Error::msg(cause).context(context));
        assert_eq!(
            said("cannot open the model /a/b", "/a/b: No such file"),
            "cannot open the model /a/b: No such file"
        );
        assert_eq!(said("cannot open the model /a/b", "/a: is a file"), "cannot open the model /a/b: /a: is a file");
        assert_eq!(said("cannot open the model b", "/a/b: is a file"), "cannot open the model b: /a/b: is a file");
        for (model, file) in [
            ("/a/b", "/a/b/config.json"),
            ("/a/b/", "/a/b/config.json"),
            ("b", "b/config.json"),
            ("/a/b with --steps 2", "/a/b/config.json"),
        ] {
            let context = format!("cannot open the model {model}");
            let error = anyhow::anyhow!("{file}: head_dim: is missing").context(context.clone());
            assert_eq!(with_causes(&error), format!("{context}: config.json: head_dim: is missing"));
        }
        assert_eq!(
            said("cannot open the model /a", "/a/b/c.json: is cut"),
            "cannot open the model /a: b/c.json: is cut"
        );
        for (context, cause) in
            [("cannot open the model c", "model/x.json: is cut"), ("cannot open /a/b", "/a/bc/d: is cut")]
        {
            assert_eq!(said(context, cause), format!("{context}: {cause}"));
        }
        assert_eq!(said("cannot write", ": it is full"), "cannot write: : it is full");
    }

    #[test]
    fn causes_are_named_once() {
        let inner = io::Error::other("disk on fire");
        let error = anyhow::Error::new(inner).context("a.safetensors: disk on fire").context("cannot load");
        assert_eq!(with_causes(&error), "cannot load: a.safetensors: disk on fire");
        let long = with_causes(&anyhow::anyhow!("a{}z", "é".repeat(50_000)));
        assert!(long.starts_with("aé") && long.contains(" bytes left out) ... é") && long.ends_with("éz"), "{long}");
        assert!(long.len() < 9000, "{}", long.len());
    }
}
