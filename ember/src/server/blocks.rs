//! Answers as blocks one after the other: thoughts, text, calls. The two newer APIs tell an answer so, whole and streamed.

use emberlm::model::text::AnswerPart;

use super::error::ApiError;
use super::run::{Answer, Delta, End, Usage};
use super::sse::{Encoder, Events};

/// What a block holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    Reasoning,
    Text,
    Call { index: usize, id: String, name: String },
}

/// What happens to blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockEvent {
    /// A block begins; its number counts from 0.
    Open(usize, Block),
    /// It goes on.
    Text(usize, Block, String),
    /// It has ended, and was this in all.
    Close(usize, Block, String),
}

/// The blocks of a whole answer. An answer is never without a text or a call.
pub fn of_answer(answer: &Answer) -> Vec<(Block, &str)> {
    let mut blocks = Vec::new();
    if !answer.reasoning.is_empty() {
        blocks.push((Block::Reasoning, answer.reasoning.as_str()));
    }
    if !answer.content.is_empty() || answer.calls.is_empty() {
        blocks.push((Block::Text, answer.content.as_str()));
    }
    blocks.extend(answer.calls.iter().map(|call| {
        let (id, name) = (call.id.clone(), call.name.clone());
        (Block::Call { index: call.index, id, name }, call.arguments.as_str())
    }));
    blocks
}

/// Writes blocks as the events of one kind of API.
pub trait BlockEncoder: Send + 'static {
    /// Before anything is generated.
    fn begin(&mut self, events: &mut Events);
    /// What happens to a block.
    fn block(&mut self, event: BlockEvent, events: &mut Events);
    /// The answer has ended, and all its blocks.
    fn end(&mut self, end: Option<&End>, usage: Usage, events: &mut Events);
    /// The answer could not be ended.
    fn error(&mut self, error: &ApiError, events: &mut Events);
}

/// A streamed answer in blocks.
#[derive(Debug)]
pub struct BlockStream<E> {
    encoder: E,
    blocks: Blocks,
    end: Option<End>,
}

impl<E: BlockEncoder> BlockStream<E> {
    pub fn new(encoder: E) -> Self {
        Self { encoder, blocks: Blocks::default(), end: None }
    }

    fn push(&mut self, part: AnswerPart, events: &mut Events) {
        for event in self.blocks.push(part) {
            self.encoder.block(event, events);
        }
    }
}

impl<E: BlockEncoder> Encoder for BlockStream<E> {
    fn begin(&mut self, events: &mut Events) {
        self.encoder.begin(events);
    }

    fn delta(&mut self, delta: Delta, events: &mut Events) {
        for part in delta.parts {
            self.push(part, events);
        }
        self.end = delta.end.or(self.end.take());
    }

    fn end(&mut self, usage: Usage, events: &mut Events) {
        if !self.blocks.answered {
            self.push(AnswerPart::Content(String::new()), events);
        }
        if let Some(event) = self.blocks.close() {
            self.encoder.block(event, events);
        }
        self.encoder.end(self.end.as_ref(), usage, events);
    }

    fn error(&mut self, error: &ApiError, events: &mut Events) {
        self.encoder.error(error, events);
    }
}

/// The block that is open.
#[derive(Debug, Default)]
pub struct Blocks {
    open: Option<(Block, String)>,
    count: usize,
    /// There was a text or a call.
    answered: bool,
}

impl Blocks {
    /// What a part of an answer does.
    pub fn push(&mut self, part: AnswerPart) -> Vec<BlockEvent> {
        let (block, text) = match part {
            AnswerPart::Content(text) => (Block::Text, text),
            AnswerPart::Reasoning(text) => (Block::Reasoning, text),
            AnswerPart::ToolCallBegin { index, id, name } => (Block::Call { index, id, name }, String::new()),
            AnswerPart::ToolCallArguments { delta, .. } => match &self.open {
                Some((block, _)) => (block.clone(), delta),
                None => return Vec::new(),
            },
        };
        let mut events = Vec::new();
        if self.open.as_ref().is_none_or(|(open, _)| *open != block) {
            events.extend(self.close());
            events.push(BlockEvent::Open(self.count, block.clone()));
            self.answered |= block != Block::Reasoning;
            self.open = Some((block, String::new()));
            self.count += 1;
        }
        if let Some((block, all)) = self.open.as_mut().filter(|_| !text.is_empty()) {
            all.push_str(&text);
            events.push(BlockEvent::Text(self.count.saturating_sub(1), block.clone(), text));
        }
        events
    }

    /// Ends the open block.
    pub fn close(&mut self) -> Option<BlockEvent> {
        let (block, text) = self.open.take()?;
        Some(BlockEvent::Close(self.count.saturating_sub(1), block, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_ends_where_another_begins() {
        let call = |index: usize| AnswerPart::ToolCallBegin { index, id: format!("id{index}"), name: "f".into() };
        let arguments = |index: usize| AnswerPart::ToolCallArguments { index, delta: "{}".into() };
        let parts = [
            AnswerPart::Reasoning("h".into()),
            AnswerPart::Reasoning("m".into()),
            AnswerPart::Content("a".into()),
            call(0),
            arguments(0),
            call(1),
            arguments(1),
        ];
        let mut blocks = Blocks::default();
        let mut told: Vec<String> = Vec::new();
        let tell = |event: BlockEvent| match event {
            BlockEvent::Open(i, _) => format!("+{i}"),
            BlockEvent::Text(i, _, text) => format!("{i}:{text}"),
            BlockEvent::Close(i, _, text) => format!("-{i}:{text}"),
        };
        parts.into_iter().for_each(|part| told.extend(blocks.push(part).into_iter().map(tell)));
        told.extend(blocks.close().map(tell));
        assert_eq!(told.join(" "), "+0 0:h 0:m -0:hm +1 1:a -1:a +2 2:{} -2:{} +3 3:{} -3:{}");
        assert_eq!(blocks.close(), None);
    }
}
