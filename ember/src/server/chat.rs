//! `/v1/chat/completions`.

use emberlm::model::text::{AnswerPart, TextProcessor, TokenKind};
use serde_json::{Map, Value, json};

use super::error::{ApiError, Dialect};
use super::fields::Fields;
use super::form::Form;
use super::generate::ChatJob;
use super::limits;
use super::messages_in::messages;
use super::options::{Defaults, GenerateOptions, max_tokens};
use super::prompt::{PromptForm, variables};
use super::run::{Answer, Call, Delta, Token, Usage};
use super::sse::{Encoder, Events, Head};
use super::tools::Tools;

/// A parsed body.
#[derive(Debug)]
pub struct ChatBody {
    pub job: ChatJob,
    pub shape: Shape,
    pub stream: bool,
}

/// What the answer tells besides its text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    pub logprobs: bool,
    pub trace: bool,
    /// A stream ends with the tokens counted.
    pub usage: bool,
}

/// Reads the body.
///
/// # Errors
/// 400 with the field that cannot be used.
pub fn read(fields: Fields<'_>, defaults: &Defaults) -> Result<ChatBody, ApiError> {
    let Some(list) = fields.list("messages")? else { return Err(fields.wrong("messages", "is missing")) };
    let mut messages = messages(list)?;
    let prompt = PromptForm::read(fields, &mut messages)?;
    let mut options = GenerateOptions::read(fields, defaults)?;
    options.max_tokens = max_tokens(fields, &["max_completion_tokens", "max_tokens"], 1)?;
    let logprobs = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=limits::TOP_LOGPROBS as u64)?.map(|top| top as usize);
    if top.is_some_and(|top| top > 0) && !logprobs {
        return Err(fields.wrong("top_logprobs", "needs logprobs to be true"));
    }
    options.logprobs = logprobs.then(|| top.unwrap_or(0));
    let shape = Shape { logprobs, trace: options.trace, usage: include_usage(fields)? };
    let (tools, variables) = (Tools::read(fields)?, variables(fields)?);
    let job = ChatJob { messages, prompt, tools, variables, form: Form::read(fields)?, options };
    Ok(ChatBody { job, shape, stream: fields.bool("stream")?.unwrap_or(false) })
}

/// `stream_options.include_usage`.
///
/// # Errors
/// 400 when it is no bool.
pub fn include_usage(fields: Fields<'_>) -> Result<bool, ApiError> {
    match fields.object("stream_options")? {
        Some(map) => Ok(Fields::at(map, "stream_options").bool("include_usage")?.unwrap_or(false)),
        None => Ok(false),
    }
}

/// Tokens counted, as OpenAI's API has it.
pub fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.prompt + usage.generated,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    })
}

/// What is told of tokens.
pub struct TokenReports {
    pub text: TextProcessor,
    pub shape: Shape,
}

impl TokenReports {
    /// The text of one token; U+FFFD for bytes that are no text by themselves.
    pub fn spelled(&self, id: u32) -> String {
        self.text.decode(&[id], false).unwrap_or_default()
    }

    /// The bytes that a token adds to a text, where it is part of it.
    pub fn written(&self, id: u32) -> Vec<u8> {
        let ordinary = || self.text.token(id).filter(|_| self.text.kind(id) == TokenKind::Ordinary);
        let word = || ordinary().map(|token| token.replace('\u{2581}', " ").into_bytes());
        self.text.bytes(id).or_else(word).unwrap_or_else(|| self.spelled(id).into_bytes())
    }

    /// `logprobs` of OpenAI's chats.
    fn logprobs(&self, tokens: &[Token]) -> Value {
        let entry = |id: u32, logprob: f64| {
            let text = self.spelled(id);
            let bytes = self.text.bytes(id).unwrap_or_else(|| text.clone().into_bytes());
            json!({"token": text, "logprob": finite(logprob), "bytes": bytes})
        };
        let content: Vec<Value> = tokens
            .iter()
            .filter_map(|token| {
                let known = token.log_probabilities.as_ref()?;
                let mut told = entry(token.id, known.chosen);
                let top: Vec<Value> = known.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
                told.as_object_mut()?.insert("top_logprobs".into(), top.into());
                Some(told)
            })
            .collect();
        json!({ "content": content })
    }

    /// The depth of tokens.
    pub fn trace(&self, tokens: &[Token]) -> Value {
        let entry = |token: &Token| {
            let depth = token.depth.as_ref()?;
            let text = self.spelled(token.id);
            Some(json!({"token": token.id, "text": text, "mean_steps": depth.mean_steps(), "steps": depth.steps}))
        };
        tokens.iter().filter_map(entry).collect()
    }

    /// Adds what was asked for to a whole choice, which may have no tokens.
    fn add(&self, choice: &mut Map<String, Value>, tokens: &[Token]) {
        let logprobs = if self.shape.logprobs { self.logprobs(tokens) } else { Value::Null };
        choice.insert("logprobs".into(), logprobs);
        if self.shape.trace {
            choice.insert("trace".into(), self.trace(tokens));
        }
    }

