//! Bounds of schemas, and how they are handed to llguidance.

use serde_json::{Value, json};

use super::endless::pruned;
use super::patterns::of_format;
use super::references::plain;
use crate::{Error, Result};

/// Values inside of values.
const DEPTH: usize = 48;
/// Values of a schema, all together.
const VALUES: usize = 20_000;
/// Bytes of its keys and texts.
const BYTES: usize = 512 << 10;
/// Keys of one object: the compiler takes time that grows with their square, and the parser gives up at some 500 optional ones.
const KEYS: usize = 400;
/// Digits of a multiple, read as an integer: the compiler keeps a state for every remainder.
const MULTIPLE: f64 = 1000.0;

/// Between two values of an answer.
const SPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// A schema with the options of the compiler, in place of those that it may have itself.
///
/// # Errors
/// [`Error::Option`] with the place where it is too large, no object, or contains itself without an end.
pub(super) fn prepared(schema: &Value, place: &str) -> Result<Value> {
    Bounds::of_schema().check(schema, place, DEPTH)?;
    if !schema.is_object() {
        return Err(wrong(place, "must be a JSON schema: an object"));
    }
    let plain = plain(schema);
    if let Some(schema) = &plain {
        // What is copied counts too.
        Bounds::of_schema().check(schema, place, DEPTH)?;
    }
    let schema = plain.as_ref().unwrap_or(schema);
    let endless = "no answer fits it: it contains itself without an end; make it optional, or allow null";
    let mut schema = pruned(schema, place).map_err(|place| wrong(&place, endless))?;
    without_annotations(&mut schema);
    let options = json!({"whitespace_pattern": SPACE, "coerce_one_of": true});
    if let Some(object) = schema.as_object_mut() {
        object.insert("x-guidance".to_owned(), options);
    }
    Ok(schema)
}

/// Leaves out formats that are not kept, which say nothing of what fits.
fn without_annotations(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(without_annotations),
        Value::Object(keywords) => {
            if keywords.get("format").and_then(Value::as_str).is_some_and(|format| of_format(format).is_none()) {
                keywords.shift_remove("format");
            }
            for (key, value) in keywords {
                match (key.as_str(), value) {
                    // Values, and names that are no keywords.
                    ("const" | "enum" | "default" | "examples", _) => {}
                    ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(named)) => {
                        named.values_mut().for_each(without_annotations);
                    }
                    (_, value) => without_annotations(value),
                }
            }
        }
        _ => {}
    }
}

pub(super) fn wrong(place: &str, message: &str) -> Error {
    Error::Option { option: place.to_owned(), message: message.to_owned() }
}

/// Whether a number is at most so long without its decimal point.
fn is_short(multiple: f64) -> bool {
    let shifted = (0..9).map(|digits| multiple.abs() * 10f64.powi(digits));
    // A product with a power of ten can be a few bits off.
    let whole = |x: &f64| (x - x.round()).abs() <= x * 1e-12;
    shifted.take_while(|&x| x <= MULTIPLE).any(|x| whole(&x))
}

struct Bounds {
    values: usize,
    bytes: usize,
}

impl Bounds {
    fn of_schema() -> Self {
        Self { values: VALUES, bytes: BYTES }
    }

    fn check(&mut self, value: &Value, place: &str, depth: usize) -> Result<()> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(wrong(place, &format!("is nested more than {DEPTH} deep; use a simpler schema")));
        };
        self.take(1, 0, place)?;
        match value {
            Value::String(text) => self.take(0, text.len(), place),
            Value::Array(items) => {
                items.iter().enumerate().try_for_each(|(i, item)| self.check(item, &format!("{place}[{i}]"), depth))
            }
            Value::Object(object) if object.len() > KEYS => {
                Err(wrong(place, &format!("has {} keys, and {KEYS} are allowed; use a simpler schema", object.len())))
            }
            Value::Object(object) => object.iter().try_for_each(|(key, value)| {
                self.take(0, key.len(), place)?;
                let place = format!("{place}.{key}");
                if key == "multipleOf" && value.as_f64().is_some_and(|multiple| !is_short(multiple)) {
                    return Err(wrong(
                        &place,
                        &format!("{value} has more remainders than the {MULTIPLE} that are kept"),
                    ));
                }
                self.check(value, &place, depth)
            }),
            _ => Ok(()),
        }
    }

    fn take(&mut self, values: usize, bytes: usize, place: &str) -> Result<()> {
        match (self.values.checked_sub(values), self.bytes.checked_sub(bytes)) {
            (Some(values), Some(bytes)) => {
                *self = Self { values, bytes };
                Ok(())
            }
            _ => Err(wrong(
                place,
                &format!("is beyond the {VALUES} values and {BYTES} bytes that a schema may have; use a smaller one"),
            )),
        }
    }
}
