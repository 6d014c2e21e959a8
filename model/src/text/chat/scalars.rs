//! The filters of jinja2 that take and give single values.

use super::arguments::{Args, int_or, text_of};
use super::budget::Budget;
use super::compare::undefined;
use super::error::{TemplateError, TemplateResult};
use super::filter_names;
use super::format;
use super::json;
use super::lookup;
use super::methods::capitalize;
use super::numbers::{WIDTH, float_of};
use super::operators::signed;
use super::python::{self, escape_html};
use super::strings;
use super::value::Value;

/// `value|name(args)`, for the filters that are in no other file.
pub(super) fn apply(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    // What jinja2 makes a text of first.
    let text = || python::text(budget, value);
    let like = |made: String| match value {
        Value::Markup(_) => budget.markup(made),
        _ => budget.text(made),
    };
    match name {
        "abs" => {
            let [] = args.positional(name, 0)?;
            let negative = float_of(value).is_some_and(|x| x < 0.0);
            signed(value, negative)
        }
        "attr" => {
            let [attribute] = args.bind(name, ["name"], 1)?;
            let attribute = text_of(name, attribute)?;
            let found = lookup::own_attribute(value, &attribute)?;
            Ok(found.unwrap_or_else(|| Value::undefined(format!("{attribute} is undefined"))))
        }
        "default" | "d" => {
            let [default, boolean] = args.bind(name, ["default_value", "boolean"], 0)?;
            let absent = value.is_undefined() || (boolean.is_some_and(|b| b.truth()) && !value.truth());
            Ok(if absent { default.unwrap_or_else(|| Value::str("")) } else { value.clone() })
        }
        "count" | "length" => {
            let [] = args.positional(name, 0)?;
            let length =
                value.len().ok_or_else(|| TemplateError::new(format!("{name}: a {} has no length", value.kind())))?;
            Ok(Value::int(length))
        }
        "e" | "escape" => match value {
            Value::Markup(_) => Ok(value.clone()),
            _ => budget.markup(escape_html(&text()?)),
        },
        "forceescape" => budget.markup(escape_html(&text()?)),
        "safe" => budget.markup(text()?.into_owned()),
        "string" => match value {
            Value::Str(_) | Value::Markup(_) => Ok(value.clone()),
            _ => budget.text(text()?.into_owned()),
        },
        "striptags" => budget.text(strings::strip_tags(&text()?)),
        "capitalize" => like(capitalize(&text()?)),
        "lower" => like(text()?.to_lowercase()),
        "upper" => like(text()?.to_uppercase()),
        "title" => like(title(&text()?)),
        "trim" => {
            let [chars] = args.bind(name, ["chars"], 0)?;
            let chars = match chars {
                None | Some(Value::None) => None,
                given => Some(text_of(name, given)?),
            };
            like(strings::strip(&text()?, chars.as_deref(), true, true).to_owned())
        }
        "center" => {
            let [width] = args.bind(name, ["width"], 0)?;
            let width = small(name, int_or(name, width, 80)?)?;
            like(strings::justify(&text()?, width, ' ', "center"))
        }
        "wordcount" => {
            let text = text()?;
            let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty());
            Ok(Value::int(words.count()))
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"], 2)?;
            let part = |part: Option<Value>| -> TemplateResult<String> {
                Ok(python::text(budget, &part.unwrap_or(Value::None))?.into_owned())
            };
            let count = match count {
                Some(Value::None) => None,
                given => given,
            };
            strings::replace(budget, &text()?, &part(old)?, &part(new)?, int_or(name, count, -1)?)
        }
        "indent" => {
            let [width, first, blank] = args.bind(name, ["width", "first", "blank"], 0)?;
            let truth = |v: Option<Value>| v.is_some_and(|v| v.truth());
            let Some(text) = value.as_str() else {
                return Err(if value.is_undefined() {
                    undefined(value)
                } else {
                    TemplateError::new(format!("indent needs a text, not a {}", value.kind()))
                });
            };
            like(indent(budget, text, width, truth(first), truth(blank))?)
        }
        "truncate" => truncate(budget, value, args),
        "format" => {
            let format = budget.text(text()?.into_owned())?;
            if !args.positional.is_empty() && !args.named.is_empty() {
                return Err(TemplateError::new("format takes values by place or by name, not both"));
            }
            let values = if args.named.is_empty() {
                budget.tuple(args.positional)?
            } else {
                let mut dict = super::value::Dict::default();
                for (key, value) in args.named {
                    dict.insert(Value::Str(key), value)?;
                }
                budget.dict(dict)?
            };
            format::percent(budget, &format, &values)
        }
        "int" => int(budget, value, args),
        "float" => {
            let [default] = args.bind(name, ["default"], 0)?;
            match (value, value.as_str()) {
                (Value::Undefined(_), _) => Err(undefined(value)),
                (_, Some(text)) => Ok(parse_float(text).map(Value::Float).or(default).unwrap_or(Value::Float(0.0))),
                _ => Ok(float_of(value).map(Value::Float).or(default).unwrap_or(Value::Float(0.0))),
            }
        }
        "round" => round(value, args),
        "filesizeformat" => {
            let [binary] = args.bind(name, ["binary"], 0)?;
            let bytes = float_of(value).or_else(|| value.as_str().and_then(parse_float));
            let bytes =
                bytes.ok_or_else(|| TemplateError::new(format!("{name} needs a number, not a {}", value.kind())))?;
            budget.text(file_size(bytes, binary.is_some_and(|b| b.truth())))
        }
        "tojson" => json::to_json(budget, value, args),
        "pprint" => json::pretty(budget, value),
        "urlencode" => urlencode(budget, value),
        "xmlattr" => xml_attributes(budget, value, args),
        other if filter_names::is_known(other) => {
            Err(TemplateError::new(format!("the filter {other} is not supported in chat templates")))
        }
        other => Err(TemplateError::new(format!("there is no filter called {other}"))),
    }
}

