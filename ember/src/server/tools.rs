//! Tools that a model is told of, and whether it may call them.

use emberlm::model::text::DeclaredTools;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{Fields, found};
use super::limits;
use super::places::Places;

/// The tools of a request.
#[derive(Debug, Default)]
pub struct Tools {
    /// For the template, in OpenAI's form.
    pub schemas: Vec<Value>,
    /// For the parser of answers.
    pub declared: DeclaredTools,
    /// The model has to call one of these.
    pub required: Option<DeclaredTools>,
    /// It may call several at once.
    pub parallel: bool,
    /// Where those that may be called stand among all.
    pub places: Places,
}

impl Tools {
    /// `tools`, `tool_choice` and `parallel_tool_calls`.
    ///
    /// # Errors
    /// 400 when one of them cannot be used.
    pub fn read(fields: Fields<'_>) -> Result<Self, ApiError> {
        let schemas = schemas(fields)?;
        let declared = DeclaredTools::parse(&Value::Array(schemas.clone()))?;
        let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        let mut tools = Self { schemas, declared, parallel, ..Self::default() };
        match fields.get("tool_choice") {
            None => {}
            Some(Value::String(choice)) => match choice.as_str() {
                "auto" => {}
                // A model that is told of no tools calls none.
                "none" => return Ok(Self::default()),
                "required" => tools.require(fields)?,
                other => {
                    let message = format!("{other:.40?} is none of auto, none and required, nor a function");
                    return Err(fields.wrong("tool_choice", message));
                }
            },
            Some(Value::Object(choice)) => tools.choose(choice, fields)?,
            Some(other) => {
                let message = format!("expected a text or an object, found {}", found(other));
                return Err(fields.wrong("tool_choice", message));
            }
        }
        Ok(tools)
    }

    fn require(&mut self, fields: Fields<'_>) -> Result<(), ApiError> {
        if self.declared.is_empty() {
            return Err(fields.wrong("tool_choice", "a call is required, but there are no tools"));
        }
        self.required = Some(self.declared.clone());
        Ok(())
    }

    /// One function that has to be called, or those that may be.
    fn choose(&mut self, choice: &Map<String, Value>, fields: Fields<'_>) -> Result<(), ApiError> {
        let choice = Fields::at(choice, "tool_choice");
        match choice.text("type")? {
            Some("function") | None => {
                let one = self.named(choice.object("function")?, "tool_choice.function")?;
                self.required = Some(DeclaredTools::parse(&Value::Array(self.of(&[one])))?);
                self.parallel = false;
                Ok(())
            }
            Some("allowed_tools") => {
                const ALLOWED: &str = "tool_choice.allowed_tools";
                let Some(allowed) = choice.object("allowed_tools")? else {
                    return Err(choice.wrong("allowed_tools", "is missing"));
                };
                let allowed = Fields::at(allowed, ALLOWED);
                let Some(list) = allowed.list("tools")? else { return Err(allowed.wrong("tools", "is missing")) };
                let at = |(i, tool): (usize, &Value)| {
                    let function = tool.get("function").and_then(Value::as_object);
                    self.named(function, &format!("{ALLOWED}.tools[{i}].function"))
                };
                let mut kept: Vec<usize> = list.iter().enumerate().map(at).collect::<Result<_, _>>()?;
                kept.sort_unstable();
                kept.dedup();
                // What may not be called is not told either.
                self.schemas = self.of(&kept);
                self.declared = DeclaredTools::parse(&Value::Array(self.schemas.clone()))?;
                match allowed.text("mode")? {
                    Some("auto") => Ok(()),
                    Some("required") => self.require(fields),
                    Some(other) => Err(allowed.wrong("mode", format!("{other:.40?} is none of auto and required"))),
                    None => Err(allowed.wrong("mode", "is missing")),
                }
            }
            Some(other) => Err(choice.wrong("type", format!("{other:.40?} is none of function and allowed_tools"))),
        }
    }

    /// Which tool has the name that is said at a place.
    fn named(&self, function: Option<&Map<String, Value>>, place: &str) -> Result<usize, ApiError> {
        let place = format!("{place}.name");
        let name = function.and_then(|function| function.get("name")).and_then(Value::as_str);
        let name = name.ok_or_else(|| ApiError::field(&place, "is missing"))?;
        let at = self.schemas.iter().position(|tool| tool.pointer("/function/name").is_some_and(|known| known == name));
        at.ok_or_else(|| ApiError::field(&place, format!("there is no tool {name:.80?}")))
    }

    /// The tools at these places, which errors about them go on naming.
    fn of(&mut self, at: &[usize]) -> Vec<Value> {
        at.iter().enumerate().for_each(|(k, i)| self.places.note(format!("tools[{k}]"), format!("tools[{i}]")));
        at.iter().filter_map(|&i| self.schemas.get(i).cloned()).collect()
    }
}

fn schemas(fields: Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let list = fields.list("tools")?.unwrap_or_default();
    if list.len() > limits::TOOLS {
        let message = format!("{} tools, but at most {} are taken", list.len(), limits::TOOLS);
        return Err(fields.wrong("tools", message));
    }
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
    }
    Ok(list.to_vec())
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}
