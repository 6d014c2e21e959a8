//! `'%s' % values` and `'{}'.format(values)`.

use super::arguments::Args;
use super::budget::Budget;
use super::compare::undefined;
use super::error::{TemplateError, TemplateResult};
use super::lookup;
use super::numbers::{Spec, float_of, format_value, leading_number, pad, plain_float, small, with_sign};
use super::python::{self, escape_html};
use super::value::Value;

/// `left % right` where the left is a text.
pub(super) fn percent(budget: &Budget, left: &Value, right: &Value) -> TemplateResult<Value> {
    let format = left.as_str().unwrap_or_default();
    let escapes = matches!(left, Value::Markup(_));
    let mapping = matches!(right, Value::Dict(_) | Value::List(_) | Value::Undefined(_) | Value::Range(_));
    let values: Vec<Value> = match right {
        Value::Tuple(list) => list.items.clone(),
        other => vec![other.clone()],
    };
    let mut values = values.into_iter();
    let mut out = String::new();
    let mut rest = format;
    while let Some((before, conversion)) = rest.split_once('%') {
        out.push_str(before);
        rest = conversion;
        let mut spec = Spec::default();
        let mut named = None;
        if let Some(key) = rest.strip_prefix('(') {
            let (key, after) =
                closing(key).ok_or_else(|| TemplateError::new("%: a key in the format is not closed"))?;
            named = Some(match right {
                Value::Dict(dict) => {
                    let found = dict.get_str(key).cloned();
                    found.ok_or_else(|| TemplateError::new(format!("%: the values have no key {key}")))?
                }
                _ => return Err(TemplateError::new("%: a format with keys needs a mapping")),
            });
            rest = after;
        }
        while let Some(flag) = rest.chars().next().filter(|c| "-+ #0".contains(*c)) {
            match flag {
                '-' => spec.align = Some('<'),
                '0' => spec.zero = true,
                '#' => spec.alternate = true,
                '+' => spec.sign = Some('+'),
                _ => spec.sign = spec.sign.or(Some(' ')),
            }
            rest = rest.get(1..).unwrap_or_default();
        }
        let mut next =
            || values.next().ok_or_else(|| TemplateError::new("%: there are fewer values than places in the format"));
        let mut number = |rest: &mut &str| -> TemplateResult<Option<i128>> {
            if let Some(after) = rest.strip_prefix('*') {
                *rest = after;
                let value = next()?;
                return value.as_int().map(Some).ok_or_else(|| TemplateError::new("%: * needs a number"));
            }
            leading_number(rest)
        };
        if let Some(width) = number(&mut rest)? {
            if width < 0 {
                spec.align = Some('<');
            }
            spec.width = small(width.unsigned_abs())?;
        }
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            spec.precision = Some(small(number(&mut rest)?.unwrap_or(0).max(0).unsigned_abs())?);
        }
        rest = rest.trim_start_matches(['h', 'l', 'L']);
        let Some(kind) = rest.chars().next() else {
            return Err(TemplateError::new("%: the format ends inside a place for a value"));
        };
        rest = rest.get(kind.len_utf8()..).unwrap_or_default();
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => next()?,
        };
        let shown = converted(budget, &mut spec, kind, &value, escapes)?;
        budget.check_size(out.len().checked_add(shown.len()))?;
        out.push_str(&shown);
    }
    out.push_str(rest);
    if values.next().is_some() && !mapping {
        return Err(TemplateError::new("%: there are more values than places in the format"));
    }
    if escapes { budget.markup(out) } else { budget.text(out) }
}

