//! The numbers behind every way of showing depth.

use anyhow::Result;
use emberlm::model::config::CrestOptions;
use emberlm::model::evaluate::Evaluation;
use emberlm::model::generate::TokenDepth;
use emberlm::model::text::TextProcessor;
use serde::Serialize;

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
    /// Over the passes that foretold tokens of the text.
    pub mean_steps: Option<f64>,
    /// None of a text of one token.
    pub perplexity: Option<f64>,
    pub tokens: Vec<Token>,
    /// The pass that foretells what comes after the text.
    pub next: Option<Pass>,
}

/// A token and the pass that foretold it.
#[derive(Debug, Serialize)]
pub struct Token {
    pub id: u32,
    /// What became certain with this token: nothing inside a character.
    pub text: String,
    pub log_probability: Option<f32>,
    #[serde(flatten)]
    pub pass: Option<Pass>,
}

/// The depth of one pass.
#[derive(Clone, Debug, Serialize)]
pub struct Pass {
    pub mean_steps: f64,
    /// Per layer.
    pub steps: Vec<u32>,
    /// Per layer.
    pub halt: Vec<Vec<f32>>,
}

impl Pass {
    fn new(depth: &TokenDepth) -> Self {
        Self { mean_steps: depth.mean_steps(), steps: depth.steps.clone(), halt: depth.halt.clone() }
    }
}

impl DepthMap {
    /// Puts the passes of an evaluation to the tokens that they foretold.
    pub fn new(
        model: &str,
        crest: &CrestOptions,
        text: &TextProcessor,
        ids: &[u32],
        evaluated: &Evaluation,
    ) -> Result<Self> {
        let passes: Vec<Pass> = evaluated.depth.iter().map(Pass::new).collect();
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
        let foretold: Vec<&Pass> = tokens.iter().filter_map(|token| token.pass.as_ref()).collect();
        let sum: f64 = foretold.iter().map(|pass| pass.mean_steps).sum();
        let mean_steps = (!foretold.is_empty()).then(|| sum / foretold.len() as f64);
        Ok(Self {
            model: model.to_owned(),
            layers: passes.first().map_or(0, |pass| pass.steps.len()),
            num_steps: crest.num_steps,
            halt_threshold: crest.halt_enabled.then_some(crest.halt_threshold),
            mean_steps,
            perplexity: (!evaluated.log_probabilities.is_empty()).then(|| evaluated.perplexity()),
            tokens,
            next: passes.last().cloned(),
        })
    }

    /// The level of a number of steps: 0 for one step, the last for K.
    pub fn level(&self, steps: f64) -> usize {
        let most = self.num_steps.max(2) as f64;
        let share = ((steps - 1.0) / (most - 1.0)).clamp(0.0, 1.0);
        (share * (LEVELS - 1) as f64).round() as usize
    }

    /// What is shown of each column: its text on one line, and its pass.
    pub fn columns(&self) -> impl Iterator<Item = (String, Option<&Pass>)> {
        let tokens = self.tokens.iter().map(|token| (label(&token.text), token.pass.as_ref()));
        tokens.chain(self.next.as_ref().map(|pass| ("...".to_owned(), Some(pass))))
    }

    /// In one line, what was measured.
    pub fn summary(&self) -> String {
        let threshold = self.halt_threshold.map_or_else(|| "no halting".to_owned(), |t| format!("threshold {t}"));
        let mut out = format!("{}: {} layers, at most {} steps, {threshold}", self.model, self.layers, self.num_steps);
        if let (Some(steps), Some(perplexity)) = (self.mean_steps, self.perplexity) {
            out += &format!("; {steps:.2} steps per layer, perplexity {perplexity:.2}");
        }
        out
    }
}

/// The text of a token on one line, never empty.
fn label(text: &str) -> String {
    let shown: String = text
        .chars()
        .map(|c| match c {
            '\n' => '⏎',
            '\t' => '⇥',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect();
    if shown.is_empty() { "·".to_owned() } else { shown }
}