fn small(function: &str, n: i128) -> TemplateResult<usize> {
    let small = usize::try_from(n.max(0)).ok().filter(|n| *n <= WIDTH);
    small.ok_or_else(|| TemplateError::new(format!("{function}: the width grows beyond {WIDTH}")))
}

/// The filter `title`: unlike the method, only white space, brackets and hyphens begin a word.
fn title(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in text.chars() {
        let between = python::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
        if inside && !between {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = !between;
    }
    out
}

fn indent(budget: &Budget, text: &str, width: Option<Value>, first: bool, blank: bool) -> TemplateResult<String> {
    let indent = match &width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(small("indent", int_or("indent", Some(width.clone()), 4)?)?),
        },
    };
    // As in jinja2, a newline is added first, so that a text that ends with one keeps an empty last line.
    let text = format!("{text}\n");
    let lines = strings::split_lines(&text, false);
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
    Ok(out)
}

fn truncate(budget: &Budget, value: &Value, args: Args) -> TemplateResult<Value> {
    let [length, kill, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"], 0)?;
    let length = usize::try_from(int_or("truncate", length, 255)?.max(0)).unwrap_or(usize::MAX);
    let end = match end {
        Some(end) => text_of("truncate", Some(end))?,
        None => "...".into(),
    };
    let leeway = match leeway {
        Some(Value::None) | None => 5,
        given => usize::try_from(int_or("truncate", given, 5)?)
            .map_err(|_| TemplateError::new("truncate: leeway is negative"))?,
    };
    let ending = end.chars().count();
    if length < ending {
        return Err(TemplateError::new(format!("truncate: the length must be at least {ending}, that of the end")));
    }
    // What is short enough passes, whatever it is.
    if value.len().is_some_and(|n| n <= length.saturating_add(leeway)) {
        return Ok(value.clone());
    }
    let text = text_of("truncate", Some(value.clone()))?;
    let kept: String = text.chars().take(length - ending).collect();
    let kept = if kill.is_some_and(|k| k.truth()) {
        kept.as_str()
    } else {
        kept.rsplit_once(' ').map_or(kept.as_str(), |(a, _)| a)
    };
    budget.text(format!("{kept}{end}"))
}

/// The filter `int`: what is no number is the default.
fn int(budget: &Budget, value: &Value, args: Args) -> TemplateResult<Value> {
    let [default, base] = args.bind("int", ["default", "base"], 0)?;
    let default = default.unwrap_or(Value::Int(0));
    let base = u32::try_from(int_or("int", base, 10)?).ok().filter(|b| *b == 0 || (2..=36).contains(b));
    let whole = |x: f64| super::value::whole(x.trunc());
    Ok(match value {
        Value::Undefined(_) => return Err(undefined(value)),
        Value::Float(x) if x.is_infinite() => return Err(TemplateError::new("int of an infinite number")),
        Value::Float(x) => whole(*x).map_or(default, Value::Int),
        Value::Str(text) | Value::Markup(text) => {
            budget.work(text.len())?;
            let parsed = base.and_then(|base| parse_int(text, base));
            let parsed = parsed.or_else(|| parse_float(text).filter(|x| x.is_finite()).and_then(whole));
            parsed.map_or(default, Value::Int)
        }
        other => other.as_int().map_or(default, Value::Int),
    })
}

/// `int(text, base)`.
fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = strings::strip(text, None, true, true);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixes = [(2, ["0b", "0B"]), (8, ["0o", "0O"]), (16, ["0x", "0X"])];
    let prefixed = prefixes.into_iter().find_map(|(own, spelled)| {
        let rest = spelled.into_iter().find_map(|p| digits.strip_prefix(p))?;
        (base == own || base == 0).then_some((own, rest.strip_prefix('_').unwrap_or(rest)))
    });
    let (base, digits) = prefixed.unwrap_or((if base == 0 { 10 } else { base }, digits));
    let digits = without_underscores(digits)?;
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = i128::from_str_radix(&digits, base).ok()?;
    Some(if negative { -magnitude } else { magnitude })
}

