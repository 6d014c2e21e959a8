//! Tokens of several sequences, those of each one after the other.

use std::ops::Range;

/// The tokens of all sequences.
pub(super) fn total(tokens: &[usize]) -> usize {
    tokens.iter().fold(0, |sum, &tokens| sum.saturating_add(tokens))
}

/// Where the tokens of each sequence are; their [`total`] was checked.
pub(super) fn ranges(tokens: &[usize]) -> impl Iterator<Item = Range<usize>> {
    tokens.iter().scan(0usize, |end, &tokens| {
        let start = *end;
        *end = start.saturating_add(tokens);
        Some(start..*end)
    })
}
