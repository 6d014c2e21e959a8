//! Flash attention: online softmax over tiles of the cache.
//!
//! A task is a few queries of one kv head (all query heads that share its keys, a few tokens) against a range of positions; where
//! all heads share hidden values and queries are few, all queries of all kv heads, so that they are read, or computed from codes, once. Per tile of positions:
//! scores, the running maximum and sum of each query, then the weighted sum of values. Ranges of a long cache are merged at the
//! end, so that one decoded token keeps every thread busy.

use crate::check::elements;
use crate::cpu::Level;
use crate::cpu::attention::prompt::{self, PromptTask};
use crate::cpu::attention::source::{FlashAttention, MAX_SHARED_ROWS, Source};
use crate::cpu::attention::tile::{self, FlashTask};
use crate::cpu::pool::{Output, parallel, threads, with_scratch};
use crate::cpu::simd::launch;
use crate::types::KV_TILE as TILE;

/// About how many queries share a tile.
const ROWS: usize = 64;
/// Tasks per thread of one long cache: a thread that the system interrupts takes fewer.
const TASKS: usize = 8;

/// How one attention is cut into tasks.
struct Cut {
    /// Kv heads of a task.
    heads: usize,
    /// Queries of a kv head that share a tile.
    step: usize,
    /// Tasks of one kv head and one range of positions.
    tiles: usize,
    /// Ranges of positions, and positions of one.
    ranges: usize,
    range: usize,
}

impl FlashAttention<'_> {
    /// Positions that all queries see at most.
    fn positions(&self) -> usize {
        self.p.past + self.p.seq
    }

    /// Rows of the batch times kv heads.
    fn heads(&self) -> usize {
        self.p.batch * self.p.kv_heads
    }

    /// Queries.
    fn all(&self) -> usize {
        self.heads() * self.rows
    }

    /// Kv heads and queries of each that share a tile.
    fn shared(&self) -> (usize, usize) {
        let few = !self.prompt && self.p.kv_heads * self.rows <= MAX_SHARED_ROWS;
        let shared = [&self.keys, &self.values].into_iter().any(|source| match source {
            Source::Codes { .. } => true,
            Source::Tokens { .. } => few,
            Source::Heads(_) => false,
        });
        let group = self.group().max(1);
        let rows = if self.prompt { prompt::ROWS } else { ROWS };
        if shared { (self.p.kv_heads, self.rows.max(1)) } else { (1, (rows / group).max(1) * group) }
    }

    /// Tasks of one range of positions.
    fn tiles(&self) -> usize {
        let (heads, step) = self.shared();
        self.heads() / heads * self.rows.div_ceil(step)
    }

    /// Tiles of queries times positions: what it takes, in proportion to the others of its call.
    fn share(&self) -> usize {
        self.tiles().saturating_mul(self.positions())
    }

    /// Into about as many tasks as its share of the threads.
    fn cut(&self, shares: usize) -> Cut {
        let (t, (heads, step)) = (self.positions(), self.shared());
        let wanted = (TASKS * threads()).saturating_mul(t).div_ceil(shares.max(1));
        let ranges = wanted.min(t.div_ceil(4 * TILE)).max(1);
        let range = t.div_ceil(ranges).next_multiple_of(TILE);
        Cut { heads, step, tiles: self.rows.div_ceil(step), ranges: t.div_ceil(range.max(1)).max(1), range }
    }

    /// Whether its results are written where they belong by the tasks themselves: there is nothing to merge, and nothing to project.
    fn is_direct(&self, cut: &Cut) -> bool {
        self.prompt && cut.ranges == 1 && matches!(self.values, Source::Heads(_))
    }

    fn task(&self, level: Level, cut: &Cut, task: usize, out: Output<'_>, [values, state]: [Output<'_>; 2]) {
        let (r, rest) = (task % cut.ranges, task / cut.ranges);
        let (head, first) = (rest / cut.tiles * cut.heads, rest % cut.tiles * cut.step);
        let rows = cut.step.min(self.rows - first);
        let t = self.positions();
        let scratch: usize = match self.prompt {
            true => prompt::scratch_lens(self, rows).iter().sum(),
            false => tile::scratch_lens(self, cut.heads * rows).iter().sum(),
        };
        with_scratch(scratch, |scratch| {
            let task = FlashTask {
                a: self,
                b: head / self.p.kv_heads,
                head: head % self.p.kv_heads,
                heads: cut.heads,
                first,
                rows,
                positions: (r * cut.range).min(t)..((r + 1) * cut.range).min(t),
                row: r * self.all() + head * self.rows + first,
                values,
                state,
                scratch,
            };
            if self.prompt {
                launch(level, PromptTask { task, out: self.is_direct(cut).then_some(out) });
            } else {
                launch(level, task);
            }
        });
    }

    /// The weighted values of all ranges together, in place of those of the first.
    fn merge(&self, ranges: usize, partial: &mut Vec<f32>, state: &[f32]) {
        let (all, width) = (self.all(), self.values.width(&self.p));
        for row in 0..all {
            let state = |r: usize| (state[(r * all + row) * 2], state[(r * all + row) * 2 + 1]);
            let highest = (0..ranges).map(|r| state(r).0).fold(f32::NEG_INFINITY, f32::max);
            let share = |r: usize| {
                if state(r).1 == 0.0 { 0.0 } else { (state(r).0 - highest).exp() }
            };
            let total: f32 = (0..ranges).map(|r| share(r) * state(r).1).sum();
            for r in 0..ranges {
                let factor = share(r) / total;
                for d in 0..width {
                    let value = factor * partial[(r * all + row) * width + d];
                    let to = &mut partial[row * width + d];
                    *to = if r == 0 { value } else { *to + value };
                }
            }
        }
        partial.truncate(all * width);
    }
}

