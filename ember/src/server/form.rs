//! What an answer has to be: JSON, or the call of a tool.

use emberlm::model::engine::TokenMask;
use emberlm::model::text::{AnswerFormat, DeclaredTools, Thinking};
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::tools::Tools;

/// What an answer has to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Form {
    #[default]
    Any,
    /// What a schema describes, which stands at this place of a request.
    Schema(Value, &'static str),
    /// Calls of these tools, several where that is allowed.
    Calls { tools: DeclaredTools, parallel: bool },
    /// Such calls, or what a schema describes.
    CallsOrSchema { tools: DeclaredTools, parallel: bool, schema: Value, place: &'static str },
}

impl Form {
    /// `response_format`. A schema beside `json_object` is that of llama.cpp.
    ///
    /// # Errors
    /// 400 when it is none that is known.
    pub fn read(fields: Fields<'_>) -> Result<Self, ApiError> {
        let Some(map) = fields.object("response_format")? else { return Ok(Self::Any) };
        let format = Fields::at(map, "response_format");
        match format.text("type")? {
            Some("text") | None => Ok(Self::Any),
            Some("json_object") => Ok(match format.object("schema")?.filter(|schema| !schema.is_empty()) {
                Some(schema) => Self::Schema(Value::Object(schema.clone()), "response_format.schema"),
                None => Self::Schema(json!({"type": "object"}), "response_format"),
            }),
            Some("json_schema") => {
                const SCHEMA: &str = "response_format.json_schema.schema";
                let empty = Map::new();
                let inner = format.object("json_schema")?.unwrap_or(&empty);
                match Fields::at(inner, "response_format.json_schema").object("schema")? {
                    Some(schema) => Ok(Self::Schema(Value::Object(schema.clone()), SCHEMA)),
                    None => Err(ApiError::field(SCHEMA, "is missing")),
                }
            }
            Some(other) => {
                let message = format!("{other:.40?} is none of text, json_object and json_schema");
                Err(format.wrong("type", message))
            }
        }
    }

    /// This form, or calls of tools: of those that have to be called, or of those that may be.
    pub fn with_tools(&self, tools: &Tools) -> Self {
        let parallel = tools.parallel;
        match (self.clone(), &tools.required) {
            (_, Some(tools)) => Self::Calls { tools: tools.clone(), parallel },
            (Self::Schema(schema, place), None) if !tools.declared.is_empty() => {
                Self::CallsOrSchema { tools: tools.declared.clone(), parallel, schema, place }
            }
            (form, None) => form,
        }
    }
}

/// Makes what keeps answers to a form.
#[cfg(feature = "grammar")]
pub type Compiler = emberlm::model::grammar::GrammarCompiler;

/// Nothing keeps answers to a form in this build.
#[cfg(not(feature = "grammar"))]
#[derive(Debug)]
pub enum Compiler {}

impl Form {
    /// What keeps an answer to this form; none where it may be anything.
    ///
    /// # Errors
    /// 400 when the schema cannot be kept, or this build or this model has no grammars.
    pub fn mask(
        &self,
        compiler: Option<&Compiler>,
        format: AnswerFormat,
        thinking: Thinking,
    ) -> Result<Option<Box<dyn TokenMask>>, ApiError> {
        if *self == Self::Any {
            return Ok(None);
        }
        let Some(compiler) = compiler else {
            let param = if matches!(self, Self::Calls { .. }) { "tool_choice" } else { "response_format" };
            let why = match cfg!(feature = "grammar") {
                true => "the tokens of this model do not allow it",
                false => "this server was built without the feature grammar",
            };
            return Err(ApiError::field(param, format!("answers cannot be kept to a form: {why}")));
        };
        self.compile(compiler, format, thinking)
    }

    #[cfg(feature = "grammar")]
    fn compile(
        &self,
        compiler: &Compiler,
        format: AnswerFormat,
        thinking: Thinking,
    ) -> Result<Option<Box<dyn TokenMask>>, ApiError> {
        let grammar = match self {
            Self::Any => return Ok(None),
            Self::Schema(schema, place) => compiler.json_schema(schema, place)?,
            Self::Calls { tools, parallel } => compiler.tool_calls(format.tools, tools, *parallel)?,
            Self::CallsOrSchema { tools, parallel, schema, place } => {
                compiler.tool_calls_or_json_schema(format.tools, tools, *parallel, (schema, place))?
            }
        };
        // What is thought is free.
        let grammar = if thinking == Thinking::Open { grammar.after_thoughts() } else { grammar };
        Ok(Some(Box::new(grammar)))
    }

    #[cfg(not(feature = "grammar"))]
    fn compile(
        &self,
        compiler: &Compiler,
        _: AnswerFormat,
        _: Thinking,
    ) -> Result<Option<Box<dyn TokenMask>>, ApiError> {
        match *compiler {}
    }
}
