//! How results, numbers and errors are written.

use std::io::{self, Write};

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

/// Longest error, in bytes: a name or a message out of a file may be as long as the file.
const LONGEST_ERROR: usize = 8 << 10;

/// An error and its causes in one line, each cause once; without its middle when it is too long to read.
pub fn with_causes(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Messages that already quote their cause are common.
        if !message.contains(&cause) {
            message.push_str(": ");
            message.push_str(&cause);
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

/// Text from a file with its control characters escaped, so that it cannot steer a terminal.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A note on stderr; a closed stderr is no reason to stop.
pub fn note(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
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
    fn causes_are_named_once() {
        let inner = io::Error::other("disk on fire");
        let error = anyhow::Error::new(inner).context("a.safetensors: disk on fire").context("cannot load");
        assert_eq!(with_causes(&error), "cannot load: a.safetensors: disk on fire");
        let long = with_causes(&anyhow::anyhow!("a{}z", "é".repeat(50_000)));
        assert!(long.starts_with("aé") && long.contains(" bytes left out) ... é") && long.ends_with("éz"), "{long}");
        assert!(long.len() < 9000, "{}", long.len());
    }
}
