//! `/v1/responses`: answers, whole and streamed.

use serde_json::{Value, json};

use super::blocks::{Block, BlockEncoder, BlockEvent, of_answer};
use super::error::{ApiError, Dialect};
use super::ids::new_id;
use super::responses_echo::Echo;
use super::run::{Answer, End, Reason, Usage};
use super::sse::{Events, Head};

fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        // What is written to the cache is not counted.
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.generated, "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.generated,
    })
}

/// The answer as an object; `end` is there once it has ended.
fn response(head: &Head, echo: &Echo, output: &[Value], end: Option<(Reason, Usage)>) -> Value {
    let mut output = output.to_vec();
    if let Some((Reason::Length, _)) = end
        && let Some(last) = output.last_mut().and_then(Value::as_object_mut)
    {
        last.insert("status".into(), "incomplete".into());
    }
    let (status, why) = match end {
        None => ("in_progress", Value::Null),
        Some((Reason::Length, _)) => ("incomplete", json!({"reason": "max_output_tokens"})),
        Some(_) => ("completed", Value::Null),
    };
    let mut response = json!({
        "id": head.id, "object": "response", "created_at": head.created, "model": &*head.model, "status": status,
        "incomplete_details": why, "error": null, "output": output, "usage": end.map(|(_, tokens)| usage(tokens)),
    });
    if let Some(response) = response.as_object_mut() {
        echo.add_to(response);
    }
    response
}

fn item_prefix(block: &Block) -> &'static str {
    match block {
        Block::Reasoning => "rs_",
        Block::Text => "msg_",
        Block::Call { .. } => "fc_",
    }
}

/// A part of an answer; `text` is there once it has ended.
fn item(id: &str, block: &Block, text: Option<&str>) -> Value {
    let status = if text.is_some() { "completed" } else { "in_progress" };
    match block {
        Block::Reasoning => {
            let content: Vec<Value> =
                text.map(|text| json!({"type": "reasoning_text", "text": text})).into_iter().collect();
            json!({"type": "reasoning", "id": id, "summary": [], "content": content, "status": status})
        }
        Block::Text => {
            let content: Vec<Value> = text.map(text_part).into_iter().collect();
            json!({"type": "message", "id": id, "role": "assistant", "content": content, "status": status})
        }
        Block::Call { id: call, name, .. } => json!({
            "type": "function_call", "id": id, "call_id": call, "name": name,
            "arguments": text.unwrap_or_default(), "status": status,
        }),
    }
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// The whole answer.
pub fn whole(head: &Head, echo: &Echo, answer: &Answer, tokens: Usage) -> Value {
    let item = |(block, text): &(Block, &str)| item(&new_id(item_prefix(block)), block, Some(text));
    let output: Vec<Value> = of_answer(answer).iter().map(item).collect();
    response(head, echo, &output, Some((answer.reason(), tokens)))
}

/// The events of a streamed answer.
pub struct ResponseEvents {
    head: Head,
    echo: Echo,
    /// Blocks that have ended.
    output: Vec<Value>,
    /// Of the open block.
    item: String,
    number: usize,
}

impl ResponseEvents {
    pub fn new(head: Head, echo: Echo) -> Self {
        Self { head, echo, output: Vec::new(), item: String::new(), number: 0 }
    }

    fn send(&mut self, kind: &str, mut data: Value, events: &mut Events) {
        if let Some(data) = data.as_object_mut() {
            data.insert("type".into(), kind.into());
            data.insert("sequence_number".into(), self.number.into());
        }
        self.number += 1;
        events.named(kind, &data);
    }
}

impl BlockEncoder for ResponseEvents {
    fn begin(&mut self, events: &mut Events) {
        for kind in ["response.created", "response.in_progress"] {
            let data = json!({"response": response(&self.head, &self.echo, &[], None)});
            self.send(kind, data, events);
        }
    }

    fn block(&mut self, event: BlockEvent, events: &mut Events) {
        match event {
            BlockEvent::Open(at, block) => {
                self.item = new_id(item_prefix(&block));
                let added = json!({"output_index": at, "item": item(&self.item, &block, None)});
                self.send("response.output_item.added", added, events);
                if block == Block::Text {
                    let part =
                        json!({"item_id": self.item, "output_index": at, "content_index": 0, "part": text_part("")});
                    self.send("response.content_part.added", part, events);
                }
            }
            BlockEvent::Text(at, block, text) => {
                let mut delta = json!({"item_id": self.item, "output_index": at, "delta": text});
                if let (false, Some(delta)) = (matches!(block, Block::Call { .. }), delta.as_object_mut()) {
                    delta.insert("content_index".into(), 0.into());
                }
                let kind = match block {
                    Block::Reasoning => "response.reasoning_text.delta",
                    Block::Text => {
                        if let Some(delta) = delta.as_object_mut() {
                            delta.insert("logprobs".into(), json!([]));
                        }
                        "response.output_text.delta"
                    }
                    Block::Call { .. } => "response.function_call_arguments.delta",
                };
                self.send(kind, delta, events);
            }
            BlockEvent::Close(at, block, text) => {
                let place = json!({"item_id": self.item, "output_index": at});
                let with = |more: Value| {
                    let mut all = place.clone();
                    if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
                        all.extend(more);
                    }
                    all
                };
                match &block {
                    Block::Reasoning => {
                        let done = with(json!({"content_index": 0, "text": text}));
                        self.send("response.reasoning_text.done", done, events);
                    }
                    Block::Text => {
                        let done = with(json!({"content_index": 0, "text": text, "logprobs": []}));
                        self.send("response.output_text.done", done, events);
                        let done = with(json!({"content_index": 0, "part": text_part(&text)}));
                        self.send("response.content_part.done", done, events);
                    }
                    Block::Call { name, .. } => {
                        let done = with(json!({"name": name, "arguments": text}));
                        self.send("response.function_call_arguments.done", done, events);
                    }
                }
                let whole = item(&self.item, &block, Some(&text));
                self.output.push(whole.clone());
                self.send("response.output_item.done", json!({"output_index": at, "item": whole}), events);
            }
        }
    }

    fn end(&mut self, end: Option<&End>, usage: Usage, events: &mut Events) {
        let reason = end.map_or(Reason::Stop, |end| end.reason);
        let data = json!({"response": response(&self.head, &self.echo, &self.output, Some((reason, usage)))});
        let kind = if reason == Reason::Length { "response.incomplete" } else { "response.completed" };
        self.send(kind, data, events);
    }

    fn error(&mut self, error: &ApiError, events: &mut Events) {
        let mut failed = response(&self.head, &self.echo, &self.output, None);
        if let (Some(failed), Some(told)) = (failed.as_object_mut(), error.body(Dialect::OpenAi).get("error")) {
            failed.insert("status".into(), "failed".into());
            failed.insert("error".into(), json!({"code": "server_error", "message": told.get("message")}));
        }
        self.send("response.failed", json!({ "response": failed }), events);
    }
}
