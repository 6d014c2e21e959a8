//! Changes to logits that depend on the tokens so far, as transformers' logits processors of the same names make them.

use crate::{Error, Result};

/// Which tokens may not, or should rather not, come next. The default changes nothing.
///
/// The order is that of transformers: [`sequence_bias`](Self::sequence_bias), the repetition penalty of
/// [`SamplingConfig`](super::SamplingConfig), then the fields from [`no_repeat_ngram_size`](Self::no_repeat_ngram_size) on. Ids
/// beyond the vocabulary have no logit and are passed over. An end token is one that would end this text: where none does,
/// rules about them have no effect.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogitsProcessors {
    /// Added to the logit of the last token of each sequence, where the others were just written.
    pub sequence_bias: Vec<(Vec<u32>, f32)>,
    /// No group of so many tokens comes twice in prompt and output; 0 allows all.
    pub no_repeat_ngram_size: usize,
    /// Sequences that are never completed, but for a single end token.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// No end token before prompt and output are that long.
    pub min_length: usize,
    /// No end token before that many tokens of output.
    pub min_new_tokens: usize,
    /// After so many tokens of output, the magnitude of end tokens' logits grows by this factor with every token.
    pub exponential_decay_length_penalty: Option<(usize, f64)>,
    /// Tokens that never come.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that do not come first.
    pub begin_suppress_tokens: Vec<u32>,
    /// Subtracted from a token's logit for every time that it is in the output, as OpenAI's API does after a repetition penalty.
    pub frequency_penalty: f32,
    /// Subtracted from the logit of every token that is in the output.
    pub presence_penalty: f32,
}

/// What the rules look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    /// Prompt and output, in order.
    pub seen: &'a [u32],
    /// Tokens of output among them.
    pub generated: usize,
    /// Ids that end the text.
    pub end: &'a [u32],
}

impl LogitsProcessors {
    /// Whether nothing is changed, whatever the tokens are.
    pub fn is_neutral(&self) -> bool {
        self.names().is_empty()
    }

    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Option`] with the first that is none or too large: it would make other logits useless.
    pub fn validate(&self) -> Result<()> {
        let decay = self.exponential_decay_length_penalty.map_or(1.0, |(_, factor)| factor);
        let numbers = [
            ("frequency_penalty", f64::from(self.frequency_penalty)),
            ("presence_penalty", f64::from(self.presence_penalty)),
            ("exponential_decay_length_penalty", decay),
        ];
        // A token that is never to come has a bias of -Inf.
        let biases = self.sequence_bias.iter().map(|&(_, bias)| ("sequence_bias", f64::from(bias)));
        let biases = biases.filter(|&(_, bias)| bias != f64::NEG_INFINITY);
        match numbers.into_iter().chain(biases).find(|(_, number)| !number.is_finite()) {
            Some((option, number)) => {
                let message = format!("{number} is not allowed; use a finite number");
                Err(Error::Option { option: option.to_owned(), message })
            }
            None => Ok(()),
        }
    }

    /// The rules that are in force, as `generation_config.json` calls them.
    pub fn names(&self) -> Vec<&'static str> {
        let rules = [
            ("sequence_bias", !self.sequence_bias.is_empty()),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size > 0),
            ("bad_words_ids", !self.bad_words_ids.is_empty()),
            ("min_length", self.min_length > 0),
            ("min_new_tokens", self.min_new_tokens > 0),
            ("exponential_decay_length_penalty", self.exponential_decay_length_penalty.is_some()),
            ("suppress_tokens", !self.suppress_tokens.is_empty()),
            ("begin_suppress_tokens", !self.begin_suppress_tokens.is_empty()),
            ("frequency_penalty", self.frequency_penalty != 0.0),
            ("presence_penalty", self.presence_penalty != 0.0),
        ];
        rules.into_iter().filter_map(|(name, in_force)| in_force.then_some(name)).collect()
    }

    /// What comes before the repetition penalty.
    pub(super) fn before_penalty(&self, logits: &mut [f32], context: Context<'_>) {
        for (sequence, bias) in &self.sequence_bias {
            add_where_completed(logits, sequence, *bias, context.seen);
        }
    }

    /// What comes after the repetition penalty.
    pub(super) fn after_penalty(&self, logits: &mut [f32], context: Context<'_>) {
        let Context { seen, generated, end } = context;
        self.penalise_output(logits, seen.get(seen.len().saturating_sub(generated)..).unwrap_or_default());
        self.ban_repeated(logits, seen);
        for word in &self.bad_words_ids {
            let single_end = matches!(word.as_slice(), [id] if end.contains(id));
            if !single_end {
                add_where_completed(logits, word, f32::NEG_INFINITY, seen);
            }
        }
        if seen.len() < self.min_length || generated < self.min_new_tokens {
            ban(logits, end);
        }
        if let Some((start, factor)) = self.exponential_decay_length_penalty
            && let Some(beyond @ 1..) = generated.checked_sub(start)
        {
            let growth = (factor.powi(i32::try_from(beyond).unwrap_or(i32::MAX)) - 1.0) as f32;
            for &id in end {
                if let Some(logit) = logits.get_mut(id as usize).filter(|logit| logit.is_finite()) {
                    *logit += logit.abs() * growth;
                }
            }
        }
        ban(logits, &self.suppress_tokens);
        if generated == 0 {
            ban(logits, &self.begin_suppress_tokens);
        }
    }

    fn penalise_output(&self, logits: &mut [f32], output: &[u32]) {
        if self.frequency_penalty == 0.0 && self.presence_penalty == 0.0 {
            return;
        }
        let mut sorted = output.to_vec();
        sorted.sort_unstable();
        for same in sorted.chunk_by(|a, b| a == b) {
            let penalty = self.presence_penalty + self.frequency_penalty * same.len() as f32;
            same.first().into_iter().for_each(|&id| add(logits, id, -penalty));
        }
    }

    fn ban_repeated(&self, logits: &mut [f32], seen: &[u32]) {
        let size = self.no_repeat_ngram_size;
        let Some(prefix_len) = size.checked_sub(1) else { return };
        let Some(prefix) = seen.len().checked_sub(prefix_len).and_then(|start| seen.get(start..)) else { return };
        for group in seen.windows(size) {
            if let Some((last, before)) = group.split_last()
                && before == prefix
            {
                add(logits, *last, f32::NEG_INFINITY);
            }
        }
    }
}

fn add_where_completed(logits: &mut [f32], sequence: &[u32], bias: f32, seen: &[u32]) {
    if let Some((&last, before)) = sequence.split_last()
        && seen.ends_with(before)
    {
        add(logits, last, bias);
    }
}

fn ban(logits: &mut [f32], ids: &[u32]) {
    for &id in ids {
        add(logits, id, f32::NEG_INFINITY);
    }
}

/// By addition, so that a logit that is NaN stays one and is refused.
fn add(logits: &mut [f32], id: u32, bias: f32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit += bias;
    }
}
