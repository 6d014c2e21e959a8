//! Chat templates: messages to one prompt text, as jinja2 in transformers renders them.
//!
//! Templates are run by an interpreter of this crate with the values and the arithmetic of Python, because published templates lean
//! on both, and because it can bound the memory of every operation.
//!
//! Differences that remain: there is nothing that `include`, `import` and `extends` could load (transformers gives templates no files
//! either), `{% generation %}` marks nothing, integers end at 128 bits, and `random`, `lipsum`, `urlize` and `wordwrap`, which no
//! chat template uses, are errors.

mod allocate;
mod arguments;
mod ast;
mod budget;
mod clock;
mod compare;
mod environment;
mod error;
mod evaluate;
mod expressions;
mod filter_names;
mod filters;
mod format;
mod interpreter;
mod json;
mod lexer;
mod lookup;
mod message;
mod method_names;
mod methods;
mod numbers;
mod operators;
mod options;
mod parser;
mod predicates;
mod python;
mod scalars;
mod sequences;
mod strings;
mod subscript;
mod template;
mod value;

pub use message::Message;
pub(in crate::text) use message::{map_value, value_contains};
pub use options::{ChatOptions, SpecialText};
pub use template::ChatTemplate;
