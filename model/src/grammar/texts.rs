//! Values of arguments in tags, where texts stand without quotes: what is left of their schemas there, as terminals of Lark.

use std::collections::HashSet;
use std::fmt::Write;

use llguidance::derivre::{Regex, RegexAst, RegexBuilder};
use serde_json::{Map, Value};

use super::patterns::{of_format, whole};
use super::schema::wrong;
use crate::references::found;
use crate::text::{ALTERNATIVES, Kinds, Parts, alternatives};
use crate::{Error, Result};

/// What ends a value.
const END_TAG: &str = "</parameter>";
/// Steps in which it has to show whether any text fits.
const FUEL: u64 = 10_000;
/// No line of a text is the end tag.
const NO_END: &str = r"~/(?s:(.*\n)?<\/parameter>(\n.*)?)/";
/// No text begins as an object or a list, where the argument may be one: the lexer would not tell them apart.
const NO_JSON: &str = r"~/(?s:[\[{].*)/";

/// What an argument may be in its tag.
pub(super) enum Texts {
    /// Any text.
    Free,
    /// JSON of these types, none of which is a text.
    Json(Kinds),
    /// One of these expressions of a terminal, or JSON of these types; neither where nothing fits.
    These(Vec<String>, Kinds),
}

/// The texts that fit all of these schemas. `place` is where they stand, for messages.
///
/// # Errors
/// [`Error::Option`](crate::Error::Option) with the place where a keyword of texts is none that can be kept.
pub(super) fn texts(schemas: &[&Value], root: &Value, place: &str) -> Result<Texts> {
    let kinds = Kinds::of(schemas, root);
    if !kinds.contains(Kinds::STRING) {
        return Ok(if kinds == Kinds::NONE { Texts::These(Vec::new(), kinds) } else { Texts::Json(kinds) });
    }
    let Some(all) = alternatives(schemas, root, Kinds::STRING, ALTERNATIVES) else {
        let message = format!("has more than {ALTERNATIVES} alternatives for a text; list its values in one enum");
        return Err(wrong(place, &message));
    };
    let composite = kinds.contains(Kinds::OBJECT) || kinds.contains(Kinds::ARRAY);
    let mut expressions = Vec::new();
    for parts in all {
        let mut references = parts.iter().filter_map(|part| part.get("$ref")?.as_str());
        if let Some(reference) = references.find(|reference| found(root, reference).is_none()) {
            return Err(wrong(place, &format!("$ref {reference:?} names nothing in the schema of all parameters")));
        }
        let text = Text::of(&parts, place)?;
        if text.is_free() {
            return Ok(Texts::Free);
        }
        text.write(composite, place, &mut expressions)?;
    }
    if kinds.contains(Kinds::NULL) {
        expressions.push(literal("null"));
    }
    let json =
        Kinds::EACH.into_iter().filter(|&kind| kinds.contains(kind) && kind != Kinds::STRING && kind != Kinds::NULL);
    Ok(Texts::These(expressions, Kinds::union(json)))
}

/// What the schemas of one alternative say of a text.
struct Text<'a> {
    /// The values that each of them lists.
    lists: Vec<Vec<&'a Value>>,
    least: u64,
    most: Option<u64>,
    /// Regular expressions of whole texts.
    patterns: Vec<String>,
}

impl<'a> Text<'a> {
    fn of(parts: &Parts<'a>, place: &str) -> Result<Self> {
        let mut text = Self { lists: Vec::new(), least: 0, most: None, patterns: Vec::new() };
        for part in parts {
            text.lists.extend(part.get("const").map(|value| vec![value]));
            text.lists.extend(part.get("enum").and_then(Value::as_array).map(|values| values.iter().collect()));
            text.least = text.least.max(length(part, "minLength", place)?.unwrap_or(0));
            text.most = [text.most, length(part, "maxLength", place)?].into_iter().flatten().min();
            if let Some(pattern) = part.get("pattern") {
                text.patterns.push(of_pattern(pattern, place)?);
            }
            text.patterns.extend(part.get("format").and_then(Value::as_str).and_then(of_format).map(str::to_owned));
        }
        Ok(text)
    }

    fn is_free(&self) -> bool {
        self.lists.is_empty() && self.patterns.is_empty() && self.least == 0 && self.most.is_none()
    }