/// `float(text)`.
fn parse_float(text: &str) -> Option<f64> {
    let text = without_underscores(strings::strip(text, None, true, true))?;
    let plain = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    let named = matches!(plain.as_str(), "nan" | "inf" | "infinity");
    if !named && !plain.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    text.parse().ok()
}

/// Digits without the single underscores between them.
fn without_underscores(text: &str) -> Option<String> {
    let wrong = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    (!wrong).then(|| text.replace('_', ""))
}

/// The filter `round`: halves go to the even neighbour, an integer stays one.
fn round(value: &Value, args: Args) -> TemplateResult<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"], 0)?;
    let precision = i32::try_from(int_or("round", precision, 0)?).unwrap_or(i32::MAX).clamp(-400, 400);
    let method = match method {
        Some(method) => text_of("round", Some(method))?,
        None => "common".into(),
    };
    let x = match float_of(value) {
        Some(x) => x,
        None if value.is_undefined() => return Err(undefined(value)),
        None => return Err(TemplateError::new(format!("round needs a number, not a {}", value.kind()))),
    };
    match &*method {
        "common" => {}
        "ceil" | "floor" => {
            let scale = 10f64.powi(precision);
            let scaled = x * scale;
            // Python goes through an integer, which has no negative zero.
            let whole = if &*method == "ceil" { scaled.ceil() } else { scaled.floor() } + 0.0;
            return Ok(Value::Float(whole / scale));
        }
        _ => return Err(TemplateError::new("round: the method must be common, ceil or floor")),
    }
    if let Some(n) = value.as_int() {
        if precision >= 0 {
            return Ok(Value::Int(n));
        }
        let unit = 10i128.checked_pow(precision.unsigned_abs());
        let Some(unit) = unit else { return Ok(Value::Int(0)) };
        let (quotient, rest) = (n.div_euclid(unit), n.rem_euclid(unit));
        let up = rest > unit - rest || (rest == unit - rest && quotient % 2 != 0);
        let rounded = quotient.checked_add(up.into()).and_then(|q| q.checked_mul(unit));
        return rounded.map(Value::Int).ok_or_else(|| TemplateError::new("round: the number is too large"));
    }
    if !x.is_finite() {
        return Ok(Value::Float(x));
    }
    let rounded = match usize::try_from(precision) {
        Ok(places) => format!("{x:.places$}").parse().unwrap_or(x),
        Err(_) => {
            let unit = 10f64.powi(-precision);
            (x / unit).round_ties_even() * unit
        }
    };
    Ok(Value::Float(rounded))
}

