//! The tools that a request declares.

use serde_json::Value;

use crate::references::found;
use crate::{Error, Result};

/// Schemas inside a schema that are looked at for the type of a value: references can form circles.
const SCHEMAS: usize = 64;

/// One function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct DeclaredTool {
    /// Its name.
    pub name: String,
    /// JSON schema of its arguments; null where there is none.
    pub parameters: Value,
}

/// The functions that the model may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeclaredTools {
    tools: Vec<DeclaredTool>,
}

impl DeclaredTools {
    /// Reads the `tools` of a request: a list of `{"type": "function", "function": {"name", "parameters"}}`, or with the fields of
    /// `function` at the upper level. Null is an empty list.
    ///
    /// # Errors
    /// [`Error::Option`] with the place where the list is anything else or a name comes twice.
    pub fn parse(tools: &Value) -> Result<Self> {
        let wrong = |place: String, message: &str| Err(Error::Option { option: place, message: message.to_owned() });
        let list = match tools {
            Value::Null => return Ok(Self::default()),
            Value::Array(list) => list,
            _ => return wrong("tools".to_owned(), "must be a list of functions"),
        };
        let mut parsed: Vec<DeclaredTool> = Vec::with_capacity(list.len());
        for (i, tool) in list.iter().enumerate() {
            let (function, place) = match tool.get("function") {
                Some(function) => (function, format!("tools[{i}].function")),
                None => (tool, format!("tools[{i}]")),
            };
            let Some(name) = function.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()) else {
                return wrong(format!("{place}.name"), "must be the name of a function");
            };
            let parameters = function.get("parameters").cloned().unwrap_or_default();
            if !matches!(parameters, Value::Null | Value::Object(_)) {
                return wrong(format!("{place}.parameters"), "must be a JSON schema: an object");
            }
            if parsed.iter().any(|tool| tool.name == name) {
                return wrong(format!("{place}.name"), &format!("{name:?} is declared twice; rename one"));
            }
            parsed.push(DeclaredTool { name: name.to_owned(), parameters });
        }
        Ok(Self { tools: parsed })
    }

    /// The tools in order.
    pub fn tools(&self) -> &[DeclaredTool] {
        &self.tools
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// The tool of a name.
    pub fn get(&self, name: &str) -> Option<&DeclaredTool> {
        self.tools.iter().find(|tool| tool.name == name)
    }
}

impl DeclaredTool {
    /// Whether an argument is written as plain text where the format has no types: some text is a value of it.
    #[cfg(feature = "grammar")]
    pub(crate) fn takes_text(&self, key: &str) -> bool {
        let mut budget = SCHEMAS;
        let schema = self.parameters.get("properties").and_then(|properties| properties.get(key));
        schema.is_none_or(|schema| Kinds::of(schema, &self.parameters, &mut budget).contains(Kinds::STRING))
    }

    /// The JSON of an argument that the model wrote as plain text. It is a string unless the schema allows another type that the
    /// text is a value of. Numbers keep their spelling.
    pub(super) fn argument(&self, key: &str, text: &str) -> String {
        let schema = self.parameters.get("properties").and_then(|properties| properties.get(key));
        let mut budget = SCHEMAS;
        let allowed = schema.map_or(Kinds::ANY, |schema| Kinds::of(schema, &self.parameters, &mut budget));
        let trimmed = text.trim();
        if let Ok(value) = serde_json::from_str::<Value>(trimmed)
            && !value.is_string()
            && allowed.contains(Kinds::of_value(&value))
        {
            return trimmed.to_owned();
        }
        // As Python spells them, which models that write a lot of Python do.
        let python = match trimmed {
            "True" | "False" if allowed.contains(Kinds::BOOLEAN) => Some(trimmed.to_ascii_lowercase()),
            "None" if allowed.contains(Kinds::NULL) => Some("null".to_owned()),
            _ => None,
        };
        match python.filter(|_| !allowed.contains(Kinds::STRING)) {
            Some(literal) => literal,
            None => Value::from(text).to_string(),
        }
    }
}

/// Types of JSON values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kinds(u8);

impl Kinds {
    const STRING: Self = Self(1);
    const NUMBER: Self = Self(2);
    const BOOLEAN: Self = Self(4);
    const NULL: Self = Self(8);
    const OBJECT: Self = Self(16);
    const ARRAY: Self = Self(32);
    const ANY: Self = Self(63);

    fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn union(kinds: impl Iterator<Item = Self>) -> Self {
        Self(kinds.fold(0, |all, kind| all | kind.0))
    }

    fn of_value(value: &Value) -> Self {
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

    /// The types that a schema allows; any where it does not say, or where that takes more than `budget` schemas to find out.
    fn of(schema: &Value, root: &Value, budget: &mut usize) -> Self {
        let Some(left) = budget.checked_sub(1) else { return Self::ANY };
        *budget = left;
        let Some(schema) = schema.as_object() else { return Self::ANY };
        if let Some(value) = schema.get("const") {
            return Self::of_value(value);
        }
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            return Self::union(values.iter().map(Self::of_value));
        }
        match schema.get("type") {
            Some(Value::Array(names)) => return Self::union(names.iter().map(Self::named)),
            Some(name) => return Self::named(name),
            None => {}
        }
        for key in ["anyOf", "oneOf"] {
            if let Some(schemas) = schema.get(key).and_then(Value::as_array) {
                return Self::union(schemas.iter().map(|schema| Self::of(schema, root, budget)));
            }
        }
        if let Some([first, ..]) = schema.get("allOf").and_then(Value::as_array).map(Vec::as_slice) {
            return Self::of(first, root, budget);
        }
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|at| found(root, at));
        match target {
            Some((_, target)) => Self::of(target, root, budget),
            None if schema.contains_key("properties") => Self::OBJECT,
            None if schema.contains_key("items") => Self::ARRAY,
            None => Self::ANY,
        }
    }
}
