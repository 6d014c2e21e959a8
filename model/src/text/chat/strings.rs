//! What the methods and filters of texts share.

use super::arguments::int_or;
use super::budget::Budget;
use super::error::{TemplateError, TemplateResult};
use super::python::is_space;
use super::value::Value;

pub(super) fn strip<'t>(text: &'t str, chars: Option<&str>, start: bool, end: bool) -> &'t str {
    let chars = chars.map(|chars| {
        let mut set: Vec<char> = chars.chars().collect();
        set.sort_unstable();
        set.dedup();
        set
    });
    let strips = |c: char| match &chars {
        Some(set) => set.binary_search(&c).is_ok(),
        None => is_space(c),
    };
    let text = if start { text.trim_start_matches(strips) } else { text };
    if end { text.trim_end_matches(strips) } else { text }
}

pub(super) fn replace(budget: &Budget, text: &str, old: &str, new: &str, count: i128) -> TemplateResult<Value> {
    let limit = usize::try_from(count).unwrap_or(usize::MAX);
    let found = text.matches(old).take(limit).count();
    budget.check_size(found.checked_mul(new.len()).and_then(|n| n.checked_add(text.len())))?;
    budget.text(text.replacen(old, new, limit))
}

/// `str.splitlines`.
pub(super) fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    let ends =
        |c: char| matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    while !rest.is_empty() {
        let length = rest.find(ends).unwrap_or(rest.len());
        let (line, tail) = rest.split_at(length);
        let end = if tail.starts_with("\r\n") { 2 } else { tail.chars().next().map_or(0, char::len_utf8) };
        lines.push(if keep_ends { rest.get(..length + end).unwrap_or(line) } else { line });
        rest = tail.get(end..).unwrap_or_default();
    }
    lines
}

