//! Equality, order and membership of values, as Python has them.

use std::cmp::Ordering;

use super::budget::Budget;
use super::error::{TemplateError, TemplateResult};
use super::value::{Dict, Value, View, whole};

/// `left == right`.
pub(super) fn equal(budget: &Budget, left: &Value, right: &Value) -> TemplateResult<bool> {
    budget.work(16)?;
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        budget.work(if a.len() == b.len() { a.len() } else { 0 })?;
        return Ok(a == b);
    }
    if let Some(order) = numbers(left, right) {
        return Ok(order == Some(Ordering::Equal));
    }
    Ok(match (left, right) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            if a.items.len() != b.items.len() {
                return Ok(false);
            }
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(budget, a, b)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Dict(a), Value::Dict(b)) => equal_dicts(budget, a, b)?,
        (Value::View(a, View::Keys), Value::View(b, View::Keys)) => {
            a.len() == b.len() && a.iter().all(|(k, _)| b.get(k).is_ok_and(|v| v.is_some()))
        }
        (Value::View(a, View::Items), Value::View(b, View::Items)) => equal_dicts(budget, a, b)?,
        (Value::Range(a), Value::Range(b)) => {
            a.len() == b.len() && (a.len() == 0 || (a.start == b.start && (a.len() == 1 || a.step == b.step)))
        }
        (Value::Method(a), Value::Method(b)) => a.1 == b.1 && a.0.address() == b.0.address(),
        (Value::Template, Value::Template) => true,
        (a, b) => a.kind() == b.kind() && a.address() != 0 && a.address() == b.address(),
    })
}

fn equal_dicts(budget: &Budget, a: &Dict, b: &Dict) -> TemplateResult<bool> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for (key, value) in a.iter() {
        match b.get(key)? {
            Some(other) if equal(budget, value, other)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// The order of two numbers; the inner value is none beside a NaN.
fn numbers(left: &Value, right: &Value) -> Option<Option<Ordering>> {
    match (left.as_int(), right.as_int(), left, right) {
        (Some(a), Some(b), _, _) => Some(Some(a.cmp(&b))),
        (_, _, Value::Float(a), Value::Float(b)) => Some(a.partial_cmp(b)),
        (Some(a), _, _, Value::Float(b)) => Some(int_and_float(a, *b)),
        (_, Some(b), Value::Float(a), _) => Some(int_and_float(b, *a).map(Ordering::reverse)),
        _ => None,
    }
}

/// Exact, as in Python: the integer is not rounded.
fn int_and_float(a: i128, b: f64) -> Option<Ordering> {
    if let Some(b) = whole(b) {
        return Some(a.cmp(&b));
    }
    if b.is_nan() {
        return None;
    }
    match whole(b.floor()) {
        Some(floor) => Some(if a <= floor { Ordering::Less } else { Ordering::Greater }),
        None => Some(if b > 0.0 { Ordering::Less } else { Ordering::Greater }),
    }
}

/// The order of two values; none beside a NaN.
pub(super) fn order(budget: &Budget, sign: &str, left: &Value, right: &Value) -> TemplateResult<Option<Ordering>> {
    budget.work(16)?;
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        budget.work(a.len().min(b.len()))?;
        return Ok(Some(a.cmp(b)));
    }
    if let Some(order) = numbers(left, right) {
        return Ok(order);
    }
    match (left, right) {
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(budget, a, b)? {
                    return order(budget, sign, a, b);
                }
            }
            Ok(Some(a.items.len().cmp(&b.items.len())))
        }
        _ => Err(unsupported(sign, left, right)),
    }
}

/// `left < right`.
pub(super) fn less(budget: &Budget, left: &Value, right: &Value) -> TemplateResult<bool> {
    Ok(order(budget, "<", left, right)? == Some(Ordering::Less))
}

/// `item in container`.
pub(super) fn contains(budget: &Budget, container: &Value, item: &Value) -> TemplateResult<bool> {
    if let Some(text) = container.as_str() {
        return match item.as_str() {
            Some(part) => {
                budget.work(text.len().saturating_add(part.len()))?;
                Ok(text.contains(part))
            }
            None if item.is_undefined() => Err(undefined(item)),
            None => Err(TemplateError::new(format!("in: only a text can be in a text, not a {}", item.kind()))),
        };
    }
    match container {
        Value::Dict(dict) | Value::View(dict, View::Keys) => Ok(dict.get(item)?.is_some()),
        Value::Range(range) => {
            let n = match item {
                Value::Float(x) => whole(*x),
                other => other.as_int(),
            };
            Ok(n.is_some_and(|n| (0..range.len()).filter_map(|i| range.get(i)).any(|x| x == n)))
        }
        Value::List(list) | Value::Tuple(list) => {
            for other in &list.items {
                if same(other, item) || equal(budget, other, item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Undefined(_) | Value::View(..) | Value::Generator(_) => {
            for other in container.iterate(budget)? {
                if equal(budget, &other, item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        other => Err(TemplateError::new(format!("in: nothing can be in a {}", other.kind()))),
    }
}

/// `left is right`, as far as it does not depend on what Python happens to share.
pub(super) fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        // Python shares small integers.
        (Value::Int(a), Value::Int(b)) => a == b && (-5..=256).contains(a),
        // Constants that look like names are shared.
        (Value::Str(a), Value::Str(b)) => a == b,
        (a, b) => a.kind() == b.kind() && a.address() != 0 && a.address() == b.address(),
    }
}

/// Sorts by keys that are computed once, in a stable order. An order of Rust's own sort must not fail, and this one can.
pub(super) fn sort(budget: &Budget, mut items: Vec<(Value, Value)>, reverse: bool) -> TemplateResult<Vec<Value>> {
    // Python reverses before and after, so that equal items keep their order.
    if reverse {
        items.reverse();
    }
    let mut sorted = merge_sort(budget, items)?;
    if reverse {
        sorted.reverse();
    }
    Ok(sorted.into_iter().map(|(_, item)| item).collect())
}

fn merge_sort(budget: &Budget, mut items: Vec<(Value, Value)>) -> TemplateResult<Vec<(Value, Value)>> {
    if items.len() < 2 {
        return Ok(items);
    }
    let right = items.split_off(items.len() / 2);
    let mut left = merge_sort(budget, items)?.into_iter().peekable();
    let mut right = merge_sort(budget, right)?.into_iter().peekable();
    let mut merged = Vec::with_capacity(left.len().saturating_add(right.len()));
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let next = if less(budget, &b.0, &a.0)? { right.next() } else { left.next() };
        merged.extend(next);
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}

/// The key that sorting ignores the case of.
pub(super) fn fold(budget: &Budget, value: Value, case_sensitive: bool) -> TemplateResult<Value> {
    match &value {
        Value::Str(text) | Value::Markup(text) if !case_sensitive => budget.text(text.to_lowercase()),
        _ => Ok(value),
    }
}

pub(super) fn undefined(value: &Value) -> TemplateError {
    match value {
        Value::Undefined(what) => TemplateError::new(what.to_string()),
        other => TemplateError::new(format!("a {} was not expected", other.kind())),
    }
}

pub(super) fn unsupported(sign: &str, left: &Value, right: &Value) -> TemplateError {
    for value in [left, right] {
        if value.is_undefined() {
            let TemplateError { message, .. } = undefined(value);
            return TemplateError::new(format!("{sign} is not possible: {message}"));
        }
    }
    TemplateError::new(format!("{sign} is not possible between a {} and a {}", left.kind(), right.kind()))
}
