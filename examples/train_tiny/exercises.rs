//! Exercises: adding, counting, sorting and copying, one per line.

use crate::data::{Class, Document, Split};
use crate::random::Random;

pub enum Exercise {
    Add(usize, usize),
    Count(usize, usize),
    Sort(Vec<char>),
    Copy(Vec<char>),
}

/// Four to nine exercises.
pub fn sheet(random: &mut Random, split: Split) -> Document {
    let mut sheet = Document::default();
    for i in 0..random.between(4, 9) {
        if i > 0 {
            sheet.push(Class::Markup, "\n");
        }
        exercise(random, split).line(&mut sheet);
    }
    sheet
}

/// An exercise of this side of the split.
pub fn exercise(random: &mut Random, split: Split) -> Exercise {
    loop {
        let exercise = Exercise::draw(random);
        if split.has(&exercise.key()) {
            return exercise;
        }
    }
}

impl Exercise {
    fn draw(random: &mut Random) -> Self {
        match random.below(100) {
            0..58 => {
                let a = random.between(1, 99);
                let b = if random.chance(40) { random.between(1, 9) } else { random.between(1, 99) };
                if random.chance(50) { Self::Add(a, b) } else { Self::Add(b, a) }
            }
            58..70 => {
                let start = random.between(0, 94);
                Self::Count(start, start + random.between(2, 5))
            }
            70..85 => {
                let mut digits: Vec<char> = ('0'..='9').collect();
                random.shuffle(&mut digits);
                digits.truncate(random.between(3, 6));
                Self::Sort(digits)
            }
            _ => Self::Copy((0..random.between(3, 7)).map(|_| char::from(b'a' + random.below(26) as u8)).collect()),
        }
    }

    /// The same for exercises that give each other away.
    fn key(&self) -> String {
        match self {
            Self::Add(a, b) => format!("{}+{}", a.min(b), a.max(b)),
            Self::Count(from, to) => format!("{from}-{to}"),
            Self::Sort(digits) | Self::Copy(digits) => digits.iter().collect(),
        }
    }

    /// As a line of a sheet, with its result.
    pub fn line(&self, document: &mut Document) {
        match self {
            Self::Add(a, b) => document.push(Class::Open, &format!("{a}+{b}")),
            Self::Count(from, to) => {
                document.sentence("count");
                document.push(Class::Open, &format!(" {from}"));
                document.sentence(" to");
                document.push(Class::Open, &format!(" {to}"));
            }
            Self::Sort(items) | Self::Copy(items) => {
                document.sentence(if matches!(self, Self::Sort(_)) { "sort" } else { "copy" });
                document.push(Class::Open, &spaced(items));
            }
        }
        document.sentence(if matches!(self, Self::Add(..)) { "=" } else { ":" });
        self.result(document, true);
    }

    /// As a question and its answer.
    pub fn asked(&self) -> (Document, Document) {
        let (mut question, mut answer) = (Document::default(), Document::default());
        let (before, asked, after) = match self {
            Self::Add(a, b) => ("What is ", format!("{a}+{b}"), "?"),
            Self::Count(from, to) => ("Count from", format!(" {from} to {to}"), "."),
            Self::Sort(items) => ("Sort", spaced(items), "."),
            Self::Copy(items) => ("Copy", spaced(items), "."),
        };
        question.sentence(before);
        question.push(Class::Open, &asked);
        question.sentence(after);
        self.result(&mut answer, false);
        (question, answer)
    }

    fn result(&self, document: &mut Document, mut space: bool) {
        match self {
            Self::Add(a, b) => add(document, *a, *b),
            Self::Count(from, to) => {
                for number in *from..=*to {
                    document.push(Class::Count, &if space { format!(" {number}") } else { number.to_string() });
                    space = true;
                }
            }
            Self::Sort(items) | Self::Copy(items) => {
                let mut items = items.clone();
                let class = if matches!(self, Self::Sort(_)) { Class::Sort } else { Class::Copy };
                if class == Class::Sort {
                    items.sort_unstable();
                }
                let text = spaced(&items);
                document.push(class, if space { &text } else { text.trim_start() });
            }
        }
        document.sentence(".");
    }
}

/// The digits of `a + b`, each by whether something is carried into it.
pub fn add(document: &mut Document, a: usize, b: usize) {
    let sum = (a + b).to_string();
    for (i, digit) in sum.char_indices() {
        let below = 10usize.pow((sum.len() - 1 - i) as u32);
        let carried = a % below + b % below >= below;
        document.push(if carried { Class::Carry } else { Class::Sum }, digit.encode_utf8(&mut [0; 4]));
    }
}

fn spaced(items: &[char]) -> String {
    items.iter().flat_map(|&item| [' ', item]).collect()
}
