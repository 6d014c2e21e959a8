//! What a schema says of each of the arguments of a call, wherever in it that stands.

#[cfg(feature = "grammar")]
use std::collections::HashSet;

use serde_json::{Map, Value};

use super::kinds::{Kinds, Parts, alternatives};

/// Forms of the arguments of one tool.
pub(crate) const FORMS: usize = 64;

/// The forms that the arguments of a tool can have: one for each choice among the alternatives of their schema.
pub(crate) struct Forms<'a> {
    root: &'a Value,
    /// `None` where there are too many.
    forms: Option<Vec<Form<'a>>>,
}

/// One form of arguments: an object that fits all of these schemas.
pub(crate) struct Form<'a>(Parts<'a>);

impl<'a> Forms<'a> {
    pub(crate) fn of(parameters: &'a Value) -> Self {
        let forms = alternatives(&[parameters], parameters, Kinds::OBJECT, FORMS);
        Self { root: parameters, forms: forms.map(|forms| forms.into_iter().map(Form).collect()) }
    }

    /// `None` where there are more than [`FORMS`].
    #[cfg(feature = "grammar")]
    pub(crate) fn all(&self) -> Option<&[Form<'a>]> {
        self.forms.as_deref()
    }

    /// The types that an argument can have; any where that is not said.
    pub(super) fn kinds(&self, key: &str) -> Kinds {
        let of_form = |form: &Form<'a>| {
            // Which of the patterns of names fits is not looked for: there is mostly one.
            let by_pattern = |part: &&'a Map<String, Value>| {
                let patterns =
                    part.get("patternProperties").and_then(Value::as_object).filter(|_| !declares(part, key));
                patterns.into_iter().flat_map(|patterns| patterns.values())
            };
            let patterns: Vec<&Value> = form.0.iter().flat_map(by_pattern).collect();
            let schemas = form.schemas(key);
            match patterns.is_empty() {
                true => Kinds::of(&schemas, self.root),
                false => Kinds::union(patterns.into_iter().map(|one| {
                    let schemas: Vec<&Value> = schemas.iter().copied().chain([one]).collect();
                    Kinds::of(&schemas, self.root)
                })),
            }
        };
        let kinds = Kinds::union(self.forms.iter().flatten().map(of_form));
        if kinds == Kinds::NONE { Kinds::ANY } else { kinds }
    }
}

impl<'a> Form<'a> {
    /// The names of arguments: those of `properties` in order, then those that are required and have no schema.
    #[cfg(feature = "grammar")]
    pub(crate) fn keys(&self) -> Vec<&'a str> {
        let mut seen = HashSet::new();
        let named = self.0.iter().filter_map(|part| part.get("properties")?.as_object()).flatten();
        let all = named.map(|(name, _)| name.as_str()).chain(self.required_in_order());
        all.filter(|name| seen.insert(*name)).collect()
    }

    #[cfg(feature = "grammar")]
    pub(crate) fn required(&self) -> HashSet<&'a str> {
        self.required_in_order().collect()
    }

    #[cfg(feature = "grammar")]
    fn required_in_order(&self) -> impl Iterator<Item = &'a str> {
        let lists = self.0.iter().filter_map(|part| part.get("required")?.as_array());
        lists.flatten().filter_map(Value::as_str)
    }

    /// The schemas that an argument has to fit all of, but for those of `patternProperties`.
    pub(crate) fn schemas(&self, key: &str) -> Vec<&'a Value> {
        let of_part = |part: &&'a Map<String, Value>| {
            let part: &'a Map<String, Value> = part;
            match part.get("properties").and_then(|properties| properties.get(key)) {
                Some(schema) => Some(schema),
                None if part.contains_key("patternProperties") => None,
                None => part.get("additionalProperties"),
            }
        };
        self.0.iter().filter_map(of_part).collect()
    }

    /// The values of a keyword beside the properties.
    #[cfg(feature = "grammar")]
    pub(crate) fn keyword(&self, name: &str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter_map(move |part| part.get(name))
    }
}

fn declares(part: &Map<String, Value>, key: &str) -> bool {
    part.get("properties").is_some_and(|properties| properties.get(key).is_some())
}
