//! Tokens to text, one at a time.

use super::byte_tokens::{is_byte_level, push_token_bytes, single_byte};
use super::tokenizer::TextProcessor;
use crate::Result;

/// Turns ids into text as they are generated.
///
/// A piece never ends inside a character, and the pieces of all `push` calls and of `finish` joined are
/// [`TextProcessor::decode`] of all ids. Made by [`TextProcessor::decode_stream`].
#[derive(Debug, Clone)]
pub struct DecodeStream {
    text: TextProcessor,
    skip_special: bool,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// Byte-level tokenizers: the bytes of a character that is not complete yet, at most three.
    Bytes(Vec<u8>),
    /// Every other decoder: decode a window twice and take what the new token added.
    Window(Window),
}

/// Ids so far. `ids[start..read]` is text already given, kept because decoders treat the first token of a text differently.
#[derive(Debug, Clone, Default)]
struct Window {
    ids: Vec<u32>,
    start: usize,
    read: usize,
    given: String,
}

impl TextProcessor {
    /// A stream that turns generated ids into text as they come.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream {
        DecodeStream::new(self.clone(), skip_special)
    }
}

impl DecodeStream {
    fn new(text: TextProcessor, skip_special: bool) -> Self {
        let state =
            if is_byte_level(text.tokenizer()) { State::Bytes(Vec::new()) } else { State::Window(Window::default()) };
        Self { text, skip_special, state }
    }

    /// The text that `id` completes; often empty inside a character of several tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) when the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let vocabulary = self.text.tokenizer().get_added_vocabulary();
        let token = self.text.token(id);
        // Tokens that give no text do not even end a run of bytes.
        let token = token.filter(|t| !(self.skip_special && vocabulary.is_special_token(t)));
        let Some(token) = token else {
            return Ok(String::new());
        };
        match &mut self.state {
            State::Bytes(held) => {
                push_token_bytes(&token, held);
                Ok(take_complete(held))
            }
            State::Window(window) => window.push(id, &token, &self.text, self.skip_special),
        }
    }

    /// The name of a special token that [`push`](Self::push) gives no text for; stop strings may contain it.
    pub fn left_out(&self, id: u32) -> Option<String> {
        let vocabulary = self.text.tokenizer().get_added_vocabulary();
        self.text.token(id).filter(|token| self.skip_special && vocabulary.is_special_token(token))
    }

    /// The text still held: an incomplete character, as U+FFFD. The stream is then as new.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(&mut self) -> Result<String> {
        match &mut self.state {
            State::Bytes(held) => {
                let rest = String::from_utf8_lossy(held).into_owned();
                held.clear();
                Ok(rest)
            }
            State::Window(window) => std::mem::take(window).finish(&self.text, self.skip_special),
        }
    }
}

impl DecodeStream {
    /// The text still held that is whole: as [`finish`](Self::finish), without a character whose last bytes are missing. For texts that
    /// end where a limit cuts them.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish_whole(&mut self) -> Result<String> {
        match &mut self.state {
            // What could still become a character is all that is held.
            State::Bytes(held) => held.clear(),
            State::Window(window) => window.drop_incomplete(&self.text),
        }
        self.finish()
    }
}

impl Window {
    /// Leaves out byte tokens at the end that are the beginning of a character.
    fn drop_incomplete(&mut self, text: &TextProcessor) {
        let byte = |id: &u32| text.token(*id).and_then(|token| single_byte(&token));
        let mut bytes: Vec<u8> = self.ids.iter().rev().map_while(byte).collect();
        bytes.reverse();
        take_complete(&mut bytes);
        self.ids.truncate(self.ids.len() - bytes.len());
    }

    fn push(&mut self, id: u32, token: &str, text: &TextProcessor, skip_special: bool) -> Result<String> {
        self.ids.push(id);
        // A run of byte tokens decodes as a whole or not at all, so wait for its end.
        if single_byte(token).is_some() {
            return Ok(String::new());
        }
        let before = self.decode(self.read, text, skip_special)?;
        let now = self.decode(self.ids.len(), text, skip_special)?;
        match now.strip_prefix(before.as_str()) {
            Some(new) if !new.is_empty() && !new.ends_with(char::REPLACEMENT_CHARACTER) => {
                self.start = self.read;
                self.read = self.ids.len();
                self.given.push_str(new);
                Ok(new.to_owned())
            }
            _ => Ok(String::new()),
        }
    }

    fn decode(&self, end: usize, text: &TextProcessor, skip_special: bool) -> Result<String> {
        let ids = self.ids.get(self.start..end).unwrap_or_default();
        text.decode(ids, skip_special)
    }

    fn finish(self, text: &TextProcessor, skip_special: bool) -> Result<String> {
        let all = text.decode(&self.ids, skip_special)?;
        if let Some(rest) = all.strip_prefix(self.given.as_str()) {
            return Ok(rest.to_owned());
        }
        // A decoder that rewrites text already given; what the window adds is the best there is.
        let before = self.decode(self.read, text, skip_special)?;
        let now = self.decode(self.ids.len(), text, skip_special)?;
        Ok(now.strip_prefix(before.as_str()).unwrap_or_default().to_owned())
    }
}

/// Removes and returns the text at the front of `held`: everything but an incomplete character at the end, with U+FFFD for
/// bytes that are no text.
fn take_complete(held: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    for chunk in held.utf8_chunks() {
        text.push_str(chunk.valid());
        done += chunk.valid().len();
        let invalid = chunk.invalid();
        let at_end = done + invalid.len() == held.len();
        if invalid.is_empty() || (at_end && is_incomplete(invalid)) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        done += invalid.len();
    }
    held.drain(..done);
    text
}

/// Whether further bytes could make a character of these.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}