    /// Adds it to a choice of a chunk, which says nothing where it has no tokens.
    fn add_to_chunk(&self, choice: &mut Map<String, Value>, tokens: &[Token]) {
        if tokens.is_empty() {
            choice.insert("logprobs".into(), Value::Null);
        } else {
            self.add(choice, tokens);
        }
    }
}

/// JSON has no infinities.
pub fn finite(logprob: f64) -> f64 {
    logprob.max(-9999.0)
}

/// A call in an answer.
fn call(call: &Call) -> Value {
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
}

/// The whole answer.
pub fn whole(head: &Head, answers: &[Answer], tokens: Usage, reports: &TokenReports) -> Value {
    let choice = |(index, answer): (usize, &Answer)| {
        let content = if answer.calls.is_empty() || !answer.content.is_empty() {
            Value::String(answer.content.clone())
        } else {
            Value::Null
        };
        let mut message = json!({"role": "assistant", "content": content});
        if let Some(message) = message.as_object_mut() {
            if !answer.reasoning.is_empty() {
                message.insert("reasoning_content".into(), answer.reasoning.clone().into());
            }
            if !answer.calls.is_empty() {
                message.insert("tool_calls".into(), answer.calls.iter().map(call).collect());
            }
        }
        let mut choice = Map::new();
        choice.insert("index".into(), index.into());
        choice.insert("message".into(), message);
        choice.insert("finish_reason".into(), answer.reason().name().into());
        reports.add(&mut choice, &answer.tokens);
        if let Some(end) = &answer.end {
            choice.insert("seed".into(), end.seed.clone().into());
            if let Some(steps) = end.mean_steps {
                choice.insert("mean_steps".into(), steps.into());
            }
        }
        Value::Object(choice)
    };
    let choices: Vec<Value> = answers.iter().enumerate().map(choice).collect();
    json!({
        "id": head.id, "object": "chat.completion", "created": head.created, "model": &*head.model,
        "choices": choices, "usage": usage(tokens),
    })
}

/// Chunks of a streamed chat.
pub struct Chunks {
    pub head: Head,
    pub reports: TokenReports,
    /// Per answer: tokens whose text is held back.
    held: Vec<Vec<Token>>,
}

impl Chunks {
    /// For `n` answers.
    pub fn new(head: Head, reports: TokenReports, n: usize) -> Self {
        Self { head, reports, held: vec![Vec::new(); n] }
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let Head { id, created, model } = &self.head;
        let mut chunk = json!({
            "id": id, "object": "chat.completion.chunk", "created": created, "model": &**model, "choices": choices,
        });
        if let (true, Some(chunk)) = (self.reports.shape.usage, chunk.as_object_mut()) {
            chunk.insert("usage".into(), Value::Null);
        }
        chunk
    }

    fn choice(&mut self, index: usize, delta: Value) -> Map<String, Value> {
        let tokens = self.held.get_mut(index).map(std::mem::take).unwrap_or_default();
        let mut choice = Map::new();
        choice.insert("index".into(), index.into());
        choice.insert("delta".into(), delta);
        choice.insert("finish_reason".into(), Value::Null);
        self.reports.add_to_chunk(&mut choice, &tokens);
        choice
    }

    /// The delta of a part.
    fn part(part: AnswerPart) -> Value {
        match part {
            AnswerPart::Content(text) => json!({ "content": text }),
            AnswerPart::Reasoning(text) => json!({ "reasoning_content": text }),
            AnswerPart::ToolCallBegin { index, id, name } => {
                let function = json!({"name": name, "arguments": ""});
                json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
            }
            AnswerPart::ToolCallArguments { index, delta } => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": delta}}]})
            }
        }
    }
}

impl Encoder for Chunks {
    fn begin(&mut self, events: &mut Events) {
        for index in 0..self.held.len() {
            let choice = self.choice(index, json!({"role": "assistant", "content": ""}));
            let chunk = self.chunk(vec![choice.into()]);
            events.data(&chunk);
        }
    }

    fn delta(&mut self, delta: Delta, events: &mut Events) {
        let Delta { choice: index, parts, tokens, end, .. } = delta;
        let Shape { logprobs, trace, .. } = self.reports.shape;
        if let (true, Some(held)) = (logprobs || trace, self.held.get_mut(index)) {
            held.extend(tokens);
        }
        for part in parts {
            let choice = self.choice(index, Self::part(part));
            let chunk = self.chunk(vec![choice.into()]);
            events.data(&chunk);
        }
        if let Some(end) = end {
            let mut choice = self.choice(index, json!({}));
            choice.insert("finish_reason".into(), end.reason.name().into());
            choice.insert("seed".into(), end.seed.clone().into());
            if let Some(steps) = end.mean_steps {
                choice.insert("mean_steps".into(), steps.into());
            }
            let chunk = self.chunk(vec![choice.into()]);
            events.data(&chunk);
        }
    }

    fn end(&mut self, tokens: Usage, events: &mut Events) {
        if self.reports.shape.usage {
            let mut chunk = self.chunk(Vec::new());
            if let Some(chunk) = chunk.as_object_mut() {
                chunk.insert("usage".into(), usage(tokens));
            }
            events.data(&chunk);
        }
        events.done();
    }

    fn error(&mut self, error: &ApiError, events: &mut Events) {
        events.data(&error.body(Dialect::OpenAi));
        events.done();
    }
}
