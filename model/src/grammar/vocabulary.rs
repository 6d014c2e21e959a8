//! The bytes of all tokens, as llguidance wants them.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};

use crate::text::{TextProcessor, TokenKind};
use crate::{Error, Result};

/// Ids that llguidance can hold: 24 bits.
const MOST_IDS: usize = 1 << 24;

/// A text with what grammars are made of; its tokens must spell it.
const SAMPLE: &str = "{\"a b\": [1.5, \"é\\n\"],\n  \"c\": null}<x>";

/// The token table of a tokenizer. Special tokens are never part of a text.
///
/// # Errors
/// [`Error::Tokenizer`] where tokens do not spell bytes.
pub(super) fn token_table(text: &TextProcessor) -> Result<TokEnv> {
    let size = text.vocab_size().max(text.embedding().unwrap_or(0));
    let count = u32::try_from(size).ok().filter(|_| size < MOST_IDS);
    let count =
        count.ok_or_else(|| Error::Tokenizer(format!("{size} tokens are more than a grammar can choose among")))?;
    let words: Vec<Vec<u8>> = (0..count).map(|id| bytes(text, id)).collect();
    let of = |id: u32| words.get(id as usize).map(Vec::as_slice).unwrap_or_default();
    let spelled: Vec<u8> =
        text.clone().without_embedding().encode(SAMPLE, false)?.into_iter().flat_map(of).copied().collect();
    // Some tokenizers put a space before a text, which decoding takes away again.
    if spelled.trim_ascii_start() != SAMPLE.as_bytes() {
        return Err(Error::Tokenizer(
            "the tokens of this tokenizer do not spell the bytes of a text, which a grammar needs; ask for a text without one"
                .to_owned(),
        ));
    }
    // Stop tokens are allowed by whoever knows them.
    let info = TokRxInfo::new(count, INVALID_TOKEN);
    Ok(Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words))))
}

/// What a token adds to a text; nothing where the id has no token.
fn bytes(text: &TextProcessor, id: u32) -> Vec<u8> {
    let Some(token) = text.token(id) else { return Vec::new() };
    match text.kind(id) {
        TokenKind::Special => [&[TokTrie::SPECIAL_TOKEN_MARKER], token.as_bytes()].concat(),
        _ => text.bytes(id).unwrap_or_else(|| token.replace('\u{2581}', " ").into_bytes()),
    }
}
