//! The tools that a request declares.

use serde_json::Value;

use super::kinds::Kinds;
use crate::{Error, Result};

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

/// The JSON of an argument that the model wrote as plain text. It is a string unless one of the allowed types is another that the text is
/// a value of. Numbers keep their spelling.
pub(super) fn argument(allowed: Kinds, text: &str) -> String {
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
