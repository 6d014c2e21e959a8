//! The prompt of a chat, and where prompts of other chats, or of the next turn, may leave it.

use super::answer::Thinking;
use super::chat::{ChatOptions, Message};
use super::tokenizer::TextProcessor;
use crate::Result;

/// A chat as a model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatPrompt {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Where the answer begins.
    pub thinking: Thinking,
    /// Numbers of tokens, ascending, that prompts to come are likely to begin with too: behind system message and tools, which other
    /// chats share, and before the generation prompt, where the next turn of this chat goes on.
    pub boundaries: Vec<usize>,
}

impl TextProcessor {
    /// The prompt of a chat.
    ///
    /// The boundaries are found by comparison, so that they are right for any template: what the chat has in common with a chat of
    /// the same beginning and another question, and with itself without the generation prompt.
    ///
    /// Messages that only call tools have no content, by which templates that know of tools tell them. A template that reads the content
    /// of every message fails at them; it is asked once more, with an empty text there.
    ///
    /// # Errors
    /// As [`Self::encode_chat`].
    pub fn chat_prompt(&self, messages: &[Message], options: &ChatOptions) -> Result<ChatPrompt> {
        self.prompt_of(messages, options).or_else(|error| {
            let Some(filled) = with_contents(messages) else { return Err(error) };
            self.prompt_of(&filled, options).map_err(|_| error)
        })
    }

    fn prompt_of(&self, messages: &[Message], options: &ChatOptions) -> Result<ChatPrompt> {
        let tokens = self.encode_chat(messages, options)?;
        let thinking = Thinking::of_prompt(&self.render_chat(messages, options)?);
        let mut boundaries: Vec<usize> =
            [self.after_system(messages, options, &tokens), self.before_answer(messages, options, &tokens)]
                .into_iter()
                .flatten()
                .filter(|&at| at > 0 && at < tokens.len())
                .collect();
        boundaries.sort_unstable();
        boundaries.dedup();
        Ok(ChatPrompt { tokens, thinking, boundaries })
    }

    /// Tokens that the chat shares with any that begins with the same system message and tools; none where that cannot be told.
    fn after_system(&self, messages: &[Message], options: &ChatOptions, tokens: &[u32]) -> Option<usize> {
        let system = messages.iter().take_while(|message| message.role() == "system").count();
        if system == 0 && !options.has_tools() {
            return None;
        }
        let first = messages.get(system)?;
        // Two questions, so that one at least begins unlike this one.
        let shared = ["a", "Z"].map(|question| {
            let mut other = messages.get(..system).unwrap_or_default().to_vec();
            other.push(Message::new(first.role(), question));
            Some(common(&self.encode_chat(&other, options).ok()?, tokens))
        });
        let [one, other] = shared;
        one.zip(other).map(|(one, other)| one.min(other))
    }

    /// Tokens before the generation prompt; none where there is no such prompt, or no chat without one.
    fn before_answer(&self, messages: &[Message], options: &ChatOptions, tokens: &[u32]) -> Option<usize> {
        if !options.add_generation_prompt {
            return None;
        }
        let without = ChatOptions { add_generation_prompt: false, ..options.clone() };
        let without = self.encode_chat(messages, &without).ok()?;
        // Where the rest is rendered otherwise without one, the next turn will not begin with it either.
        let shared = common(&without, tokens);
        (shared == without.len()).then_some(shared)
    }
}

/// The messages with an empty content where there is none; `None` when all have one.
pub(super) fn with_contents(messages: &[Message]) -> Option<Vec<Message>> {
    let has = |message: &Message| message.fields().contains_key("content");
    if messages.iter().all(has) {
        return None;
    }
    let filled =
        messages.iter().map(|message| if has(message) { message.clone() } else { message.clone().with("content", "") });
    Some(filled.collect())
}

/// Tokens at the beginning that are the same.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
