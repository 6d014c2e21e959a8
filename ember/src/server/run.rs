//! Answers being generated: what the engine says becomes parts of answers, the same for streams and for whole answers.
//!
//! Dropping a [`Run`] cancels what is still generated.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use emberlm::model::engine::{EngineHandle, Finish, LogProbabilities, Piece, Request, Summary, Ticket, Update};
use emberlm::model::generate::TokenDepth;
use emberlm::model::text::{AnswerParser, AnswerPart};
use serde_json::Number;
use tokio::sync::mpsc;

use super::error::ApiError;
use super::ids::told_seed;
use super::limits;
use super::record::Record;

/// One answer to be generated.
#[derive(Debug)]
pub struct Ask {
    pub request: Request,
    /// What takes the answer apart; none: all is content.
    pub parser: Option<AnswerParser>,
    /// The prompt is that of the ask before, and not counted again.
    pub same_prompt: bool,
    /// The prompt alone is of interest: what is generated is not told.
    pub silent: bool,
    /// Its seed is told with a sign.
    pub signed_seed: bool,
}

/// What became of an answer since the last one.
#[derive(Debug, Default)]
pub struct Delta {
    /// Which answer.
    pub choice: usize,
    pub parts: Vec<AnswerPart>,
    /// The tokens that were chosen; their text may come later.
    pub tokens: Vec<Token>,
    /// How probable the next tokens of the prompt were, where that is asked for.
    pub prompt: Vec<LogProbabilities>,
    /// The answer has ended.
    pub end: Option<End>,
}

/// A token that was chosen.
#[derive(Clone, Debug)]
pub struct Token {
    pub id: u32,
    pub depth: Option<TokenDepth>,
    pub log_probabilities: Option<LogProbabilities>,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub reason: Reason,
    /// The stop string that ended it, where one did.
    pub stop_string: Option<String>,
    /// Giving it again repeats the answer. None where nothing was drawn.
    pub seed: Option<Number>,
    /// Steps per layer and token, on average, with a trace.
    pub mean_steps: Option<f64>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Stop,
    Length,
    ToolCalls,
}

impl Reason {
    /// As OpenAI's API has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: usize,
    /// Of the prompt, those that were not computed again.
    pub cached: usize,
    pub generated: usize,
    /// Of the generated ones, those that the model thought with.
    pub reasoning: usize,
}

/// An answer that is generated.
#[derive(Debug)]
struct Choice {
    parser: Option<AnswerParser>,
    counts_prompt: bool,
    silent: bool,
    signed_seed: bool,
    called: bool,
    ended: bool,
    last_token: Option<Instant>,
}

/// The answers of one request.
pub struct Run {
    updates: mpsc::Receiver<(usize, Update)>,
    /// Dropping them cancels what goes on.
    _tickets: Vec<Ticket>,
    choices: Vec<Choice>,
    usage: Usage,
    record: Arc<Record>,
}

impl Run {
    /// Hands all asks to the engine, or none.
    ///
    /// # Errors
    /// When the engine refuses one of them.
    pub fn start(engine: &EngineHandle, asks: Vec<Ask>, record: &Arc<Record>) -> Result<Self, ApiError> {
        let (send, updates) = mpsc::channel(limits::UNREAD_UPDATES.saturating_mul(asks.len().max(1)));
        let mut requests = Vec::with_capacity(asks.len());
        let mut choices = Vec::with_capacity(asks.len());
        let mut usage = Usage::default();
        for (i, ask) in asks.into_iter().enumerate() {
            let send = send.clone();
            if !ask.same_prompt {
                usage.prompt += ask.request.prompt.len();
            }
            choices.push(Choice {
                parser: ask.parser,
                counts_prompt: !ask.same_prompt,
                silent: ask.silent,
                signed_seed: ask.signed_seed,
                called: false,
                ended: false,
                last_token: None,
            });
            // A full queue means that nobody has read for long; a closed one, that the client is gone.
            requests.push((ask.request, move |update| send.try_send((i, update)).is_ok()));
        }
        let tickets = engine.submit_all(requests)?;
        record.prompt(usage.prompt);
        Ok(Self { updates, _tickets: tickets, choices, usage, record: record.clone() })
    }

