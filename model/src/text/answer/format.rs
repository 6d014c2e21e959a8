//! How a model writes thoughts and tool calls.

use crate::config::Family;

/// How a model writes a tool call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.
    Hermes,
    /// `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`; the declared schema says what type a
    /// value has.
    Qwen3Coder,
    /// `{"name": …, "parameters": {…}}` at the beginning of the answer, or after `<|python_tag|>`.
    Llama3Json,
}

impl ToolFormat {
    /// What begins a call.
    pub(super) fn marker(self) -> &'static str {
        match self {
            Self::Hermes | Self::Qwen3Coder => "<tool_call>",
            Self::Llama3Json => "<|python_tag|>",
        }
    }
}

/// How a model writes its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerFormat {
    /// How it calls tools.
    pub tools: ToolFormat,
    /// Whether it thinks between `<think>` and `</think>`.
    pub thinking: bool,
}

impl AnswerFormat {
    /// The format that the chat template asks the model for; what the template does not tell is that of the family.
    pub fn detect(family: Family, template: Option<&str>) -> Self {
        let template = template.unwrap_or_default();
        let has = |text: &str| template.contains(text);
        let of_family = || match family {
            Family::Crest | Family::Qwen3_5 => ToolFormat::Qwen3Coder,
            Family::NanoCompact | Family::Qwen2 => ToolFormat::Hermes,
            Family::LeanLlama | Family::Llama => ToolFormat::Llama3Json,
        };
        let tools = match () {
            () if has("<function=") => ToolFormat::Qwen3Coder,
            () if has("<tool_call>") => ToolFormat::Hermes,
            () if has("<|python_tag|>") || has("ipython") => ToolFormat::Llama3Json,
            () => of_family(),
        };
        let thinking = if template.is_empty() { family.is_hybrid() } else { has("<think>") || has("</think>") };
        Self { tools, thinking }
    }
}

/// Where an answer begins, as the end of the rendered prompt tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// Inside thoughts: the prompt ends with `<think>`.
    Open,
    /// After thoughts, which are empty where thinking is off: the prompt ends with `</think>`. All of the answer is content.
    Closed,
    /// The model may begin with `<think>` by itself.
    Possible,
}

impl Thinking {
    /// Reads the end of a prompt that [`render_chat`](crate::text::TextProcessor::render_chat) made.
    pub fn of_prompt(rendered: &str) -> Self {
        let end = rendered.trim_end();
        match () {
            () if end.ends_with("</think>") => Self::Closed,
            () if end.ends_with("<think>") => Self::Open,
            () => Self::Possible,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_tells_the_format_and_the_family_where_it_is_silent() {
        let of = |family, template| {
            let AnswerFormat { tools, thinking } = AnswerFormat::detect(family, template);
            (tools, thinking)
        };
        assert_eq!(of(Family::Crest, None), (ToolFormat::Qwen3Coder, true));
        assert_eq!(of(Family::NanoCompact, None), (ToolFormat::Hermes, false));
        assert_eq!(of(Family::LeanLlama, None), (ToolFormat::Llama3Json, false));
        assert_eq!(of(Family::Crest, Some("{{ messages }}")), (ToolFormat::Qwen3Coder, false));
        let hermes = "{{ '<tool_call>\\n{\"name\": ' }}{{ content.split('</think>')[-1] }}";
        assert_eq!(of(Family::Crest, Some(hermes)), (ToolFormat::Hermes, true));
        let coder = "{{ '<tool_call>\\n<function=' ~ name }}";
        assert_eq!(of(Family::Qwen2, Some(coder)), (ToolFormat::Qwen3Coder, false));
        assert_eq!(of(Family::Qwen2, Some("Environment: ipython")), (ToolFormat::Llama3Json, false));
    }

    #[test]
    fn the_end_of_the_prompt_tells_where_the_answer_begins() {
        let turn = "<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(Thinking::of_prompt(turn), Thinking::Possible);
        assert_eq!(Thinking::of_prompt(&format!("{turn}<think>\n")), Thinking::Open);
        assert_eq!(Thinking::of_prompt(&format!("{turn}<think>\n\n</think>\n\n")), Thinking::Closed);
    }
}
