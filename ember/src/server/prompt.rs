//! From a chat to the tokens that the model reads.

use emberlm::model::text::{ChatOptions, ChatPrompt, Message, SpecialText, Thinking};
use serde_json::{Map, Value};

use super::app::App;
use super::error::ApiError;
use super::fields::Fields;

/// What the request itself tells a template.
const RESERVED: [&str; 4] = ["messages", "add_generation_prompt", "tools", "documents"];

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

/// How the prompt of a chat ends, and what is around it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptForm {
    pub end: PromptEnd,
    /// The tokens that the tokenizer puts around a text are there too, on top of those that the template has written.
    pub special_around: bool,
}

/// How the prompt of a chat ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PromptEnd {
    /// With what the template writes before an answer.
    #[default]
    Answer,
    /// With the beginning of the answer.
    Begun(String),
    /// With the last message.
    Message,
}

impl PromptForm {
    /// `add_generation_prompt`, `continue_final_message` and `add_special_tokens`. With the second the text of the last message is taken
    /// out: the answer goes on with it.
    ///
    /// # Errors
    /// 400 when one of them cannot be used, both of the first two are asked for, or what is to be continued is not the text of an
    /// assistant alone.
    pub fn read(fields: Fields<'_>, messages: &mut Vec<Message>) -> Result<Self, ApiError> {
        const NAME: &str = "continue_final_message";
        let prompted = fields.bool("add_generation_prompt")?;
        let special_around = fields.bool("add_special_tokens")?.unwrap_or(false);
        let end = match (fields.bool(NAME)?.unwrap_or(false), prompted) {
            (true, Some(true)) => {
                return Err(fields.wrong(NAME, "excludes add_generation_prompt: the answer has begun"));
            }
            (true, _) => {
                let calls = |last: &Message| last.fields().get("tool_calls").is_some_and(|calls| !calls.is_null());
                let last = messages.pop().filter(|last| last.role() == "assistant" && !calls(last));
                let text = last.as_ref().and_then(Message::text);
                let needed = "needs a last message of the assistant with text and no calls";
                PromptEnd::Begun(text.ok_or_else(|| fields.wrong(NAME, needed))?.to_owned())
            }
            (false, Some(false)) => PromptEnd::Message,
            (false, _) => PromptEnd::Answer,
        };
        Ok(Self { end, special_around })
    }
}

/// The tokens of a chat with its tools, which are told in messages where the template has none, and of the text that the answer begins
/// with. Texts of special tokens stay texts in what users and tools wrote, in tools and in calls.
///
/// # Errors
/// 400 when the template refuses the chat, or the answer begins with thoughts where a text is given.
pub fn chat(
    app: &App,
    messages: &[Message],
    tools: &[Value],
    variables: &Map<String, Value>,
    form: &PromptForm,
) -> Result<ChatPrompt, ApiError> {
    let mut options = ChatOptions::prompt();
    options.add_generation_prompt = form.end != PromptEnd::Message;
    options.special_text = SpecialText::Literal;
    options.variables.clone_from(variables);
    if !tools.is_empty() {
        options = options.with("tools", tools.to_vec());
    }
    let told = app.text.with_tools_in_messages(messages, &options, app.format.tools)?;
    let (messages, options) = told.as_ref().map_or((messages, &options), |(messages, options)| (messages, options));
    let mut prompt = app.text.chat_prompt(messages, options)?;
    if let PromptEnd::Begun(begun) = &form.end {
        if prompt.thinking == Thinking::Open {
            let message = "the model's answer begins with thoughts; turn them off to continue a message (enable_thinking, or thinking in /v1/messages)";
            return Err(ApiError::invalid(Some("messages"), message));
        }
        prompt.tokens.extend(app.text.encode_literal(begun, false)?);
    }
    if form.special_around {
        let [before, after] = app.text.special_around()?;
        prompt.boundaries.iter_mut().for_each(|boundary| *boundary += before.len());
        prompt.tokens = [before, prompt.tokens, after].concat();
    }
    Ok(prompt)
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
