//! Tools that a model is told of, and whether it may call them.

use emberlm::model::text::DeclaredTools;
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, found};
use super::form::Form;
use super::limits;

/// The tools of a request.
#[derive(Debug, Default)]
pub struct Tools {
    /// For the template, in OpenAI's form.
    pub schemas: Vec<Value>,
    /// For the parser of answers.
    pub declared: DeclaredTools,
    /// The model has to call one.
    pub required: Form,
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
        tools.declared = DeclaredTools::parse(&Value::Array(tools.schemas.clone()))?;
        let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        match fields.get("tool_choice") {
            None => {}
            Some(Value::String(choice)) => match choice.as_str() {
                "auto" => {}
                // A model that is told of no tools calls none.
                "none" => return Ok(Self::default()),
                "required" if tools.declared.is_empty() => {
                    return Err(fields.wrong("tool_choice", "a call is required, but there are no tools"));
                }
                "required" => tools.required = Form::Calls { tools: tools.declared.clone(), parallel },
                other => {
                    let message = format!("{other:.40?} is none of auto, none and required, nor a function");
                    return Err(fields.wrong("tool_choice", message));
                }
            },
            Some(choice) => {
                let name = choice.pointer("/function/name").and_then(Value::as_str);
                let name = name.ok_or_else(|| fields.wrong("tool_choice", "function.name is missing"))?;
                let named = |tool: &&Value| tool.pointer("/function/name").and_then(Value::as_str) == Some(name);
                let one: Vec<Value> = tools.schemas.iter().filter(named).cloned().collect();
                if one.is_empty() {
                    return Err(fields.wrong("tool_choice", format!("there is no tool {name:.80?}")));
                }
                let one = DeclaredTools::parse(&Value::Array(one))?;
                tools.required = Form::Calls { tools: one, parallel: false };
            }
        }
        Ok(tools)
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}
