//! The numbers behind every way of showing depth.

use std::collections::BTreeSet;

use anyhow::Result;
use emberlm::model::config::CrestOptions;
use emberlm::model::evaluate::Evaluation;
use emberlm::model::generate::TokenDepth;
use emberlm::model::text::TextProcessor;
use serde::Serialize;
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::cli::output::printable;

/// Levels of the colour scale, from one step to all.
pub const LEVELS: usize = 9;

/// How deep a model went for each token of a text.
#[derive(Debug, Serialize)]
pub struct DepthMap {
    pub model: String,
    pub layers: usize,
    /// K.
    pub num_steps: usize,
    pub halt_threshold: Option<f32>,
    /// Over the passes that predicted tokens of the text.
    pub mean_steps: Option<f64>,
    /// None of a text of one token.
    pub perplexity: Option<f64>,
    pub tokens: Vec<Token>,
    /// The pass that predicts what comes after the text.
    pub next: Option<PassDepth>,
}

/// A token and the pass that predicted it.
#[derive(Debug, Serialize)]
pub struct Token {
    pub id: u32,
    /// What became certain with this token: nothing inside a character.
    pub text: String,
    pub log_probability: Option<f32>,
    #[serde(flatten)]
    pub pass: Option<PassDepth>,
}

/// The depth of one pass.
#[derive(Clone, Debug, Serialize)]
pub struct PassDepth {
    pub mean_steps: f64,
    /// Per layer.
    pub steps: Vec<u32>,
    /// Per layer.
    pub halt: Vec<Vec<f32>>,
}

impl PassDepth {
    fn new(depth: &TokenDepth) -> Self {
        Self { mean_steps: depth.mean_steps(), steps: depth.steps.clone(), halt: depth.halt.clone() }
    }
}

/// Steps per layer of the passes that predicted one of so many tokens, on average: of all but the last, which is beyond the text.
pub fn mean_steps(evaluated: &Evaluation, tokens: usize) -> Option<f64> {
    let predicted = evaluated.depth.get(..tokens.checked_sub(1)?)?;
    let sum: f64 = predicted.iter().map(TokenDepth::mean_steps).sum();
    (!predicted.is_empty()).then(|| sum / predicted.len() as f64)
}

impl DepthMap {
    /// How often the depth of a token is held while a map is made: as it was read, by itself, and beside its token.
    pub const COPIES: usize = 3;

    /// Puts the passes of an evaluation to the tokens that they predicted.
    pub fn new(
        model: &str,
        crest: &CrestOptions,
        text: &TextProcessor,
        ids: &[u32],
        evaluated: &Evaluation,
    ) -> Result<Self> {
        let passes: Vec<PassDepth> = evaluated.depth.iter().map(PassDepth::new).collect();
        let mut stream = text.decode_stream(false);
        let mut tokens = Vec::new();
        for (i, &id) in ids.iter().enumerate() {
            let before = i.checked_sub(1);
            tokens.push(Token {
                id,
                text: stream.push(id)?,
                log_probability: before.and_then(|i| evaluated.log_probabilities.get(i).copied()),
                pass: before.and_then(|i| passes.get(i).cloned()),
            });
        }
        if let Some(token) = tokens.last_mut() {
            token.text.push_str(&stream.finish()?);
        }
        Ok(Self {
            model: model.to_owned(),
            layers: passes.first().map_or(0, |pass| pass.steps.len()),
            num_steps: crest.num_steps,
            halt_threshold: crest.halt_enabled.then_some(crest.halt_threshold),
            mean_steps: mean_steps(evaluated, ids.len()),
            perplexity: (!evaluated.log_probabilities.is_empty()).then(|| evaluated.perplexity()),
            tokens,
            next: passes.last().cloned(),
        })
    }

    /// The level of a number of steps.
    pub fn level(&self, steps: f64) -> usize {
        level(steps, self.num_steps)
    }

    /// What is shown of each column: its text on one line, and its pass.
    pub fn columns(&self) -> impl Iterator<Item = (String, Option<&PassDepth>)> {
        let tokens = self.tokens.iter().map(|token| (label(&token.text), token.pass.as_ref()));
        tokens.chain(self.next.as_ref().map(|pass| ("...".to_owned(), Some(pass))))
    }

    /// The numbers of steps that layers took, ascending.
    pub fn steps_taken(&self) -> BTreeSet<u32> {
        let passes = self.tokens.iter().filter_map(|token| token.pass.as_ref()).chain(&self.next);
        passes.flat_map(|pass| pass.steps.iter().copied()).collect()
    }

