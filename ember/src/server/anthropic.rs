//! `/v1/messages`: answers, whole and streamed.

use serde_json::{Map, Value, json};

use super::blocks::{Block, BlockEncoder, BlockEvent, of_answer};
use super::error::{ApiError, Dialect};
use super::run::{Answer, End, Reason, Usage};
use super::sse::{Events, Head};

/// The strings that a client wants its answer to end at: they are told, those of the model's own files are not.
pub struct StopSequences(Vec<String>);

impl StopSequences {
    /// Those of a body that was checked.
    pub fn of(body: &Map<String, Value>) -> Self {
        let given = body.get("stop_sequences").and_then(Value::as_array);
        Self(given.into_iter().flatten().filter_map(|stop| Some(stop.as_str()?.to_owned())).collect())
    }

    /// `stop_reason` and `stop_sequence`.
    fn tell<'a>(&self, end: Option<&'a End>) -> (&'static str, Option<&'a str>) {
        let met = end.and_then(|end| end.stop_string.as_deref()).filter(|met| self.0.iter().any(|stop| stop == met));
        match (end.map_or(Reason::Stop, |end| end.reason), met) {
            (Reason::ToolCalls, _) => ("tool_use", None),
            (Reason::Length, _) => ("max_tokens", None),
            (Reason::Stop, Some(met)) => ("stop_sequence", Some(met)),
            (Reason::Stop, None) => ("end_turn", None),
        }
    }
}

/// Cached tokens are counted apart.
fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt.saturating_sub(usage.cached), "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0, "output_tokens": usage.generated,
    })
}

/// `end` is there once it has ended.
fn message(head: &Head, content: &[Value], end: Option<(&str, Option<&str>)>, tokens: Usage) -> Value {
    json!({
        "id": head.id, "type": "message", "role": "assistant", "model": &*head.model, "content": content,
        "stop_reason": end.map(|(reason, _)| reason), "stop_sequence": end.and_then(|(_, sequence)| sequence),
        "usage": usage(tokens),
    })
}

/// A block; `text` is there once it has ended.
fn block(block: &Block, text: Option<&str>) -> Value {
    let whole = text.unwrap_or_default();
    match block {
        Block::Reasoning => json!({"type": "thinking", "thinking": whole, "signature": ""}),
        Block::Text => json!({"type": "text", "text": whole}),
        Block::Call { id, name, .. } => {
            let input: Map<String, Value> = serde_json::from_str(whole).unwrap_or_default();
            json!({"type": "tool_use", "id": id, "name": name, "input": input})
        }
    }
}

/// The whole answer.
pub fn whole(head: &Head, answer: &Answer, stops: &StopSequences, tokens: Usage) -> Value {
    let content: Vec<Value> = of_answer(answer).iter().map(|(kind, text)| block(kind, Some(text))).collect();
    message(head, &content, Some(stops.tell(answer.end.as_ref())), tokens)
}

/// The events of a streamed answer.
pub struct MessageEvents {
    head: Head,
    stops: StopSequences,
    /// Tokens of the prompt, which are told before any is read.
    prompt: usize,
}

impl MessageEvents {
    pub fn new(head: Head, stops: StopSequences, prompt: usize) -> Self {
        Self { head, stops, prompt }
    }
}

impl BlockEncoder for MessageEvents {
    fn begin(&mut self, events: &mut Events) {
        let tokens = Usage { prompt: self.prompt, ..Usage::default() };
        let data = json!({"type": "message_start", "message": message(&self.head, &[], None, tokens)});
        events.named("message_start", &data);
    }

    fn block(&mut self, event: BlockEvent, events: &mut Events) {
        match event {
            BlockEvent::Open(at, kind) => {
                let data = json!({"type": "content_block_start", "index": at, "content_block": block(&kind, None)});
                events.named("content_block_start", &data);
            }
            BlockEvent::Text(at, kind, text) => {
                let delta = match kind {
                    Block::Reasoning => json!({"type": "thinking_delta", "thinking": text}),
                    Block::Text => json!({"type": "text_delta", "text": text}),
                    Block::Call { .. } => json!({"type": "input_json_delta", "partial_json": text}),
                };
                let data = json!({"type": "content_block_delta", "index": at, "delta": delta});
                events.named("content_block_delta", &data);
            }
            BlockEvent::Close(at, _, _) => {
                events.named("content_block_stop", &json!({"type": "content_block_stop", "index": at}));
            }
        }
    }

    fn end(&mut self, end: Option<&End>, tokens: Usage, events: &mut Events) {
        let (reason, sequence) = self.stops.tell(end);
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        events.named("message_delta", &json!({"type": "message_delta", "delta": delta, "usage": usage(tokens)}));
        events.named("message_stop", &json!({"type": "message_stop"}));
    }

    fn error(&mut self, error: &ApiError, events: &mut Events) {
        events.named("error", &error.body(Dialect::Anthropic));
    }
}
