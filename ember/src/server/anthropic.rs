//! `/v1/messages`: answers, whole and streamed.

use emberlm::model::text::AnswerPart;
use serde_json::{Map, Value, json};

use super::blocks::{Block, BlockEvent, Blocks};
use super::error::{ApiError, Dialect};
use super::run::{Answer, Delta, Reason, Usage};
use super::sse::{Encoder, Events, Head};

/// Cached tokens are counted apart.
fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt.saturating_sub(usage.cached), "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0, "output_tokens": usage.generated,
    })
}

fn stop_reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Stop => "end_turn",
        Reason::Length => "max_tokens",
        Reason::ToolCalls => "tool_use",
    }
}

fn message(head: &Head, content: &[Value], reason: Option<Reason>, tokens: Usage) -> Value {
    json!({
        "id": head.id, "type": "message", "role": "assistant", "model": &*head.model, "content": content,
        "stop_reason": reason.map(stop_reason), "stop_sequence": null, "usage": usage(tokens),
    })
}

/// The whole answer.
pub fn whole(head: &Head, answer: &Answer, tokens: Usage) -> Value {
    let mut content = Vec::new();
    if !answer.reasoning.is_empty() {
        content.push(json!({"type": "thinking", "thinking": answer.reasoning, "signature": ""}));
    }
    if !answer.content.is_empty() || answer.calls.is_empty() {
        content.push(json!({"type": "text", "text": answer.content}));
    }
    for call in &answer.calls {
        let input: Map<String, Value> = serde_json::from_str(&call.arguments).unwrap_or_default();
        content.push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input}));
    }
    message(head, &content, Some(answer.reason()), tokens)
}

/// The events of a streamed answer.
pub struct MessageEvents {
    head: Head,
    /// Tokens of the prompt, which are told before any is read.
    prompt: usize,
    blocks: Blocks,
    reason: Reason,
    any: bool,
}

impl MessageEvents {
    pub fn new(head: Head, prompt: usize) -> Self {
        Self { head, prompt, blocks: Blocks::default(), reason: Reason::Stop, any: false }
    }

    fn block(&mut self, event: BlockEvent, events: &mut Events) {
        self.any = true;
        match event {
            BlockEvent::Open(at, block) => {
                let block = match block {
                    Block::Reasoning => json!({"type": "thinking", "thinking": "", "signature": ""}),
                    Block::Text => json!({"type": "text", "text": ""}),
                    Block::Call { id, name, .. } => json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
                };
                let data = json!({"type": "content_block_start", "index": at, "content_block": block});
                events.named("content_block_start", &data);
            }
            BlockEvent::Text(at, block, text) => {
                let delta = match block {
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
}

impl Encoder for MessageEvents {
    fn begin(&mut self, events: &mut Events) {
        let tokens = Usage { prompt: self.prompt, ..Usage::default() };
        let data = json!({"type": "message_start", "message": message(&self.head, &[], None, tokens)});
        events.named("message_start", &data);
    }

    fn delta(&mut self, delta: Delta, events: &mut Events) {
        for part in delta.parts {
            for event in self.blocks.push(part) {
                self.block(event, events);
            }
        }
        if let Some(end) = delta.end {
            self.reason = end.reason;
        }
    }

    fn end(&mut self, tokens: Usage, events: &mut Events) {
        if !self.any {
            for event in self.blocks.push(AnswerPart::Content(String::new())) {
                self.block(event, events);
            }
        }
        if let Some(event) = self.blocks.close() {
            self.block(event, events);
        }
        let delta = json!({"stop_reason": stop_reason(self.reason), "stop_sequence": null});
        events.named("message_delta", &json!({"type": "message_delta", "delta": delta, "usage": usage(tokens)}));
        events.named("message_stop", &json!({"type": "message_stop"}));
    }

    fn error(&mut self, error: &ApiError, events: &mut Events) {
        events.named("error", &error.body(Dialect::Anthropic));
    }
}
