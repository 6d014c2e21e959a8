//! Values as Python prints them: `str`, `repr` and `json.dumps`.

use std::borrow::Cow;
use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, Value};

use super::budget::{Budget, refuse};

/// Deeper values come from no message; the engine itself refuses to build them.
const DEPTH: usize = 200;

/// `str(value)`. An undefined value prints nothing, as jinja2 has it.
pub(super) fn text<'v>(budget: &Budget, value: &'v Value) -> Result<Cow<'v, str>, Error> {
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
fn repr(budget: &Budget, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    descend(budget, out, depth)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out),
        ValueKind::String => repr_text(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter()? {
                if count > 0 {
                    out.push_str(", ");
                }
                repr(budget, &item, out, depth + 1)?;
                count += 1;
            }
            if tuple && count == 1 {
                out.push(',');
            }
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            let pairs = value.as_object().and_then(|o| o.try_iter_pairs());
            for (i, (key, item)) in pairs.into_iter().flatten().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(budget, &key, out, depth + 1)?;
                out.push_str(": ");
                repr(budget, &item, out, depth + 1)?;
            }
            out.push('}');
        }
        kind => {
            // Macros and functions; Python prints an address here, so nothing depends on it.
            let _ = write!(out, "<{kind}>");
        }
    }
    Ok(())
}

fn descend(budget: &Budget, out: &str, depth: usize) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(refuse(format!("a printed value is nested more than {DEPTH} deep")));
    }
    budget.check_size(Some(out.len()))?;
    budget.spend(0)
}

fn number(value: &Value, out: &mut String) {
    if value.is_integer() {
        let _ = write!(out, "{value}");
    } else {
        float(f64::try_from(value.clone()).unwrap_or(f64::NAN), out);
    }
}

/// `repr` of a float: the shortest digits that read back, positional between 1e-4 and 1e16.
fn float(x: f64, out: &mut String) {
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
fn repr_text(text: &str, out: &mut String) {
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

/// How `json.dumps` is asked to write.
struct Json {
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    ascii: bool,
    sort_keys: bool,
}

/// The `tojson` filter of transformers: `json.dumps` without escapes for HTML and, unless asked, for other scripts.
pub(super) fn to_json(budget: &Budget, value: &Value, kwargs: &Kwargs) -> Result<Value, Error> {
    let indent = kwargs.get::<Option<Value>>("indent")?.filter(|v| !v.is_none());
    let indent = indent
        .map(|v| match v.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => match i64::try_from(v) {
                Ok(n) if n <= 64 => Ok(" ".repeat(n.max(0) as usize)),
                _ => Err(refuse("tojson: indent must be a text or at most 64".to_owned())),
            },
        })
        .transpose()?;
    let separators = kwargs.get::<Option<Value>>("separators")?.filter(|v| !v.is_none());
    let (item_separator, key_separator) = match separators {
        Some(pair) => {
            let pair: Vec<String> = pair.try_iter()?.take(3).map(|v| v.to_string()).collect();
            match <[String; 2]>::try_from(pair) {
                Ok([item, key]) => (item, key),
                Err(_) => return Err(refuse("tojson: separators must be two texts".to_owned())),
            }
        }
        None => {
            let item = if indent.is_some() { "," } else { ", " };
            (item.to_owned(), ": ".to_owned())
        }
    };
    let json = Json {
        indent,
        item_separator,
        key_separator,
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    json.write(budget, value, &mut out, 0)?;
    Ok(Value::from(out))
}

impl Json {
    fn write(&self, budget: &Budget, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
        descend(budget, out, depth)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => {
                let start = out.len();
                number(value, out);
                let spelled = match out.get(start..) {
                    Some("nan") => "NaN",
                    Some("inf") => "Infinity",
                    Some("-inf") => "-Infinity",
                    _ => return Ok(()),
                };
                out.truncate(start);
                out.push_str(spelled);
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                let mut empty = true;
                for item in value.try_iter()? {
                    self.before_item(empty, out, depth);
                    self.write(budget, &item, out, depth + 1)?;
                    empty = false;
                }
                self.after_items(empty, out, depth);
                out.push(']');
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|o| o.try_iter_pairs());
                let mut pairs: Vec<(Value, Value)> = pairs.into_iter().flatten().collect();
                if self.sort_keys {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                out.push('{');
                for (i, (key, item)) in pairs.iter().enumerate() {
                    self.before_item(i == 0, out, depth);
                    self.key(key, out)?;
                    out.push_str(&self.key_separator);
                    self.write(budget, item, out, depth + 1)?;
                }
                self.after_items(pairs.is_empty(), out, depth);
                out.push('}');
            }
            kind => return Err(refuse(format!("tojson: a {kind} value is not JSON"))),
        }
        Ok(())
    }

    /// Keys that are no texts become texts, as in Python.
    fn key(&self, key: &Value, out: &mut String) -> Result<(), Error> {
        let spelled = match key.kind() {
            ValueKind::String => key.to_string(),
            ValueKind::None => "null".to_owned(),
            ValueKind::Bool => key.is_true().to_string(),
            ValueKind::Number => {
                let mut spelled = String::new();
                number(key, &mut spelled);
                spelled
            }
            kind => return Err(refuse(format!("tojson: a {kind} cannot be a key"))),
        };
        self.string(&spelled, out);
        Ok(())
    }

    fn before_item(&self, first: bool, out: &mut String, depth: usize) {
        if !first {
            out.push_str(&self.item_separator);
        }
        self.new_line(out, depth + 1);
    }

    fn after_items(&self, empty: bool, out: &mut String, depth: usize) {
        if !empty {
            self.new_line(out, depth);
        }
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) || (self.ascii && c == '\x7f') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
