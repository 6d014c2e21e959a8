//! Fields of a request's body, each checked as it is taken. Fields that nobody takes are ignored.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// An object of the body, and where in the body it is.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Fields<'a> {
    /// The body itself.
    pub fn root(map: &'a Map<String, Value>) -> Self {
        Self { map, path: "" }
    }

    /// An object inside the body.
    pub fn at(map: &'a Map<String, Value>, path: &'a str) -> Self {
        Self { map, path }
    }

    /// The name of a field with its place.
    pub fn place(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// That the field cannot be used.
    pub fn wrong(&self, name: &str, message: impl Display) -> ApiError {
        ApiError::field(&self.place(name), message)
    }

    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn take<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.wrong(name, format!("expected {expected}, found {}", found(value)))),
        }
    }

    pub fn bool(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.take(name, "true or false", Value::as_bool)
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.take(name, "a text", Value::as_str)
    }

    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        self.take(name, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, ApiError> {
        self.take(name, "an object", Value::as_object)
    }

    /// A number in a range.
    pub fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.take(name, &expected, |value| value.as_f64().filter(|x| range.contains(x)).map(|x| x as f32))
    }

    /// A whole number in a range; `2.0` is one, as JavaScript writes it.
    pub fn integer(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        self.take(name, &expected(&range), |value| whole(value).filter(|n| range.contains(n)))
    }

    /// As [`integer`](Self::integer), or -1, which stands for no number: none then.
    pub fn integer_or_minus_one(
        &self,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<Option<u64>>, ApiError> {
        self.take(name, &format!("{}, or -1", expected(&range)), |value| match signed(value) {
            Some(-1) => Some(None),
            _ => whole(value).filter(|n| range.contains(n)).map(Some),
        })
    }
}

/// A whole number of a range, in words.
fn expected(range: &RangeInclusive<u64>) -> String {
    match *range.end() {
        u64::MAX => format!("a whole number from {} on", range.start()),
        end => format!("a whole number from {} to {end}", range.start()),
    }
}

/// A number without a fraction, from 0 on.
pub fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let x = value.as_f64()?;
        // 2^53: whole numbers below it are exact.
        (x.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&x)).then_some(x as u64)
    })
}

/// A number without a fraction that may be negative.
pub fn signed(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let x = value.as_f64()?;
        (x.fract() == 0.0 && x.abs() < 9_007_199_254_740_992.0).then_some(x as i64)
    })
}

/// A value in a message: short ones as they are, others by their kind.
pub fn found(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.len() <= 40 => value.to_string(),
        Value::String(_) => "a text".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
