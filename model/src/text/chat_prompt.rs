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
    /// # Errors
    /// As [`Self::encode_chat`].
    pub fn chat_prompt(&self, messages: &[Message], options: &ChatOptions) -> Result<ChatPrompt> {
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

/// Tokens at the beginning that are the same.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
