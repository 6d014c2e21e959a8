//! Methods and filters as Python has them, within a budget.
//!
//! What is safe and right in `minijinja_contrib::pycompat` is used from there.

use std::sync::Arc;

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, State, Value};
use minijinja_contrib::pycompat;

use super::budget::{Budget, refuse};
use super::python;

/// The widest column that a format or an indent may ask for.
const WIDTH: usize = 9_999;

/// Adds the methods, filters and tests of this file.
pub(super) fn add_to(environment: &mut Environment<'static>, budget: &Arc<Budget>) {
    let b = budget.clone();
    environment.set_unknown_method_callback(move |state, value, method, args| {
        let result = match value.as_str() {
            Some(text) => text_method(&b, state, value, text, method, args),
            None => pycompat::unknown_method_callback(state, value, method, args),
        };
        result.and_then(|value| b.admit(value))
    });
    let b = budget.clone();
    environment.add_filter("trim", move |value: Value, chars: Option<String>| {
        let text = python::text(&b, &value)?;
        Ok::<_, Error>(strip(&text, chars.as_deref(), true, true).to_owned())
    });
    let b = budget.clone();
    environment.add_filter("replace", move |value: Value, old: Value, new: Value, count: Option<i64>| {
        let text = python::text(&b, &value)?;
        let (old, new) = (python::text(&b, &old)?, python::text(&b, &new)?);
        replace(&b, &text, &old, &new, count.unwrap_or(-1))
    });
    let b = budget.clone();
    environment.add_filter("join", move |items: Value, separator: Option<Value>, options: Kwargs| {
        let separator = match separator {
            Some(separator) => separator,
            None => options.get::<Option<Value>>("d")?.unwrap_or_default(),
        };
        let separator = python::text(&b, &separator)?;
        let attribute = options.get::<Option<String>>("attribute")?;
        options.assert_all_used()?;
        join(&b, &items, &separator, attribute.as_deref())
    });
    let b = budget.clone();
    environment.add_filter(
        "indent",
        move |value: Value, width: Option<Value>, first: Option<bool>, blank: Option<bool>, options: Kwargs| {
            let text = python::text(&b, &value)?;
            let width = width.map_or_else(|| options.get::<Option<Value>>("width"), |w| Ok(Some(w)))?;
            let first = first.map_or_else(|| options.get::<Option<bool>>("first"), |f| Ok(Some(f)))?;
            let blank = blank.map_or_else(|| options.get::<Option<bool>>("blank"), |f| Ok(Some(f)))?;
            options.assert_all_used()?;
            indent(&b, &text, width, first.unwrap_or(false), blank.unwrap_or(false))
        },
    );
    let b = budget.clone();
    environment.add_filter("string", move |value: Value| python::text(&b, &value).map(|text| text.into_owned()));
    environment.add_filter(
        "format",
        |state: &mut State, format: Value, args: Rest<minijinja::value::ValueOrKwargs>| {
            check_widths(format.as_str().unwrap_or_default())?;
            minijinja::filters::format(state, &format, args)
        },
    );
    // Texts and objects have a length and items, which is all that jinja2 asks of a sequence.
    environment.add_test("sequence", |value: Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_test("callable", |value: Value| value.kind() == ValueKind::Plain);
}

fn text_method(
    budget: &Budget,
    state: &mut State,
    value: &Value,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let list = |pieces: Vec<&str>| Value::from_iter(pieces);
    Ok(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, method != "rstrip", method != "lstrip"))
        }
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            replace(budget, text, old, new, count.unwrap_or(-1))?
        }
        "join" => {
            let (items,): (Value,) = from_args(args)?;
            join(budget, &items, text, None)?
        }
        "split" | "rsplit" => {
            let (separator, most, options): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = match separator {
                None => options.get::<Option<&str>>("sep")?,
                given => given,
            };
            let most = match most {
                None => options.get::<Option<i64>>("maxsplit")?,
                given => given,
            };
            options.assert_all_used()?;
            // Python: a negative number is no limit.
            let most = most.and_then(|n| usize::try_from(n).ok());
            match separator {
                Some("") => return Err(refuse(format!("{method}: the separator is empty"))),
                Some(separator) if method == "split" => list(match most {
                    Some(n) => text.splitn(n.saturating_add(1), separator).collect(),
                    None => text.split(separator).collect(),
                }),
                Some(separator) => {
                    let n = most.unwrap_or(usize::MAX).saturating_add(1);
                    let mut pieces: Vec<&str> = text.rsplitn(n, separator).collect();
                    pieces.reverse();
                    list(pieces)
                }
                None => list(split_space(text, most, method == "rsplit")),
            }
        }
        "splitlines" => {
            let (keep_ends, options): (Option<bool>, Kwargs) = from_args(args)?;
            let keep_ends = match keep_ends {
                None => options.get::<Option<bool>>("keepends")?,
                given => given,
            };
            options.assert_all_used()?;
            list(split_lines(text, keep_ends.unwrap_or(false)))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (cut, missing) = if method == "partition" {
                (text.split_once(separator), (text, "", ""))
            } else {
                (text.rsplit_once(separator), ("", "", text))
            };
            let (a, b, c) = cut.map_or(missing, |(a, c)| (a, separator, c));
            Value::from(Tuple::from(vec![a.into(), b.into(), c.into()]))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "format" => {
            check_widths(text)?;
            pycompat::unknown_method_callback(state, value, method, args)?
        }
        _ => pycompat::unknown_method_callback(state, value, method, args)?,
    })
}

