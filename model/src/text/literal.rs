//! Texts and chats in which the text of special tokens stays text.

use serde_json::Value;
use tokenizers::tokenizer::normalizer::Range;
use tokenizers::tokenizer::{PreTokenizedString, PreTokenizer};
use tokenizers::{Model, NormalizedString, Normalizer, OffsetReferential, OffsetType, Token};

use super::catch_panic::catch_panic;
use super::chat::{ChatOptions, Message, SpecialText, map_value, value_contains};
use super::tokenizer::TextProcessor;
use crate::{Error, Result};

/// Stand-ins come from the last private-use plane, which templates and tokenizers have no reason to know.
const FIRST_STAND_IN: u32 = 0x10_0000;
const LAST_STAND_IN: u32 = 0x10_FFFD;

impl TextProcessor {
    /// As [`Self::encode`], with the text of special tokens and of all added ones as ordinary text.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_literal(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let mut ids = encode(self, text)?;
        if add_special {
            let [before, after] = self.special_around()?;
            ids = [before, ids, after].concat();
        }
        self.check_ids(&ids)?;
        Ok(ids)
    }

    /// The ids that the tokenizer puts before and behind a text, such as a leading BOS.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn special_around(&self) -> Result<[Vec<u32>; 2]> {
        // They do not depend on the text.
        let sample = "x";
        let (plain, whole) = (self.encode(sample, false)?, self.encode(sample, true)?);
        let at = whole.windows(plain.len().max(1)).position(|window| window == plain);
        let Some((before, rest)) = at.and_then(|at| whole.split_at_checked(at)) else { return Ok(Default::default()) };
        Ok([before.to_vec(), rest.get(plain.len()..).unwrap_or_default().to_vec()])
    }

    /// The prompt ids of a chat. The template has written its special tokens, so none are added again.
    ///
    /// # Errors
    /// As [`Self::render_chat`] and [`Self::encode`].
    pub fn encode_chat(&self, messages: &[Message], options: &ChatOptions) -> Result<Vec<u32>> {
        match options.special_text {
            SpecialText::Parse => self.encode(&self.render_chat(messages, options)?, false),
            SpecialText::Literal => {
                let ids = encode_chat(self, messages, options)?;
                self.check_ids(&ids)?;
                Ok(ids)
            }
        }
    }
}

/// Encodes a chat so that what users and tools wrote, what tools are said to be and what they are called with never becomes an added token.
///
/// The text of each added token in those places is replaced by a private-use character before rendering. In the rendered chat
/// the added tokens are then only the template's own. With the original spelling back in place, the text is cut at these, and at
/// no others, and goes through the steps that the tokenizer library takes, so that each stretch of text knows where in the whole
/// it stands: some tokenizers put a space before the first stretch only.
fn encode_chat(text: &TextProcessor, messages: &[Message], options: &ChatOptions) -> Result<Vec<u32>> {
    let mut options = options.clone();
    let mut tools = options.variables.get("tools").cloned().unwrap_or_default();
    let stand_ins = StandIns::new(text, messages, &tools)?;
    let messages: Vec<Message> = messages.iter().map(|m| stand_ins.hide_in(m)).collect();
    if !tools.is_null() {
        map_value(&mut tools, &|text| stand_ins.hide(text));
        options.variables.insert("tools".to_owned(), tools);
    }
    let rendered = text.render_chat(&messages, &options)?;
    let cuts = stand_ins.cuts(text, &rendered)?;
    encode_cut(text, &stand_ins.restore(&rendered), &cuts)
}

/// Encodes a text without looking for added tokens.
fn encode(text: &TextProcessor, plain: &str) -> Result<Vec<u32>> {
    encode_cut(text, plain, &[])
}

/// An added token in a text.
#[derive(Debug, Clone, Copy)]
struct Cut {
    start: usize,
    end: usize,
    id: u32,
    /// Found in the text as the normalizer leaves it.
    normalized: bool,
}

/// Texts of added tokens and the characters that stand for them.
struct StandIns {
    pairs: Vec<(String, char)>,
}

