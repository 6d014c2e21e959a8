//! The answer of a chat model, taken apart as it is generated: what it thought, what it says, which tools it calls.
//!
//! | format | call |
//! |---|---|
//! | [`Hermes`](ToolFormat::Hermes): Qwen2.5, Qwen3, Nano | `<tool_call>{"name": …, "arguments": {…}}</tool_call>` |
//! | [`Qwen3Coder`](ToolFormat::Qwen3Coder): Qwen3-Coder, Qwen3.5, CREST | `<tool_call><function=…><parameter=…>…</parameter></function></tool_call>` |
//! | [`Llama3Json`](ToolFormat::Llama3Json): Llama 3.1 and later | `{"name": …, "parameters": {…}}` where the answer begins, or after `<\|python_tag\|>` |
//!
//! The names of the formats are those of vLLM's tool parsers. The parts of an answer do not depend on how its text is cut into
//! pieces.

mod format;
mod json_call;
mod kinds;
mod markers;
mod parameters;
mod parser;
mod scan;
mod tools;
mod xml_call;

#[cfg(feature = "grammar")]
pub(crate) use kinds::{ALTERNATIVES, Kinds, Parts, alternatives};
#[cfg(feature = "grammar")]
pub(crate) use parameters::{FORMS, Form, Forms};

pub use format::{AnswerFormat, Thinking, ToolFormat};
pub use markers::AnswerMarkers;
pub use parser::{AnswerParser, AnswerPart};
pub use tools::{DeclaredTool, DeclaredTools};
