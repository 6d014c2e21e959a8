//! When a generation ends: token ids and texts.

use std::ops::Range;

use crate::{Error, Result};

/// The token ids that end a text.
///
/// It is the union of what `generation_config.json`, `config.json`, the tokenizer and the user name: models list different
/// ids in each, and missing one makes a chat model generate past the end of its turn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopSet {
    /// Sorted, without repeats.
    ids: Vec<u32>,
}

impl StopSet {
    /// The union of several lists of ids.
    pub fn union<S>(sources: impl IntoIterator<Item = S>) -> Self
    where
        S: IntoIterator<Item = u32>,
    {
        let mut ids: Vec<u32> = sources.into_iter().flatten().collect();
        ids.sort_unstable();
        ids.dedup();
        Self { ids }
    }

    /// Whether `id` ends the text.
    pub fn contains(&self, id: u32) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// The ids in ascending order.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

/// What [`StopStrings`] says about the text so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Text that can be shown now.
    pub text: String,
    /// The stop string that was found, which is not part of any text shown.
    pub stop: Option<String>,
}

/// Finds stop strings in streamed text.
///
/// Text that may be the beginning of a stop string is held back until it is one or is not. The result does not depend on how
/// the text is cut into pieces: the stop string that is complete first wins, the longest of those that end together. Names of
/// special tokens are no part of the text shown, but a stop string may be one, or contain one, as in transformers.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    /// Bytes of `held` that are not shown, in order.
    hidden: Vec<Range<usize>>,
    found: bool,
}

impl StopStrings {
    /// A matcher for these strings; none is allowed and passes everything on.
    ///
    /// # Errors
    /// [`Error::Option`] when one of them is empty.
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        if stops.iter().any(String::is_empty) {
            return Err(Error::Option {
                option: "stop".to_owned(),
                message: "is an empty string, which would end every text before it begins; leave it out".to_owned(),
            });
        }
        Ok(Self { stops, ..Self::default() })
    }

    /// Takes the next piece of text. After a stop string was found, further pieces give nothing.
    pub fn push(&mut self, piece: &str) -> Stopped {
        if self.found {
            return Stopped { text: String::new(), stop: None };
        }
        self.held.push_str(piece);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)))
            .min_by_key(|&(start, stop)| (start + stop.len(), start));
        if let Some((start, stop)) = first {
            let stop = stop.clone();
            self.found = true;
            let text = self.take(start);
            self.finish();
            return Stopped { text, stop: Some(stop) };
        }
        let decided = self.held.len() - self.undecided();
        Stopped { text: self.take(decided), stop: None }
    }

    /// Takes the name of a special token, which is not shown. A stop string may contain it.
    pub fn push_hidden(&mut self, name: &str) -> Stopped {
        if !self.found && !self.stops.is_empty() {
            self.hidden.push(self.held.len()..self.held.len() + name.len());
            return self.push(name);
        }
        Stopped { text: String::new(), stop: None }
    }

    /// The text still held back, when the generation ends for another reason.
    pub fn finish(&mut self) -> String {
        self.take(self.held.len())
    }

    /// Removes the first `end` bytes of what is held, and returns what of them is shown.
    fn take(&mut self, end: usize) -> String {
        let rest = self.held.split_off(end);
        let mut text = std::mem::replace(&mut self.held, rest);
        let (mut gone, later): (Vec<_>, Vec<_>) = self.hidden.drain(..).partition(|hidden| hidden.start < end);
        let mut after = later;
        // A name that is cut stays hidden in both parts.
        after.extend(gone.iter().filter(|hidden| hidden.end > end).map(|hidden| end..hidden.end));
        after.sort_by_key(|hidden| hidden.start);
        self.hidden = after.into_iter().map(|hidden| hidden.start - end..hidden.end - end).collect();
        gone.reverse();
        for hidden in gone {
            text.drain(hidden.start..hidden.end.min(end));
        }
        text
    }

    /// Bytes at the end of the held text that begin a stop string.
    fn undecided(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        self.held
            .char_indices()
            .map(|(start, _)| start)
            .filter(|&start| start >= from)
            .filter_map(|start| self.held.get(start..))
            .find(|tail| self.stops.iter().any(|stop| stop.starts_with(tail)))
            .map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_held_tail_is_bounded_by_the_longest_stop() {
        let mut stops = StopStrings::new(["</s>"]).unwrap();
        assert_eq!(stops.push("a<<</").text, "a<<");
        assert_eq!(stops.held, "</");
        assert_eq!(stops.finish(), "</");
    }

    #[test]
    fn names_of_special_tokens_are_matched_and_not_shown() {
        let pieces = [
            (" one", false),
            (" two", false),
            ("<|a|>", true),
            ("\n", false),
            ("<|b|>", true),
            ("user", false),
            ("!", false),
        ];
        let run = |stop: &str| {
            let mut stops = StopStrings::new([stop]).unwrap();
            let mut shown = String::new();
            for (piece, hidden) in pieces {
                let stopped = if hidden { stops.push_hidden(piece) } else { stops.push(piece) };
                shown.push_str(&stopped.text);
                if stopped.stop.is_some() {
                    return (shown, true);
                }
            }
            (shown + &stops.finish(), false)
        };
        for (stop, text) in [
            ("<|a|>", " one two"),
            ("<|b|>user", " one two\n"),
            ("two<|a|>", " one "),
            ("|a|>\n<|b|>us", " one two"),
            ("a|>\n", " one two"),
            ("\n<|b|>", " one two"),
            ("!", " one two\nuser"),
        ] {
            assert_eq!(run(stop), (text.to_owned(), true), "{stop:?}");
        }
        // What only began like a stop string is shown without the names.
        for stop in ["two<|a|>\n<|b|>nobody", "<|a|>x", "user!!", "twouser", "two\n"] {
            assert_eq!(run(stop), (" one two\nuser!".to_owned(), false), "{stop:?}");
        }
    }
}