    /// In one line, what was measured.
    pub fn summary(&self) -> String {
        format!("{}: {}", printable(&self.model), self.figures())
    }

    /// What was measured, without the name of the model.
    pub fn figures(&self) -> String {
        let threshold = self.halt_threshold.map_or_else(|| "no halting".to_owned(), |t| format!("threshold {t}"));
        let mut out = format!("{} layers, at most {} steps, {threshold}", self.layers, self.num_steps);
        if let (Some(steps), Some(perplexity)) = (self.mean_steps, self.perplexity) {
            out += &format!("; {steps:.2} steps per layer, perplexity {perplexity:.2}");
        }
        out
    }
}

/// The text of a token on one line, never empty and never without width. What could steer the reader's program, such as control
/// characters and marks of direction, and what no XML file may hold is U+FFFD.
fn label(text: &str) -> String {
    let text = text.trim_start_matches(is_joiner);
    let mut shown: String = text
        .chars()
        .map(|c| match c {
            '\n' | '\u{2028}' | '\u{2029}' => '⏎',
            '\t' => '⇥',
            c if c.is_control() || is_directional(c) || is_noncharacter(c) => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect();
    // A mark that belongs above a letter of the token before.
    if shown.chars().next().is_some_and(|c| c.width() == Some(0)) {
        shown.insert(0, '◌');
    }
    if shown.is_empty() { "·".to_owned() } else { shown }
}

/// Joins or varies the characters beside it, and is nothing alone.
fn is_joiner(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2064}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Changes the order of what is shown after it.
fn is_directional(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}')
}

/// Reserved by Unicode for use inside a program. XML has no way to write U+FFFE and U+FFFF.
pub fn is_noncharacter(c: char) -> bool {
    matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe
}

/// Columns of a text on a terminal: two for East Asian characters and for emoji, joined ones included; none for marks.
pub fn columns_of(text: &str) -> usize {
    text.width()
}

/// As much of a text as fits, whole characters as a reader sees them.
pub fn cut(text: &str, columns: usize) -> String {
    if columns_of(text) <= columns {
        return text.to_owned();
    }
    let mut out = String::new();
    for cluster in text.graphemes(true) {
        if columns_of(&out) + columns_of(cluster) + 1 > columns {
            break;
        }
        out.push_str(cluster);
    }
    out + "…"
}

/// The level of a number of steps: 0 for one step, the last for all that there are.
pub fn level(steps: f64, num_steps: usize) -> usize {
    let most = num_steps.max(2) as f64;
    let share = ((steps - 1.0) / (most - 1.0)).clamp(0.0, 1.0);
    (share * (LEVELS - 1) as f64).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_one_visible_line() {
        let zwj = "\u{200d}";
        let cases = [
            ("", "·"),
            (" once", " once"),
            ("a\n\tb\u{2028}", "a⏎⇥b⏎"),
            ("\x1b[2J\u{9b}\x7f\0\r", "\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{ffff}\u{fffe}\u{fdd0}\u{10ffff}", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{202e}abc", "\u{fffd}abc"),
            ("\u{301}", "◌\u{301}"),
            (zwj, "·"),
            ("\u{fe0f}", "·"),
            ("\u{200d}\u{1f467}", "\u{1f467}"),
        ];
        for (text, expected) in cases {
            assert_eq!(label(text), expected, "{text:?}");
            assert!(columns_of(&label(text)) > 0, "{text:?}");
        }
    }

    /// East Asian width, emoji presentation, joined emoji, flags, skin tones, marks.
    #[test]
    fn columns_are_those_of_a_terminal() {
        let cases = [
            ("abc", 3),
            ("你好", 4),
            ("✅", 2),
            ("⚡⌚⭐", 6),
            ("e\u{301}", 1),
            ("\u{1f469}\u{200d}\u{1f467}", 2),
            ("\u{2764}\u{fe0f}", 2),
            ("\u{1f1e9}\u{1f1ea}", 2),
            ("\u{1f44d}\u{1f3fd}", 2),
            ("ｱ", 1),
            ("한국", 4),
            ("\u{200b}", 0),
        ];
        for (text, columns) in cases {
            assert_eq!(columns_of(text), columns, "{text:?}");
        }
    }

    #[test]
    fn long_labels_are_cut_between_characters() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abcde…");
        assert_eq!(cut("你好你好", 6), "你好…");
        assert_eq!(cut("e\u{301}e\u{301}e\u{301}", 2), "e\u{301}…");
    }
}
