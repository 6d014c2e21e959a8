//! Which tokens a text may go on with, where something outside of the model decides.

use std::fmt::Debug;

use crate::error::{Error, Result};
use crate::text::StopSet;

/// Decides which tokens may come next; a grammar, for example.
///
/// An engine asks [`allowed`](Self::allowed) before it chooses a token and tells the choice with [`accept`](Self::accept). Stop
/// tokens are no part of this: they are allowed where the text [is complete](Self::is_complete), and only there.
pub trait TokenMask: Debug + Send {
    /// The tokens that may come next, one bit each, the lowest bit of the first word for id 0; those beyond the last word may not.
    /// `None` allows all.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn allowed(&mut self) -> Result<Option<&[u32]>>;

    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// When it may not come here.
    fn accept(&mut self, token: u32) -> Result<()>;

    /// Whether the text may end here.
    fn is_complete(&self) -> bool;

    /// Whether the text is complete and nothing can follow.
    fn is_at_end(&self) -> bool;

    /// A copy that goes on by itself.
    fn boxed_clone(&self) -> Box<dyn TokenMask>;
}

impl Clone for Box<dyn TokenMask> {
    fn clone(&self) -> Self {
        self.boxed_clone()
    }
}

/// The mask of one sequence, with its stop tokens.
#[derive(Clone, Debug)]
pub(super) struct Masked {
    mask: Box<dyn TokenMask>,
    /// Tokens that may come next, and whether there is any.
    words: Vec<u32>,
}

impl Masked {
    pub(super) fn new(mask: Box<dyn TokenMask>) -> Self {
        Self { mask, words: Vec::new() }
    }

    /// The tokens of a vocabulary that may come next, stop tokens among them; `None` where the text has to end.
    ///
    /// # Errors
    /// [`Error::Grammar`] where the text can neither go on nor end.
    pub(super) fn allowed(&mut self, vocabulary: usize, stops: &StopSet) -> Result<Option<&[u32]>> {
        let words = vocabulary.div_ceil(32);
        self.words.clear();
        if !self.mask.is_at_end() {
            match self.mask.allowed()? {
                Some(allowed) => self.words.extend(allowed.iter().take(words)),
                None => self.words.resize(words, !0),
            }
        }
        self.words.resize(words, 0);
        let complete = self.mask.is_complete();
        for &id in stops.ids() {
            if let Some(word) = self.words.get_mut(id as usize / 32) {
                let bit = 1 << (id % 32);
                *word = if complete { *word | bit } else { *word & !bit };
            }
        }
        match self.words.iter().any(|&word| word != 0) {
            true => Ok(Some(&self.words)),
            false if complete => Ok(None),
            false => {
                let message = "no token of the vocabulary continues the text that the grammar asks for";
                Err(Error::Grammar(message.to_owned()))
            }
        }
    }

    /// Takes the token that was chosen; whether the text has to end behind it.
    pub(super) fn accept(&mut self, token: u32) -> Result<bool> {
        self.mask.accept(token)?;
        Ok(self.mask.is_at_end())
    }
}
