//! What a request may hold, checked before it is looked at any further.

use std::time::Duration;

use super::error::ApiError;

/// Bytes of a body.
pub const BODY: usize = 16 << 20;

/// Time in which the head of a request, and then its body, has to arrive.
pub const ARRIVAL: Duration = Duration::from_secs(30);

/// Connections at once; more are told to come back.
pub const CONNECTIONS: usize = 512;

/// Objects and lists inside each other.
pub const JSON_DEPTH: usize = 64;

/// Messages of a chat.
pub const MESSAGES: usize = 4096;

/// Tools that a model is told of.
pub const TOOLS: usize = 256;

/// Answers to one prompt.
pub const CHOICES: usize = 16;

/// Prompts of one completion request.
pub const PROMPTS: usize = 64;

/// Answers of one request: prompts times answers to each.
pub const ANSWERS: usize = 128;

/// Stop strings, and bytes of one.
pub const STOPS: usize = 16;
/// Bytes of a stop string.
pub const STOP_BYTES: usize = 1024;

/// Tokens with a bias.
pub const BIASES: usize = 1024;

/// Most probable tokens that are told.
pub const TOP_LOGPROBS: usize = 20;

/// Entries of `metadata`.
pub const METADATA: usize = 16;
/// Characters of the name of an entry.
pub const METADATA_KEY: usize = 64;
/// Characters of its text.
pub const METADATA_VALUE: usize = 512;

/// Updates of one answer that wait for its reader; a reader that is further behind is given up.
pub const UNREAD_UPDATES: usize = 1024;

/// Bodies that are parsed, rendered and tokenised at once, besides those that wait for it.
pub const PREPARING: usize = 2;

/// Refuses JSON that is nested too deep, without recursion and without parsing it.
///
/// # Errors
/// 400.
pub fn check_depth(json: &[u8]) -> Result<(), ApiError> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in json {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > JSON_DEPTH {
            return Err(ApiError::invalid(None, format!("the body is nested deeper than {JSON_DEPTH} levels")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_what_is_open_outside_of_strings() {
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(check_depth(nested(JSON_DEPTH).as_bytes()).is_ok());
        assert!(check_depth(nested(JSON_DEPTH + 1).as_bytes()).is_err());
        let side_by_side = format!("[{}]", vec!["[]"; 1000].join(","));
        assert!(check_depth(side_by_side.as_bytes()).is_ok());
        let text = format!(r#"{{"a": "\"{}"}}"#, "[".repeat(1000));
        assert!(check_depth(text.as_bytes()).is_ok());
        let after = format!(r#"["\\", {}]"#, nested(JSON_DEPTH));
        assert!(check_depth(after.as_bytes()).is_err());
    }
}
