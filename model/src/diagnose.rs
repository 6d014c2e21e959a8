//! After a pass gave no numbers: where NaN or infinity came from.
//!
//! The tokens are run once more with every layer looked at. That happens only after a failure, so a pass that works pays nothing.

use burn::tensor::{DType, Tensor, Transaction};
use emberlm_quant::kv::{KvFormat, KvParts, KvStore};
use emberlm_quant::{Activations, CompactBackend};

use crate::cache::LayerCache;
use crate::causal_lm::{CausalLm, ForwardOptions, LogitsFor};
use crate::error::{Error, Result};
use crate::nn::{DepthOptions, Span};
use crate::read::{elements, read_back};

/// How the tokens were run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Tokens per pass.
    pub chunk: usize,
    /// Of the cache.
    pub format: KvFormat,
    /// How deep tokens went.
    pub depth: DepthOptions,
}

/// An error of a run over `ids`: one about numbers that are not finite also names the layer where they arise.
pub(crate) fn explained<B: CompactBackend>(
    error: Error,
    model: &CausalLm<B>,
    ids: &[u32],
    run: Run,
    cancelled: impl Fn() -> bool,
) -> Error {
    let Error::NonFinite { step, message } = error else { return error };
    // An error on the way explains nothing.
    match first_non_finite(model, ids, run, cancelled).ok().flatten() {
        Some(place) => Error::NonFinite { step, message: format!("{message}; {place}") },
        None => Error::NonFinite { step, message },
    }
}

/// A sentence about the first layer of the first pass over `ids` whose result is not finite, and what may help; none where every
/// layer's is, or when it was cancelled.
///
/// # Errors
/// When the device gives no numbers.
fn first_non_finite<B: CompactBackend>(
    model: &CausalLm<B>,
    ids: &[u32],
    run: Run,
    cancelled: impl Fn() -> bool,
) -> Result<Option<String>> {
    let exact = Run { format: KvFormat::F32, ..run };
    if let Some(place) = look(model, ids, exact, &cancelled)? {
        let f16 = model.activations() == Activations::F16;
        let range =
            if f16 { "; activations of F16 end at 65504: use F32 or BF16 (--activations f32 or bf16)" } else { "" };
        return Ok(Some(format!("{place}{range}")));
    }
    if run.format != KvFormat::F16 {
        return Ok(None);
    }
    let place = look(model, ids, run, &cancelled)?;
    Ok(place.map(|place| format!("{place}; F16 ends at 65504: use a cache of F32 (--cache-type f32)")))
}

fn look<B: CompactBackend>(
    model: &CausalLm<B>,
    ids: &[u32],
    run: Run,
    cancelled: &impl Fn() -> bool,
) -> Result<Option<String>> {
    let mut cache = model.new_cache(run.format);
    cache.check_room(ids.len())?;
    let mut start = 0;
    for part in ids.chunks(run.chunk.max(1)) {
        if cancelled() {
            return Ok(None);
        }
        let options = ForwardOptions { logits: LogitsFor::Last, hidden: true };
        let mut spans = [Span { depth: run.depth, ..Span::new(part.len(), &mut cache) }];
        let out = model.forward(model.ids(part)?, &mut spans, options)?;
        let from = |what: &str, row: usize| {
            let (at, id) = (start + row, part.get(row).copied().unwrap_or_default());
            Ok(Some(format!("they come from {what}, at position {at} (token {id})")))
        };
        for (i, hidden) in out.hidden.into_iter().enumerate() {
            let Some(row) = bad_row(hidden)? else { continue };
            let Some(layer) = i.checked_sub(1) else { return from("the embedding", row) };
            let cached = match cache.layers.get(layer) {
                Some(LayerCache::Attention(kv)) => bad_cache(kv.k()?, kv.v()?)?,
                _ => None,
            };
            let place = from(&format!("layer {layer}"), row)?;
            return Ok(place.map(|place| match cached {
                Some(what) => format!("{place}: its {what} are not finite"),
                None => place,
            }));
        }
        if let Some(row) = bad_row(out.final_hidden)? {
            return from("the last norm", row);
        }
        if let Some(logits) = out.logits
            && bad_row(logits)?.is_some()
        {
            return from("the head", part.len().saturating_sub(1));
        }
        start += part.len();
    }
    Ok(None)
}

/// The first row of `[rows, width]` with a number that is not finite.
fn bad_row<B: CompactBackend>(t: Tensor<B, 2>) -> Result<Option<usize>> {
    let [_, width] = t.dims();
    let numbers: Vec<f32> = elements(read_back(Transaction::default().register(t.cast(DType::F32)))?.next())?;
    Ok(numbers.iter().position(|x| !x.is_finite()).and_then(|at| at.checked_div(width)))
}

/// Whether keys or values are not finite.
fn bad_cache<B: CompactBackend>(k: KvParts<'_, B>, v: KvParts<'_, B>) -> Result<Option<&'static str>> {
    let stores = k.iter().map(|store| ("keys", store)).chain(v.iter().map(|store| ("values", store)));
    for (what, store) in stores {
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
            KvStore::Q8 { scales, .. } => {
                let numbers: Vec<f32> = elements(read_back(Transaction::default().register(scales.clone()))?.next())?;
                numbers.iter().any(|x| !x.is_finite())
            }
        };
        if bad {
            return Ok(Some(what));
        }
    }
    Ok(None)
}
