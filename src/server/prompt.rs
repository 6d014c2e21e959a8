//! From a chat to the tokens that the model reads.

use emberlm::model::text::{ChatOptions, Message, SpecialText};
use serde_json::{Map, Value};

use super::app::App;
use super::error::ApiError;
use super::fields::Fields;

/// What a template is told besides messages, tools and documents under names of its own.
const RESERVED: [&str; 4] = ["messages", "add_generation_prompt", "tools", "documents"];

/// Tokens before the answer that are looked at for the beginning of a thought.
const LOOKED_AT: usize = 32;

/// The tokens of a chat.
#[derive(Debug)]
pub struct ChatPrompt {
    pub ids: Vec<u32>,
    /// Where a snapshot of the model's state is worth keeping: after what all chats of a client begin with, and before the
    /// answer, from where the next turn goes on.
    pub boundaries: Vec<usize>,
    /// Whether the template has opened a thought that the answer goes on with.
    pub starts_in_thinking: bool,
}

/// Variables of the template: `chat_template_kwargs`, `enable_thinking`, `reasoning_effort`. The template itself is the model's,
/// whatever a client sends.
///
/// # Errors
/// 400 when one cannot be used.
pub fn variables(fields: Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let mut variables = fields.object("chat_template_kwargs")?.cloned().unwrap_or_default();
    if let Some(name) = RESERVED.iter().find(|name| variables.contains_key(**name)) {
        return Err(fields.wrong("chat_template_kwargs", format!("{name} is set by the request itself")));
    }
    if let Some(thinking) = fields.bool("enable_thinking")? {
        variables.insert("enable_thinking".into(), thinking.into());
    }
    if let Some(effort) = fields.text("reasoning_effort")? {
        if effort == "none" {
            variables.insert("enable_thinking".into(), false.into());
        }
        variables.entry("reasoning_effort").or_insert_with(|| effort.into());
    }
    Ok(variables)
}

/// The tokens of a chat with its tools. Texts of special tokens in what users and tools wrote stay texts.
///
/// # Errors
/// 400 when the template refuses the chat, or the prompt does not fit.
pub fn chat(
    app: &App,
    messages: &[Message],
    tools: &[Value],
    variables: &Map<String, Value>,
) -> Result<ChatPrompt, ApiError> {
    let mut options = ChatOptions::prompt();
    options.special_text = SpecialText::Literal;
    options.variables.clone_from(variables);
    if !tools.is_empty() {
        options = options.with("tools", tools.to_vec());
    }
    let ids = app.text.encode_chat(messages, &options)?;
    app.check_length(ids.len())?;
    let boundaries = boundaries(app, messages, &options, &ids);
    let tail = app.text.decode(ids.get(ids.len().saturating_sub(LOOKED_AT)..).unwrap_or_default(), false)?;
    Ok(ChatPrompt { boundaries, starts_in_thinking: opens_a_thought(&tail), ids })
}

/// Whether a prompt ends inside a thought.
fn opens_a_thought(tail: &str) -> bool {
    tail.rfind("<think>").is_some_and(|open| tail.rfind("</think>").is_none_or(|close| close < open))
}

fn boundaries(app: &App, messages: &[Message], options: &ChatOptions, ids: &[u32]) -> Vec<usize> {
    let mut boundaries = Vec::new();
    // What the chat begins with whatever the user says: that of two chats which differ in it.
    let system: Vec<Message> = messages.iter().take_while(|message| message.role() == "system").cloned().collect();
    let with = |user: &str| {
        let messages: Vec<Message> = system.iter().cloned().chain([Message::user(user)]).collect();
        app.text.encode_chat(&messages, options).unwrap_or_default()
    };
    if !system.is_empty() || options.variables.contains_key("tools") {
        let (one, other) = (with("1"), with("?"));
        boundaries.push(common(&one, ids).min(common(&other, ids)));
    }
    // The chat without the beginning of an answer.
    let closed = ChatOptions { add_generation_prompt: false, ..options.clone() };
    if let Ok(closed) = app.text.encode_chat(messages, &closed) {
        boundaries.push(common(&closed, ids));
    }
    boundaries.retain(|&at| at > 0 && at < ids.len());
    boundaries.sort_unstable();
    boundaries.dedup();
    boundaries
}

/// Tokens that two prompts begin with.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl App {
    /// Whether a prompt leaves room for an answer.
    ///
    /// # Errors
    /// 400 with both numbers.
    pub fn check_length(&self, tokens: usize) -> Result<(), ApiError> {
        if tokens == 0 {
            return Err(ApiError::invalid(None, "the prompt has no tokens; give it some text"));
        }
        if tokens < self.context {
            return Ok(());
        }
        let message = format!(
            "the prompt has {tokens} tokens, and the context of this server has {}, the answer included; shorten the prompt",
            self.context
        );
        Err(ApiError::invalid(None, message).with_code("context_length_exceeded"))
    }
}

#[cfg(test)]
mod tests {
    use super::opens_a_thought;

    #[test]
    fn a_thought_is_open_where_the_prompt_has_not_closed_it() {
        for (tail, open) in [
            ("<|im_start|>assistant\n<think>\n", true),
            ("<|im_start|>assistant\n<think>\n\n</think>\n\n", false),
            ("<|im_start|>assistant\n", false),
            ("<think>old</think>hi<|im_end|>\n<|im_start|>assistant\n<think>", true),
        ] {
            assert_eq!(opens_a_thought(tail), open, "{tail:?}");
        }
    }
}