/// `str.split()` and `str.rsplit()` at runs of white space, at most `most` times.
pub(super) fn split_space(text: &str, most: Option<usize>, from_end: bool) -> Vec<&str> {
    let most = most.unwrap_or(usize::MAX);
    let mut pieces = Vec::new();
    // The remainder, when the number of splits runs out, keeps the white space on its far side.
    let mut rest = strip(text, None, !from_end, from_end);
    while !rest.is_empty() {
        let cut = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = cut.filter(|_| pieces.len() < most) else {
            pieces.push(rest);
            break;
        };
        let (before, after) = rest.split_at(at);
        if from_end {
            pieces.push(after.trim_start_matches(is_space));
            rest = before.trim_end_matches(is_space);
        } else {
            pieces.push(before);
            rest = after.trim_start_matches(is_space);
        }
    }
    if from_end {
        pieces.reverse();
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// `str.title`: a capital after every character that has no case.
pub(super) fn title(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            push_title_case(&mut out, c);
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// A character as it begins a word: of two letters in one, the first is a capital.
pub(super) fn push_title_case(out: &mut String, c: char) {
    let pairs = [
        ('\u{1c4}', '\u{1c6}', '\u{1c5}'),
        ('\u{1c7}', '\u{1c9}', '\u{1c8}'),
        ('\u{1ca}', '\u{1cc}', '\u{1cb}'),
        ('\u{1f1}', '\u{1f3}', '\u{1f2}'),
    ];
    if let Some((_, _, title)) = pairs.into_iter().find(|(first, last, _)| (*first..=*last).contains(&c)) {
        return out.push(title);
    }
    let mut upper = c.to_uppercase();
    out.extend(upper.next());
    upper.for_each(|more| out.extend(more.to_lowercase()));
}

pub(super) fn swap_case(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_uppercase() {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
    }
    out
}

pub(super) fn expand_tabs(text: &str, size: usize) -> String {
    let mut out = String::new();
    let mut column = 0usize;
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    out
}

/// `center`, `ljust` and `rjust`.
pub(super) fn justify(text: &str, width: usize, fill: char, name: &str) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = match name {
        "center" => missing / 2 + (missing & width & 1),
        "rjust" => missing,
        _ => 0,
    };
    let pad = |n: usize| fill.to_string().repeat(n);
    format!("{}{text}{}", pad(left), pad(missing - left))
}

pub(super) fn zero_fill(text: &str, width: usize) -> String {
    let zeros = "0".repeat(width.saturating_sub(text.chars().count()));
    match text.strip_prefix(['+', '-']) {
        Some(digits) => format!("{}{zeros}{digits}", text.get(..1).unwrap_or_default()),
        None => zeros + text,
    }
}

/// The positions that two bounds of Python mean in `length` items.
pub(super) fn bounds(length: usize, start: Option<Value>, stop: Option<Value>) -> TemplateResult<(usize, usize)> {
    let long = i128::try_from(length).unwrap_or(i128::MAX);
    let place = |bound: Option<Value>, default: usize| -> TemplateResult<usize> {
        match bound {
            None | Some(Value::None) => Ok(default),
            bound => {
                let at = int_or("a position", bound, 0)?;
                let at = if at < 0 { at.saturating_add(long).max(0) } else { at };
                Ok(usize::try_from(at).unwrap_or(usize::MAX))
            }
        }
    };
    let start = place(start, 0)?;
    Ok((start, place(stop, length)?.min(length)))
}

/// The part of a text between two positions; none where the first is beyond its end.
pub(super) fn between(text: &str, start: Option<Value>, stop: Option<Value>) -> TemplateResult<Option<&str>> {
    if start.is_none() && stop.is_none() {
        return Ok(Some(text));
    }
    let length = text.chars().count();
    let (start, stop) = bounds(length, start, stop)?;
    if start > length || stop < start {
        return Ok(None);
    }
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(b, _)| b);
    Ok(text.get(byte(start)..byte(stop)))
}

/// `count`, `find`, `index`, `rfind` and `rindex`: positions are counted in characters.
pub(super) fn search(
    text: &str,
    name: &str,
    part: &str,
    start: Option<Value>,
    stop: Option<Value>,
) -> TemplateResult<Value> {
    let first = match &start {
        Some(_) => bounds(text.chars().count(), start.clone(), None)?.0,
        None => 0,
    };
    let inside = between(text, start, stop)?;
    if name == "count" {
        let count = inside.map_or(0, |t| if part.is_empty() { t.chars().count() + 1 } else { t.matches(part).count() });
        return Ok(Value::int(count));
    }
    let found = inside.and_then(|t| {
        let at = if name.starts_with('r') { t.rfind(part) } else { t.find(part) };
        at.and_then(|at| t.get(..at)).map(|before| before.chars().count().saturating_add(first))
    });
    match found {
        Some(at) => Ok(Value::int(at)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(TemplateError::new(format!("{name}: the text does not occur"))),
    }
}

/// A decimal digit of any script: those of Unicode lie in runs of ten that no other numbers are among.
pub(super) fn is_decimal(c: char) -> bool {
    c.is_ascii_digit()
        || (is_digit(c)
            && !matches!(c, '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{2070}'..='\u{2089}' | '\u{2460}'..='\u{24ff}' | '\u{2776}'..='\u{2793}'))
}

pub(super) fn is_digit(c: char) -> bool {
    c.is_numeric()
        && !matches!(c, '\u{bc}'..='\u{be}' | '\u{2150}'..='\u{218b}' | '\u{3007}' | '\u{3021}'..='\u{3029}' | '\u{4e00}'..='\u{9fff}')
}

/// A text without tags and comments, its white space as single spaces.
pub(super) fn strip_tags(text: &str) -> String {
    let mut plain = text.to_owned();
    for (open, close) in [("<!--", "-->"), ("<", ">")] {
        let mut out = String::new();
        let mut rest = plain.as_str();
        while let Some((before, tag)) = rest.split_once(open) {
            let Some((_, after)) = tag.split_once(close) else { break };
            out.push_str(before);
            rest = after;
        }
        out.push_str(rest);
        plain = out;
    }
    unescape_html(&split_space(&plain, None, false).join(" "))
}

/// The five escapes that are written here, and spaces that do not break.
pub(super) fn unescape_html(text: &str) -> String {
    let mut out = text.to_owned();
    for (escape, c) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&#34;", "\""),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&nbsp;", "\u{a0}"),
        ("&amp;", "&"),
    ] {
        out = out.replace(escape, c);
    }
    out
}
