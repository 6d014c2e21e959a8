//! Values as Python prints them: `str` and `repr`; and its idea of white space.

use std::borrow::Cow;
use std::fmt::Write;

use super::budget::{Budget, DEPTH};
use super::error::{TemplateError, TemplateResult};
use super::value::{Value, View};

/// `str.isspace` of one character.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str(value)`. An undefined value prints nothing, as jinja2 has it.
pub(super) fn text<'v>(budget: &Budget, value: &'v Value) -> TemplateResult<Cow<'v, str>> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::new();
    if !value.is_undefined() {
        repr(budget, value, &mut out, 0)?;
    }
    Ok(Cow::Owned(out))
}

/// `repr(value)`.
pub(super) fn repr(budget: &Budget, value: &Value, out: &mut String, depth: usize) -> TemplateResult<()> {
    if depth > 2 * DEPTH {
        return Err(TemplateError::new(format!("a printed value is nested more than {} deep", 2 * DEPTH)));
    }
    budget.check_size(Some(out.len()))?;
    budget.work(16)?;
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(b) => out.push_str(if *b { "True" } else { "False" }),
        Value::Int(n) => {
            let _ = write!(out, "{n}");
        }
        Value::Float(x) => float(*x, out),
        Value::Str(text) => repr_text(text, out),
        Value::Markup(text) => {
            out.push_str("Markup(");
            repr_text(text, out);
            out.push(')');
        }
        Value::List(list) => {
            out.push('[');
            items(budget, list.items.iter(), out, depth)?;
            out.push(']');
        }
        Value::Tuple(list) => {
            out.push('(');
            items(budget, list.items.iter(), out, depth)?;
            out.push_str(if list.items.len() == 1 { ",)" } else { ")" });
        }
        Value::Dict(dict) => pairs(budget, dict.iter(), out, depth)?,
        Value::Range(range) => {
            let _ = write!(out, "range({}, {}", range.start, range.stop);
            if range.step != 1 {
                let _ = write!(out, ", {}", range.step);
            }
            out.push(')');
        }
        Value::View(dict, view) => {
            let _ = write!(out, "{}([", value.kind());
            match view {
                View::Keys => items(budget, dict.iter().map(|(k, _)| k), out, depth)?,
                View::Values => items(budget, dict.iter().map(|(_, v)| v), out, depth)?,
                View::Items => {
                    for (i, (key, item)) in dict.iter().enumerate() {
                        out.push_str(if i > 0 { ", (" } else { "(" });
                        items(budget, [key, item].into_iter(), out, depth)?;
                        out.push(')');
                    }
                }
            }
            out.push_str("])");
        }
        Value::Namespace(namespace) => {
            out.push_str("<Namespace ");
            pairs(budget, namespace.attributes.borrow().iter(), out, depth)?;
            out.push('>');
        }
        Value::Macro(code) => match &code.code.name {
            Some(name) => {
                out.push_str("<Macro ");
                repr_text(name, out);
                out.push('>');
            }
            None => out.push_str("<Macro anonymous>"),
        },
        Value::Loop(state) => {
            let _ = write!(out, "<LoopContext {}/{}>", state.index0.get().saturating_add(1), state.known_length());
        }
        Value::Template => out.push_str("<TemplateReference None>"),
        // Python prints an address here, so nothing depends on it.
        other => {
            let _ = write!(out, "<{}>", other.kind());
        }
    }
    Ok(())
}

fn items<'v>(
    budget: &Budget,
    values: impl Iterator<Item = &'v Value>,
    out: &mut String,
    depth: usize,
) -> TemplateResult<()> {
    for (i, value) in values.enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        repr(budget, value, out, depth + 1)?;
    }
    Ok(())
}

fn pairs<'v>(
    budget: &Budget,
    values: impl Iterator<Item = (&'v Value, &'v Value)>,
    out: &mut String,
    depth: usize,
) -> TemplateResult<()> {
    out.push('{');
    for (i, (key, value)) in values.enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        repr(budget, key, out, depth + 1)?;
        out.push_str(": ");
        repr(budget, value, out, depth + 1)?;
    }
    out.push('}');
    Ok(())
}

/// `repr` of a float: the shortest digits that read back, positional between 1e-4 and 1e16.
pub(super) fn float(x: f64, out: &mut String) {
    if x.is_nan() {
        return out.push_str("nan");
    }
    if x.is_infinite() {
        return out.push_str(if x > 0.0 { "inf" } else { "-inf" });
    }
    let magnitude = x.abs();
    if x == 0.0 || (1e-4..1e16).contains(&magnitude) {
        let _ = write!(out, "{x:?}");
        return;
    }
    // Rust writes 1e-5 and 1.5e300; Python wants a sign and two digits: 1e-05, 1.5e+300.
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    let _ = write!(out, "{digits}e{sign}{exponent:0>2}");
}

/// `repr` of a text: single quotes unless only double quotes avoid escapes.
pub(super) fn repr_text(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{ad}' => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            // Separators, format and private-use characters do not print in Python.
            '\u{1680}'
            | '\u{2000}'..='\u{200f}'
            | '\u{2028}'..='\u{202f}'
            | '\u{205f}'..='\u{206f}'
            | '\u{3000}'
            | '\u{e000}'..='\u{f8ff}'
            | '\u{feff}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A text with the escapes of HTML, as markupsafe writes them.
pub(super) fn escape_html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