/// `str.isspace` of one character.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn strip<'t>(text: &'t str, chars: Option<&str>, start: bool, end: bool) -> &'t str {
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

fn replace(budget: &Budget, text: &str, old: &str, new: &str, count: i64) -> Result<Value, Error> {
    let limit = usize::try_from(count).unwrap_or(usize::MAX);
    let found = text.matches(old).take(limit).count();
    let grown = found.checked_mul(new.len()).and_then(|n| n.checked_add(text.len()));
    budget.check_size(grown)?;
    Ok(Value::from(text.replacen(old, new, limit)))
}

fn join(budget: &Budget, items: &Value, separator: &str, attribute: Option<&str>) -> Result<Value, Error> {
    let mut out = String::new();
    // Jinja's undefined value is an empty list.
    if items.is_undefined() {
        return Ok(Value::from(out));
    }
    for (i, item) in items.try_iter()?.enumerate() {
        if i > 0 {
            out.push_str(separator);
        }
        let item = match attribute {
            Some(name) => item.get_attr(name)?,
            None => item,
        };
        out.push_str(&python::text(budget, &item)?);
        budget.check_size(Some(out.len()))?;
    }
    Ok(Value::from(out))
}

/// Jinja's `indent`: every line but the first, unless `first`; blank lines only with `blank`.
fn indent(budget: &Budget, text: &str, width: Option<Value>, first: bool, blank: bool) -> Result<Value, Error> {
    let indent = match width {
        None => " ".repeat(4),
        Some(width) => match (width.as_str(), width.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(n)) if n <= WIDTH => " ".repeat(n),
            _ => return Err(refuse(format!("indent: the width must be at most {WIDTH}"))),
        },
    };
    // As in jinja2, a newline is added first, so that a text that ends with one keeps an empty last line.
    let text = format!("{text}\n");
    let lines = split_lines(&text, false);
    let size = indent.len().checked_mul(lines.len()).and_then(|n| n.checked_add(text.len()));
    budget.check_size(size)?;
    let mut out = String::new();
    for (i, line) in lines.into_iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&indent);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// `str.splitlines`.
fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
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
fn split_space(text: &str, most: Option<usize>, from_end: bool) -> Vec<&str> {
    let most = most.unwrap_or(usize::MAX);
    let mut pieces = Vec::new();
    let mut rest = strip(text, None, true, true);
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
    } else if let Some(last) = pieces.last_mut() {
        // The remainder keeps its trailing space in Python when the number of splits ran out.
        let offset = text.trim_end_matches(is_space).len() - last.len();
        if most != usize::MAX {
            *last = text.get(offset..).unwrap_or(last);
        }
    }
    pieces
}

/// `str.title`: a capital after every character that has no case.
fn title(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// Refuses widths and precisions in a format that would fill memory.
fn check_widths(format: &str) -> Result<(), Error> {
    let digits = WIDTH.ilog10() as usize + 1;
    let mut run = 0;
    for c in format.chars() {
        run = if c.is_numeric() { run + 1 } else { 0 };
        if run > digits || c == '*' {
            return Err(refuse(format!("format: widths must be numbers of at most {digits} digits")));
        }
    }
    Ok(())
}
