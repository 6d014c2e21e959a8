//! The `tojson` filter of transformers: `json.dumps` without escapes for HTML and, unless asked, for other scripts.

use std::fmt::Write;

use super::arguments::Args;
use super::budget::{Budget, DEPTH};
use super::compare;
use super::error::{TemplateError, TemplateResult};
use super::python::{self, float};
use super::value::Value;

/// How `json.dumps` is asked to write.
struct Json {
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    ascii: bool,
    sort_keys: bool,
}

/// `value|tojson(ensure_ascii, indent, separators, sort_keys)`.
pub(super) fn to_json(budget: &Budget, value: &Value, args: Args) -> TemplateResult<Value> {
    let [ascii, indent, separators, sort_keys] =
        args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"], 0)?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(indent) => match (indent.as_str(), indent.as_int()) {
            (Some(text), _) => Some(text.to_owned()),
            (None, Some(n)) if n <= 64 => Some(" ".repeat(usize::try_from(n).unwrap_or(0))),
            _ => return Err(TemplateError::new("tojson: indent must be a text or a number of at most 64")),
        },
    };
    let (item_separator, key_separator) = match separators {
        None | Some(Value::None) => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
        Some(pair) => {
            let pair = pair.iterate(budget)?;
            match pair.iter().map(Value::as_str).collect::<Option<Vec<_>>>().as_deref() {
                Some([item, key]) => ((*item).to_owned(), (*key).to_owned()),
                _ => return Err(TemplateError::new("tojson: separators must be two texts")),
            }
        }
    };
    let truth = |value: Option<Value>| value.is_some_and(|v| v.truth());
    let json = Json { indent, item_separator, key_separator, ascii: truth(ascii), sort_keys: truth(sort_keys) };
    let mut out = String::new();
    json.write(budget, value, &mut out, 0)?;
    budget.text(out)
}

impl Json {
    fn write(&self, budget: &Budget, value: &Value, out: &mut String, depth: usize) -> TemplateResult<()> {
        if depth > DEPTH {
            return Err(TemplateError::new(format!("tojson: a value is nested more than {DEPTH} deep")));
        }
        budget.check_size(Some(out.len()))?;
        budget.work(16)?;
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Int(n) => {
                let _ = write!(out, "{n}");
            }
            Value::Float(x) => number(*x, out),
            Value::Str(text) | Value::Markup(text) => self.string(text, out),
            Value::List(list) | Value::Tuple(list) => {
                out.push('[');
                for (i, item) in list.items.iter().enumerate() {
                    self.before_item(i == 0, out, depth);
                    self.write(budget, item, out, depth + 1)?;
                }
                self.after_items(list.items.is_empty(), out, depth);
                out.push(']');
            }
            Value::Dict(dict) => {
                let mut pairs: Vec<(Value, Value)> = Vec::with_capacity(dict.len());
                for (key, item) in dict.iter() {
                    pairs.push((key.clone(), item.clone()));
                }
                if self.sort_keys {
                    let keyed = pairs.iter().map(|(k, _)| (k.clone(), k.clone())).collect();
                    let keys = compare::sort(budget, keyed, false)?;
                    pairs.clear();
                    for key in keys {
                        let item = dict.get(&key)?.cloned().unwrap_or(Value::None);
                        pairs.push((key, item));
                    }
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
            Value::Undefined(what) => return Err(TemplateError::new(format!("tojson: {what}"))),
            other => return Err(TemplateError::new(format!("tojson: a {} is not JSON", other.kind()))),
        }
        Ok(())
    }

    /// Keys that are no texts become texts, as in Python.
    fn key(&self, key: &Value, out: &mut String) -> TemplateResult<()> {
        let mut spelled = String::new();
        match key {
            Value::Str(text) | Value::Markup(text) => spelled.push_str(text),
            Value::None => spelled.push_str("null"),
            Value::Bool(b) => spelled.push_str(if *b { "true" } else { "false" }),
            Value::Int(n) => {
                let _ = write!(spelled, "{n}");
            }
            Value::Float(x) => number(*x, &mut spelled),
            other => return Err(TemplateError::new(format!("tojson: a {} cannot be a key", other.kind()))),
        }
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
                c if c < ' ' || (self.ascii && (!c.is_ascii() || c == '\x7f')) => {
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

fn number(x: f64, out: &mut String) {
    match x {
        x if x.is_nan() => out.push_str("NaN"),
        f64::INFINITY => out.push_str("Infinity"),
        f64::NEG_INFINITY => out.push_str("-Infinity"),
        x => float(x, out),
    }
}

/// `pprint` of a value that fits into one line; longer ones are broken by rules that no template needs.
pub(super) fn pretty(budget: &Budget, value: &Value) -> TemplateResult<Value> {
    let mut out = String::new();
    python::repr(budget, value, &mut out, 0)?;
    if out.chars().count() > 80 {
        return Err(TemplateError::new("pprint of a value longer than 80 characters is not supported"));
    }
    budget.text(out)
}
