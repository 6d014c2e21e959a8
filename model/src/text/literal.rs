//! Chats in which the text of special tokens inside messages stays text.

use tokenizers::tokenizer::{PreTokenizedString, PreTokenizer};
use tokenizers::{Model, NormalizedString, Normalizer, OffsetReferential, OffsetType};

use super::chat::{ChatOptions, Message};
use super::tokenizer::{TextProcessor, contain};
use crate::{Error, Result};

/// Stand-ins come from the last private-use plane, which templates and tokenizers have no reason to know.
const FIRST_STAND_IN: u32 = 0x10_0000;
const LAST_STAND_IN: u32 = 0x10_FFFD;

/// Encodes a chat so that what users and tools wrote never becomes an added token.
///
/// The text of each added token in those messages is replaced by a private-use character before rendering. In the rendered chat
/// the added tokens are then only the template's own; the text between them gets the original spelling back and is encoded
/// without looking for added tokens.
pub(super) fn encode_chat(text: &TextProcessor, messages: &[Message], options: &ChatOptions) -> Result<Vec<u32>> {
    let stand_ins = StandIns::new(text, messages)?;
    let messages: Vec<Message> = messages.iter().map(|m| stand_ins.hide_in(m)).collect();
    let rendered = text.render_chat(&messages, options)?;

    let tokenizer = text.tokenizer();
    let encoding = contain(|| tokenizer.encode(rendered.as_str(), false))?;
    let added = tokenizer.get_added_tokens_decoder();
    let mut ids = Vec::with_capacity(encoding.len());
    let mut done = 0;
    for (&id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
        if added.contains_key(&id) {
            let between = rendered.get(done..start).unwrap_or_default();
            ids.extend(encode_plain(text, &stand_ins.restore(between))?);
            ids.push(id);
            done = end;
        }
    }
    let rest = rendered.get(done..).unwrap_or_default();
    ids.extend(encode_plain(text, &stand_ins.restore(rest))?);
    Ok(ids)
}

/// Texts of added tokens and the characters that stand for them.
struct StandIns {
    pairs: Vec<(String, char)>,
}

impl StandIns {
    /// Gives every added token that occurs in a message a character that occurs in none.
    fn new(text: &TextProcessor, messages: &[Message]) -> Result<Self> {
        let added = text.tokenizer().get_added_tokens_decoder();
        let mut contents: Vec<String> = added
            .into_values()
            .map(|t| t.content)
            .filter(|t| !t.is_empty() && messages.iter().any(|m| m.contains_text(t)))
            .collect();
        // Longest first, so that a token that contains another is hidden whole.
        contents.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        let mut free = (FIRST_STAND_IN..=LAST_STAND_IN)
            .filter_map(char::from_u32)
            .filter(|c| !messages.iter().any(|m| m.contains_text(c.encode_utf8(&mut [0; 4]))));
        let pairs = contents.into_iter().map(|content| Some((content, free.next()?))).collect::<Option<_>>();
        let pairs = pairs.ok_or_else(|| {
            Error::Prompt("the messages use up the private-use characters that literal encoding needs".to_owned())
        })?;
        Ok(Self { pairs })
    }

    fn hide_in(&self, message: &Message) -> Message {
        let mut message = message.clone();
        if matches!(message.role(), "user" | "tool") {
            message.map_text(&|text| {
                self.pairs.iter().fold(text.to_owned(), |text, (content, c)| {
                    text.replace(content.as_str(), c.encode_utf8(&mut [0; 4]))
                })
            });
        }
        message
    }

    fn restore(&self, text: &str) -> String {
        self.pairs.iter().fold(text.to_owned(), |text, (content, c)| text.replace(*c, content))
    }
}

/// Encodes text without looking for added tokens.
fn encode_plain(text: &TextProcessor, plain: &str) -> Result<Vec<u32>> {
    if plain.is_empty() {
        return Ok(Vec::new());
    }
    let tokenizer = text.tokenizer();
    contain(|| {
        let mut normalized = NormalizedString::from(plain);
        if let Some(normalizer) = tokenizer.get_normalizer() {
            normalizer.normalize(&mut normalized)?;
        }
        let mut pieces = PreTokenizedString::from(normalized);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| tokenizer.get_model().tokenize(piece.get()))?;
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::None);
        let tokens = splits.into_iter().filter_map(|(_, _, tokens)| tokens.as_ref());
        Ok(tokens.flatten().map(|token| token.id).collect())
    })
}
