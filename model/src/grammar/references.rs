//! References of a schema, spelled as llguidance looks for what they refer to.
//!
//! It takes what stands between two `/` of a reference for a key as it is, whatever escapes it has.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::references::found;

/// Where a schema has definitions, whose names mean nothing but to references.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// Characters of a name that is made of another one.
const NAME: usize = 64;

/// The schema with references that are found as they are spelled; `None` where all are. Definitions get plain names, and what is elsewhere
/// behind a key that is not plain becomes a definition too.
pub(super) fn plain(schema: &Value) -> Option<Value> {
    let mut spelling = Spelling::of(schema)?;
    let mut told = with_references(schema, &mut |pointer| spelling.of_pointer(pointer));
    let mut added = Map::new();
    // A copy may refer to what has to be copied.
    while let Some((name, target)) = spelling.waiting.pop() {
        added.insert(name, with_references(target, &mut |pointer| spelling.of_pointer(pointer)));
    }
    if !spelling.changed {
        return None;
    }
    let root = told.as_object_mut()?;
    for container in DEFINITIONS {
        let Some(Value::Object(definitions)) = root.get_mut(container) else { continue };
        let renamed = std::mem::take(definitions).into_iter();
        *definitions = renamed.map(|(name, schema)| (spelling.of_name(container, name), schema)).collect();
    }
    if !added.is_empty()
        && let Value::Object(definitions) = root.entry("$defs").or_insert_with(|| Map::new().into())
    {
        definitions.extend(added);
    }
    Some(told)
}

/// A copy in which references inside the schema are changed, where `change` has another one.
pub(super) fn with_references(schema: &Value, change: &mut dyn FnMut(&str) -> Option<String>) -> Value {
    match schema {
        Value::Array(schemas) => schemas.iter().map(|schema| with_references(schema, change)).collect(),
        Value::Object(keywords) => {
            let keyword = |(key, value): (&String, &Value)| {
                let value = match (key.as_str(), value) {
                    ("$ref", Value::String(pointer)) if pointer.starts_with('#') => {
                        change(pointer).map_or_else(|| value.clone(), Value::String)
                    }
                    // Values, and names that are no keywords.
                    ("const" | "enum" | "default" | "examples", value) => value.clone(),
                    ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(named)) => {
                        named.iter().map(|(name, schema)| (name.clone(), with_references(schema, change))).collect()
                    }
                    (_, value) => with_references(value, change),
                };
                (key.clone(), value)
            };
            keywords.iter().map(keyword).collect()
        }
        _ => schema.clone(),
    }
}

/// Whether a pointer has this key as it is.
fn is_plain(key: &str) -> bool {
    !key.contains(['/', '~', '%'])
}

/// How references of a schema are spelled.
struct Spelling<'a> {
    schema: &'a Value,
    /// Names that definitions have.
    taken: HashSet<String>,
    /// Names that were found taken.
    clashes: usize,
    /// Plain names by container and name, of definitions whose names are not plain.
    renamed: HashMap<(&'static str, String), String>,
    /// Names of copies by what they are of.
    copied: HashMap<*const Value, String>,
    /// Copies that are still to be made.
    waiting: Vec<(String, &'a Value)>,
    /// Whether a reference is spelled otherwise than before.
    changed: bool,
}

impl<'a> Spelling<'a> {
    /// `None` where there can be no reference.
    fn of(schema: &'a Value) -> Option<Self> {
        let root = schema.as_object()?;
        let definitions = |container: &&str| root.get(*container).and_then(Value::as_object);
        let named = DEFINITIONS.into_iter().filter_map(|container| Some((container, definitions(&container)?)));
        let all: Vec<(&'static str, &String)> =
            named.flat_map(|(container, named)| named.keys().map(move |name| (container, name))).collect();
        let mut spelling = Self {
            schema,
            taken: all.iter().map(|(_, name)| (*name).clone()).collect(),
            clashes: 0,
            renamed: HashMap::new(),
            copied: HashMap::new(),
            waiting: Vec::new(),
            changed: false,
        };
        for (container, name) in all.into_iter().filter(|(_, name)| !is_plain(name)) {
            let plain = spelling.fresh_name(name);
            spelling.renamed.insert((container, name.clone()), plain);
        }
        Some(spelling)
    }

    /// The name of a definition.
    fn of_name(&self, container: &'static str, name: String) -> String {
        let key = (container, name);
        self.renamed.get(&key).cloned().unwrap_or(key.1)
    }

    /// A reference to the same; `None` where it refers to nothing.
    fn of_pointer(&mut self, pointer: &str) -> Option<String> {
        let (mut keys, target) = found(self.schema, pointer).filter(|(keys, _)| !keys.is_empty())?;
        let container = keys.first().and_then(|key| DEFINITIONS.into_iter().find(|container| container == key));
        if let (Some(container), Some(name)) = (container, keys.get_mut(1)) {
            *name = self.of_name(container, std::mem::take(name));
        }
        if !keys.iter().all(|key| is_plain(key)) {
            let last = keys.pop().unwrap_or_default();
            keys = vec!["$defs".to_owned(), self.of_copy(target, &last)?];
        }
        let spelled = format!("#/{}", keys.join("/"));
        self.changed |= spelled != pointer;
        Some(spelled)
    }

    /// The name of a copy; `None` where there can be none.
    fn of_copy(&mut self, target: &'a Value, like: &str) -> Option<String> {
        if self.schema.get("$defs").is_some_and(|definitions| !definitions.is_object()) {
            return None;
        }
        let key = std::ptr::from_ref(target);
        if let Some(known) = self.copied.get(&key) {
            return Some(known.clone());
        }
        let name = self.fresh_name(like);
        self.waiting.push((name.clone(), target));
        self.copied.insert(key, name.clone());
        Some(name)
    }

    /// A plain name that no definition has, like another name.
    fn fresh_name(&mut self, like: &str) -> String {
        let letter = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
        let like: String = like.chars().take(NAME).map(letter).collect();
        let mut name = like.clone();
        while !self.taken.insert(name.clone()) {
            self.clashes += 1;
            name = format!("{like}_{}", self.clashes);
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn definitions_get_plain_names_and_other_places_definitions() {
        let schema = json!({
            "properties": {"x/y": {"items": {"$ref": "#/$defs/a~1b"}}, "z": {"$ref": "#/properties/x~1y"},
                "$ref": {"const": {"$ref": "#/$defs/a~1b"}}},
            "$defs": {"a/b": {"$ref": "#/definitions/a%25"}, "a_b": {"$ref": "#/properties/x~1y/items"}},
            "definitions": {"a%": {"type": "null"}},
        });
        let expected = json!({
            "properties": {"x/y": {"items": {"$ref": "#/$defs/a_b_1"}}, "z": {"$ref": "#/$defs/x_y"},
                "$ref": {"const": {"$ref": "#/$defs/a~1b"}}},
            "$defs": {"a_b_1": {"$ref": "#/definitions/a_"}, "a_b": {"$ref": "#/$defs/items"},
                "items": {"$ref": "#/$defs/a_b_1"}, "x_y": {"items": {"$ref": "#/$defs/a_b_1"}}},
            "definitions": {"a_": {"type": "null"}},
        });
        let got = plain(&schema).unwrap();
        assert_eq!(got, expected);
        assert_eq!(plain(&got), None);
        let found_already =
            json!({"$ref": "#/$defs/a b", "$defs": {"a b": {"$ref": "#"}, "a/b": {"$ref": "#/nowhere/a~1"}}});
        assert_eq!(plain(&found_already), None);
    }
}