/// The weighted values `[b, kv_heads, rows, values.width]` of each of the calls, in one region; none for those whose results were written to
/// their place in `outs`, each `[b * s, heads * head_dim]`.
pub(super) fn run(calls: &[FlashAttention], outs: &[Output], level: Level) -> Vec<Option<Vec<f32>>> {
    let shares = calls.iter().fold(0usize, |sum, call| sum.saturating_add(call.share()));
    // A prompt is many tasks already: it is cut as if it were alone, so that its results do not depend on what else there is.
    let cut = |call: &FlashAttention| call.cut(if call.prompt { call.share() } else { shares });
    let cuts: Vec<Cut> = calls.iter().map(cut).collect();
    // Per range and query: the values, then maximum and sum.
    let buffers = |of: fn(&FlashAttention) -> usize| -> Vec<Vec<f32>> {
        let ranges = |call: &FlashAttention, cut| if call.is_direct(cut) { 0 } else { cut.ranges };
        let sizes = calls.iter().zip(&cuts).map(|(call, cut)| [ranges(call, cut), call.all(), of(call)]);
        sizes.map(|size| vec![0.0; elements("the partial results", &size)]).collect()
    };
    let (mut partial, mut state) = (buffers(|call| call.values.width(&call.p)), buffers(|_| 2));
    let outputs: Vec<[Output; 2]> = (calls.iter().zip(&mut partial).zip(&mut state))
        .map(|((call, partial), state)| [Output::new(partial, call.values.width(&call.p)), Output::new(state, 2)])
        .collect();
    // Where the tasks of a call begin.
    let mut tasks = 0;
    let starts = calls.iter().zip(&cuts).map(|(call, cut)| {
        let start = tasks;
        tasks += call.tiles() * cut.ranges;
        start
    });
    let starts: Vec<usize> = starts.collect();
    let task = |task: usize| {
        let i = starts.partition_point(|&start| start <= task) - 1;
        calls[i].task(level, &cuts[i], task - starts[i], outs[i], outputs[i]);
    };
    let work = |call: &FlashAttention| call.all().saturating_mul(call.positions()).saturating_mul(call.p.head_dim);
    if calls.iter().map(work).fold(0, usize::saturating_add) < crate::cpu::pool::MIN_WORK {
        (0..tasks).for_each(task);
    } else {
        parallel(tasks, task);
    }
    let results = calls.iter().zip(&cuts).zip(partial.into_iter().zip(&state));
    let merged = results.map(|((call, cut), (mut partial, state))| {
        (!call.is_direct(cut)).then(|| {
            call.merge(cut.ranges, &mut partial, state);
            partial
        })
    });
    merged.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::attention::parts::Parts;
    use crate::cpu::attention::source::Queries;
    use crate::cpu::attention::types::Attention;
    use crate::cpu::cache::CacheSlice;

    /// A few queries of all heads read hidden values together; many, also those that are no lanes (beside keys in 8 bits), would be more than
    /// caches hold.
    #[test]
    fn few_queries_share_hidden_values() {
        for (seq, prompt, shared) in
            [(1, false, (8, 4)), (8, false, (8, 32)), (9, false, (1, 64)), (512, false, (1, 64)), (512, true, (1, 256))]
        {
            let p =
                Attention { batch: 1, seq, heads: 32, kv_heads: 8, head_dim: 4, past: 0, capacity: seq, scale: 1.0 };
            let heads = || Source::Heads(Parts::of_heads(&[CacheSlice::Q8 { codes: &[], scales: &[] }], &p));
            let tokens = || Source::Tokens { parts: Parts::of_tokens(&[CacheSlice::F16(&[])], 16, &p), width: 16 };
            for (keys, values) in [(heads(), tokens()), (tokens(), heads()), (tokens(), tokens())] {
                let call = FlashAttention {
                    q: Queries::Grouped(&[]),
                    bias: None,
                    keys,
                    values,
                    p,
                    rows: 4 * seq,
                    byte_queries: None,
                    byte_sums: None,
                    bf16_sums: false,
                    prompt,
                };
                assert_eq!(call.shared(), shared, "{seq} tokens, as lanes: {prompt}");
            }
        }
    }
}
