//! What an answer has to be: JSON, or the call of a tool.

use emberlm::model::engine::TokenMask;
use emberlm::model::text::{AnswerFormat, DeclaredTools, Thinking};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::Fields;

/// Where a schema stands in a request.
const SCHEMA: &str = "response_format.json_schema.schema";

/// What an answer has to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Form {
    #[default]
    Any,
    Object,
    Schema(Value),
    /// Calls of these tools, several where that is allowed.
    Calls {
        tools: DeclaredTools,
        parallel: bool,
    },
}

impl Form {
    /// `response_format`.
    ///
    /// # Errors
    /// 400 when it is none that is known.
    pub fn read(fields: Fields<'_>) -> Result<Self, ApiError> {
        let Some(map) = fields.object("response_format")? else { return Ok(Self::Any) };
        let format = Fields::at(map, "response_format");
        match format.text("type")? {
            Some("text") | None => Ok(Self::Any),
            Some("json_object") => Ok(Self::Object),
            Some("json_schema") => {
                let empty = Map::new();
                let inner = format.object("json_schema")?.unwrap_or(&empty);
                match Fields::at(inner, "response_format.json_schema").object("schema")? {
                    Some(schema) => Ok(Self::Schema(Value::Object(schema.clone()))),
                    None => Err(ApiError::field(SCHEMA, "is missing")),
                }
            }
            Some(other) => {
                let message = format!("{other:.40?} is none of text, json_object and json_schema");
                Err(format.wrong("type", message))
            }
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
            Self::Object => compiler.json_object()?,
            Self::Schema(schema) => compiler.json_schema(schema, SCHEMA)?,
            Self::Calls { tools, parallel } => compiler.tool_calls(format.tools, tools, *parallel)?,
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
