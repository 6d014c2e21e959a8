//! How a model marks the parts of its answers.

use emberlm::model::text::{AnswerFormat, TextProcessor, TokenKind};

/// Special tokens that mark parts of an answer. The engine leaves special tokens out of the text; the parser has to see these.
#[derive(Debug, Default)]
pub struct Markers(Vec<(u32, &'static str)>);

impl Markers {
    /// Those of a tokenizer; most have them as ordinary added tokens, which are text anyway.
    pub fn of(text: &TextProcessor) -> Self {
        let names = ["<|python_tag|>", "<think>", "</think>", "<tool_call>", "</tool_call>"];
        let special = |name| Some((text.id(name).filter(|&id| text.kind(id) == TokenKind::Special)?, name));
        Self(names.into_iter().filter_map(special).collect())
    }

    /// The text of a token that is one of them.
    pub fn name(&self, id: u32) -> Option<&'static str> {
        self.0.iter().find(|(marker, _)| *marker == id).map(|(_, name)| *name)
    }
}

/// The format that a model's own template asks for.
pub fn answer_format(family: emberlm::model::config::Family, text: &TextProcessor) -> AnswerFormat {
    let options = emberlm::model::text::ChatOptions::prompt();
    AnswerFormat::detect(family, text.chat_template(&options).ok().map(|template| template.source()))
}
