//! Parts of a schema that contain themselves without an end, such as an object that has to hold another one of its kind: no value fits them.
//!
//! llguidance makes rules of them like any others, and an answer that has begun one can neither go on nor end.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde_json::{Map, Value};

/// Looks at parts, after which a schema is taken as it is: it was made to take time.
const LOOKS: usize = 2_000_000;

/// Kinds of values, a bit each. All that hold no others are one.
type Kinds = u8;
const OBJECT: Kinds = 1;
const ARRAY: Kinds = 2;
const SCALAR: Kinds = 4;
const ALL: Kinds = OBJECT | ARRAY | SCALAR;

/// The schema without its endless parts: `false` is in their place, as for any other part that nothing fits. `place` is where it stands, for
/// messages.
///
/// # Errors
/// The place of the part for which no value fits the whole.
pub(super) fn pruned(schema: &Value, place: &str) -> Result<Value, String> {
    let parts = Parts::of(schema);
    if !parts.ends(schema, ALL) {
        return Err(parts.culprit(place));
    }
    let ending: HashSet<_> = parts.known.iter().filter(|(_, ends)| **ends).map(|((at, _), _)| *at).collect();
    let endless = parts.known.keys().map(|(at, _)| *at).filter(|at| !ending.contains(at)).collect();
    Ok(without(schema, &endless))
}

/// A copy in which `false` is in the place of these values.
fn without(value: &Value, endless: &HashSet<*const Value>) -> Value {
    match value {
        _ if endless.contains(&std::ptr::from_ref(value)) => Value::Bool(false),
        Value::Array(list) => list.iter().map(|value| without(value, endless)).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), without(value, endless))).collect(),
        _ => value.clone(),
    }
}

/// The way from a schema to a part of it.
#[derive(Clone, Copy)]
enum Step<'a> {
    Reference(&'a str),
    Key(&'static str),
    Index(&'static str, usize),
    Name(&'static str, &'a str),
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference(pointer) => f.write_str(&pointer.trim_start_matches('#').replace('/', ".")),
            Self::Key(key) => write!(f, ".{key}"),
            Self::Index(key, index) => write!(f, ".{key}[{index}]"),
            Self::Name(key, name) => write!(f, ".{key}.{name}"),
        }
    }
}

/// Whether parts have a value, where one of these kinds is asked for.
struct Parts<'a> {
    root: &'a Value,
    known: HashMap<Key, bool>,
}

type Key = (*const Value, Kinds);

fn key(schema: &Value, kinds: Kinds) -> Key {
    (std::ptr::from_ref(schema), kinds)
}

impl<'a> Parts<'a> {
    /// Those that the values of a schema can come to. Nothing is known to end at first; what follows from what does is added until nothing
    /// more does.
    fn of(root: &'a Value) -> Self {
        let mut parts = Self { root, known: HashMap::new() };
        let mut found = vec![(root, ALL)];
        parts.known.insert(key(root, ALL), false);
        let mut at = 0;
        while let Some(&(schema, kinds)) = found.get(at) {
            let mut inner = Vec::new();
            parts.follows(schema, kinds, &mut |_, part, kinds| {
                inner.push((part, kinds));
                true
            });
            for (part, kinds) in inner {
                if parts.known.insert(key(part, kinds), false).is_none() {
                    found.push((part, kinds));
                }
            }
            at += 1;
        }
        let mut looks = 0;
        let mut changed = true;
        while changed {
            changed = false;
            // Parts were mostly found before those in them.
            for &(schema, kinds) in
                found.iter().rev().filter(|(schema, kinds)| !parts.ends(schema, *kinds)).collect::<Vec<_>>()
            {
                let ends = parts.follows(schema, kinds, &mut |_, part, kinds| {
                    looks += 1;
                    parts.ends(part, kinds)
                });
                changed |= ends;
                parts.known.insert(key(schema, kinds), ends);
            }
            if looks > LOOKS {
                parts.known.values_mut().for_each(|ends| *ends = true);
            }
        }
        parts
    }

    fn ends(&self, schema: &Value, kinds: Kinds) -> bool {
        self.known.get(&key(schema, kinds)).copied().unwrap_or(true)
    }

    /// Whether a schema has a value of these kinds, for all that is known of its parts: `part` says whether one has, and is asked for each of
    /// them, those that the schema needs first. What is no matter of parts is left to llguidance.
    fn follows(
        &self,
        schema: &'a Value,
        kinds: Kinds,
        part: &mut dyn FnMut(Step<'a>, &'a Value, Kinds) -> bool,
    ) -> bool {
        let Value::Object(map) = schema else { return true };
        let kinds = kinds & declared(map);
        let mut ends = true;
        if let Some((pointer, target)) = text(map, "$ref").and_then(|at| Some((at, self.find(at)?))) {
            ends &= part(Step::Reference(pointer), target, kinds);
        }
        for (i, one) in list(map, "allOf").iter().enumerate() {
            ends &= part(Step::Index("allOf", i), one, kinds);
        }
        for name in ["anyOf", "oneOf"] {
            let several = list(map, name);
            let each = several.iter().enumerate().map(|(i, one)| part(Step::Index(name, i), one, kinds));
            ends &= each.fold(several.is_empty(), |any, one| any | one);
        }
        let object = kinds & OBJECT != 0 && object_follows(map, part);
        let array = kinds & ARRAY != 0 && array_follows(map, part);
        let is_listed = map.contains_key("const") || map.contains_key("enum");
        ends & (object || array || is_listed || kinds & SCALAR != 0 || kinds == 0)
    }