    /// An answer whose updates come from elsewhere than an engine.
    #[cfg(test)]
    pub fn of(updates: mpsc::Receiver<(usize, Update)>, parser: AnswerParser, record: &Arc<Record>) -> Self {
        let choice = Choice {
            parser: Some(parser),
            counts_prompt: true,
            silent: false,
            signed_seed: false,
            called: false,
            ended: false,
            last_token: None,
        };
        Self { updates, _tickets: Vec::new(), choices: vec![choice], usage: Usage::default(), record: record.clone() }
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// What comes next; none when every answer has ended.
    pub async fn next(&mut self) -> Option<Result<Delta, ApiError>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`next`](Self::next), for streams.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Delta, ApiError>>> {
        loop {
            if self.choices.iter().all(|choice| choice.ended) {
                return Poll::Ready(None);
            }
            match self.updates.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    self.fail();
                    let message = "the answer was given up: its reader was too slow, or the engine has stopped";
                    return Poll::Ready(Some(Err(ApiError::internal(message))));
                }
                Poll::Ready(Some((i, update))) => match self.take(i, update) {
                    Ok(None) => {}
                    Ok(Some(delta)) => return Poll::Ready(Some(Ok(delta))),
                    Err(error) => {
                        self.fail();
                        return Poll::Ready(Some(Err(error)));
                    }
                },
            }
        }
    }

    /// None of them goes on.
    fn fail(&mut self) {
        for choice in self.choices.iter_mut().filter(|choice| !choice.ended) {
            choice.ended = true;
            self.record.reason("error");
        }
    }

    fn take(&mut self, i: usize, update: Update) -> Result<Option<Delta>, ApiError> {
        let Some(choice) = self.choices.get_mut(i) else { return Ok(None) };
        match update {
            Update::Started { cached, .. } => {
                if choice.counts_prompt {
                    self.usage.cached += cached;
                    self.record.cached(self.usage.cached);
                }
                Ok(None)
            }
            Update::PromptRead { log_probabilities, .. } if !log_probabilities.is_empty() => {
                Ok(Some(Delta { choice: i, prompt: log_probabilities, ..Delta::default() }))
            }
            Update::Token(_) if choice.silent => Ok(None),
            Update::Token(piece) => {
                if piece.token.is_some() {
                    self.record.token(&mut choice.last_token);
                    self.usage.generated += 1;
                }
                let delta = choice.piece(i, piece);
                if delta.parts.iter().any(|part| matches!(part, AnswerPart::Reasoning(_))) {
                    self.usage.reasoning += delta.tokens.len();
                }
                Ok(Some(delta))
            }
            Update::Finished(summary) => {
                let delta = choice.finish(i, &summary)?;
                self.record.reason(delta.end.as_ref().map_or("stop", |end| end.reason.name()));
                Ok(Some(delta))
            }
            Update::Failed(error) => Err(error.into()),
            _ => Ok(None),
        }
    }
}

impl Drop for Run {
    /// Whoever asked is gone.
    fn drop(&mut self) {
        self.choices.iter().filter(|choice| !choice.ended).for_each(|_| self.record.cancelled());
    }
}

impl Choice {
    fn piece(&mut self, choice: usize, piece: Piece) -> Delta {
        let parts = match &mut self.parser {
            Some(parser) => parser.push_token(&piece.text, piece.token),
            None if piece.text.is_empty() => Vec::new(),
            None => vec![AnswerPart::Content(piece.text)],
        };
        self.note_calls(&parts);
        let (depth, log_probabilities) = (piece.depth, piece.log_probabilities);
        let tokens = piece.token.map(|id| Token { id, depth, log_probabilities }).into_iter().collect();
        Delta { choice, parts, tokens, ..Delta::default() }
    }

    fn note_calls(&mut self, parts: &[AnswerPart]) {
        self.called |= parts.iter().any(|part| matches!(part, AnswerPart::ToolCallBegin { .. }));
    }

    fn finish(&mut self, choice: usize, summary: &Summary) -> Result<Delta, ApiError> {
        let parts = self.parser.as_mut().map(AnswerParser::finish).unwrap_or_default();
        self.note_calls(&parts);
        let reason = match summary.finish {
            Finish::Cancelled => return Err(ApiError::draining()),
            _ if self.silent => Reason::Length,
            Finish::Length => Reason::Length,
            Finish::Stop if self.called => Reason::ToolCalls,
            Finish::Stop => Reason::Stop,
        };
        self.ended = true;
        let stop_string = summary.stop_string.clone().filter(|_| summary.finish == Finish::Stop);
        let seed = summary.seed.filter(|_| !self.silent).map(|seed| told_seed(seed, self.signed_seed));
        let end = End { reason, stop_string, seed, mean_steps: summary.mean_steps };
        Ok(Delta { choice, parts, end: Some(end), ..Delta::default() })
    }
}

/// A whole answer.
#[derive(Debug, Default)]
pub struct Answer {
    pub content: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
    pub tokens: Vec<Token>,
    /// Of the tokens of the prompt but the first, where that is asked for.
    pub prompt: Vec<LogProbabilities>,
    pub end: Option<End>,
}

/// A call of a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    pub index: usize,
    pub id: String,
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

impl Answer {
    /// Adds a delta of this answer.
    pub fn push(&mut self, delta: Delta) {
        for part in delta.parts {
            match part {
                AnswerPart::Content(text) => self.content.push_str(&text),
                AnswerPart::Reasoning(text) => self.reasoning.push_str(&text),
                AnswerPart::ToolCallBegin { index, id, name } => {
                    self.calls.push(Call { index, id, name, arguments: String::new() });
                }
                AnswerPart::ToolCallArguments { index, delta } => {
                    if let Some(call) = self.calls.iter_mut().find(|call| call.index == index) {
                        call.arguments.push_str(&delta);
                    }
                }
            }
        }
        self.tokens.extend(delta.tokens);
        self.prompt.extend(delta.prompt);
        self.end = delta.end.or(self.end.take());
    }

    /// Why it ended.
    pub fn reason(&self) -> Reason {
        self.end.as_ref().map_or(Reason::Stop, |end| end.reason)
    }
}

/// Waits for all answers.
///
/// # Errors
/// When one of them fails.
pub async fn collect(mut run: Run) -> Result<(Vec<Answer>, Usage), ApiError> {
    let mut answers: Vec<Answer> = run.choices.iter().map(|_| Answer::default()).collect();
    while let Some(delta) = run.next().await {
        let delta = delta?;
        if let Some(answer) = answers.get_mut(delta.choice) {
            answer.push(delta);
        }
    }
    Ok((answers, run.usage()))
}