/// One value of a `%` format.
fn converted(budget: &Budget, spec: &mut Spec, kind: char, value: &Value, escapes: bool) -> TemplateResult<String> {
    if spec.align == Some('<') {
        spec.zero = false;
    }
    let wrong = |wanted: &str| {
        if value.is_undefined() {
            undefined(value)
        } else {
            TemplateError::new(format!("%{kind} needs {wanted}, not a {}", value.kind()))
        }
    };
    let text = match kind {
        's' | 'r' | 'a' => {
            let mut text = if kind == 's' {
                python::text(budget, value)?.into_owned()
            } else {
                let mut out = String::new();
                python::repr(budget, value, &mut out, 0)?;
                out
            };
            if kind == 'a' {
                text = ascii(&text);
            }
            if escapes && !matches!(value, Value::Markup(_)) {
                text = escape_html(&text);
            }
            if let Some(most) = spec.precision {
                text = text.chars().take(most).collect();
            }
            spec.zero = false;
            text
        }
        'c' => {
            spec.zero = false;
            match (value.as_int(), value.as_str()) {
                (Some(n), _) => {
                    let c = u32::try_from(n).ok().and_then(char::from_u32);
                    c.ok_or_else(|| wrong("the number of a character"))?.to_string()
                }
                (None, Some(text)) if text.chars().count() == 1 => text.to_owned(),
                _ => return Err(wrong("one character")),
            }
        }
        'd' | 'i' | 'u' => {
            let n = match value {
                Value::Float(x) if x.is_finite() => super::value::whole(x.trunc()),
                other => other.as_int(),
            };
            let n = n.ok_or_else(|| wrong("a number"))?;
            let digits = digits_at_least(n.unsigned_abs().to_string(), spec.precision);
            return Ok(pad_number(spec, n < 0, "", &digits));
        }
        'x' | 'X' | 'o' => {
            let n = value.as_int().ok_or_else(|| wrong("an integer"))?;
            let magnitude = n.unsigned_abs();
            let (digits, prefix) = match kind {
                'x' => (format!("{magnitude:x}"), "0x"),
                'X' => (format!("{magnitude:X}"), "0X"),
                _ => (format!("{magnitude:o}"), "0o"),
            };
            let prefix = if spec.alternate { prefix } else { "" };
            return Ok(pad_number(spec, n < 0, prefix, &digits_at_least(digits, spec.precision)));
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let x = float_of(value).ok_or_else(|| wrong("a number"))?;
            let digits = plain_float(x.abs(), kind, spec.precision.unwrap_or(6), spec.alternate);
            return Ok(pad_number(spec, x.is_sign_negative() && !x.is_nan(), "", &digits));
        }
        other => return Err(TemplateError::new(format!("%: there is no conversion {other:?}"))),
    };
    Ok(pad(&text, spec, '>'))
}

fn digits_at_least(digits: String, least: Option<usize>) -> String {
    let missing = least.unwrap_or(0).saturating_sub(digits.len());
    if missing == 0 { digits } else { "0".repeat(missing) + &digits }
}

/// A number with its sign, filled with zeros behind the sign where the format says so.
fn pad_number(spec: &Spec, negative: bool, prefix: &str, digits: &str) -> String {
    let sign = with_sign(negative, spec.sign);
    if spec.zero {
        let length = sign.len() + prefix.len() + digits.len();
        let zeros = "0".repeat(spec.width.saturating_sub(length));
        return format!("{sign}{prefix}{zeros}{digits}");
    }
    pad(&format!("{sign}{prefix}{digits}"), spec, '>')
}

fn closing(text: &str) -> Option<(&str, &str)> {
    let mut open = 1usize;
    for (at, c) in text.char_indices() {
        match c {
            '(' => open += 1,
            ')' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some((text.get(..at)?, text.get(at + 1..)?));
        }
    }
    None
}

/// Characters beyond ASCII as escapes.
fn ascii(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for c in text.chars() {
        let code = u32::from(c);
        let _ = match code {
            0..=0x7f => write!(out, "{c}"),
            0x80..=0xff => write!(out, "\\x{code:02x}"),
            0x100..=0xffff => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
    }
    out
}

/// `format.format(*args, **kwargs)`.
pub(super) fn str_format(budget: &Budget, format: &str, args: &Args, escapes: bool) -> TemplateResult<String> {
    let mut automatic = Numbering::Unknown;
    fields(budget, format, args, escapes, &mut automatic, 0)
}

/// Whether the fields are numbered by their order or by themselves, and how many were so far.
enum Numbering {
    Unknown,
    Automatic(usize),
    Manual,
}

fn fields(
    budget: &Budget,
    format: &str,
    args: &Args,
    escapes: bool,
    numbering: &mut Numbering,
    depth: usize,
) -> TemplateResult<String> {
    if depth > 2 {
        return Err(TemplateError::new("format: fields are nested too deep"));
    }
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, brace) = rest.split_at(at);
        out.push_str(before);
        let after = brace.get(1..).unwrap_or_default();
        if brace.starts_with("{{") || brace.starts_with("}}") {
            out.push_str(brace.get(..1).unwrap_or_default());
            rest = after.get(1..).unwrap_or_default();
            continue;
        }
        if brace.starts_with('}') {
            return Err(TemplateError::new("format: a } stands alone"));
        }
        let (field, after) = matching(after).ok_or_else(|| TemplateError::new("format: a { is not closed"))?;
        rest = after;
        let shown = field_text(budget, field, args, escapes, numbering, depth)?;
        budget.check_size(out.len().checked_add(shown.len()))?;
        out.push_str(&shown);
    }
    out.push_str(rest);
    Ok(out)
}

