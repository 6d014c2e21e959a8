//! Text in and out of a model: tokenizer, chat template, streamed decoding and stopping.
//!
//! [`TextProcessor`] is loaded once per model and shared; a generation takes from it a [`DecodeStream`] (tokens to text), and
//! beside it a [`StopSet`] (ids that end the text) and [`StopStrings`] (texts that end it). An [`AnswerParser`] takes apart what a
//! chat model says: thoughts, content and tool calls.
//!
//! # Special tokens inside messages
//! A chat is rendered to one string and that string is tokenized, as transformers does: the text of a special token inside a message
//! (`<|im_end|>`) becomes that token. Where messages come from strangers, [`SpecialText::Literal`] encodes what users and tools wrote
//! as ordinary text instead.
//!
//! # Untrusted input
//! All files are size-limited and read from inside the model directory only. Panics of the tokenizer library on crafted files
//! become errors and print nothing. Templates run in a sandbox without files, includes or the environment, with bounds on
//! instructions, recursion, memory and time.

mod answer;
mod bpe_file;
mod byte_tokens;
mod catch_panic;
mod chat;
mod chat_prompt;
mod class;
mod conversation;
mod decode_stream;
mod files;
mod literal;
mod special_tokens;
mod spelling;
mod stop;
mod templates;
mod tokenizer;
mod tokenizer_file;
mod tools_in_messages;

#[cfg(feature = "grammar")]
pub(crate) use answer::{ALTERNATIVES, FORMS, Form, Forms, Kinds, Parts, alternatives};
pub use answer::{
    AnswerFormat, AnswerMarkers, AnswerParser, AnswerPart, DeclaredTool, DeclaredTools, Thinking, ToolFormat,
};
pub use chat::{ChatOptions, ChatTemplate, Message, SpecialText};
pub use chat_prompt::ChatPrompt;
pub use conversation::normalize_messages;
pub use decode_stream::DecodeStream;
pub use files::TextFiles;
pub use special_tokens::{SpecialToken, SpecialTokens};
pub use stop::{StopSet, StopStrings, Stopped};
pub use tokenizer::{TextProcessor, TokenKind};
