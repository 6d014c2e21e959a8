//! The methods of texts, lists, dictionaries and ranges.

use std::rc::Rc;

use super::arguments::{Args, int_or, text_of};
use super::budget::Budget;
use super::compare::equal;
use super::error::{TemplateError, TemplateResult};
use super::format;
use super::numbers::WIDTH;
use super::python::{self, escape_html, is_space};
use super::strings;
use super::value::{Dict, Value, View};

/// Calls a method other than those of loops.
pub(super) fn call(budget: &Budget, value: &Value, name: &str, args: Args) -> TemplateResult<Value> {
    match value {
        Value::Str(text) => of_text(budget, text, name, args, false),
        Value::Markup(text) => of_markup(budget, text, name, args),
        Value::List(list) | Value::Tuple(list) => of_items(budget, value, &list.items, name, args),
        Value::Range(_) => of_items(budget, value, &value.iterate(budget)?, name, args),
        Value::Dict(dict) => of_dict(budget, dict, name, args),
        Value::Function(_) => from_keys(budget, args),
        Value::Cycler(cycler) => {
            let [] = args.positional(name, 0)?;
            let (items, at) = &**cycler;
            if name == "reset" {
                at.set(0);
                return Ok(Value::None);
            }
            let current = items.get(at.get()).cloned().unwrap_or(Value::None);
            at.set(at.get().saturating_add(1) % items.len().max(1));
            Ok(current)
        }
        Value::Float(x) => {
            let [] = args.positional(name, 0)?;
            Ok(if name == "is_integer" { Value::Bool(x.fract() == 0.0) } else { value.clone() })
        }
        other => {
            let [] = args.positional(name, 0)?;
            let n = other.as_int().unwrap_or(0);
            Ok(match name {
                "bit_length" => Value::Int((128 - n.unsigned_abs().leading_zeros()).into()),
                "is_integer" => return Err(no_method(other, name)),
                _ => Value::Int(n),
            })
        }
    }
}

fn no_method(value: &Value, name: &str) -> TemplateError {
    TemplateError::new(format!("the method {name} of a {} is not supported", value.kind()))
}

/// A safe text gives safe texts, and what goes into it is escaped.
fn of_markup(budget: &Budget, text: &str, name: &str, mut args: Args) -> TemplateResult<Value> {
    match name {
        "unescape" => return budget.text(strings::unescape_html(text)),
        "striptags" => return budget.text(strings::strip_tags(text)),
        "escape" => {
            let value = args.positional.first().cloned().unwrap_or(Value::None);
            return budget.markup(escape_html(&python::text(budget, &value)?));
        }
        "join" => {
            let [items] = args.positional(name, 1)?;
            let mut parts = Vec::new();
            for item in items.unwrap_or(Value::None).iterate(budget)? {
                let shown = python::text(budget, &item)?;
                parts.push(budget.text(if matches!(item, Value::Markup(_)) {
                    shown.into()
                } else {
                    escape_html(&shown)
                })?);
            }
            args = Args::new(vec![budget.list(parts)?]);
        }
        "replace" => {
            if let Some(Value::Str(new)) = args.positional.get(1) {
                let escaped = budget.text(escape_html(new))?;
                if let Some(slot) = args.positional.get_mut(1) {
                    *slot = escaped;
                }
            }
        }
        _ => {}
    }
    let safe = |value: Value| match value {
        Value::Str(text) => Value::Markup(text),
        other => other,
    };
    Ok(match of_text(budget, text, name, args, true)? {
        Value::List(list) => budget.list(list.items.iter().cloned().map(safe).collect())?,
        Value::Tuple(list) => budget.tuple(list.items.iter().cloned().map(safe).collect())?,
        other => safe(other),
    })
}

fn of_items(budget: &Budget, value: &Value, items: &[Value], name: &str, args: Args) -> TemplateResult<Value> {
    match name {
        "count" => {
            let [item] = args.positional(name, 1)?;
            let item = item.unwrap_or(Value::None);
            let mut count = 0usize;
            for other in items {
                count += usize::from(equal(budget, other, &item)?);
            }
            Ok(Value::int(count))
        }
        "index" => {
            let [item, start, stop] = args.positional(name, 1)?;
            let item = item.unwrap_or(Value::None);
            let (start, stop) = strings::bounds(items.len(), start, stop)?;
            for (at, other) in items.iter().enumerate().take(stop).skip(start) {
                if equal(budget, other, &item)? {
                    return Ok(Value::int(at));
                }
            }
            Err(TemplateError::new("index: there is no such item"))
        }
        "copy" => Ok(value.clone()),
        _ => Err(no_method(value, name)),
    }
}

