//! `/v1/completions`: texts and token ids, continued.

use std::ops::Range;

use emberlm::model::engine::LogProbabilities;
use emberlm::model::text::{AnswerPart, TokenKind};
use serde_json::{Map, Value, json};

use super::app::App;
use super::chat::{Shape, TokenReports, finite, include_usage, usage};
use super::error::{ApiError, Dialect};
use super::fields::{Fields, found, whole};
use super::form::Form;
use super::limits;
use super::options::{Defaults, GenerateOptions, max_tokens};
use super::run::{Answer, Delta, Token, Usage};
use super::sse::{Encoder, Events, Head};

/// Tokens where the request says nothing, as OpenAI's API has it.
const MAX_TOKENS: usize = 16;

/// A parsed body.
#[derive(Debug)]
pub struct CompletionBody {
    pub prompts: Vec<Prompt>,
    pub options: GenerateOptions,
    /// What an answer has to be.
    pub form: Form,
    pub shape: Shape,
    /// The prompt is part of the answer.
    pub echo: bool,
    pub stream: bool,
}

/// A prompt as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// Reads the body.
///
/// # Errors
/// 400 with the field that cannot be used.
pub fn read(fields: Fields<'_>, defaults: &Defaults) -> Result<CompletionBody, ApiError> {
    let prompts = prompts(fields, defaults.vocabulary)?;
    let mut options = GenerateOptions::read(fields, defaults)?;
    options.max_tokens = Some(max_tokens(fields, &["max_tokens"], 0)?.unwrap_or(MAX_TOKENS));
    let top = fields.integer("logprobs", 0..=limits::TOP_LOGPROBS as u64)?;
    options.logprobs = top.map(|top| top as usize);
    if let Some(suffix) = fields.text("suffix")?.filter(|suffix| !suffix.is_empty()) {
        return Err(fields.wrong("suffix", format!("{suffix:.40?}: insertion is not supported")));
    }
    let stream = fields.bool("stream")?.unwrap_or(false);
    let echo = fields.bool("echo")?.unwrap_or(false);
    if let Some(best_of) = fields.integer("best_of", 1..=limits::CHOICES as u64)?
        && best_of as usize > options.n
    {
        return Err(fields.wrong("best_of", "is supported as far as n"));
    }
    let shape = Shape { logprobs: top.is_some(), trace: options.trace, usage: include_usage(fields)? };
    Ok(CompletionBody { prompts, options, form: Form::read(fields)?, shape, echo, stream })
}

/// One text, several, the ids of one, or the ids of several.
fn prompts(fields: Fields<'_>, vocabulary: usize) -> Result<Vec<Prompt>, ApiError> {
    let expected = "expected a text, a list of texts, a list of token ids or a list of such lists";
    let prompts = match fields.get("prompt") {
        None => return Err(fields.wrong("prompt", "is missing")),
        Some(Value::String(text)) => vec![Prompt::Text(text.clone())],
        Some(Value::Array(list)) => match list.first() {
            None => return Err(fields.wrong("prompt", "is empty")),
            Some(Value::Number(_)) => vec![Prompt::Ids(ids(fields, list, vocabulary)?)],
            Some(_) => {
                if list.len() > limits::PROMPTS {
                    let message = format!("{} prompts, but at most {} are taken", list.len(), limits::PROMPTS);
                    return Err(fields.wrong("prompt", message));
                }
                list.iter()
                    .map(|one| match one {
                        Value::String(text) => Ok(Prompt::Text(text.clone())),
                        Value::Array(list) => Ok(Prompt::Ids(ids(fields, list, vocabulary)?)),
                        other => Err(fields.wrong("prompt", format!("{expected}, found {}", found(other)))),
                    })
                    .collect::<Result<_, _>>()?
            }
        },
        Some(other) => return Err(fields.wrong("prompt", format!("{expected}, found {}", found(other)))),
    };
    Ok(prompts)
}

fn ids(fields: Fields<'_>, list: &[Value], vocabulary: usize) -> Result<Vec<u32>, ApiError> {
    let id = |value: &Value| {
        let id = whole(value).and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < vocabulary);
        id.ok_or_else(|| fields.wrong("prompt", format!("{} is no token id below {vocabulary}", found(value))))
    };
    list.iter().map(id).collect()
}