impl StandIns {
    /// Gives every added token that occurs in a message or in the tools a character that occurs in none of them.
    fn new(text: &TextProcessor, messages: &[Message], tools: &Value) -> Result<Self> {
        let occurs = |part: &str| messages.iter().any(|m| m.contains_text(part)) || value_contains(tools, part);
        let added = text.tokenizer().get_added_tokens_decoder();
        let mut contents: Vec<String> =
            added.into_values().map(|t| t.content).filter(|t| !t.is_empty() && occurs(t)).collect();
        // Longest first, so that a token that contains another is hidden whole.
        contents.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        let mut free =
            (FIRST_STAND_IN..=LAST_STAND_IN).filter_map(char::from_u32).filter(|c| !occurs(c.encode_utf8(&mut [0; 4])));
        let pairs = contents.into_iter().map(|content| Some((content, free.next()?))).collect::<Option<_>>();
        let pairs = pairs.ok_or_else(|| {
            Error::Prompt("the messages use up the private-use characters that literal encoding needs".to_owned())
        })?;
        Ok(Self { pairs })
    }

    fn hide_in(&self, message: &Message) -> Message {
        let mut message = message.clone();
        match message.role() {
            "user" | "tool" => message.map_text(&|text| self.hide(text)),
            _ => message.map_text_of("tool_calls", &|text| self.hide(text)),
        }
        message
    }

    fn hide(&self, text: &str) -> String {
        let hidden = |text: String, (content, c): &(String, char)| text.replace(content, c.encode_utf8(&mut [0; 4]));
        self.pairs.iter().fold(text.to_owned(), hidden)
    }

    fn restore(&self, text: &str) -> String {
        self.pairs.iter().fold(text.to_owned(), |text, (content, c)| text.replace(*c, content))
    }

    /// The added tokens of a rendered chat, at their places in the restored text.
    fn cuts(&self, text: &TextProcessor, rendered: &str) -> Result<Vec<Cut>> {
        let tokenizer = text.tokenizer();
        let encoding = catch_panic(|| tokenizer.encode(rendered, false))?;
        let added = tokenizer.get_added_tokens_decoder();
        let mut cuts = Vec::new();
        let (mut done, mut restored) = (0, 0);
        for (&id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            let Some(token) = added.get(&id).filter(|_| end > start && start >= done) else { continue };
            // A normalizer may drop a stand-in, and what stood around it then reads like a token.
            let found = rendered.get(start..end).unwrap_or_default();
            if self.pairs.iter().any(|(_, c)| found.contains(*c)) {
                continue;
            }
            let before = rendered.get(done..start).unwrap_or_default();
            let start_at = restored + self.restore(before).len();
            let end_at = start_at + (end - start);
            cuts.push(Cut { start: start_at, end: end_at, id, normalized: token.normalized });
            (done, restored) = (end, end_at);
        }
        Ok(cuts)
    }
}

/// Encodes a text whose added tokens are these and no others.
fn encode_cut(text: &TextProcessor, plain: &str, cuts: &[Cut]) -> Result<Vec<u32>> {
    let tokenizer = text.tokenizer();
    catch_panic(|| {
        let mut pieces = PreTokenizedString::from(plain);
        // As the library does: tokens of the text as it is, then the normalizer, then tokens of the text as that leaves it.
        pieces.split(|_, piece| Ok(cut(&piece, cuts, false)))?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = tokenizer.get_normalizer() {
                normalizer.normalize(&mut piece)?;
            }
            Ok(cut(&piece, cuts, true))
        })?;
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        tokenizer.get_model().tokenize_in_pretokenized(&mut pieces, None)?;
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::None);
        let tokens = splits.into_iter().filter_map(|(_, _, tokens)| tokens.as_ref());
        Ok(tokens.flatten().map(|token| token.id).collect())
    })
}

/// A piece of text, cut at the tokens of one kind that lie in it.
fn cut(piece: &NormalizedString, cuts: &[Cut], normalized: bool) -> Vec<(NormalizedString, Option<Vec<Token>>)> {
    let (from, to) = piece.offsets_original();
    let mut parts = Vec::new();
    let mut done = 0;
    let inside = cuts.iter().filter(|c| c.normalized == normalized && c.start >= from && c.end <= to);
    for c in inside {
        let Some(range) = piece.convert_offsets(Range::Original(c.start - from..c.end - from)) else { continue };
        if range.start < done {
            continue;
        }
        parts.extend(piece.slice(Range::Normalized(done..range.start)).map(|part| (part, None)));
        if let Some(part) = piece.slice(Range::Normalized(range.clone())) {
            let value = part.get().to_owned();
            let length = value.len();
            parts.push((part, Some(vec![Token::new(c.id, value, (0, length))])));
        }
        done = range.end;
    }
    if done == 0 {
        return vec![(piece.clone(), None)];
    }
    parts.extend(piece.slice(Range::Normalized(done..piece.len())).map(|part| (part, None)));
    parts
}
