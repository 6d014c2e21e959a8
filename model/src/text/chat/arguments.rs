//! Arguments of a call, and how a function takes them.

use std::rc::Rc;

use super::error::{TemplateError, TemplateResult};
use super::value::Value;

/// What a call gives.
#[derive(Debug, Default, Clone)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Rc<str>, Value)>,
}

impl Args {
    pub(super) fn new(positional: Vec<Value>) -> Self {
        Self { positional, named: Vec::new() }
    }

    /// One value for each parameter, by position or name; the first `required` must be there.
    pub(super) fn bind<const N: usize>(
        self,
        function: &str,
        names: [&str; N],
        required: usize,
    ) -> TemplateResult<[Option<Value>; N]> {
        let given = self.positional.len();
        if given > N {
            return Err(TemplateError::new(format!("{function} takes at most {N} arguments, {given} are given")));
        }
        let mut bound: [Option<Value>; N] = std::array::from_fn(|_| None);
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let at = names.iter().position(|n| **n == *name);
            let Some(slot) = at.and_then(|at| bound.get_mut(at)) else {
                return Err(TemplateError::new(format!("{function} has no parameter {name}")));
            };
            if slot.replace(value).is_some() {
                return Err(TemplateError::new(format!("{function} is given {name} twice")));
            }
        }
        for (slot, name) in bound.iter().zip(names).take(required) {
            if slot.is_none() {
                return Err(TemplateError::new(format!("{function} needs {name}")));
            }
        }
        Ok(bound)
    }

    /// As [`Self::bind`] of a function that takes no names.
    pub(super) fn positional<const N: usize>(
        self,
        function: &str,
        required: usize,
    ) -> TemplateResult<[Option<Value>; N]> {
        if let Some((name, _)) = self.named.first() {
            return Err(TemplateError::new(format!("{function} has no parameter {name}")));
        }
        let given = self.positional.len();
        if given < required {
            return Err(TemplateError::new(format!("{function} needs {required} arguments, {given} are given")));
        }
        self.bind(function, [""; N], 0)
    }
}

/// A number given, or `default`.
pub(super) fn int_or(function: &str, value: Option<Value>, default: i128) -> TemplateResult<i128> {
    match value {
        None => Ok(default),
        Some(value) => value
            .as_int()
            .ok_or_else(|| TemplateError::new(format!("{function} needs a number, not a {}", value.kind()))),
    }
}

/// A text given.
pub(super) fn text_of(function: &str, value: Option<Value>) -> TemplateResult<Rc<str>> {
    match value {
        Some(Value::Str(text) | Value::Markup(text)) => Ok(text),
        Some(Value::Undefined(what)) => Err(TemplateError::new(format!("{function}: {what}"))),
        other => {
            let kind = other.map_or("nothing", |v| v.kind());
            Err(TemplateError::new(format!("{function} needs a text, not a {kind}")))
        }
    }
}
