//! `value.name` and `value[key]`, as the sandbox of jinja2 looks them up.

use std::rc::Rc;

use super::budget::Budget;
use super::compare::undefined;
use super::error::TemplateResult;
use super::method_names::{self, Access};
use super::subscript::numbered;
use super::value::Value;

/// `value.name`: an attribute, else an item.
pub(super) fn attribute(value: &Value, name: &str) -> TemplateResult<Value> {
    if let Some(found) = own_attribute(value, name)? {
        return Ok(found);
    }
    match value {
        Value::Dict(dict) => Ok(dict.get_str(name).cloned().unwrap_or_else(|| missing(value, name))),
        _ => Ok(missing(value, name)),
    }
}

/// `value[key]`: an item, else an attribute where the key is a text.
pub(super) fn item(budget: &Budget, value: &Value, key: &Value) -> TemplateResult<Value> {
    let found = match value {
        Value::Undefined(_) => return Err(undefined(value)),
        // What cannot be a key is no key of any dictionary.
        Value::Dict(dict) => dict.get(key).ok().flatten().cloned(),
        _ => match key.as_int() {
            Some(index) => numbered(budget, value, index)?,
            None => None,
        },
    };
    if let Some(found) = found {
        return Ok(found);
    }
    match key.as_str() {
        Some(name) => Ok(own_attribute(value, name)?.unwrap_or_else(|| missing(value, name))),
        None => Ok(Value::undefined(format!("a {} has no such item", value.kind()))),
    }
}

/// An attribute that is no item: a method or a property.
pub(super) fn own_attribute(value: &Value, name: &str) -> TemplateResult<Option<Value>> {
    let found = match (value, name) {
        (Value::Undefined(_), _) => return Err(undefined(value)),
        (Value::Namespace(namespace), _) => namespace.attributes.borrow().get_str(name).cloned(),
        (Value::Int(_) | Value::Bool(_), "real" | "numerator") => value.as_int().map(Value::Int),
        (Value::Int(_) | Value::Bool(_), "imag") => Some(Value::Int(0)),
        (Value::Int(_) | Value::Bool(_), "denominator") => Some(Value::Int(1)),
        (Value::Float(x), "real") => Some(Value::Float(*x)),
        (Value::Float(_), "imag") => Some(Value::Float(0.0)),
        (Value::Range(range), "start") => Some(Value::Int(range.start)),
        (Value::Range(range), "stop") => Some(Value::Int(range.stop)),
        (Value::Range(range), "step") => Some(Value::Int(range.step)),
        (Value::Tuple(list), "grouper") if list.grouped => list.items.first().cloned(),
        (Value::Tuple(list), "list") if list.grouped => list.items.get(1).cloned(),
        (Value::Cycler(cycler), "current") => {
            let (items, at) = &**cycler;
            items.get(at.get()).cloned()
        }
        (Value::Macro(code), "name") => Some(code.code.name.as_ref().map_or(Value::None, |n| Value::Str(n.clone()))),
        (Value::Macro(code), "catch_kwargs") => Some(Value::Bool(code.code.takes_kwargs)),
        (Value::Macro(code), "catch_varargs") => Some(Value::Bool(code.code.takes_varargs)),
        (Value::Macro(code), "caller") => Some(Value::Bool(code.code.takes_caller)),
        _ => None,
    };
    if found.is_some() {
        return Ok(found);
    }
    Ok(match method_names::find(value, name) {
        Some(Access::Safe) => Some(Value::Method(Rc::new((value.clone(), name.into())))),
        Some(Access::Unsafe) => Some(Value::undefined(format!(
            "{name} is undefined: a template may not use this attribute of a {}",
            value.kind()
        ))),
        None => None,
    })
}

fn missing(value: &Value, name: &str) -> Value {
    Value::undefined(format!("{name} is undefined: a {} has no such attribute or key", value.kind()))
}
