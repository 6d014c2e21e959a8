//! Prompt lookup: a text goes on as it did where its last tokens came before.
//!
//! Source: Saxena, "Prompt Lookup Decoding" (2023), with the longest match of at least two tokens, the latest among equals.

/// The longest run of last tokens that is looked for.
const LONGEST: usize = 4;

/// The shortest that counts: one token alone says little.
const SHORTEST: usize = 2;

/// What followed the last tokens where they came before, `most` tokens at most; empty where they did not. A match that reaches into
/// the end of the text goes on with what it says itself, so that one period of a repetition is enough.
pub(super) fn lookup(tokens: &[u32], most: usize) -> Vec<u32> {
    let Some(start) = continuation(tokens) else { return Vec::new() };
    let mut draft = Vec::with_capacity(most);
    for at in (start..).take(most) {
        let drafted = |at: usize| at.checked_sub(tokens.len()).and_then(|at| draft.get(at));
        let Some(&token) = tokens.get(at).or_else(|| drafted(at)) else { break };
        draft.push(token);
    }
    draft
}

/// Where the tokens after the best match begin.
fn continuation(tokens: &[u32]) -> Option<usize> {
    let mut best = (SHORTEST - 1, None);
    for end in (SHORTEST..tokens.len()).rev() {
        let before = tokens.get(..end).unwrap_or_default();
        let pairs = before.iter().rev().zip(tokens.iter().rev());
        let agree = pairs.take(LONGEST).take_while(|(a, b)| a == b).count();
        if agree > best.0 {
            best = (agree, Some(end));
            if agree == LONGEST {
                break;
            }
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::lookup;

    #[test]
    fn the_longest_and_latest_match_is_continued() {
        assert!(lookup(&[], 4).is_empty());
        assert!(lookup(&[1, 2, 3, 4], 4).is_empty());
        // One token alone is no match.
        assert!(lookup(&[1, 2, 3, 1], 4).is_empty());
        assert_eq!(lookup(&[1, 2, 7, 8, 9, 1, 2], 3), [7, 8, 9]);
        assert_eq!(lookup(&[1, 2, 7, 8, 9, 1, 2], 2), [7, 8]);
        // The later of two as long ones.
        assert_eq!(lookup(&[1, 2, 7, 1, 2, 8, 5, 1, 2], 1), [8]);
        // A longer one before it wins.
        assert_eq!(lookup(&[3, 1, 2, 7, 1, 2, 8, 3, 1, 2], 1), [7]);
        assert!(lookup(&[1, 2, 7, 1, 2], 0).is_empty());
    }

    #[test]
    fn a_repetition_goes_on() {
        assert_eq!(lookup(&[5, 5, 5], 4), [5, 5, 5, 5]);
        assert_eq!(lookup(&[1, 2, 3, 1, 2, 3], 7), [1, 2, 3, 1, 2, 3, 1]);
    }
}
