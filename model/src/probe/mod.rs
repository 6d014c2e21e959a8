//! Which values of options that no file states fit a text best.
//!
//! Options of CREST and of cache compressors change what a model computes, but are not always published, and a wrong one can look
//! almost right. [`OpenOptions`] lists those that a checkpoint leaves open; [`probe`] ranks their values by how well the model then
//! predicts a text. The weights are loaded once: an option is changed in the loaded model ([`CausalLm::set_options`]).
//!
//! The text is cut into blocks, each read from an empty cache. Candidates see the same blocks, so that their difference is a mean of
//! differences block by block ([`Difference`]), whose error is much smaller than that of a perplexity. A candidate that is worse by
//! several errors sees no further block.
//!
//! Of the halting threshold, which is a number, some values are tried, with `gate_input` and `halt_mode` and for the best of the other
//! options; these again for a threshold that is better.

mod axes;
mod candidate;
mod difference;
mod ranking;
mod search;

pub use axes::{Axis, ClosedOption, OpenOptions, OptionValue, WhyClosed};
pub use candidate::{Candidate, Fate};
pub use difference::Difference;
pub use ranking::{Conclusion, NEGLIGIBLE, Ranked, Ranking, Verdict};

use std::time::Instant;

use emberlm_quant::CompactBackend;

use crate::causal_lm::CausalLm;
use crate::error::{Error, Result};
use crate::evaluate::{EvaluateOptions, evaluate};

/// Fewest blocks from which anything is told.
pub const FEWEST_BLOCKS: usize = 8;

/// Fewest tokens of a block.
pub const SHORTEST_BLOCK: usize = 16;

/// A text in blocks of equal length.
#[derive(Clone, Debug)]
pub struct ProbeText<'a> {
    ids: &'a [u32],
    block: usize,
    blocks: usize,
    prefix: Vec<u32>,
}

impl<'a> ProbeText<'a> {
    /// Blocks of `block` tokens, or of as many as make 32 blocks (at least 32, at most 256), `blocks` at most; `prefix` is read before
    /// each, such as BOS. A rest that fills no block is left out.
    ///
    /// # Errors
    /// [`Error::Option`] when a block is shorter than [`SHORTEST_BLOCK`]; [`Error::Prompt`] when there are fewer than
    /// [`FEWEST_BLOCKS`], from which nothing can be told.
    pub fn new(ids: &'a [u32], block: Option<usize>, blocks: usize, prefix: Vec<u32>) -> Result<Self> {
        let block = block.unwrap_or((ids.len() / 32).clamp(32, 256));
        if block < SHORTEST_BLOCK {
            let message = format!("is {block}, expected at least {SHORTEST_BLOCK} tokens");
            return Err(Error::Option { option: "block".into(), message });
        }
        let found = ids.len() / block;
        if found.min(blocks) < FEWEST_BLOCKS {
            let needed = FEWEST_BLOCKS.saturating_mul(block);
            return Err(Error::Prompt(format!(
                "nothing can be told from {} tokens, which are {} of {block}: at least {FEWEST_BLOCKS} blocks ({needed} tokens) are \
                 needed, and more tell options apart that differ little; use a longer text",
                ids.len(),
                if found == 1 { "1 block".to_owned() } else { format!("{found} blocks") },
            )));
        }
        Ok(Self { ids, block, blocks: found.min(blocks), prefix })
    }

    /// Tokens of a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Tokens of all blocks.
    pub fn tokens(&self) -> usize {
        self.block.saturating_mul(self.blocks)
    }

    fn of_block(&self, index: usize) -> &[u32] {
        let start = index.saturating_mul(self.block);
        self.ids.get(start..start.saturating_add(self.block)).unwrap_or_default()
    }
}

/// How far a probe is.
#[derive(Clone, Debug)]
pub struct ProbeProgress<'a> {
    /// Blocks that were read by all candidates together.
    pub done: usize,
    /// Blocks to be read at most, if no further candidate is dropped.
    pub total: usize,
    /// Candidates so far.
    pub candidates: usize,
    /// Candidates that are not dropped.
    pub left: usize,
    /// The best so far.
    pub best: Option<&'a Candidate>,
}

/// Ranks the values of open options by how well the model predicts the text. The model is left with the first.
///
/// # Errors
/// As [`evaluate`], but for logits that are not numbers: these end a candidate. [`Error::NonFinite`] when they end all;
/// [`Error::Option`] when nothing is open.
pub fn probe<B: CompactBackend>(
    model: &mut CausalLm<B>,
    open: &OpenOptions,
    text: &ProbeText<'_>,
    mut progress: impl FnMut(ProbeProgress<'_>),
) -> Result<Ranking> {
    let started = Instant::now();
    if open.axes.is_empty() {
        return Err(Error::Option { option: "probe".into(), message: "no option of this model is open".into() });
    }
    let options = EvaluateOptions { prefix: text.prefix.clone(), ..EvaluateOptions::default() };
    let all = search::candidates(open, |all| compare(model, all, text, &options, &mut progress))?;
    let ranking = Ranking::new(all, open, text, started.elapsed().as_secs_f64());
    if let Some(first) = ranking.candidates.first() {
        model.set_options(&OptionValue::all(&first.candidate.values))?;
    }
    Ok(ranking)
}

/// Lets every candidate read block after block, until all have read the text or one is left.
fn compare<B: CompactBackend>(
    model: &mut CausalLm<B>,
    all: &mut [Candidate],
    text: &ProbeText<'_>,
    options: &EvaluateOptions,
    progress: &mut impl FnMut(ProbeProgress<'_>),
) -> Result<()> {
    for index in 0..text.blocks() {
        // Cheap ones first, so that the dear ones are held against them before they read on.
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by(|&a, &b| cost(all, a).total_cmp(&cost(all, b)));
        for i in order {
            ranking::drop_hopeless(all);
            let left = all.iter().filter(|candidate| candidate.is_in_play()).count();
            let Some(candidate) = all.get_mut(i) else { continue };
            let is_new = candidate.blocks() < FEWEST_BLOCKS;
            if !candidate.is_in_play() || candidate.blocks() > index || (left == 1 && !is_new) {
                continue;
            }
            model.set_options(&OptionValue::all(&candidate.values))?;
            match evaluate(model, text.of_block(index), options) {
                Ok(evaluated) => candidate.add(&evaluated),
                Err(Error::NonFinite { .. }) => candidate.fate = Fate::NotFinite,
                Err(other) => return Err(other),
            }
            tell(all, text, progress);
        }
    }
    ranking::drop_hopeless(all);
    Ok(())
}

fn cost(all: &[Candidate], i: usize) -> f64 {
    all.get(i).map_or(0.0, Candidate::seconds_per_block)
}

fn tell(all: &[Candidate], text: &ProbeText<'_>, progress: &mut impl FnMut(ProbeProgress<'_>)) {
    let done = all.iter().map(Candidate::blocks).sum();
    let open = all.iter().filter(|candidate| candidate.is_in_play());
    let (left, to_read) =
        open.fold((0, 0), |(left, to_read), candidate| (left + 1, to_read + text.blocks() - candidate.blocks()));
    let best = ranking::lowest(all).and_then(|best| all.get(best));
    progress(ProbeProgress { done, total: done + to_read, candidates: all.len(), left, best });
}