fn file_size(bytes: f64, binary: bool) -> String {
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return "1 Byte".to_owned();
    }
    if bytes < base {
        return format!("{} Bytes", bytes.trunc() + 0.0);
    }
    let mut unit = base * base;
    let prefixes = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    for (i, prefix) in prefixes.iter().enumerate() {
        if bytes < unit || i + 1 == prefixes.len() {
            let prefix = if binary { prefix.to_uppercase() + "i" } else { (*prefix).to_owned() };
            return format!("{:.1} {prefix}B", base * bytes / unit);
        }
        unit *= base;
    }
    String::new()
}

fn quote(text: &str, slash: bool, space: &str) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'/' if slash => out.push('/'),
            b'_' | b'.' | b'-' | b'~' => out.push(char::from(byte)),
            b if b.is_ascii_alphanumeric() => out.push(char::from(b)),
            b' ' => out.push_str(space),
            b => {
                let _ = write!(out, "%{b:02X}");
            }
        }
    }
    out
}

fn urlencode(budget: &Budget, value: &Value) -> TemplateResult<Value> {
    let text = |value: &Value| python::text(budget, value).map(|t| t.into_owned());
    let iterable = value.as_str().is_none() && (value.len().is_some() || matches!(value, Value::Generator(_)));
    if !iterable {
        return budget.text(quote(&text(value)?, true, "%20"));
    }
    let pairs = match value {
        Value::Dict(dict) => dict.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        other => {
            let mut pairs = Vec::new();
            for pair in other.iterate(budget)? {
                match pair.iterate(budget)?.as_slice() {
                    [key, value] => pairs.push((key.clone(), value.clone())),
                    _ => return Err(TemplateError::new("urlencode needs pairs")),
                }
            }
            pairs
        }
    };
    let mut parts = Vec::new();
    for (key, value) in pairs {
        parts.push(format!("{}={}", quote(&text(&key)?, false, "+"), quote(&text(&value)?, false, "+")));
    }
    budget.text(parts.join("&"))
}

fn xml_attributes(budget: &Budget, value: &Value, args: Args) -> TemplateResult<Value> {
    let [space] = args.bind("xmlattr", ["autospace"], 0)?;
    let Value::Dict(dict) = value else {
        return Err(TemplateError::new(format!("xmlattr needs a mapping, not a {}", value.kind())));
    };
    let mut parts = Vec::new();
    for (key, value) in dict.iter() {
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let key = python::text(budget, key)?;
        if key.contains(|c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>' | '=' | '\x0b')) {
            return Err(TemplateError::new(format!("xmlattr: {key:?} is no name of an attribute")));
        }
        let shown = python::text(budget, value)?;
        let shown = if matches!(value, Value::Markup(_)) { shown.into_owned() } else { escape_html(&shown) };
        parts.push(format!("{}=\"{shown}\"", escape_html(&key)));
    }
    let mut out = parts.join(" ");
    if space.is_none_or(|s| s.truth()) && !out.is_empty() {
        out.insert(0, ' ');
    }
    budget.text(out)
}