fn of_dict(budget: &Budget, dict: &Rc<Dict>, name: &str, args: Args) -> TemplateResult<Value> {
    match name {
        "get" => {
            let [key, default] = args.positional(name, 1)?;
            let found = dict.get(&key.unwrap_or(Value::None))?.cloned();
            return Ok(found.unwrap_or(default.unwrap_or(Value::None)));
        }
        "fromkeys" => return from_keys(budget, args),
        _ => {}
    }
    let [] = args.positional(name, 0)?;
    Ok(match name {
        "keys" => Value::View(dict.clone(), View::Keys),
        "values" => Value::View(dict.clone(), View::Values),
        "items" => Value::View(dict.clone(), View::Items),
        _ => Value::Dict(dict.clone()),
    })
}

fn from_keys(budget: &Budget, args: Args) -> TemplateResult<Value> {
    let [keys, value] = args.positional("fromkeys", 1)?;
    let value = value.unwrap_or(Value::None);
    let mut dict = Dict::default();
    for key in keys.unwrap_or(Value::None).iterate(budget)? {
        dict.insert(key, value.clone())?;
    }
    budget.dict(dict)
}

fn width(function: &str, value: Option<Value>) -> TemplateResult<usize> {
    let width = int_or(function, value, 0)?.max(0);
    usize::try_from(width)
        .ok()
        .filter(|w| *w <= WIDTH)
        .ok_or_else(|| TemplateError::new(format!("{function}: the width grows beyond {WIDTH}")))
}

fn fill(function: &str, value: Option<Value>) -> TemplateResult<char> {
    let Some(value) = value else { return Ok(' ') };
    let text = text_of(function, Some(value))?;
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => Ok(c),
        _ => Err(TemplateError::new(format!("{function} fills with one character"))),
    }
}

