//! The messages of a conversation, in memory and in a file.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result};
use emberlm::model::text::{Message, normalize_messages};

use crate::cli::chat_input;
use crate::cli::tensor_file::OutputFile;

/// A system message, if any, and the turns after it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    messages: Vec<Message>,
}

impl Conversation {
    /// Without turns.
    pub fn new(system: Option<&str>) -> Self {
        Self { messages: system.map(Message::system).into_iter().collect() }
    }

    /// All of it, as a template takes it.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The system message.
    pub fn system(&self) -> Option<&str> {
        self.messages.first().filter(|message| message.role() == "system").and_then(Message::text)
    }

    /// The same turns after another system message, or after none.
    pub fn with_system(&self, system: Option<&str>) -> Self {
        let turns = self.messages.iter().skip(usize::from(self.system().is_some())).cloned();
        Self { messages: system.map(Message::system).into_iter().chain(turns).collect() }
    }

    /// The same system message without turns.
    pub fn without_turns(&self) -> Self {
        Self::new(self.system())
    }

    /// Adds a message.
    pub fn push(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// What it was up to the last message of the user; none where there is no such message.
    pub fn up_to_last_user(&self) -> Option<Self> {
        let last = self.messages.iter().rposition(|message| message.role() == "user")?;
        Some(Self { messages: self.messages.iter().take(last + 1).cloned().collect() })
    }

    /// Writes the messages as a JSON list, whole or not at all: the file has its name only once everything is in it. One that was there
    /// keeps its permissions; a link stays one, and what it leads to is written.
    ///
    /// # Errors
    /// With the name of the file; one that was there is as it was.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(&self.messages).context("the conversation is no JSON")?;
        text.push('\n');
        OutputFile::create(path)?.finish_text(&text)
    }

    /// Whether a file holds what [`save`](Self::save) writes: a list of messages and nothing else.
    pub fn is_saved_in(path: &Path) -> bool {
        let messages = File::open(path).ok().filter(|file| file.metadata().is_ok_and(|data| data.is_file()));
        let messages = messages.and_then(|file| serde_json::from_reader(BufReader::new(file)).ok());
        messages.is_some_and(|messages: Vec<Message>| !messages.is_empty())
    }

    /// Reads what [`save`](Self::save) wrote, or what else `ember render --messages` takes; tools and documents beside the messages
    /// are left out.
    ///
    /// # Errors
    /// With the name of the file, and which message cannot be used.
    pub fn load(path: &Path) -> Result<Self> {
        let messages = chat_input::messages_of(path)?;
        let messages = normalize_messages(messages).with_context(|| format!("{} cannot be used", path.display()))?;
        Ok(Self { messages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_message_is_exchanged_and_the_turns_stay() {
        let mut conversation = Conversation::new(None);
        assert!(conversation.up_to_last_user().is_none());
        conversation.push(Message::user("a"));
        conversation.push(Message::assistant("b"));
        let told = conversation.with_system(Some("s"));
        assert_eq!((told.system(), told.messages().len()), (Some("s"), 3));
        assert_eq!(told.with_system(Some("t")).messages().len(), 3);
        assert_eq!(told.with_system(None), conversation);
        assert_eq!(told.without_turns(), Conversation::new(Some("s")));
        assert_eq!(told.up_to_last_user().unwrap().messages().len(), 2);
    }
}