impl CompletionBody {
    /// The tokens of every prompt.
    ///
    /// # Errors
    /// 400 when a text cannot be encoded.
    pub fn tokens(&self, app: &App) -> Result<Vec<Vec<u32>>, ApiError> {
        let tokens = |prompt: &Prompt| match prompt {
            Prompt::Text(text) => Ok(app.text.encode(text, true)?),
            Prompt::Ids(ids) => Ok(ids.clone()),
        };
        self.prompts.iter().map(tokens).collect()
    }

    /// What is repeated before each answer.
    ///
    /// # Errors
    /// 400 when ids cannot be decoded.
    pub fn echoes(&self, app: &App, prompts: &[Vec<u32>]) -> Result<Vec<Option<Echo>>, ApiError> {
        let mut echoes = Vec::new();
        for (prompt, ids) in self.prompts.iter().zip(prompts) {
            let (text, shown) = match prompt {
                Prompt::Text(text) => (text.clone(), inside(ids, &app.text.encode(text, false)?)),
                Prompt::Ids(_) => (app.text.decode(ids, false)?, 0..ids.len()),
            };
            let echo = self.echo.then(|| Echo { text, ids: ids.clone(), shown });
            echoes.extend((0..self.options.n).map(|_| echo.clone()));
        }
        Ok(echoes)
    }
}

/// Which of the tokens of a text are those of the text itself: a tokenizer may put special ones around it.
fn inside(whole: &[u32], plain: &[u32]) -> Range<usize> {
    let at = whole.windows(plain.len().max(1)).position(|window| window == plain);
    at.map_or(0..whole.len(), |at| at..at + plain.len())
}

/// `logprobs` of OpenAI's completions: lists side by side, and where in the text each token begins.
#[derive(Debug, Default)]
struct Logprobs {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl Logprobs {
    /// Adds tokens of a text, or of its part from `place` on, which is then where the tokens after them begin.
    fn push(&mut self, tokens: &[Token], shown: &Shown, text: &str, reports: &TokenReports, place: &mut Place) {
        for (i, token) in tokens.iter().enumerate() {
            let bytes = if shown.has(i, token.id, reports) { reports.written(token.id) } else { Vec::new() };
            self.text_offset.push(place.pass_in(&bytes, text));
            self.tokens.push(reports.spelled(token.id).into());
            match &token.log_probabilities {
                Some(known) => {
                    self.token_logprobs.push(finite(known.chosen).into());
                    let mut top: Map<String, Value> = Map::new();
                    for &(id, logprob) in &known.top {
                        // Of tokens that are spelled alike, the most probable.
                        top.entry(reports.spelled(id)).or_insert_with(|| finite(logprob).into());
                    }
                    // The token itself is told always.
                    top.entry(reports.spelled(token.id)).or_insert_with(|| finite(known.chosen).into());
                    self.top_logprobs.push(top.into());
                }
                // The first token of a prompt has nothing before it.
                None => {
                    self.token_logprobs.push(Value::Null);
                    self.top_logprobs.push(Value::Null);
                }
            }
        }
    }

    /// Lets tokens that a stop string took out of a text begin at its end.
    fn end_at(&mut self, end: usize) {
        self.text_offset.iter_mut().for_each(|offset| *offset = end.min(*offset));
    }

    fn json(self) -> Value {
        json!({
            "tokens": self.tokens, "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs, "text_offset": self.text_offset,
        })
    }
}

/// Which tokens of a list are part of the text that is told.
enum Shown {
    /// Of a prompt: these.
    These(Range<usize>),
    /// Of an answer: all but special ones.
    Ordinary,
}

impl Shown {
    fn has(&self, i: usize, id: u32, reports: &TokenReports) -> bool {
        match self {
            Self::These(range) => range.contains(&i),
            Self::Ordinary => reports.text.kind(id) != TokenKind::Special,
        }
    }
}

/// A place in a text between two tokens.
#[derive(Debug, Default)]
struct Place {
    /// Characters that end before it.
    characters: usize,
    /// The first bytes of one that does not.
    begun: Vec<u8>,
    /// A token of the part of the text that it is in lies before it.
    inside: bool,
}

impl Place {
    /// As [`pass`](Self::pass), in a part of the text that is `text`, from its first token on. Some tokenizers put a space before the first
    /// word, which is not told.
    fn pass_in(&mut self, bytes: &[u8], text: &str) -> usize {
        let put_before = !self.inside && bytes.first() == Some(&b' ') && !text.starts_with(' ');
        self.inside |= !bytes.is_empty();
        self.pass(bytes.get(usize::from(put_before)..).unwrap_or_default())
    }

