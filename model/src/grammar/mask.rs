//! The grammar of one answer while it is generated.

use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;
use llguidance::toktrie::{SimpleVob, TokTrie};

use crate::engine::TokenMask;
use crate::{Error, Result};

/// What ends the thoughts before an answer.
const THINK_END: &[u8] = b"</think>";

/// Line ends that a template puts between thoughts and answer.
const LINES: usize = 2;

/// Tokens of line ends alone, and how many they are.
#[derive(Debug)]
pub(super) struct LineEnds(Vec<(u32, usize)>);

impl LineEnds {
    pub(super) fn of(tokens: &TokTrie) -> Self {
        let lines = |id: u32| {
            let bytes = tokens.token(id);
            (!bytes.is_empty() && bytes.iter().all(|&byte| byte == b'\n')).then_some((id, bytes.len()))
        };
        Self((0..).take(tokens.vocab_size()).filter_map(lines).collect())
    }

    fn count(&self, token: u32) -> Option<usize> {
        self.0.iter().find(|&&(id, _)| id == token).map(|&(_, count)| count)
    }
}

/// What one answer has to be. A clone goes on by itself.
#[derive(Clone)]
pub struct Grammar {
    matcher: Matcher,
    line_ends: Arc<LineEnds>,
    at: At,
    mask: SimpleVob,
    complete: bool,
    ended: bool,
}

/// How far the answer is.
#[derive(Clone, Debug)]
enum At {
    /// In thoughts, of which these are the last bytes.
    Thoughts(Vec<u8>),
    /// Before the first byte that the grammar sees; so many line ends may come.
    Beginning(usize),
    Grammar,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, complete, ended, .. } = self;
        f.debug_struct("Grammar")
            .field("at", at)
            .field("complete", complete)
            .field("ended", ended)
            .finish_non_exhaustive()
    }
}

impl Grammar {
    pub(super) fn new(mut matcher: Matcher, line_ends: Arc<LineEnds>) -> Result<Self> {
        let complete = matcher.is_accepting().map_err(|e| stuck(&e))?;
        let ended = complete && matcher.is_stopped();
        Ok(Self { matcher, line_ends, at: At::Grammar, mask: SimpleVob::new(), complete, ended })
    }

    /// The same for an answer that begins inside thoughts: everything is allowed up to `</think>`, then up to two line ends, and
    /// the grammar from there on.
    #[must_use]
    pub fn after_thoughts(self) -> Self {
        Self { at: At::Thoughts(Vec::new()), ..self }
    }

    fn consume(&mut self, tokens: &[u32]) -> Result<()> {
        self.at = At::Grammar;
        self.matcher.consume_tokens(tokens).map_err(|e| stuck(&e))?;
        self.complete = self.matcher.is_accepting().map_err(|e| stuck(&e))?;
        self.ended = self.complete && self.matcher.is_stopped();
        Ok(())
    }
}

impl TokenMask for Grammar {
    fn allowed(&mut self) -> Result<Option<&[u32]>> {
        if let At::Thoughts(_) = self.at {
            return Ok(None);
        }
        self.mask = self.matcher.compute_mask().map_err(|e| stuck(&e))?;
        if let At::Beginning(left) = self.at {
            let fitting = self.line_ends.0.iter().filter(|&&(_, count)| count <= left);
            fitting.for_each(|&(id, _)| self.mask.allow_token(id));
        }
        Ok(Some(self.mask.as_slice()))
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        match &mut self.at {
            At::Grammar => self.consume(&[token]),
            At::Beginning(left) => match self.line_ends.count(token).and_then(|count| left.checked_sub(count)) {
                Some(rest) => {
                    *left = rest;
                    Ok(())
                }
                None => self.consume(&[token]),
            },
            At::Thoughts(tail) => {
                let tokens = self.matcher.tok_env().map_err(|e| stuck(&e))?;
                let tokens = tokens.tok_trie();
                let Some(bytes) = tokens.info().vocab_size.gt(&token).then(|| tokens.token(token)) else {
                    return Ok(());
                };
                tail.extend(bytes.iter().filter(|_| !bytes.starts_with(&[TokTrie::SPECIAL_TOKEN_MARKER])));
                let Some(at) = tail.windows(THINK_END.len()).position(|window| window == THINK_END) else {
                    tail.drain(..tail.len().saturating_sub(THINK_END.len() - 1));
                    return Ok(());
                };
                // A token can hold the end of the thoughts and the beginning of the answer.
                let rest = tail.split_off(at + THINK_END.len());
                let answer = rest.trim_ascii_start();
                if answer.is_empty() {
                    let lines = rest.iter().filter(|&&byte| byte == b'\n').count();
                    self.at = At::Beginning(LINES.saturating_sub(lines));
                    return Ok(());
                }
                let answer = tokens.greedy_tokenize(answer);
                self.consume(&answer)
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.complete && !matches!(self.at, At::Thoughts(_))
    }

    fn is_at_end(&self) -> bool {
        self.ended && matches!(self.at, At::Grammar)
    }

    fn boxed_clone(&self) -> Box<dyn TokenMask> {
        Box::new(self.clone())
    }
}

fn stuck(error: &dyn fmt::Display) -> Error {
    // The state of a parser, which says nothing to who wrote the schema.
    tracing::debug!("a grammar cannot go on: {error:#}");
    Error::Grammar("the text cannot go on as its schema asks for; use a simpler one".to_owned())
}
