//! What the passes of `ember dump` gave, in the places that the tokens have in the input.

use std::ops::Range;

use anyhow::{Result, anyhow};
use burn::tensor::{Int, Tensor};
use emberlm::model::ForwardOutput;
use emberlm::quant::CompactBackend;

use crate::cli::tensor_file::{Array, Numbers, Tokens};

/// What the passes over a prompt gave, put together.
pub struct Record {
    b: usize,
    t: usize,
    logits: ByToken<f32>,
    final_hidden: ByToken<f32>,
    hidden: Vec<ByToken<f32>>,
    depth: Vec<Depth>,
}

/// Of one layer.
#[derive(Default)]
struct Depth {
    steps: ByToken<i32>,
    halt: ByToken<f32>,
    weights: ByToken<f32>,
}

impl Record {
    /// Of nothing yet.
    pub fn new(tokens: &Tokens) -> Self {
        Self {
            b: tokens.rows.len(),
            t: tokens.rows.first().map_or(0, Vec::len),
            logits: ByToken::default(),
            final_hidden: ByToken::default(),
            hidden: Vec::new(),
            depth: Vec::new(),
        }
    }

    /// Takes what one pass over these slots of each row gave; returns the logits of the last of each, `[b, v]`.
    pub fn add<B: CompactBackend>(
        &mut self,
        slots: &[Range<usize>],
        out: ForwardOutput<B>,
    ) -> Result<Option<Tensor<B, 2>>> {
        let place = Place { b: self.b, t: self.t, slots };
        self.final_hidden.place(&place, &floats(out.final_hidden)?);
        self.hidden.resize_with(out.hidden.len(), ByToken::default);
        for (record, hidden) in self.hidden.iter_mut().zip(out.hidden) {
            record.place(&place, &floats(hidden)?);
        }
        self.depth.resize_with(out.depth.len(), Depth::default);
        for (record, trace) in self.depth.iter_mut().zip(out.depth) {
            record.steps.place(&place, &integers(trace.steps)?);
            record.halt.place(&place, &side_by_side(trace.halt)?);
            record.weights.place(&place, &side_by_side(trace.weights)?);
        }
        let Some(logits) = out.logits else { return Ok(None) };
        self.logits.place(&place, &floats(logits.clone())?);
        let mut end = 0;
        let last = slots.iter().filter(|slots| !slots.is_empty()).map(|slots| {
            end += slots.len();
            logits.clone().slice_dim(0, end - 1..end)
        });
        Ok(Some(Tensor::cat(last.collect(), 0)))
    }

    /// As the tensors of the file.
    pub fn finish(self) -> Vec<(String, Array)> {
        let (b, t) = (self.b, self.t);
        let by_token = |x: ByToken<f32>| Array { shape: vec![b, t, x.width], numbers: Numbers::F32(x.values) };
        let mut out =
            vec![("logits".into(), by_token(self.logits)), ("final_hidden".into(), by_token(self.final_hidden))];
        let hidden = self.hidden.into_iter().enumerate();
        out.extend(hidden.map(|(l, hidden)| (format!("hidden.{l}"), by_token(hidden))));
        let layers = self.depth.len();
        if layers > 0 {
            let (mut steps, mut halt, mut weights) = (Vec::new(), Vec::new(), Vec::new());
            let (mut gates, mut k) = (0, 0);
            for layer in self.depth {
                (gates, k) = (layer.halt.width, layer.weights.width);
                steps.extend(layer.steps.values);
                halt.extend(layer.halt.values);
                weights.extend(layer.weights.values);
            }
            let floats = |width, x| Array { shape: vec![layers, b, t, width], numbers: Numbers::F32(x) };
            out.push(("crest.steps".into(), Array { shape: vec![layers, b, t], numbers: Numbers::I32(steps) }));
            out.push(("crest.halt".into(), floats(gates, halt)));
            out.push(("crest.weights".into(), floats(k, weights)));
        }
        out
    }
}

/// Which slots of which rows a pass was about.
struct Place<'a> {
    b: usize,
    t: usize,
    /// Of each row; empty where it took no part.
    slots: &'a [Range<usize>],
}

/// Numbers per token, `[b, t, width]`; 0 in the padding.
#[derive(Default)]
struct ByToken<T> {
    width: usize,
    values: Vec<T>,
}

impl<T: Copy + Default> ByToken<T> {
    /// Puts the values `[tokens, width]` of a pass into their place, row after row.
    fn place(&mut self, place: &Place<'_>, values: &[T]) {
        if self.values.is_empty() {
            let tokens: usize = place.slots.iter().map(ExactSizeIterator::len).sum();
            self.width = values.len() / tokens.max(1);
            self.values = vec![T::default(); place.b * place.t * self.width];
        }
        if self.width == 0 {
            return;
        }
        let mut values = values.chunks(self.width);
        for (to, slots) in self.values.chunks_mut(place.t * self.width).zip(place.slots) {
            let to = to.chunks_mut(self.width).skip(slots.start).take(slots.len());
            to.zip(&mut values).for_each(|(to, from)| to.copy_from_slice(from));
        }
    }
}

/// The numbers of a tensor on the host.
pub fn floats<B: CompactBackend, const D: usize>(x: Tensor<B, D>) -> Result<Vec<f32>> {
    x.into_data().convert::<f32>().into_vec().map_err(|e| anyhow!("the result cannot be read: {e}"))
}

fn integers<B: CompactBackend>(x: Tensor<B, 1, Int>) -> Result<Vec<i32>> {
    x.into_data().convert::<i32>().into_vec().map_err(|e| anyhow!("the result cannot be read: {e}"))
}

/// Columns `[m]` as one matrix `[m, columns]`.
fn side_by_side<B: CompactBackend>(columns: Vec<Tensor<B, 1>>) -> Result<Vec<f32>> {
    let columns = columns.into_iter().map(floats).collect::<Result<Vec<_>>>()?;
    let m = columns.first().map_or(0, Vec::len);
    Ok((0..m).flat_map(|i| columns.iter().filter_map(move |column| column.get(i).copied())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_stays_zero() {
        let mut record = ByToken::default();
        for (slots, values) in [([0..1, 0..0], vec![1, 2]), ([1..4, 2..4], (3..13).collect())] {
            record.place(&Place { b: 2, t: 4, slots: &slots }, &values);
        }
        assert_eq!(record.values, [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 9, 10, 11, 12]);
    }
}
