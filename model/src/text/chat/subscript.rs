//! Items and slices of what is numbered, as Python counts them, within a budget.

use super::budget::Budget;
use super::compare::undefined;
use super::error::{TemplateError, TemplateResult};
use super::value::{List, Range, Value};

/// `value[index]` of what has numbered items; none where there is no such item or the value is not numbered.
pub(super) fn numbered(budget: &Budget, value: &Value, index: i128) -> TemplateResult<Option<Value>> {
    let position = |length: usize| {
        let length = i128::try_from(length).ok()?;
        let index = if index < 0 { index.checked_add(length)? } else { index };
        usize::try_from(index).ok().filter(|_| index < length)
    };
    Ok(match value {
        Value::List(list) | Value::Tuple(list) => position(list.items.len()).and_then(|i| list.items.get(i)).cloned(),
        Value::Range(range) => position(range.len()).and_then(|i| range.get(i)).map(Value::Int),
        Value::Str(text) | Value::Markup(text) => {
            budget.work(text.len())?;
            let at = if text.is_ascii() { position(text.len()) } else { position(text.chars().count()) };
            let c = at.and_then(|i| {
                if text.is_ascii() { text.as_bytes().get(i).map(|b| char::from(*b)) } else { text.chars().nth(i) }
            });
            match (c, value) {
                (Some(c), Value::Markup(_)) => Some(budget.markup(c.to_string())?),
                (Some(c), _) => Some(budget.text(c.to_string())?),
                (None, _) => None,
            }
        }
        _ => None,
    })
}

/// `value[start:stop:step]`.
pub(super) fn slice(budget: &Budget, value: &Value, bounds: [Value; 3]) -> TemplateResult<Value> {
    if value.is_undefined() {
        return Err(undefined(value));
    }
    let number = |part: &Value| match part {
        Value::None => Ok(None),
        part => match part.as_int() {
            Some(n) => Ok(Some(i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX }))),
            None => Err(TemplateError::new(format!("a slice has numbers, not a {}", part.kind()))),
        },
    };
    let [start, stop, step] = &bounds;
    let (start, stop, step) = (number(start)?, number(stop)?, number(step)?.unwrap_or(1));
    if step == 0 {
        return Err(TemplateError::new("the step of a slice cannot be 0"));
    }
    let characters = |text: &str| {
        budget.work(text.len())?;
        let chars: Vec<char> = text.chars().collect();
        let picked = positions(chars.len(), start, stop, step);
        Ok(picked.filter_map(|i| chars.get(i)).collect::<String>())
    };
    let picked = |list: &List| {
        let picked = positions(list.items.len(), start, stop, step);
        picked.filter_map(|i| list.items.get(i).cloned()).collect()
    };
    match value {
        Value::Str(text) => budget.text(characters(text)?),
        Value::Markup(text) => budget.markup(characters(text)?),
        Value::List(list) => budget.list(picked(list)),
        Value::Tuple(list) => budget.tuple(picked(list)),
        Value::Range(range) => {
            let (first, end) = indices(range.len(), start, stop, step);
            let place = |at: i64| i128::from(at).checked_mul(range.step).and_then(|n| n.checked_add(range.start));
            let bounds = place(first).zip(place(end)).zip(range.step.checked_mul(step.into()));
            let ((start, stop), step) = bounds.ok_or_else(|| TemplateError::new("a slice of a range is too large"))?;
            Ok(Value::Range(Range { start, stop, step }))
        }
        other => Err(TemplateError::new(format!("a {} cannot be sliced", other.kind()))),
    }
}

/// Where a slice of `length` items begins and ends, as Python's `slice.indices` gives it.
fn indices(length: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> (i64, i64) {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let clamp = |i: i64| {
        let from_end = if i < 0 { i.saturating_add(length) } else { i };
        from_end.clamp(lowest, highest)
    };
    let (first, end) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    (start.map_or(first, clamp), stop.map_or(end, clamp))
}

/// The positions of a slice of `length` items.
fn positions(length: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let (mut at, stop) = indices(length, start, stop, step);
    std::iter::from_fn(move || {
        let inside = if step > 0 { at < stop } else { at > stop };
        let position = usize::try_from(at).ok().filter(|_| inside)?;
        at = at.saturating_add(step);
        Some(position)
    })
}
