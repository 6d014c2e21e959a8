//! Which types of values a schema allows, wherever in it that is said: beside it, behind `$ref`, or in `allOf`, `anyOf` and `oneOf`.

use std::cell::Cell;

use serde_json::{Map, Value};

use crate::references::found;

/// Schemas inside a schema that are looked at: references can form circles, and double at every step.
const LOOKS: usize = 1024;
/// Schemas inside of schemas.
const DEPTH: usize = 64;
/// Entries of a list of schemas that are copied for a unit of [`Work`].
const ENTRIES: usize = 32;
/// Alternatives of a schema.
pub(crate) const ALTERNATIVES: usize = 256;

/// What several searches may do together. A unit is about what it takes to look at a small schema: some hundredths of a microsecond.
pub(super) struct Work(Cell<usize>);

impl Work {
    pub(super) fn new(units: usize) -> Self {
        Self(Cell::new(units))
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.0.get()
    }

    /// `None`, now and from then on, where more was done than may be.
    pub(super) fn spend(&self, units: usize) -> Option<()> {
        let left = self.0.get().checked_sub(units);
        self.0.set(left.unwrap_or(0));
        left.map(|_| ())
    }
}

/// Types of JSON values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kinds(u8);

impl Kinds {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const STRING: Self = Self(1);
    pub(crate) const NUMBER: Self = Self(2);
    pub(crate) const BOOLEAN: Self = Self(4);
    pub(crate) const NULL: Self = Self(8);
    pub(crate) const OBJECT: Self = Self(16);
    pub(crate) const ARRAY: Self = Self(32);
    pub(crate) const ANY: Self = Self(63);
    pub(crate) const EACH: [Self; 6] =
        [Self::STRING, Self::NUMBER, Self::BOOLEAN, Self::NULL, Self::OBJECT, Self::ARRAY];

    pub(crate) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) fn union(kinds: impl Iterator<Item = Self>) -> Self {
        Self(kinds.fold(0, |all, kind| all | kind.0))
    }

    pub(crate) fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Number(_) => Self::NUMBER,
            Value::String(_) => Self::STRING,
            Value::Array(_) => Self::ARRAY,
            Value::Object(_) => Self::OBJECT,
        }
    }

    fn named(name: &Value) -> Self {
        match name.as_str() {
            Some("string") => Self::STRING,
            Some("integer" | "number") => Self::NUMBER,
            Some("boolean") => Self::BOOLEAN,
            Some("null") => Self::NULL,
            Some("object") => Self::OBJECT,
            Some("array") => Self::ARRAY,
            _ => Self::ANY,
        }
    }

    /// The names that schemas have for them.
    #[cfg(feature = "grammar")]
    pub(crate) fn names(self) -> Vec<&'static str> {
        let names = ["string", "number", "boolean", "null", "object", "array"];
        let named = Self::EACH.into_iter().zip(names);
        named.filter(|(kind, _)| self.contains(*kind)).map(|(_, name)| name).collect()
    }

    /// Those that values of all these schemas have; none where no value fits, as far as types and alternatives tell.
    #[cfg(feature = "grammar")]
    pub(crate) fn of(schemas: &[&Value], root: &Value) -> Self {
        Self::of_within(schemas, root, &Work::new(usize::MAX))
    }

    /// As [`of`](Self::of); those that are not ruled out where the work is more than may be done.
    pub(super) fn of_within(schemas: &[&Value], root: &Value, work: &Work) -> Self {
        let all = |kind: Self| alternatives_within(schemas, root, kind, ALTERNATIVES, work);
        Self::union(Self::EACH.into_iter().filter(|kind| all(*kind).is_none_or(|all| !all.is_empty())))
    }

    /// Those that a schema allows by itself. One without a type means that of its keywords.
    fn declared(schema: &Map<String, Value>) -> Self {
        let has = |keys: &[&str]| keys.iter().any(|key| schema.contains_key(*key));
        let mut kinds = match schema.get("type") {
            Some(Value::Array(names)) => Self::union(names.iter().map(Self::named)),
            Some(name) => Self::named(name),
            None if has(&["const", "enum"]) => Self::ANY,
            None if has(&["properties"]) => Self::OBJECT,
            None if has(&["items"]) => Self::ARRAY,
            None if has(&["pattern", "minLength", "maxLength"]) => Self::STRING,
            None => Self::ANY,
        };
        if let Some(value) = schema.get("const") {
            kinds.0 &= Self::of_value(value).0;
        }
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            kinds.0 &= Self::union(values.iter().map(Self::of_value)).0;
        }
        kinds
    }
}

