//! `strftime_now`.

use std::fmt::Write;

use chrono::NaiveDateTime;

use super::error::{TemplateError, TemplateResult};

/// The local time, or the one given, in a `strftime` format.
pub(super) fn strftime(now: Option<NaiveDateTime>, format: &str) -> TemplateResult<String> {
    let now = now.unwrap_or_else(self::now);
    let mut out = String::new();
    match write!(out, "{}", now.format(&as_chrono(format))) {
        Ok(()) => Ok(out),
        Err(_) => Err(TemplateError::new(format!("strftime_now: {format:?} is no time format"))),
    }
}

/// The local time.
pub(super) fn now() -> NaiveDateTime {
    chrono::Local::now().naive_local()
}

/// The format with what chrono spells otherwise: Python's `%f` are microseconds, and a time without a zone has an empty `%z` and
/// `%Z`.
fn as_chrono(format: &str) -> String {
    let mut out = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('f') => out.push_str("%6f"),
            Some('z' | 'Z') => {}
            Some(kind) => out.extend(['%', kind]),
            None => out.push('%'),
        }
    }
    out
}

/// A date, or a date and a time, as `2026-01-31`, `2026-01-31 09:30` or `2026-01-31T09:30:15`.
pub(super) fn parse(text: &str) -> Option<NaiveDateTime> {
    let text = text.trim().replace('T', " ");
    let formats = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M"];
    let time = formats.into_iter().find_map(|format| NaiveDateTime::parse_from_str(&text, format).ok());
    time.or_else(|| chrono::NaiveDate::parse_from_str(&text, "%Y-%m-%d").ok()?.and_hms_opt(12, 0, 0))
}
