//! The filters of jinja2, and those among them that apply a filter or a test to every item of a sequence.

use super::arguments::Args;
use super::budget::Budget;
use super::error::{TemplateError, TemplateResult};
use super::predicates;
use super::scalars;
use super::sequences::{self, attribute};
use super::value::Value;

/// `value|name(args)`.
pub(super) fn apply(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    budget.work(value.as_str().map_or(0, str::len))?;
    match name {
        "map" => map(budget, value, args),
        "reject" | "rejectattr" | "select" | "selectattr" => select(budget, name, value, args),
        _ => match sequences::apply(budget, name, value, &args) {
            Some(result) => result,
            None => scalars::apply(budget, name, value, args),
        },
    }
}

fn map(budget: &Budget, value: &Value, mut args: Args) -> TemplateResult<Value> {
    let by_attribute = args.positional.is_empty() && args.named.iter().any(|(n, _)| **n == *"attribute");
    let mut out = Vec::new();
    if by_attribute {
        let [path, default] = args.bind("map", ["attribute", "default"], 1)?;
        let path = path.unwrap_or(Value::None);
        for item in passed(budget, value)? {
            out.push(attribute(budget, item, &path, default.as_ref())?);
        }
        return Ok(Value::generator(out));
    }
    let items = passed(budget, value)?;
    if items.is_empty() {
        return Ok(Value::generator(out));
    }
    if args.positional.is_empty() {
        return Err(TemplateError::new("map needs a filter or attribute="));
    }
    let filter = args.positional.remove(0);
    let filter = filter.as_str().ok_or_else(|| TemplateError::new("map needs the name of a filter"))?;
    for item in items {
        budget.step()?;
        out.push(apply(budget, filter, &item, args.clone())?);
    }
    Ok(Value::generator(out))
}

/// The items of what `map` and `select` go through: they ask first whether there is anything.
fn passed(budget: &Budget, value: &Value) -> TemplateResult<Vec<Value>> {
    if value.truth() { value.iterate(budget) } else { Ok(Vec::new()) }
}

fn select(budget: &Budget, name: &str, value: &Value, mut args: Args) -> TemplateResult<Value> {
    let by_attribute = name.ends_with("attr");
    let wanted = name.starts_with("select");
    let items = passed(budget, value)?;
    if items.is_empty() {
        return Ok(Value::generator(items));
    }
    let path = if by_attribute {
        if args.positional.is_empty() {
            return Err(TemplateError::new(format!("{name} needs the name of an attribute")));
        }
        args.positional.remove(0)
    } else {
        Value::None
    };
    let test = if args.positional.is_empty() { None } else { Some(args.positional.remove(0)) };
    let mut out = Vec::new();
    for item in items {
        budget.step()?;
        let looked_at = attribute(budget, item.clone(), &path, None)?;
        let holds = match &test {
            Some(test) => {
                let test =
                    test.as_str().ok_or_else(|| TemplateError::new(format!("{name} needs the name of a test")))?;
                predicates::apply(budget, test, &looked_at, args.clone())?
            }
            None => looked_at.truth(),
        };
        if holds == wanted {
            out.push(item);
        }
    }
    Ok(Value::generator(out))
}
