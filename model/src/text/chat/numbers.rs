//! Numbers and texts in columns: the format specifications of Python.

use super::budget::Budget;
use super::compare::undefined;
use super::error::{TemplateError, TemplateResult};
use super::python::{self, float};
use super::value::Value;

/// The widest column, and the most digits, that a format may ask for.
pub(super) const WIDTH: usize = 9_999;

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
#[derive(Debug, Default)]
pub(super) struct Spec {
    pub(super) fill: Option<char>,
    pub(super) align: Option<char>,
    pub(super) sign: Option<char>,
    pub(super) alternate: bool,
    pub(super) zero: bool,
    pub(super) width: usize,
    grouping: Option<char>,
    pub(super) precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    fn parse(text: &str) -> TemplateResult<Self> {
        let mut spec = Self::default();
        let mut rest = text;
        let is_align = |c: char| matches!(c, '<' | '>' | '=' | '^');
        let mut chars = rest.chars();
        match (chars.next(), chars.next()) {
            (Some(fill), Some(align)) if is_align(align) => {
                (spec.fill, spec.align) = (Some(fill), Some(align));
                rest = chars.as_str();
            }
            (Some(align), _) if is_align(align) => {
                spec.align = Some(align);
                rest = rest.get(1..).unwrap_or_default();
            }
            _ => {}
        }
        let take = |wanted: &[char], rest: &mut &str| {
            let found = rest.chars().next().filter(|c| wanted.contains(c));
            *rest = rest.get(found.map_or(0, char::len_utf8)..).unwrap_or_default();
            found
        };
        spec.sign = take(&['+', '-', ' '], &mut rest);
        take(&['z'], &mut rest);
        spec.alternate = take(&['#'], &mut rest).is_some();
        spec.zero = take(&['0'], &mut rest).is_some();
        spec.width = small(leading_number(&mut rest)?.unwrap_or(0).unsigned_abs())?;
        spec.grouping = take(&[',', '_'], &mut rest);
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            let precision =
                leading_number(&mut rest)?.ok_or_else(|| TemplateError::new("format: the precision is missing"))?;
            spec.precision = Some(small(precision.unsigned_abs())?);
        }
        let mut kind = rest.chars();
        spec.kind = kind.next();
        if kind.next().is_some() {
            return Err(TemplateError::new(format!("format: the specification {text:?} is malformed")));
        }
        Ok(spec)
    }
}

/// Digits at the front of the text.
pub(super) fn leading_number(rest: &mut &str) -> TemplateResult<Option<i128>> {
    let length = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let digits = rest.get(..length).unwrap_or_default();
    *rest = rest.get(length..).unwrap_or_default();
    if digits.is_empty() {
        return Ok(None);
    }
    digits.parse().map(Some).map_err(|_| TemplateError::new(format!("a width of {digits} grows beyond {WIDTH}")))
}

/// A width or precision that does not fill memory.
pub(super) fn small(n: u128) -> TemplateResult<usize> {
    let small = usize::try_from(n).ok().filter(|n| *n <= WIDTH);
    small.ok_or_else(|| TemplateError::new(format!("a width of {n} grows beyond {WIDTH}")))
}

/// `format(value, spec)`.
pub(super) fn format_value(budget: &Budget, value: &Value, spec: &str) -> TemplateResult<String> {
    if spec.is_empty() {
        return Ok(python::text(budget, value)?.into_owned());
    }
    let parsed = Spec::parse(spec)?;
    let wrong = || TemplateError::new(format!("format: {spec:?} is not possible with a {}", value.kind()));
    match value {
        Value::Str(text) | Value::Markup(text) => {
            let kind = parsed.kind.is_none_or(|k| k == 's');
            if !kind
                || parsed.sign.is_some()
                || parsed.alternate
                || parsed.grouping.is_some()
                || parsed.align == Some('=')
            {
                return Err(wrong());
            }
            let shown: String = match parsed.precision {
                Some(most) => text.chars().take(most).collect(),
                None => text.to_string(),
            };
            let fill = if parsed.zero { Some('0') } else { None };
            let parsed = Spec { fill: parsed.fill.or(fill), ..parsed };
            Ok(pad(&shown, &parsed, '<'))
        }
        Value::Float(x) => {
            number(&parsed, float_digits(&parsed, *x).ok_or_else(wrong)?, x.is_sign_negative() && !x.is_nan())
        }
        Value::Int(_) | Value::Bool(_) => {
            let n = value.as_int().unwrap_or(0);
            let magnitude = n.unsigned_abs();
            let (prefix, digits) = match parsed.kind {
                None | Some('d' | 'n') if parsed.precision.is_none() => ("", magnitude.to_string()),
                Some('b') if parsed.precision.is_none() => ("0b", format!("{magnitude:b}")),
                Some('o') if parsed.precision.is_none() => ("0o", format!("{magnitude:o}")),
                Some('x') if parsed.precision.is_none() => ("0x", format!("{magnitude:x}")),
                Some('X') if parsed.precision.is_none() => ("0X", format!("{magnitude:X}")),
                Some('c') if parsed.precision.is_none() && parsed.sign.is_none() => {
                    let c = u32::try_from(n).ok().and_then(char::from_u32).ok_or_else(wrong)?;
                    return Ok(pad(&c.to_string(), &parsed, '<'));
                }
                Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') => {
                    return number(&parsed, float_digits(&parsed, (n as f64).abs()).ok_or_else(wrong)?, n < 0);
                }
                _ => return Err(wrong()),
            };
            let prefix = if parsed.alternate { prefix } else { "" };
            number(&parsed, (prefix, digits, String::new()), n < 0)
        }
        Value::Undefined(_) => Err(undefined(value)),
        _ => Err(wrong()),
    }
}

