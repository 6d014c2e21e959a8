//! The values of single keys of `generation_config.json`, and of token ids of `config.json`: what cannot be used counts as not stated,
//! with a warning.

use serde_json::Value;

use super::fields::Fields;
use super::limits::MAX_POSITIONS;
use crate::Result;

/// Most entries of a list, and tokens of one sequence in it.
const MAX_ENTRIES: usize = 1 << 20;

/// Keys that change the text and are not supported, and the value that changes nothing; null never does.
pub(super) const UNSUPPORTED: &[(&str, Option<f64>)] = &[
    ("num_beams", Some(1.0)),
    ("num_beam_groups", Some(1.0)),
    ("diversity_penalty", Some(0.0)),
    ("penalty_alpha", Some(0.0)),
    ("guidance_scale", Some(1.0)),
    ("encoder_repetition_penalty", Some(1.0)),
    ("encoder_no_repeat_ngram_size", Some(0.0)),
    ("forced_bos_token_id", None),
    ("forced_eos_token_id", None),
    ("forced_decoder_ids", None),
    ("force_words_ids", None),
    ("constraints", None),
    ("dola_layers", None),
    ("watermarking_config", None),
    ("token_healing", Some(0.0)),
    ("max_time", None),
];
/// The same for keys that change drawn texts only.
pub(super) const UNSUPPORTED_IN_DRAWS: &[(&str, Option<f64>)] =
    &[("typical_p", Some(1.0)), ("epsilon_cutoff", Some(0.0)), ("eta_cutoff", Some(0.0)), ("top_h", None)];

/// What cannot be used, in words.
#[derive(Default)]
pub(super) struct Unusable(pub(super) Vec<String>);

impl Unusable {
    /// The value of a key, or nothing.
    pub(super) fn or<T: Default>(&mut self, read: Result<T>) -> T {
        read.unwrap_or_else(|error| {
            self.0.push(format!("{error}; it counts as not stated"));
            T::default()
        })
    }

    /// A number of tokens; 0 where none is stated.
    pub(super) fn count(&mut self, root: &Fields, key: &str) -> usize {
        self.or(root.integer(key, 0, MAX_POSITIONS)).unwrap_or_default()
    }

    /// A token id or a list of them; those that are none are left out.
    pub(super) fn ids(&mut self, root: &Fields, key: &str) -> Vec<u32> {
        let Some(value) = root.get(key) else { return Vec::new() };
        let entries = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let ids = entries.iter().take(MAX_ENTRIES).filter_map(|entry| {
            let id = token_id(entry);
            if id.is_none() {
                let error = root.wrong(key, entry, "a token id (or a list of them)");
                self.0.push(format!("{error}; it is left out"));
            }
            id
        });
        ids.collect()
    }
}

fn token_id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// A sequence of at least one token.
fn sequence(value: &Value) -> Option<Vec<u32>> {
    let ids = value.as_array().filter(|ids| (1..=MAX_ENTRIES).contains(&ids.len()))?;
    ids.iter().map(token_id).collect()
}

/// Lists of token ids.
pub(super) fn bad_words(root: &Fields) -> Result<Vec<Vec<u32>>> {
    const KEY: &str = "bad_words_ids";
    let words = root.array(KEY)?.unwrap_or_default().iter();
    words.map(|word| sequence(word).ok_or_else(|| root.wrong(KEY, word, "lists of token ids in the array"))).collect()
}

/// `[[[ids], bias], ...]`; of equal sequences the last counts.
pub(super) fn sequence_bias(root: &Fields) -> Result<Vec<(Vec<u32>, f32)>> {
    const KEY: &str = "sequence_bias";
    let pair = |entry: &Value| {
        let [ids, bias] = entry.as_array()?.as_slice() else { return None };
        Some((sequence(ids)?, bias.as_f64()? as f32))
    };
    let mut biases: Vec<(Vec<u32>, f32)> = Vec::new();
    for entry in root.array(KEY)?.unwrap_or_default() {
        let (ids, bias) =
            pair(entry).ok_or_else(|| root.wrong(KEY, entry, "pairs of a list of token ids and a number"))?;
        biases.retain(|(others, _)| *others != ids);
        biases.push((ids, bias));
    }
    Ok(biases)
}

/// `[start, factor]`.
pub(super) fn decay(root: &Fields) -> Result<Option<(usize, f64)>> {
    const KEY: &str = "exponential_decay_length_penalty";
    let Some(pair) = root.array(KEY)? else { return Ok(None) };
    let read = match pair {
        [start, factor] => start.as_u64().and_then(|start| usize::try_from(start).ok()).zip(factor.as_f64()),
        _ => None,
    };
    read.map(Some).ok_or_else(|| root.error(KEY, "expected a number of tokens and a factor"))
}

/// One string or a list of them; an empty one would end every text.
pub(super) fn stop_strings(root: &Fields) -> Result<Vec<String>> {
    const KEY: &str = "stop_strings";
    let strings = match root.get(KEY) {
        Some(Value::String(one)) => vec![one.clone()],
        _ => root.strings(KEY)?.unwrap_or_default().into_iter().map(str::to_owned).collect(),
    };
    if strings.iter().any(String::is_empty) {
        return Err(root.error(KEY, "has an empty string, which would end every text before it begins"));
    }
    Ok(strings)
}

/// Keys of a list whose value is not neutral.
pub(super) fn stated(root: &Fields, keys: &[(&str, Option<f64>)]) -> Vec<String> {
    let stated = |&&(key, neutral): &&(&str, Option<f64>)| match root.get(key) {
        None => false,
        Some(Value::Bool(on)) => neutral != Some(f64::from(u8::from(*on))),
        Some(Value::Array(entries)) if entries.is_empty() => false,
        Some(value) => value.as_f64().is_none_or(|x| neutral != Some(x)),
    };
    keys.iter().filter(stated).map(|(key, _)| (*key).to_owned()).collect()
}