    /// Another part follows, whose tokens are those of a text by itself.
    fn end_part(&mut self) {
        let characters = self.characters + usize::from(!self.begun.is_empty());
        *self = Self { characters, ..Self::default() };
    }

    /// Moves behind a token and says where it began. Bytes that are no character are shown as U+FFFD.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let goes_on = bytes.first().is_none_or(|byte| (0x80..0xc0).contains(byte));
        let first = self.characters + usize::from(!goes_on && !self.begun.is_empty());
        self.begun.extend_from_slice(bytes);
        let mut rest = self.begun.utf8_chunks().peekable();
        let (mut characters, mut begun) = (0, 0);
        while let Some(chunk) = rest.next() {
            characters += chunk.valid().chars().count();
            let invalid = chunk.invalid();
            // What may still become a character is at the end.
            let unfinished =
                rest.peek().is_none() && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            match unfinished {
                true => begun = invalid.len(),
                false => characters += usize::from(!invalid.is_empty()),
            }
        }
        self.characters += characters;
        self.begun.drain(..self.begun.len() - begun);
        first
    }
}

/// A prompt that is repeated before its answer.
#[derive(Clone, Debug)]
pub struct Echo {
    text: String,
    ids: Vec<u32>,
    /// The tokens whose text is part of it.
    shown: Range<usize>,
}

impl Echo {
    /// Its tokens, of which the first has nothing before it.
    fn tokens(&self, scores: &[LogProbabilities]) -> Vec<Token> {
        let scores = std::iter::once(None).chain(scores.iter().cloned().map(Some));
        let token = |(&id, log_probabilities)| Token { id, depth: None, log_probabilities };
        self.ids.iter().zip(scores).map(token).collect()
    }
}

/// What is told of one prompt and its answers.
pub struct Told {
    pub head: Head,
    pub reports: TokenReports,
    /// Per answer: the prompt that is repeated before it.
    pub echoes: Vec<Option<Echo>>,
}

impl Told {
    fn choice(&self, index: usize, text: String, logprobs: Option<Logprobs>, trace: &[Token]) -> Map<String, Value> {
        let mut choice = Map::new();
        choice.insert("index".into(), index.into());
        choice.insert("text".into(), text.into());
        choice.insert("finish_reason".into(), Value::Null);
        choice.insert("logprobs".into(), logprobs.map_or(Value::Null, Logprobs::json));
        if self.reports.shape.trace && !trace.is_empty() {
            choice.insert("trace".into(), self.reports.trace(trace));
        }
        choice
    }

    fn body(&self, choices: Vec<Value>, usage: Value) -> Value {
        let Head { id, created, model } = &self.head;
        json!({
            "id": id, "object": "text_completion", "created": created, "model": &**model,
            "choices": choices, "usage": usage,
        })
    }

    /// The whole answer.
    pub fn whole(&self, answers: &[Answer], tokens: Usage) -> Value {
        let choice = |(index, answer): (usize, &Answer)| {
            let mut text = String::new();
            let mut place = Place::default();
            let mut logprobs = Logprobs::default();
            if let Some(Some(echo)) = self.echoes.get(index) {
                text.push_str(&echo.text);
                let shown = Shown::These(echo.shown.clone());
                logprobs.push(&echo.tokens(&answer.prompt), &shown, &echo.text, &self.reports, &mut place);
                place.end_part();
            }
            text.push_str(&answer.content);
            logprobs.push(&answer.tokens, &Shown::Ordinary, &answer.content, &self.reports, &mut place);
            logprobs.end_at(text.chars().count());
            let logprobs = self.reports.shape.logprobs.then_some(logprobs);
            let mut choice = self.choice(index, text, logprobs, &answer.tokens);
            choice.insert("finish_reason".into(), answer.reason().name().into());
            if let Some(end) = &answer.end {
                choice.insert("seed".into(), end.seed.clone().into());
            }
            Value::Object(choice)
        };
        let choices: Vec<Value> = answers.iter().enumerate().map(choice).collect();
        self.body(choices, usage(tokens))
    }
}