    /// What llguidance finds at a reference.
    fn find(&self, pointer: &str) -> Option<&'a Value> {
        let path = pointer.strip_prefix('#')?.trim_start_matches('/');
        path.split('/').filter(|_| !path.is_empty()).try_fold(self.root, |value, key| match value {
            Value::Array(list) => list.get(key.parse::<usize>().ok()?),
            value => value.get(key),
        })
    }

    /// The place of the part that leads back to what it is in.
    fn culprit(&self, root_place: &str) -> String {
        let (mut schema, mut kinds, mut place) = (self.root, ALL, root_place.to_owned());
        let mut seen = HashSet::new();
        while seen.insert(std::ptr::from_ref(schema)) {
            let mut first = None;
            self.follows(schema, kinds, &mut |step, part, kinds| {
                let ends = self.ends(part, kinds);
                if !ends && first.is_none() {
                    first = Some((step, part, kinds));
                }
                ends
            });
            let Some((step, part, of_part)) = first else { break };
            match step {
                Step::Reference(_) if seen.contains(&std::ptr::from_ref(part)) => break,
                Step::Reference(_) => place = format!("{root_place}{step}"),
                _ => place = format!("{place}{step}"),
            }
            (schema, kinds) = (part, of_part);
        }
        place
    }
}

/// Whether a schema has an object, for all that is known of its properties.
fn object_follows<'a>(map: &'a Map<String, Value>, part: &mut dyn FnMut(Step<'a>, &'a Value, Kinds) -> bool) -> bool {
    let required: HashSet<&str> = list(map, "required").iter().filter_map(Value::as_str).collect();
    let (properties, patterns) = (map.get("properties").and_then(Value::as_object), map.get("patternProperties"));
    let patterns = patterns.and_then(Value::as_object).filter(|patterns| !patterns.is_empty());
    let declared = |name: &str| properties.is_some_and(|properties| properties.contains_key(name));
    let mut ends = true;
    let mut count = 0;
    let mut further = |ends: bool| count += usize::from(ends);
    for needed in [true, false] {
        for (name, schema) in
            properties.into_iter().flatten().filter(|(name, _)| required.contains(name.as_str()) == needed)
        {
            let one = part(Step::Name("properties", name), schema, ALL);
            further(one);
            ends &= one || !needed;
        }
    }
    let mut more =
        map.get("additionalProperties").is_none_or(|schema| part(Step::Key("additionalProperties"), schema, ALL));
    let undeclared = required.iter().filter(|name| !declared(name)).count();
    ends &= more || undeclared == 0 || patterns.is_some();
    for (name, schema) in patterns.into_iter().flatten() {
        more |= part(Step::Name("patternProperties", name), schema, ALL);
    }
    more &= map.get("additionalProperties") != Some(&Value::Bool(false)) || patterns.is_some();
    ends && (more || whole(map, "minProperties") <= count + undeclared)
}

/// Whether a schema has an array, for all that is known of its items.
fn array_follows<'a>(map: &'a Map<String, Value>, part: &mut dyn FnMut(Step<'a>, &'a Value, Kinds) -> bool) -> bool {
    let least = whole(map, "minItems");
    let (first, rest) = match map.get("items") {
        // As drafts before 2020-12 have it.
        Some(Value::Array(_)) => ("items", "additionalItems"),
        _ => ("prefixItems", "items"),
    };
    let mut ends = true;
    for (i, item) in list(map, first).iter().enumerate() {
        ends &= part(Step::Index(first, i), item, ALL) || i >= least;
    }
    let rest = map.get(rest).is_none_or(|item| part(Step::Key(rest), item, ALL));
    ends && (rest || list(map, first).len() >= least)
}

/// The kinds of a schema's `type`.
fn declared(map: &Map<String, Value>) -> Kinds {
    let kind = |name: &str| match name {
        "object" => OBJECT,
        "array" => ARRAY,
        _ => SCALAR,
    };
    match map.get("type") {
        Some(Value::String(name)) => kind(name),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).map(kind).fold(0, |all, kind| all | kind),
        _ => ALL,
    }
}

fn list<'a>(map: &'a Map<String, Value>, name: &str) -> &'a [Value] {
    map.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    map.get(name).and_then(Value::as_str)
}

fn whole(map: &Map<String, Value>, name: &str) -> usize {
    map.get(name).and_then(Value::as_f64).map_or(0, |number| number as usize)
}
