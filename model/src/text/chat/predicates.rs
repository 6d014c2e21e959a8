//! The tests of jinja2: what follows `is`.

use std::cmp::Ordering;

use super::arguments::Args;
use super::ast::Operator;
use super::budget::Budget;
use super::compare::{contains, equal, order, same};
use super::error::{TemplateError, TemplateResult};
use super::filter_names;
use super::methods::{is_lower, is_upper};
use super::operators::binary;
use super::python;
use super::value::{Key, Value};

const TESTS: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

pub(super) fn is_known(name: &str) -> bool {
    TESTS.contains(&name)
}

/// `value is name(args)`.
pub(super) fn apply(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<bool> {
    budget.work(value.as_str().map_or(0, str::len))?;
    let one = |args: Args| -> TemplateResult<Value> {
        let [other] = args.bind(name, [parameter(name)], 1)?;
        other.ok_or_else(|| TemplateError::new(format!("{name} needs a value")))
    };
    if let Some((sign, holds)) = comparison(name) {
        let [other] = args.positional(name, 1)?;
        return Ok(order(budget, sign, value, &other.unwrap_or(Value::None))?.is_some_and(holds));
    }
    let remainder = |by: &Value, wanted: i128| {
        let rest = binary(budget, Operator::Remainder, value, by)?;
        equal(budget, &rest, &Value::Int(wanted))
    };
    match name {
        "divisibleby" => return remainder(&one(args)?, 0),
        "sameas" => return Ok(same(value, &one(args)?)),
        "in" => return contains(budget, &one(args)?, value),
        "==" | "eq" | "equalto" | "!=" | "ne" => {
            let [other] = args.positional(name, 1)?;
            let equal = equal(budget, value, &other.unwrap_or(Value::None))?;
            return Ok(equal != matches!(name, "!=" | "ne"));
        }
        _ => {}
    }
    let [] = args.bind(name, [], 0)?;
    Ok(match name {
        "odd" => remainder(&Value::Int(2), 1)?,
        "even" => remainder(&Value::Int(2), 0)?,
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "filter" => Key::new(value).map(|_| value.as_str().is_some_and(filter_names::is_known))?,
        "test" => Key::new(value).map(|_| value.as_str().is_some_and(is_known))?,
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "false" => matches!(value, Value::Bool(false)),
        "true" => matches!(value, Value::Bool(true)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "lower" => is_lower(&python::text(budget, value)?),
        "upper" => is_upper(&python::text(budget, value)?),
        "string" => value.as_str().is_some(),
        "mapping" => matches!(value, Value::Dict(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "sequence" => match value {
            Value::View(..) => false,
            other => other.len().is_some(),
        },
        "iterable" => value.len().is_some() || matches!(value, Value::Generator(_) | Value::Loop(_)),
        // An undefined value can be called, which is then an error.
        "callable" => matches!(
            value,
            Value::Undefined(_)
                | Value::Macro(_)
                | Value::Function(_)
                | Value::Method(_)
                | Value::Joiner(_)
                | Value::Loop(_)
        ),
        "escaped" => matches!(value, Value::Markup(_)),
        other => return Err(TemplateError::new(format!("there is no test called {other}"))),
    })
}

fn parameter(test: &str) -> &'static str {
    match test {
        "divisibleby" => "num",
        "sameas" => "other",
        _ => "seq",
    }
}

/// Whether an order is one for which a comparison holds.
type Holds = fn(Ordering) -> bool;

/// The sign of a test that compares, and the orders for which it holds.
fn comparison(test: &str) -> Option<(&'static str, Holds)> {
    Some(match test {
        ">" | "gt" | "greaterthan" => (">", Ordering::is_gt),
        ">=" | "ge" => (">=", Ordering::is_ge),
        "<" | "lt" | "lessthan" => ("<", Ordering::is_lt),
        "<=" | "le" => ("<=", Ordering::is_le),
        _ => return None,
    })
}