/// The text up to the brace that closes, and what follows it.
fn matching(text: &str) -> Option<(&str, &str)> {
    let mut open = 1usize;
    let mut bracket = false;
    for (at, c) in text.char_indices() {
        match c {
            '[' => bracket = true,
            ']' => bracket = false,
            '{' if !bracket => open += 1,
            '}' if !bracket => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some((text.get(..at)?, text.get(at + 1..)?));
        }
    }
    None
}

fn field_text(
    budget: &Budget,
    field: &str,
    args: &Args,
    escapes: bool,
    numbering: &mut Numbering,
    depth: usize,
) -> TemplateResult<String> {
    let end = field.find(['!', ':']).unwrap_or(field.len());
    let (path, mut rest) = field.split_at(end);
    let mut value = field_value(budget, path, args, numbering)?;
    let mut conversion = None;
    if let Some(after) = rest.strip_prefix('!') {
        conversion = after.chars().next();
        rest = after.get(conversion.map_or(0, char::len_utf8)..).unwrap_or_default();
        if !(rest.is_empty() || rest.starts_with(':')) {
            return Err(TemplateError::new("format: : is expected after a conversion"));
        }
    }
    let spec = rest.strip_prefix(':').unwrap_or_default();
    let spec = if spec.contains(['{', '}']) {
        fields(budget, spec, args, false, numbering, depth + 1)?
    } else {
        spec.to_owned()
    };
    match conversion {
        None => {}
        Some('s') => value = budget.text(python::text(budget, &value)?.into_owned())?,
        Some(kind @ ('r' | 'a')) => {
            let mut out = String::new();
            python::repr(budget, &value, &mut out, 0)?;
            value = budget.text(if kind == 'a' { ascii(&out) } else { out })?;
        }
        Some(other) => return Err(TemplateError::new(format!("format: there is no conversion {other:?}"))),
    }
    let shown = format_value(budget, &value, &spec)?;
    Ok(if escapes && !matches!(value, Value::Markup(_)) { escape_html(&shown) } else { shown })
}

/// The value that a field names: `0.name[key]`.
fn field_value(budget: &Budget, path: &str, args: &Args, numbering: &mut Numbering) -> TemplateResult<Value> {
    let end = path.find(['.', '[']).unwrap_or(path.len());
    let (first, mut rest) = path.split_at(end);
    let mixed = || Err(TemplateError::new("format: numbered and unnumbered fields cannot be mixed"));
    let index = if first.is_empty() && !rest.is_empty() {
        None
    } else if first.is_empty() {
        match numbering {
            Numbering::Manual => return mixed(),
            Numbering::Unknown => {
                *numbering = Numbering::Automatic(1);
                Some(0)
            }
            Numbering::Automatic(n) => {
                *n += 1;
                Some(*n - 1)
            }
        }
    } else if first.bytes().all(|b| b.is_ascii_digit()) {
        if matches!(numbering, Numbering::Automatic(_)) {
            return mixed();
        }
        *numbering = Numbering::Manual;
        Some(first.parse().unwrap_or(usize::MAX))
    } else {
        None
    };
    let found = match index {
        Some(index) => args.positional.get(index),
        None => args.named.iter().find(|(name, _)| **name == *first).map(|(_, value)| value),
    };
    let mut value =
        found.cloned().ok_or_else(|| TemplateError::new(format!("format: there is no value for {{{path}}}")))?;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let (name, tail) = after.split_at(end);
            if name.is_empty() {
                return Err(TemplateError::new("format: a field has an empty attribute"));
            }
            value = lookup::attribute(&value, name)?;
            rest = tail;
        } else if let Some((key, tail)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            let key = key.parse::<u32>().map_or_else(|_| Value::str(key), |n| Value::Int(n.into()));
            value = lookup::item(budget, &value, &key)?;
            rest = tail;
        } else {
            return Err(TemplateError::new("format: a field is malformed"));
        }
    }
    Ok(value)
}