fn of_text(budget: &Budget, text: &str, name: &str, args: Args, escapes: bool) -> TemplateResult<Value> {
    budget.work(text.len())?;
    let list = |pieces: Vec<&str>| {
        let pieces = pieces.into_iter().map(|piece| budget.text(piece)).collect::<TemplateResult<_>>()?;
        budget.list(pieces)
    };
    match name {
        "format" => return budget.text(format::str_format(budget, text, &args, escapes)?),
        "format_map" => {
            let [map] = args.positional(name, 1)?;
            let Some(Value::Dict(dict)) = map else { return Err(TemplateError::new("format_map needs a mapping")) };
            let mut args = Args::default();
            for (key, value) in dict.iter() {
                args.named.extend(key.as_str().map(|key| (Rc::from(key), value.clone())));
            }
            return budget.text(format::str_format(budget, text, &args, escapes)?);
        }
        "split" | "rsplit" => {
            let [separator, most] = args.bind(name, ["sep", "maxsplit"], 0)?;
            // Python: a negative number is no limit.
            let most = usize::try_from(int_or(name, most, -1)?).ok();
            let separator = match separator {
                None | Some(Value::None) => None,
                given => Some(text_of(name, given)?),
            };
            return match separator.as_deref() {
                Some("") => Err(TemplateError::new(format!("{name}: the separator is empty"))),
                Some(separator) if name == "split" => list(match most {
                    Some(n) => text.splitn(n.saturating_add(1), separator).collect(),
                    None => text.split(separator).collect(),
                }),
                Some(separator) => {
                    let n = most.unwrap_or(usize::MAX).saturating_add(1);
                    let mut pieces: Vec<&str> = text.rsplitn(n, separator).collect();
                    pieces.reverse();
                    list(pieces)
                }
                None => list(strings::split_space(text, most, name == "rsplit")),
            };
        }
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"], 0)?;
            return list(strings::split_lines(text, keep.is_some_and(|k| k.truth())));
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"], 0)?;
            let size = width(name, Some(Value::Int(int_or(name, size, 8)?)))?;
            budget.check_size(text.matches('\t').count().checked_mul(size).and_then(|n| n.checked_add(text.len())))?;
            return budget.text(strings::expand_tabs(text, size));
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.positional(name, 0)?;
            let chars = match chars {
                None | Some(Value::None) => None,
                given => Some(text_of(name, given)?),
            };
            return budget.text(strings::strip(text, chars.as_deref(), name != "rstrip", name != "lstrip"));
        }
        "replace" => {
            let [old, new, count] = args.positional(name, 2)?;
            let (old, new) = (text_of(name, old)?, text_of(name, new)?);
            return strings::replace(budget, text, &old, &new, int_or(name, count, -1)?);
        }
        "join" => {
            let [items] = args.positional(name, 1)?;
            let items = items.unwrap_or(Value::None).iterate(budget)?;
            let mut out = String::new();
            for (i, item) in items.into_iter().enumerate() {
                let item = text_of("join", Some(item))?;
                budget.check_size(out.len().checked_add(item.len()).and_then(|n| n.checked_add(text.len())))?;
                if i > 0 {
                    out.push_str(text);
                }
                out.push_str(&item);
            }
            return budget.text(out);
        }
        "center" | "ljust" | "rjust" => {
            let [size, with] = args.positional(name, 1)?;
            return budget.text(strings::justify(text, width(name, size)?, fill(name, with)?, name));
        }
        "zfill" => {
            let [size] = args.positional(name, 1)?;
            return budget.text(strings::zero_fill(text, width(name, size)?));
        }
        "count" | "find" | "index" | "rfind" | "rindex" => {
            let [part, start, stop] = args.positional(name, 1)?;
            return strings::search(text, name, &text_of(name, part)?, start, stop);
        }
        "startswith" | "endswith" => {
            let [parts, start, stop] = args.positional(name, 1)?;
            let inside = strings::between(text, start, stop)?;
            let parts = match parts {
                Some(Value::Tuple(list)) => list.items.clone(),
                other => other.into_iter().collect(),
            };
            for part in parts {
                let part = text_of(name, Some(part))?;
                let found = if name == "startswith" {
                    inside.map(|t| t.starts_with(&*part))
                } else {
                    inside.map(|t| t.ends_with(&*part))
                };
                if found == Some(true) {
                    return Ok(Value::Bool(true));
                }
            }
            return Ok(Value::Bool(false));
        }
        "partition" | "rpartition" => {
            let [separator] = args.positional(name, 1)?;
            let separator = text_of(name, separator)?;
            if separator.is_empty() {
                return Err(TemplateError::new(format!("{name}: the separator is empty")));
            }
            let (cut, missing) = if name == "partition" {
                (text.split_once(&*separator), (text, "", ""))
            } else {
                (text.rsplit_once(&*separator), ("", "", text))
            };
            let (a, b, c) = cut.map_or(missing, |(a, c)| (a, &*separator, c));
            return budget.tuple(vec![budget.text(a)?, budget.text(b)?, budget.text(c)?]);
        }
        "removeprefix" => {
            let [prefix] = args.positional(name, 1)?;
            return budget.text(text.strip_prefix(&*text_of(name, prefix)?).unwrap_or(text));
        }
        "removesuffix" => {
            let [suffix] = args.positional(name, 1)?;
            return budget.text(text.strip_suffix(&*text_of(name, suffix)?).unwrap_or(text));
        }
        "encode" | "maketrans" | "translate" => return Err(no_method(&Value::str(""), name)),
        _ => {}
    }
    let [] = args.positional(name, 0)?;
    let all = |holds: fn(char) -> bool| Ok(Value::Bool(!text.is_empty() && text.chars().all(holds)));
    match name {
        "upper" => budget.text(text.to_uppercase()),
        "lower" => budget.text(text.to_lowercase()),
        "casefold" => budget.text(text.to_lowercase().replace('ß', "ss")),
        "capitalize" => budget.text(capitalize(text)),
        "title" => budget.text(strings::title(text)),
        "swapcase" => budget.text(strings::swap_case(text)),
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => Ok(Value::Bool(text.is_ascii())),
        "isdecimal" => all(strings::is_decimal),
        "isdigit" => all(strings::is_digit),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "islower" => Ok(Value::Bool(is_lower(text))),
        "isupper" => Ok(Value::Bool(is_upper(text))),
        "istitle" => Ok(Value::Bool(text.chars().any(char::is_alphabetic) && strings::title(text) == text)),
        "isidentifier" => {
            let first = text.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
            Ok(Value::Bool(first && text.chars().all(|c| c.is_alphanumeric() || c == '_')))
        }
        "isprintable" => {
            let mut shown = String::new();
            python::repr_text(text, &mut shown);
            let plain = |c: char| c == '\\' || c == '\'' || !shown.contains('\\') || !c.is_control();
            Ok(Value::Bool(text.chars().all(|c| plain(c) && (c == ' ' || !is_space(c)))))
        }
        _ => Err(no_method(&Value::str(""), name)),
    }
}

/// `str.capitalize`.
pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let mut out = String::with_capacity(text.len());
    if let Some(first) = chars.next() {
        strings::push_title_case(&mut out, first);
    }
    out.push_str(&chars.as_str().to_lowercase());
    out
}

/// `str.islower`.
pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
}

/// `str.isupper`.
pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}
