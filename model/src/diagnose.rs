//! After a pass gave no numbers: where NaN or infinity came from.
//!
//! The tokens are run once more with every layer looked at. That happens only after a failure, so a pass that works pays nothing.

use burn::tensor::{DType, Tensor, Transaction};
use emberlm_quant::CompactBackend;
use emberlm_quant::host::FloatType;
use emberlm_quant::kv::{KvFormat, KvStore};

use crate::cache::LayerCache;
use crate::causal_lm::{CausalLm, ForwardOptions, LogitsFor};
use crate::error::Result;
use crate::read::{elements, read_back};

/// How the tokens were run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Tokens per pass.
    pub chunk: usize,
    /// Of the cache.
    pub format: KvFormat,
}

/// A sentence about the first layer of the first pass over `ids` whose result is not finite, and what may help; none where every
/// layer's is, or when it was cancelled.
///
/// # Errors
/// When the device gives no numbers.
pub(crate) fn first_non_finite<B: CompactBackend>(
    model: &CausalLm<B>,
    ids: &[u32],
    run: Run,
    cancelled: impl Fn() -> bool,
) -> Result<Option<String>> {
    let mut cache = model.new_cache(run.format);
    cache.check_room(ids.len())?;
    let mut start = 0;
    for part in ids.chunks(run.chunk.max(1)) {
        if cancelled() {
            return Ok(None);
        }
        let options = ForwardOptions { logits: LogitsFor::Last, hidden: true };
        let out = model.forward(model.ids(&[part])?, &mut cache, options)?;
        let place = |row: usize| {
            let (at, id) = (start + row, part.get(row).copied().unwrap_or_default());
            format!("at position {at} (token {id})")
        };
        for (i, hidden) in out.hidden.into_iter().enumerate() {
            let Some(row) = bad_row(hidden)? else { continue };
            let Some(layer) = i.checked_sub(1) else {
                return Ok(Some(format!("they come from the embedding, {}", place(row))));
            };
            let cached = match cache.layers.get(layer) {
                Some(LayerCache::Attention(kv)) => bad_cache(kv.k(), kv.v())?,
                _ => None,
            };
            let cause = match (cached, model.activations()) {
                (Some((what, true)), _) => format!(
                    ": its cached {what} are beyond 65504, where F16 ends; use a cache of F32 (--cache-type f32)"
                ),
                (Some((what, false)), _) => format!(": its {what} are not finite"),
                (None, FloatType::F16) => {
                    "; activations of F16 end at 65504: use F32 or BF16 (--activations f32 or bf16)".to_owned()
                }
                (None, _) => String::new(),
            };
            return Ok(Some(format!("they come from layer {layer}, {}{cause}", place(row))));
        }
        if let Some(row) = bad_row(out.final_hidden)? {
            return Ok(Some(format!("they come from the last norm, {}", place(row))));
        }
        if let Some(logits) = out.logits
            && bad_row(logits)?.is_some()
        {
            return Ok(Some(format!("they come from the head, {}", place(part.len().saturating_sub(1)))));
        }
        start += part.len();
    }
    Ok(None)
}

/// The first row of `[1, rows, width]` with a number that is not finite.
fn bad_row<B: CompactBackend>(t: Tensor<B, 3>) -> Result<Option<usize>> {
    let [_, _, width] = t.dims();
    let numbers: Vec<f32> = elements(read_back(Transaction::default().register(t.cast(DType::F32)))?.next())?;
    Ok(numbers.iter().position(|x| !x.is_finite()).and_then(|at| at.checked_div(width)))
}

/// Whether keys or values are not finite, and whether they are F16, which may be why.
fn bad_cache<B: CompactBackend>(k: &KvStore<B>, v: &KvStore<B>) -> Result<Option<(&'static str, bool)>> {
    for (what, store) in [("keys", k), ("values", v)] {
        let bad = match store {
            KvStore::F32(t) => {
                let numbers: Vec<f32> = elements(read_back(Transaction::default().register(t.clone()))?.next())?;
                numbers.iter().any(|x| !x.is_finite())
            }
            KvStore::F16(t) => {
                let words: Vec<u32> = elements(read_back(Transaction::default().register(t.clone()))?.next())?;
                let bad = |half: u32| half & 0x7c00 == 0x7c00;
                words.iter().any(|&word| bad(word) || bad(word >> 16))
            }
        };
        if bad {
            return Ok(Some((what, matches!(store, KvStore::F16(_)))));
        }
    }
    Ok(None)
}
