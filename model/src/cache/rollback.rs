//! Going back: after tokens that were tried, and turned out not to be those of the text.
//!
//! Keys and values are cut. A state cannot be, so there are two ways, for two things that are tried:
//!
//! - Drafts that one pass verifies (`drafted` of a span): the layers note what they were before it, and the inputs of
//!   their recurrent operations. What is left of the pass is computed from those; no weight is read for it. A state for every token of the
//!   pass would take its bytes as many times, and write them although most drafts stay. What is noted takes the bytes of a state once more
//!   (`LayerCacheShape::replay_bytes`); an engine's budget counts them as long as they are there.
//! - Passes that are to leave nothing behind, as those that draft: a [`Mark`] shares the tensors of the states, which the first pass copies.

use burn::tensor::backend::Backend;
use emberlm_quant::CompactBackend;

use super::layer::{DeltaNetCache, LayerCache, foreign};
use super::{Cache, refused};
use crate::error::Result;

/// A place in a sequence that its cache can return to.
#[derive(Debug)]
pub(crate) struct Mark<B: Backend> {
    len: usize,
    expected: usize,
    /// Of the linear-attention layers, in order.
    states: Vec<DeltaNetCache<B>>,
}

impl<B: CompactBackend> Cache<B> {
    /// The place after its last token.
    pub(crate) fn mark(&self) -> Mark<B> {
        let states = self.layers.iter().filter_map(|layer| match layer {
            LayerCache::DeltaNet(delta) => Some(delta.clone()),
            LayerCache::Attention(_) => None,
        });
        Mark { len: self.len, expected: self.expected, states: states.collect() }
    }

    /// Forgets the tokens that came after the mark. Their slots are kept.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) when the mark is another cache's, or lies behind what this one holds.
    pub(crate) fn return_to(&mut self, mark: Mark<B>) -> Result<()> {
        let states = self.layers.iter().filter(|layer| matches!(layer, LayerCache::DeltaNet(_))).count();
        if mark.len > self.len || mark.states.len() != states {
            return Err(foreign());
        }
        let mut states = mark.states.into_iter();
        for layer in &mut self.layers {
            if let LayerCache::DeltaNet(delta) = layer {
                *delta = states.next().ok_or_else(foreign)?;
            }
        }
        (self.len, self.expected, self.in_pass) = (mark.len, mark.expected, false);
        Ok(())
    }

    /// Of the last pass over this sequence, which fed it `fed` tokens with drafts among them, keeps the first `kept`, at least one.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) when it holds fewer, or a state cannot be had; it is not to be used then.
    pub(crate) fn keep_of_pass(&mut self, fed: usize, kept: usize) -> Result<()> {
        let Some(dropped) = fed.checked_sub(kept).filter(|&dropped| kept > 0 && dropped <= self.len) else {
            return Err(refused(format!("cannot keep {kept} of the {fed} tokens of a pass")));
        };
        for layer in &mut self.layers {
            match layer {
                LayerCache::DeltaNet(delta) if dropped > 0 => delta.replay(kept)?,
                LayerCache::DeltaNet(delta) => delta.drop_replay(),
                LayerCache::Attention(_) => {}
            }
        }
        self.len -= dropped;
        Ok(())
    }
}