/// Chunks of a streamed completion.
pub struct TextChunks {
    pub told: Told,
    held: Vec<Held>,
}

/// Of one answer.
#[derive(Debug, Default)]
struct Held {
    /// Tokens whose text is held back.
    tokens: Vec<Token>,
    /// Of the prompt, until it is repeated.
    scores: Vec<LogProbabilities>,
    /// Where the next token begins.
    place: Place,
    /// Characters that were sent.
    sent: usize,
}

impl TextChunks {
    pub fn new(told: Told) -> Self {
        let held = told.echoes.iter().map(|_| Held::default()).collect();
        Self { told, held }
    }

    /// Repeats the prompt, once.
    fn send_echo(&mut self, index: usize, events: &mut Events) {
        let Some(echo) = self.told.echoes.get_mut(index).and_then(Option::take) else { return };
        let Some(held) = self.held.get_mut(index) else { return };
        let later = std::mem::replace(&mut held.tokens, echo.tokens(&held.scores));
        if !self.told.reports.shape.logprobs {
            held.tokens.clear();
        }
        self.send(index, (echo.text, Shown::These(echo.shown)), None, events);
        if let Some(held) = self.held.get_mut(index) {
            held.tokens = later;
            held.place.end_part();
        }
    }

    /// Sends a part of the text with the tokens that are held, and which of them it shows.
    fn send(&mut self, index: usize, (text, shown): (String, Shown), reason: Option<&str>, events: &mut Events) {
        let Some(held) = self.held.get_mut(index) else { return };
        let tokens = std::mem::take(&mut held.tokens);
        held.sent += text.chars().count();
        let logprobs = (self.told.reports.shape.logprobs && !tokens.is_empty()).then(|| {
            let mut logprobs = Logprobs::default();
            logprobs.push(&tokens, &shown, &text, &self.told.reports, &mut held.place);
            if reason.is_some() {
                logprobs.end_at(held.sent);
            }
            logprobs
        });
        let mut choice = self.told.choice(index, text, logprobs, &tokens);
        if let Some(reason) = reason {
            choice.insert("finish_reason".into(), reason.into());
        }
        let mut chunk = self.told.body(vec![choice.into()], Value::Null);
        if let (false, Some(chunk)) = (self.told.reports.shape.usage, chunk.as_object_mut()) {
            chunk.remove("usage");
        }
        events.data(&chunk);
    }
}

impl Encoder for TextChunks {
    fn begin(&mut self, events: &mut Events) {
        if !self.told.reports.shape.logprobs {
            (0..self.held.len()).for_each(|index| self.send_echo(index, events));
        }
    }

    fn delta(&mut self, delta: Delta, events: &mut Events) {
        let Delta { choice: index, parts, tokens, prompt, end } = delta;
        let Shape { logprobs, trace, .. } = self.told.reports.shape;
        if let Some(held) = self.held.get_mut(index) {
            held.scores.extend(prompt);
            if logprobs || trace {
                held.tokens.extend(tokens);
            }
        }
        if !parts.is_empty() || end.is_some() {
            self.send_echo(index, events);
        }
        for part in parts {
            if let AnswerPart::Content(text) = part {
                self.send(index, (text, Shown::Ordinary), None, events);
            }
        }
        if let Some(end) = end {
            self.send(index, (String::new(), Shown::Ordinary), Some(end.reason.name()), events);
        }
    }

    fn end(&mut self, tokens: Usage, events: &mut Events) {
        if self.told.reports.shape.usage {
            let chunk = self.told.body(Vec::new(), usage(tokens));
            events.data(&chunk);
        }
        events.done();
    }

    fn error(&mut self, error: &ApiError, events: &mut Events) {
        events.data(&error.body(Dialect::OpenAi));
        events.done();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_begin_where_their_first_byte_lies() {
        let mut place = Place::default();
        let emoji = "😀".as_bytes();
        let tokens = [&b"na"[..], &emoji[..2], &emoji[2..3], &emoji[3..], b" end", &[0xff], b"x", &emoji[..1], b"y"];
        assert_eq!(tokens.map(|bytes| place.pass(bytes)), [0, 2, 2, 2, 3, 7, 8, 9, 10]);
        assert_eq!(place.characters, 11);
    }
}
