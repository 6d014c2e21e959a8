//! Markers that are special tokens.

use std::sync::Arc;

use crate::text::{TextProcessor, TokenKind};

const NAMES: [&str; 5] = ["<|python_tag|>", "<think>", "</think>", "<tool_call>", "</tool_call>"];

/// Special tokens that mark parts of an answer. Generated text leaves special tokens out; the [parser](super::AnswerParser) has to see these.
/// Clones share one copy.
#[derive(Clone, Debug, Default)]
pub struct AnswerMarkers(Arc<[(u32, &'static str)]>);

impl AnswerMarkers {
    /// Those of a tokenizer; most have them as ordinary added tokens, which are text anyway.
    pub fn of(text: &TextProcessor) -> Self {
        let special = |name| Some((text.id(name).filter(|&id| text.kind(id) == TokenKind::Special)?, name));
        Self(NAMES.into_iter().filter_map(special).collect())
    }

    /// The text of a token that is one of them.
    pub(super) fn name(&self, id: u32) -> Option<&'static str> {
        self.0.iter().find(|(marker, _)| *marker == id).map(|(_, name)| *name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::{AnswerFormat, AnswerParser, AnswerPart, DeclaredTools, Thinking, ToolFormat};

    /// An answer whose special tokens come by number, as from generation: what is thought, what is content, calls.
    fn told(format: ToolFormat, thinking: Thinking, tools: &str, pieces: &[(&str, u32)]) -> (String, String, usize) {
        let markers = AnswerMarkers(NAMES.iter().enumerate().map(|(i, name)| (i as u32, *name)).collect());
        let tools = DeclaredTools::parse(&serde_json::from_str(tools).expect("JSON")).expect("tools");
        let format = AnswerFormat { tools: format, thinking: true };
        let mut parser = AnswerParser::new(format, thinking, tools, 0).with_markers(&markers);
        let mut parts: Vec<AnswerPart> =
            pieces.iter().flat_map(|(text, token)| parser.push_token(text, Some(*token))).collect();
        parts.extend(parser.finish());
        let (mut reasoning, mut content, mut calls) = (String::new(), String::new(), 0);
        for part in parts {
            match part {
                AnswerPart::Reasoning(text) => reasoning.push_str(&text),
                AnswerPart::Content(text) => content.push_str(&text),
                AnswerPart::ToolCallBegin { .. } => calls += 1,
                AnswerPart::ToolCallArguments { delta, .. } => assert_eq!(delta, "{}"),
            }
        }
        (reasoning, content, calls)
    }

    const TEXT: u32 = 99;
    const PYTHON: u32 = 0;
    const THINK: u32 = 1;
    const THINK_END: u32 = 2;
    const CALL: u32 = 3;
    const CALL_END: u32 = 4;

    #[test]
    fn special_tokens_mark_thoughts() {
        let pieces = [("", THINK), ("why", TEXT), ("", THINK_END), ("so", TEXT)];
        let expected = ("why".to_owned(), "so".to_owned(), 0);
        assert_eq!(told(ToolFormat::Hermes, Thinking::Possible, "[]", &pieces), expected);
        assert_eq!(told(ToolFormat::Hermes, Thinking::Open, "[]", &pieces[1..]), expected);
    }

    /// Others are no part of an answer, as special tokens are not.
    #[test]
    fn a_marker_that_means_nothing_is_left_out() {
        let pieces = [("so", TEXT), ("", THINK_END), (" it", TEXT), ("", THINK), (" is", CALL), ("", CALL_END)];
        assert_eq!(told(ToolFormat::Hermes, Thinking::Closed, "[]", &pieces), (String::new(), "so it is".into(), 0));
        let pieces = [("a", CALL), ("b", THINK), ("", PYTHON), ("", THINK_END), ("c", TEXT)];
        assert_eq!(told(ToolFormat::Hermes, Thinking::Open, "[]", &pieces), ("ab".into(), "c".into(), 0));
    }

    #[test]
    fn special_tokens_mark_calls() {
        let tools = json!([{"name": "now"}]).to_string();
        let call = [("", CALL), (r#"{"name": "now", "arguments": {}}"#, TEXT), ("", CALL_END), ("", THINK_END)];
        for thinking in [Thinking::Possible, Thinking::Closed] {
            assert_eq!(told(ToolFormat::Hermes, thinking, &tools, &call), (String::new(), String::new(), 1));
        }
        let call = [("", PYTHON), (r#"{"name": "now", "parameters": {}}"#, TEXT)];
        assert_eq!(told(ToolFormat::Llama3Json, Thinking::Closed, &tools, &call), (String::new(), String::new(), 1));
    }
}