/// The digits of a magnitude before the fraction, and the rest.
fn float_digits(spec: &Spec, x: f64) -> Option<(&'static str, String, String)> {
    let magnitude = x.abs();
    let shown = match (spec.kind, spec.precision) {
        (None, None) => {
            let mut out = String::new();
            float(magnitude, &mut out);
            out
        }
        (None, Some(precision)) => {
            let shown = plain_float(magnitude, 'g', precision, spec.alternate);
            // Without a type a fraction always shows.
            if shown.contains(['.', 'e', 'n', 'i']) { shown } else { shown + ".0" }
        }
        (Some('%'), precision) => plain_float(magnitude * 100.0, 'f', precision.unwrap_or(6), spec.alternate) + "%",
        (Some('n'), precision) => plain_float(magnitude, 'g', precision.unwrap_or(6), spec.alternate),
        (Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G')), precision) => {
            plain_float(magnitude, kind, precision.unwrap_or(6), spec.alternate)
        }
        _ => return None,
    };
    let at = shown.find(|c: char| !c.is_ascii_digit()).unwrap_or(shown.len());
    let (whole, rest) = shown.split_at(at);
    Some(("", whole.to_owned(), rest.to_owned()))
}

/// A number in its column: sign, prefix, digits in groups, rest.
fn number(spec: &Spec, (prefix, digits, rest): (&str, String, String), negative: bool) -> TemplateResult<String> {
    let sign = with_sign(negative, spec.sign);
    let fixed = sign.len().saturating_add(prefix.len()).saturating_add(rest.len());
    let zeros = spec.zero && spec.align.is_none() || spec.align == Some('=') && spec.fill == Some('0');
    let size = if prefix.is_empty() { 3 } else { 4 };
    let digits = match spec.grouping {
        // Zeros that fill the column are grouped too.
        Some(separator) if zeros => {
            let mut filled = digits;
            while grouped(&filled, separator, size).len().saturating_add(fixed) < spec.width {
                filled.insert(0, '0');
            }
            grouped(&filled, separator, size)
        }
        Some(separator) => grouped(&digits, separator, size),
        None => digits,
    };
    let length = fixed.saturating_add(digits.len());
    let missing = spec.width.saturating_sub(length);
    if zeros || spec.align == Some('=') {
        let fill = spec.fill.unwrap_or(if spec.zero { '0' } else { ' ' });
        let fill = fill.to_string().repeat(missing);
        return Ok(format!("{sign}{prefix}{fill}{digits}{rest}"));
    }
    let spec =
        Spec { fill: spec.fill.or(spec.zero.then_some('0')), align: spec.align, width: spec.width, ..Spec::default() };
    Ok(pad(&format!("{sign}{prefix}{digits}{rest}"), &spec, '>'))
}

fn grouped(digits: &str, separator: char, size: usize) -> String {
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(c);
    }
    out
}

pub(super) fn with_sign(negative: bool, sign: Option<char>) -> &'static str {
    match (negative, sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    }
}

/// A text in its column.
pub(super) fn pad(text: &str, spec: &Spec, default: char) -> String {
    let missing = spec.width.saturating_sub(text.chars().count());
    let fill = |n: usize| spec.fill.unwrap_or(' ').to_string().repeat(n);
    match spec.align.unwrap_or(default) {
        '<' => format!("{text}{}", fill(missing)),
        '^' => format!("{}{text}{}", fill(missing / 2), fill(missing - missing / 2)),
        _ => format!("{}{text}", fill(missing)),
    }
}

/// A magnitude in the manner of C: `e`, `f` or `g`, in capitals for their capitals.
pub(super) fn plain_float(x: f64, kind: char, precision: usize, alternate: bool) -> String {
    let shown = if x.is_nan() {
        "nan".to_owned()
    } else if x.is_infinite() {
        "inf".to_owned()
    } else {
        match kind.to_ascii_lowercase() {
            'f' => fixed(x, precision, alternate),
            'e' => exponential(x, precision, alternate),
            _ => {
                let digits = precision.max(1);
                let scientific = exponential(x, digits - 1, true);
                let exponent: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
                let places = i32::try_from(digits).unwrap_or(i32::MAX);
                let shown = if exponent < -4 || exponent >= places {
                    scientific
                } else {
                    fixed(x, usize::try_from(places - 1 - exponent).unwrap_or(0), true)
                };
                if alternate { shown } else { without_zeros(&shown) }
            }
        }
    };
    if kind.is_ascii_uppercase() { shown.to_uppercase() } else { shown }
}

fn fixed(x: f64, precision: usize, alternate: bool) -> String {
    let dot = if precision == 0 && alternate { "." } else { "" };
    format!("{x:.precision$}{dot}")
}

fn exponential(x: f64, precision: usize, alternate: bool) -> String {
    let shown = format!("{x:.precision$e}");
    let (digits, exponent) = shown.split_once('e').unwrap_or((&shown, "0"));
    let dot = if precision == 0 && alternate { "." } else { "" };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{digits}{dot}e{sign}{exponent:0>2}")
}

/// `g` drops the zeros at the end of a fraction, and then its point.
fn without_zeros(shown: &str) -> String {
    let (digits, exponent) = match shown.find('e') {
        Some(at) => shown.split_at(at),
        None => (shown, ""),
    };
    let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    format!("{digits}{exponent}")
}

/// A number as a float.
pub(super) fn float_of(value: &Value) -> Option<f64> {
    match value {
        Value::Float(x) => Some(*x),
        other => other.as_int().map(|n| n as f64),
    }
}
