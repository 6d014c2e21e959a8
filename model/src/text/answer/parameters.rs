//! What a schema says of each of the arguments of a call, wherever in it that stands.

#[cfg(feature = "grammar")]
use std::collections::HashSet;

use serde_json::{Map, Value};

use super::kinds::{Kinds, Parts, Work, alternatives_within};

/// Forms of the arguments of one tool.
pub(crate) const FORMS: usize = 64;

/// Units of work on the schema of a call, for all of its arguments: some thousandths of a second, 20 at most. 400 arguments with a type each take less than
/// a tenth of it. Without a bound a stranger's schema takes minutes.
const WORK: usize = 1 << 17;

/// The forms that the arguments of a tool can have: one for each choice among the alternatives of their schema.
pub(crate) struct Forms<'a> {
    root: &'a Value,
    /// `None` where there are too many.
    forms: Option<Vec<Form<'a>>>,
    work: Work,
}

/// One form of arguments: an object that fits all of these schemas.
pub(crate) struct Form<'a>(Parts<'a>);

impl<'a> Forms<'a> {
    pub(crate) fn of(parameters: &'a Value) -> Self {
        let work = Work::new(WORK);
        let forms = alternatives_within(&[parameters], parameters, Kinds::OBJECT, FORMS, &work);
        Self { root: parameters, forms: forms.map(|forms| forms.into_iter().map(Form).collect()), work }
    }

    /// `None` where there are more than [`FORMS`], or it takes too long to say.
    #[cfg(feature = "grammar")]
    pub(crate) fn all(&self) -> Option<&[Form<'a>]> {
        self.forms.as_deref()
    }

    /// The types that an argument can have; any where that is not said, or takes too long to say.
    pub(super) fn kinds(&self, key: &str) -> Kinds {
        self.kinds_within(key).filter(|kinds| *kinds != Kinds::NONE).unwrap_or(Kinds::ANY)
    }

    fn kinds_within(&self, key: &str) -> Option<Kinds> {
        let mut kinds = Kinds::NONE;
        for form in self.forms.iter().flatten() {
            self.work.spend(form.0.len())?;
            // Which of the patterns of names fits is not looked for: there is mostly one.
            let patterns = form.0.iter().filter(|part| !declares(part, key));
            let patterns = patterns.filter_map(|part| part.get("patternProperties")?.as_object());
            let mut schemas = form.schemas(key);
            let (own, mut without) = (schemas.len(), true);
            for one in patterns.flat_map(Map::values) {
                self.work.spend(1 + own)?;
                schemas.truncate(own);
                schemas.push(one);
                kinds = Kinds::union([kinds, Kinds::of_within(&schemas, self.root, &self.work)].into_iter());
                without = false;
            }
            if without {
                kinds = Kinds::union([kinds, Kinds::of_within(&schemas, self.root, &self.work)].into_iter());
            }
        }
        Some(kinds)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ARGUMENTS: usize = 400;

    fn named(schema: &Value) -> Value {
        (0..ARGUMENTS).map(|i| (format!("a{i}"), schema.clone())).collect::<Map<_, _>>().into()
    }

    fn all(schema: &Value) -> (Vec<Kinds>, usize) {
        let forms = Forms::of(schema);
        let kinds = (0..ARGUMENTS).map(|i| forms.kinds(&format!("a{i}"))).collect();
        (kinds, forms.work.left())
    }

    /// Arguments whose types can be looked up have them, however many there are.
    #[test]
    fn the_types_of_many_arguments_are_looked_up() {
        let optional = json!({"anyOf": [{"type": "integer"}, {"type": "null"}]});
        for (schema, kinds) in [
            (json!({"properties": named(&json!({"type": "string"}))}), Kinds::STRING),
            (json!({"properties": named(&optional)}), Kinds::union([Kinds::NUMBER, Kinds::NULL].into_iter())),
            (
                json!({"$defs": {"x": optional}, "properties": named(&json!({"$ref": "#/$defs/x", "type": "integer"}))}),
                Kinds::NUMBER,
            ),
        ] {
            let (all, left) = all(&schema);
            assert!(all.iter().all(|one| *one == kinds), "{all:?}");
            assert!(left > WORK / 2, "{left} of {WORK} are left");
        }
    }

    /// A stranger's schema makes one look-up as much work as may be; hundreds of them are no more than that together.
    #[test]
    fn the_work_of_all_arguments_together_is_bounded() {
        let any = |n: usize| json!({"anyOf": vec![json!({"type": "integer"}); n]});
        let forms = |one: Value| json!({"$defs": {"x": one}, "oneOf": vec![json!({"$ref": "#/$defs/x"}); FORMS]});
        let product: Vec<Value> = [any(256)].into_iter().chain(vec![json!({}); 300]).collect();
        let patterns: Map<String, Value> = (0..1000).map(|i| (format!("p{i}"), any(100))).collect();
        let values: Vec<Value> = (0..100_000).map(Value::from).collect();
        for schema in [
            forms(json!({"additionalProperties": any(150)})),
            forms(json!({"additionalProperties": {"allOf": product}})),
            forms(json!({"additionalProperties": {"enum": values}})),
            forms(json!({"additionalProperties": {"$ref": "#/".to_owned() + &"x/".repeat(100_000)}})),
            forms(json!({"patternProperties": patterns})),
            forms(json!({"allOf": vec![json!({}); 10], "additionalProperties": {"type": "integer"}})),
        ] {
            let (kinds, left) = all(&schema);
            assert_eq!((kinds[ARGUMENTS - 1], left), (Kinds::ANY, 0), "{schema:.200}");
        }
    }
}