    /// Adds what fits to the expressions of a terminal.
    fn write(&self, composite: bool, place: &str, found: &mut Vec<String>) -> Result<()> {
        if let Some((first, others)) = self.lists.split_first() {
            let others: Vec<HashSet<&str>> =
                others.iter().map(|list| list.iter().filter_map(|value| value.as_str()).collect()).collect();
            let each = self.patterns.iter().map(|pattern| compiled(std::slice::from_ref(pattern), place));
            let mut patterns = each.collect::<Result<Vec<_>>>()?;
            for text in first.iter().filter_map(|value| value.as_str()) {
                let length = text.chars().count() as u64;
                let mut fits = others.iter().all(|list| list.contains(text))
                    && length >= self.least
                    && self.most.is_none_or(|most| length <= most);
                for pattern in &mut patterns {
                    fits = fits && is_match(pattern, text, place)?;
                }
                if !fits {
                    continue;
                }
                if text.contains(END_TAG) {
                    let message =
                        format!("{:?} cannot be written between tags: it contains the one that ends it", short(text));
                    return Err(wrong(place, &message));
                }
                found.push(literal(text));
            }
            return Ok(());
        }
        let mut all = self.patterns.clone();
        if self.least > 0 || self.most.is_some() {
            let most = self.most.map(|most| most.to_string()).unwrap_or_default();
            if self.most.is_some_and(|most| most < self.least) {
                return Ok(());
            }
            all.push(format!("(?s:.{{{},{most}}})", self.least));
        }
        if compiled(&all, place)?.always_empty() {
            return Ok(());
        }
        let mut expression = String::from("(");
        for pattern in &all {
            let _ = write!(expression, "/{pattern}/ & ");
        }
        expression.push_str(NO_END);
        if composite {
            let _ = write!(expression, " & {NO_JSON}");
        }
        expression.push(')');
        found.push(expression);
        Ok(())
    }
}

/// A bound of the length of texts.
fn length(part: &Map<String, Value>, name: &str, place: &str) -> Result<Option<u64>> {
    let Some(value) = part.get(name) else { return Ok(None) };
    match value.as_u64().filter(|&length| length < u64::from(u32::MAX)) {
        Some(length) => Ok(Some(length)),
        None => Err(wrong(place, &format!("{name} must be a number of characters below {}", u32::MAX))),
    }
}

fn of_pattern(pattern: &Value, place: &str) -> Result<String> {
    let Some(text) = pattern.as_str() else { return Err(wrong(place, "pattern must be a text")) };
    let whole = whole(text);
    match RegexBuilder::new().mk(&RegexAst::Regex(whole.clone())) {
        Ok(_) => Ok(whole),
        Err(error) => {
            let error = error.to_string();
            let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Err(wrong(place, &format!("pattern {:?} cannot be kept between tags: {reason}", short(text))))
        }
    }
}

/// The texts that fit all of these.
fn compiled(patterns: &[String], place: &str) -> Result<Regex> {
    let mut builder = RegexBuilder::new();
    let all = RegexAst::And(patterns.iter().map(|pattern| RegexAst::Regex(pattern.clone())).collect());
    let made = builder.mk(&all).and_then(|all| builder.into_regex_limited(all, FUEL));
    made.map_err(|_| too_complex(place))
}

/// Whether a text is one of a pattern by itself: what several have in common can take any time to find out.
fn is_match(pattern: &mut Regex, text: &str, place: &str) -> Result<bool> {
    let most = pattern.cost() + FUEL + 100 * text.len() as u64;
    let mut state = pattern.initial_state();
    for &byte in text.as_bytes() {
        state = pattern.transition(state, byte);
        if state.is_dead() {
            return Ok(false);
        }
        if pattern.cost() > most {
            return Err(too_complex(place));
        }
    }
    Ok(pattern.is_accepting(state))
}

/// The beginning of a text, for messages.
fn short(text: &str) -> &str {
    text.get(..text.floor_char_boundary(100)).unwrap_or(text)
}

fn too_complex(place: &str) -> Error {
    wrong(place, "it does not show whether any text fits pattern, format and length; use simpler ones")
}

/// A text in Lark, where it is written as in JSON.
pub(super) fn literal(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
