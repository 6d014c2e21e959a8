//! Arithmetic and concatenation as Python computes them, within a budget.

use super::ast::Operator;
use super::budget::{Budget, NODE};
use super::compare::{undefined, unsupported};
use super::error::{TemplateError, TemplateResult};
use super::format;
use super::python::{self, escape_html};
use super::value::{List, Value};

/// `left <operator> right`.
pub(super) fn binary(budget: &Budget, operator: Operator, left: &Value, right: &Value) -> TemplateResult<Value> {
    match operator {
        Operator::Add => add(budget, left, right),
        Operator::Multiply => multiply(budget, left, right),
        Operator::Remainder if left.as_str().is_some() => format::percent(budget, left, right),
        _ => arithmetic(operator, left, right),
    }
}

fn add(budget: &Budget, left: &Value, right: &Value) -> TemplateResult<Value> {
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        budget.check_size(a.len().checked_add(b.len()))?;
        // A safe text stays one: what is added to it is escaped.
        return match (left, right) {
            (Value::Str(_), Value::Str(_)) => budget.text([a, b].concat()),
            (Value::Markup(_), Value::Markup(_)) => budget.markup([a, b].concat()),
            (Value::Markup(_), _) => budget.markup([a, &escape_html(b)].concat()),
            _ => budget.markup([&escape_html(a), b].concat()),
        };
    }
    let joined = |a: &List, b: &List| {
        let count = a.items.len().checked_add(b.items.len());
        budget.check_size(count.and_then(|n| n.checked_mul(NODE)))?;
        Ok(a.items.iter().chain(&b.items).cloned().collect())
    };
    match (left, right) {
        (Value::List(a), Value::List(b)) => budget.list(joined(a, b)?),
        (Value::Tuple(a), Value::Tuple(b)) => budget.tuple(joined(a, b)?),
        _ => arithmetic(Operator::Add, left, right),
    }
}

fn multiply(budget: &Budget, left: &Value, right: &Value) -> TemplateResult<Value> {
    let (repeated, times) = if left.as_int().is_some() { (right, left) } else { (left, right) };
    let Some(times) = times.as_int() else {
        return arithmetic(Operator::Multiply, left, right);
    };
    // Python takes a negative number for none.
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    let list = |list: &List| {
        budget.check_size(list.items.len().checked_mul(times).and_then(|n| n.checked_mul(NODE)))?;
        let times = if list.items.is_empty() { 0 } else { times };
        Ok(std::iter::repeat_n(&list.items, times).flatten().cloned().collect())
    };
    let text = |text: &str| {
        budget.check_size(text.len().checked_mul(times))?;
        Ok(text.repeat(times))
    };
    match repeated {
        Value::Str(t) => budget.text(text(t)?),
        Value::Markup(t) => budget.markup(text(t)?),
        Value::List(l) => budget.list(list(l)?),
        Value::Tuple(l) => budget.tuple(list(l)?),
        _ => arithmetic(Operator::Multiply, left, right),
    }
}

fn as_float(value: &Value) -> Option<f64> {
    match value {
        Value::Float(x) => Some(*x),
        other => other.as_int().map(|n| n as f64),
    }
}