/// Schemas that a value has to fit all of, for one choice among alternatives. What they refer to, and the schemas in their `allOf`, `anyOf` and
/// `oneOf`, are in the list too, and no longer to be looked for in them.
pub(crate) type Parts<'a> = Vec<&'a Map<String, Value>>;

/// The ways in which a value of this kind can fit all of these schemas; `None` where there are more than `most`, or it takes too long to say.
/// A schema that leads back to itself without a choice has none.
#[cfg(feature = "grammar")]
pub(crate) fn alternatives<'a>(
    schemas: &[&'a Value],
    root: &'a Value,
    kind: Kinds,
    most: usize,
) -> Option<Vec<Parts<'a>>> {
    alternatives_within(schemas, root, kind, most, &Work::new(usize::MAX))
}

/// As [`alternatives`]; `None` also where the work is more than may be done.
pub(super) fn alternatives_within<'a>(
    schemas: &[&'a Value],
    root: &'a Value,
    kind: Kinds,
    most: usize,
    work: &Work,
) -> Option<Vec<Parts<'a>>> {
    let mut search = Search { root, kind, most, work, looks: LOOKS, path: Vec::new() };
    search.all(schemas.iter().copied())
}

struct Search<'a, 'w> {
    root: &'a Value,
    kind: Kinds,
    most: usize,
    work: &'w Work,
    looks: usize,
    /// The schemas that are being looked into.
    path: Vec<*const Value>,
}

impl<'a> Search<'a, '_> {
    fn one(&mut self, schema: &'a Value) -> Option<Vec<Parts<'a>>> {
        self.looks = self.looks.checked_sub(1).filter(|_| self.path.len() < DEPTH)?;
        let map = match schema {
            Value::Object(map) => map,
            Value::Bool(false) => return Some(Vec::new()),
            _ => return Some(vec![Vec::new()]),
        };
        self.work.spend(size(map))?;
        let at = std::ptr::from_ref(schema);
        if !Kinds::declared(map).contains(self.kind) || self.path.contains(&at) {
            return Some(Vec::new());
        }
        self.path.push(at);
        let mut found_here = vec![vec![map]];
        let target = map.get("$ref").and_then(Value::as_str).and_then(|at| found(self.root, at));
        if let Some((_, target)) = target {
            let inner = self.one(target)?;
            found_here = self.product(&found_here, &inner)?;
        }
        if let Some(schemas) = map.get("allOf").and_then(Value::as_array) {
            let inner = self.all(schemas.iter())?;
            found_here = self.product(&found_here, &inner)?;
        }
        for key in ["anyOf", "oneOf"] {
            let Some(schemas) = map.get(key).and_then(Value::as_array) else { continue };
            let mut inner = Vec::new();
            for schema in schemas {
                inner.extend(self.one(schema)?);
            }
            found_here = self.product(&found_here, &inner)?;
        }
        self.path.pop();
        Some(found_here)
    }

    fn all(&mut self, schemas: impl Iterator<Item = &'a Value>) -> Option<Vec<Parts<'a>>> {
        let mut all = vec![Vec::new()];
        for schema in schemas {
            let inner = self.one(schema)?;
            all = self.product(&all, &inner)?;
        }
        Some(all)
    }

    fn product(&self, left: &[Parts<'a>], right: &[Parts<'a>]) -> Option<Vec<Parts<'a>>> {
        left.len().checked_mul(right.len()).filter(|count| *count <= self.most)?;
        let entries = |lists: &[Parts<'a>], times: usize| lists.iter().map(Vec::len).sum::<usize>() * times;
        let (lists, copied) = (left.len() * right.len(), entries(left, right.len()) + entries(right, left.len()));
        self.work.spend(lists + copied / ENTRIES)?;
        let mut all = Vec::with_capacity(lists);
        for left in left {
            all.extend(right.iter().map(|right| [left.as_slice(), right].concat()));
        }
        Some(all)
    }
}

/// The [`Work`] of looking at a schema, but for those inside of it: its lists of types and values are read, and what it refers to is looked for.
fn size(map: &Map<String, Value>) -> usize {
    let list = |key: &str| map.get(key).and_then(Value::as_array).map_or(0, Vec::len);
    let reference = map.get("$ref").and_then(Value::as_str).map_or(0, str::len);
    1 + (list("type") + list("enum") + reference) / 4
}
