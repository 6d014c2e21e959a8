//! Answers that follow a JSON schema, or are the call of a tool, whatever the model would rather say.
//!
//! A [`GrammarCompiler`] is made once per model: it holds the bytes of all tokens. It makes [`Grammar`]s, and a
//! [`Request`](crate::engine::Request) takes one. Which tokens may come next is found by
//! [llguidance](https://docs.rs/llguidance).
//!
//! ```
//! use emberlm_model::engine::Request;
//! use emberlm_model::grammar::GrammarCompiler;
//! use emberlm_model::text::TextProcessor;
//! use serde_json::json;
//!
//! /// A request whose answer is an object of this kind. The compiler is made once: `GrammarCompiler::new(&text)`.
//! fn city(text: &TextProcessor, compiler: &GrammarCompiler, prompt: &str) -> emberlm_model::Result<Request> {
//!     let schema = json!({
//!         "type": "object",
//!         "properties": {"name": {"type": "string"}, "people": {"type": "integer", "minimum": 0}},
//!         "required": ["name", "people"],
//!         "additionalProperties": false
//!     });
//!     let grammar = compiler.json_schema(&schema, "schema")?;
//!     Ok(Request { grammar: Some(Box::new(grammar)), ..Request::new(text.encode(prompt, true)?) })
//! }
//! ```
//!
//! # What of JSON schema is kept
//! Types, `properties`, `required`, `additionalProperties`, `enum`, `const`, `items`, `prefixItems`, `anyOf`, local `$ref` (JSON pointers,
//! with and without escapes), bounds of numbers, lengths and `pattern`, and the usual formats. `oneOf` is taken as `anyOf`. Other keywords
//! are an error that names them. Properties come in the order of the schema. White space between values ends after 40 characters, because
//! small models go on with it for ever. Optional parts that contain themselves without an end are left out; a schema that needs one is an error.
//!
//! In calls that are written with tags, parameters are those of `properties` and `required`, wherever the schema has them, and no others: a map that
//! needs entries is an error. Texts stand there without quotes, and their patterns, formats, lengths and listed values are kept; other keywords
//! that are not kept go unnoticed beside a text.
//!
//! # Untrusted input
//! Schemas come from strangers: their size and depth are bounded before anything is compiled, and so is the work of the compiler and
//! of every step. A schema with more than that is an error, and a text in which the grammar runs into it ends with one. Nothing is
//! fetched for a `$ref`.

mod compiler;
mod endless;
mod mask;
mod patterns;
mod references;
mod schema;
mod texts;
mod tool_calls;
mod vocabulary;

pub use compiler::GrammarCompiler;
pub use mask::Grammar;