fn arithmetic(operator: Operator, left: &Value, right: &Value) -> TemplateResult<Value> {
    let sign = operator.sign();
    let (Some(x), Some(y)) = (as_float(left), as_float(right)) else {
        return Err(unsupported(sign, left, right));
    };
    let zero = || Err(TemplateError::new(format!("{sign} is not possible with 0 on the right")));
    let ints = left.as_int().zip(right.as_int());
    if let Some((a, b)) = ints {
        let result = match operator {
            Operator::Add => a.checked_add(b),
            Operator::Subtract => a.checked_sub(b),
            Operator::Multiply => a.checked_mul(b),
            Operator::FloorDivide | Operator::Remainder if b == 0 => return zero(),
            Operator::FloorDivide => a.checked_rem(b).and_then(|r| {
                let quotient = a.checked_div(b)?;
                if r != 0 && (r < 0) != (b < 0) { quotient.checked_sub(1) } else { Some(quotient) }
            }),
            Operator::Remainder => {
                a.checked_rem(b).and_then(|r| if r != 0 && (r < 0) != (b < 0) { r.checked_add(b) } else { Some(r) })
            }
            Operator::Power if b >= 0 => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)).or(match a {
                0 | 1 => Some(a),
                -1 => Some(if b % 2 == 0 { 1 } else { -1 }),
                _ => None,
            }),
            Operator::Power if a == 0 => return zero(),
            Operator::Power => return power(x, y),
            Operator::Divide if b == 0 => return zero(),
            Operator::Divide => return Ok(Value::Float(x / y)),
        };
        return match result {
            Some(n) => Ok(Value::Int(n)),
            None => Err(TemplateError::new(format!("{a} {sign} {b} is too large: it grows beyond 128 bits"))),
        };
    }
    Ok(Value::Float(match operator {
        Operator::Add => x + y,
        Operator::Subtract => x - y,
        Operator::Multiply => x * y,
        Operator::Divide | Operator::FloorDivide | Operator::Remainder if y == 0.0 => return zero(),
        Operator::Divide => x / y,
        Operator::FloorDivide => float_divmod(x, y).0,
        Operator::Remainder => float_divmod(x, y).1,
        Operator::Power if x == 0.0 && y < 0.0 => return zero(),
        Operator::Power if x < 0.0 && y.fract() != 0.0 => {
            return Err(TemplateError::new("** of a negative number and a fraction is no real number"));
        }
        Operator::Power => return power(x, y),
    }))
}

/// Unlike other operations, a power of numbers that is too large is an error in Python.
fn power(x: f64, y: f64) -> TemplateResult<Value> {
    let result = x.powf(y);
    if result.is_infinite() && x.is_finite() && y.is_finite() {
        return Err(TemplateError::new(format!("{x} ** {y} is too large")));
    }
    Ok(Value::Float(result))
}

/// Quotient and remainder as CPython computes them: the remainder has the sign of the divisor.
fn float_divmod(x: f64, y: f64) -> (f64, f64) {
    let mut remainder = x % y;
    let mut quotient = (x - remainder) / y;
    if remainder != 0.0 {
        if (y < 0.0) != (remainder < 0.0) {
            remainder += y;
            quotient -= 1.0;
        }
    } else {
        remainder = 0.0f64.copysign(y);
    }
    let floor = if quotient != 0.0 {
        let floor = quotient.floor();
        if quotient - floor > 0.5 { floor + 1.0 } else { floor }
    } else {
        0.0f64.copysign(x / y)
    };
    (floor, remainder)
}

/// `-value` and `+value`.
pub(super) fn signed(value: &Value, negative: bool) -> TemplateResult<Value> {
    let fail = || match value.is_undefined() {
        true => undefined(value),
        false => TemplateError::new(format!("a {} has no sign", value.kind())),
    };
    match value {
        Value::Float(x) => Ok(Value::Float(if negative { -x } else { *x })),
        other => {
            let n = other.as_int().ok_or_else(fail)?;
            Ok(Value::Int(if negative { n.checked_neg().ok_or_else(fail)? } else { n }))
        }
    }
}

/// All of them as one text.
pub(super) fn concat(budget: &Budget, parts: &[Value], escapes: bool) -> TemplateResult<Value> {
    let mut out = String::new();
    let mut markup = false;
    for part in parts {
        let text = python::text(budget, part)?;
        budget.check_size(out.len().checked_add(text.len()))?;
        if escapes && !markup && matches!(part, Value::Markup(_)) {
            markup = true;
            out = escape_html(&out);
        } else if markup && !matches!(part, Value::Markup(_)) {
            out.push_str(&escape_html(&text));
            continue;
        }
        out.push_str(&text);
    }
    if markup { budget.markup(out) } else { budget.text(out) }
}
