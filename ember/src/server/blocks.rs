//! Deltas as blocks one after the other: thoughts, text, calls. The two newer APIs stream an answer so.

use emberlm::model::text::AnswerPart;

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

/// The block that is open.
#[derive(Debug, Default)]
pub struct Blocks {
    open: Option<(Block, String)>,
    count: usize,
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
