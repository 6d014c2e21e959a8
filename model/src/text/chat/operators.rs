//! `+`, `*`, `~` and slices as Python computes them, within a budget.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, Value};

use super::budget::{Budget, refuse};
use super::python;

/// Bytes of an item of a list.
const ITEM: usize = 24;

/// `left + right`: numbers, two texts, two lists or two tuples.
pub(super) fn add(budget: &Budget, left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        return join_text(budget, a, b);
    }
    if is_list(left) && is_list(right) {
        let size = left.len().zip(right.len());
        budget.check_size(size.and_then(|(a, b)| a.checked_add(b)?.checked_mul(ITEM)))?;
        let items: Vec<Value> = left.try_iter()?.chain(right.try_iter()?).collect();
        return match (left.is_tuple(), right.is_tuple()) {
            (true, true) => budget.admit(Value::from(Tuple::from(items))),
            (false, false) => budget.admit(Value::from(items)),
            _ => Err(unsupported("+", left, right)),
        };
    }
    arithmetic("+", left, right, i128::checked_add, |a, b| a + b)
}

/// `left * right`: numbers, or a text or list and how often to repeat it.
pub(super) fn repeat(budget: &Budget, left: &Value, right: &Value) -> Result<Value, Error> {
    let (repeated, times) =
        if left.is_number() || left.kind() == ValueKind::Bool { (right, left) } else { (left, right) };
    let times = || {
        let times = i128::try_from(times.clone()).map_err(|_| unsupported("*", left, right))?;
        // Python takes a negative number for none.
        usize::try_from(times.max(0)).map_err(|_| refuse("a value is repeated too often".to_owned()))
    };
    if let Some(text) = repeated.as_str() {
        let times = times()?;
        budget.check_size(text.len().checked_mul(times))?;
        return budget.admit(Value::from(text.repeat(times)));
    }
    if is_list(repeated) {
        let times = times()?;
        let size = repeated.len().and_then(|n| n.checked_mul(times)?.checked_mul(ITEM));
        budget.check_size(size)?;
        let once: Vec<Value> = repeated.try_iter()?.collect();
        let times = if once.is_empty() { 0 } else { times };
        let repeats = std::iter::repeat_n(once, times);
        let items: Vec<Value> = repeats.flatten().collect();
        return budget.admit(if repeated.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) });
    }
    arithmetic("*", left, right, i128::checked_mul, |a, b| a * b)
}

/// `left ~ right`: both as text.
pub(super) fn concat(budget: &Budget, left: &Value, right: &Value) -> Result<Value, Error> {
    let (a, b) = (python::text(budget, left)?, python::text(budget, right)?);
    join_text(budget, &a, &b)
}

/// `value[start:stop:step]` of a text, a list or a tuple; parts left out are none.
pub(super) fn slice(budget: &Budget, value: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value, Error> {
    let number = |part: &Value| match part.is_none() {
        true => Ok(None),
        false => i64::try_from(part.clone()).map(Some),
    };
    let (start, stop, step) = (number(start)?, number(stop)?, number(step)?.unwrap_or(1));
    let items = value.len().unwrap_or(0).saturating_mul(ITEM);
    budget.spend(value.as_str().map_or(items, str::len))?;
    if step == 0 {
        return Err(refuse("the step of a slice cannot be zero".to_owned()));
    }
    if let Some(text) = value.as_str() {
        let chars: Vec<char> = text.chars().collect();
        let picked = positions(chars.len(), start, stop, step);
        return Ok(Value::from(picked.filter_map(|i| chars.get(i)).collect::<String>()));
    }
    if !is_list(value) {
        return Err(refuse(format!("a {} cannot be sliced", value.kind())));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let picked = positions(items.len(), start, stop, step);
    let picked: Vec<Value> = picked.filter_map(|i| items.get(i).cloned()).collect();
    Ok(if value.is_tuple() { Value::from(Tuple::from(picked)) } else { Value::from(picked) })
}

/// The positions of a slice of `length` items, as Python's `slice.indices` gives them.
fn positions(length: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let clamp = |i: i64| {
        let from_end = if i < 0 { i.saturating_add(length) } else { i };
        from_end.clamp(lowest, highest)
    };
    let (first, end) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let mut at = start.map_or(first, clamp);
    let stop = stop.map_or(end, clamp);
    std::iter::from_fn(move || {
        let inside = if step > 0 { at < stop } else { at > stop };
        let position = usize::try_from(at).ok().filter(|_| inside)?;
        at = at.saturating_add(step);
        Some(position)
    })
}

fn join_text(budget: &Budget, a: &str, b: &str) -> Result<Value, Error> {
    budget.check_size(a.len().checked_add(b.len()))?;
    budget.admit(Value::from([a, b].concat()))
}

fn arithmetic(
    name: &str,
    left: &Value,
    right: &Value,
    integers: impl Fn(i128, i128) -> Option<i128>,
    floats: impl Fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    let number = |v: &Value| v.is_number() || v.kind() == ValueKind::Bool;
    if !number(left) || !number(right) {
        return Err(unsupported(name, left, right));
    }
    let is_float = |v: &Value| v.is_number() && !v.is_integer();
    if is_float(left) || is_float(right) {
        let a = f64::try_from(left.clone())?;
        let b = f64::try_from(right.clone())?;
        return Ok(Value::from(floats(a, b)));
    }
    let a = i128::try_from(left.clone())?;
    let b = i128::try_from(right.clone())?;
    let result = integers(a, b).ok_or_else(|| refuse(format!("{a} {name} {b} is too large")))?;
    Ok(i64::try_from(result).map_or_else(|_| Value::from(result), Value::from))
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn unsupported(name: &str, left: &Value, right: &Value) -> Error {
    let kind = |v: &Value| {
        if v.is_undefined() { "an undefined value".to_owned() } else { format!("a {}", v.kind()) }
    };
    refuse(format!("{name} is not possible between {} and {}", kind(left), kind(right)))
}
