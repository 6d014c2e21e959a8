//! Stand-in for the parser of answers until `emberlm::model::text::answer` is there: all is content.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerFormat;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerPart {
    Content(String),
    Reasoning(String),
    ToolCall { index: usize, id: String, name: String, arguments_delta: String },
}

#[derive(Debug)]
pub struct AnswerParser;

impl AnswerParser {
    pub fn new(_format: AnswerFormat, _starts_in_thinking: bool, _tools: &[String]) -> Self {
        Self
    }
    pub fn push(&mut self, text: &str) -> Vec<AnswerPart> {
        if text.is_empty() { Vec::new() } else { vec![AnswerPart::Content(text.to_owned())] }
    }
    pub fn finish(&mut self) -> Vec<AnswerPart> {
        Vec::new()
    }
}
