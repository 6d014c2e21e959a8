//! Text whose difficulty is known: documents in which every part has a [`Class`].
//!
//! A document is a story, a sheet of exercises, or a chat about either. Held-out text shares no story and no exercise with the
//! training text, whatever the seeds: a hash of each decides on which side it is.

use crate::exercises;
use crate::random::{Random, hash};
use crate::story;

/// The end of a document.
pub const END: &str = "<|endoftext|>";
pub const IM_START: &str = "<|im_start|>";
pub const IM_END: &str = "<|im_end|>";

/// What kind of thing a token is: how hard it should be to foretell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Turns of a chat, ends of documents and lines.
    Markup,
    /// Full stops, commas, quotation marks.
    Punctuation,
    /// Words of the sentence patterns.
    Word,
    /// A free choice of the author: no amount of thought foretells it.
    Open,
    /// Names and things that the story has mentioned.
    Repeat,
    /// Numbers in counting.
    Count,
    /// Letters to be copied.
    Copy,
    /// Digits to be sorted.
    Sort,
    /// A digit of a sum that nothing is carried into.
    Sum,
    /// A digit of a sum that something is carried into.
    Carry,
    /// What a question about a story asks for.
    Answer,
}

impl Class {
    pub const ALL: [Self; 11] = [
        Self::Markup,
        Self::Punctuation,
        Self::Word,
        Self::Open,
        Self::Repeat,
        Self::Count,
        Self::Copy,
        Self::Sort,
        Self::Sum,
        Self::Carry,
        Self::Answer,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Markup => "markup",
            Self::Punctuation => "punctuation",
            Self::Word => "word",
            Self::Open => "open choice",
            Self::Repeat => "repeated name",
            Self::Count => "counting",
            Self::Copy => "copying",
            Self::Sort => "sorting",
            Self::Sum => "sum digit",
            Self::Carry => "carried digit",
            Self::Answer => "answer",
        }
    }
}

/// Which half of the world a document is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    HeldOut,
}

impl Split {
    /// Whether what `key` identifies belongs to this side: one in ten is held out.
    pub fn has(self, key: &str) -> bool {
        (hash(key) >> 7).is_multiple_of(10) == (self == Self::HeldOut)
    }
}

/// A text and the classes of its parts.
#[derive(Clone, Debug, Default)]
pub struct Document {
    pub text: String,
    /// Up to this byte, what comes is of this class.
    parts: Vec<(usize, Class)>,
}

impl Document {
    pub fn push(&mut self, class: Class, text: &str) {
        self.text.push_str(text);
        self.parts.push((self.text.len(), class));
    }

    /// Words and the punctuation between them.
    pub fn sentence(&mut self, text: &str) {
        for c in text.chars() {
            let class = match c {
                '.' | ',' | '!' | '?' | '"' | ':' => Class::Punctuation,
                '\n' => Class::Markup,
                _ => Class::Word,
            };
            self.text.push(c);
            match self.parts.last_mut() {
                Some((end, last)) if *last == class => *end = self.text.len(),
                _ => self.parts.push((self.text.len(), class)),
            }
        }
    }

    pub fn append(&mut self, other: &Self) {
        let start = self.text.len();
        self.text.push_str(&other.text);
        self.parts.extend(other.parts.iter().map(|&(end, class)| (start + end, class)));
    }

    /// The class of a token that ends at byte `end`.
    pub fn class_at(&self, end: usize) -> Class {
        let part = self.parts.partition_point(|&(part, _)| part < end);
        self.parts.get(part).map_or(Class::Markup, |&(_, class)| class)
    }
}

/// The next document of a stream.
pub fn document(random: &mut Random, split: Split) -> Document {
    let mut document = match random.below(100) {
        0..50 => story::story(random, split).1,
        50..62 => {
            let (request, story) = story::story(random, split);
            chat(&request, &story)
        }
        62..94 => exercises::sheet(random, split),
        _ => {
            let (request, answer) = exercises::exercise(random, split).asked();
            chat(&request, &answer)
        }
    };
    document.push(Class::Markup, END);
    document
}

/// One turn of a user and the answer.
fn chat(request: &Document, answer: &Document) -> Document {
    let mut chat = Document::default();
    let turn = |chat: &mut Document, role: &str, content: &Document| {
        chat.push(Class::Markup, &format!("{IM_START}{role}\n"));
        chat.append(content);
        chat.push(Class::Markup, &format!("{IM_END}\n"));
    };
    turn(&mut chat, "user", request);
    turn(&mut chat, "assistant", answer);
    chat
}
