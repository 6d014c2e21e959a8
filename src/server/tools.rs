//! Tools that a model is told of, and whether it may call them.

use emberlm::model::text::DeclaredTools;
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, found};
use super::limits;

/// The tools of a request.
#[derive(Debug, Default)]
pub struct Tools {
    /// For the template, in OpenAI's form.
    pub schemas: Vec<Value>,
    /// For the parser of answers.
    pub declared: DeclaredTools,
}

impl Tools {
    /// `tools` and `tool_choice`.
    ///
    /// # Errors
    /// 400 when one of them cannot be used.
    pub fn read(fields: Fields<'_>) -> Result<Self, ApiError> {
        let list = fields.list("tools")?.unwrap_or_default();
        if list.len() > limits::TOOLS {
            let message = format!("{} tools, but at most {} are taken", list.len(), limits::TOOLS);
            return Err(fields.wrong("tools", message));
        }
        let mut tools = Self::default();
        for (i, value) in list.iter().enumerate() {
            let path = format!("tools[{i}]");
            let Some(map) = value.as_object() else {
                return Err(ApiError::field(&path, format!("expected an object, found {}", found(value))));
            };
            let tool = Fields::at(map, &path);
            match tool.text("type")? {
                Some("function") | None => {}
                Some(other) => return Err(tool.wrong("type", format!("{other:.40?} is not supported; use function"))),
            }
            let Some(function) = tool.object("function")? else { return Err(tool.wrong("function", "is missing")) };
            let path = format!("{path}.function");
            let function = Fields::at(function, &path);
            function.object("parameters")?;
            match function.text("name")? {
                Some(name) if is_name(name) => {}
                Some(name) => {
                    let message = format!("{name:.80?} is no name; use 1 to 64 letters, digits, _, - and .");
                    return Err(function.wrong("name", message));
                }
                None => return Err(function.wrong("name", "is missing")),
            }
            tools.schemas.push(value.clone());
        }
        match fields.get("tool_choice") {
            None => {}
            Some(Value::String(choice)) if choice == "auto" => {}
            // A model that is told of no tools calls none.
            Some(Value::String(choice)) if choice == "none" => return Ok(Self::default()),
            Some(_) => {
                return Err(fields.wrong("tool_choice", "only auto and none are supported"));
            }
        }
        tools.declared = DeclaredTools::parse(&Value::Array(tools.schemas.clone()))?;
        Ok(tools)
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}
