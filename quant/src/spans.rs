//! Tokens of several sequences, those of each one after the other.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// The tokens of each sequence of `[1, n, ..]`; of one alone whatever there is.
pub(crate) fn split<B: Backend, const D: usize>(x: Tensor<B, D>, tokens: &[usize]) -> Vec<Tensor<B, D>> {
    if tokens.len() == 1 {
        return vec![x];
    }
    let parts = tokens.iter().scan(0, |end, &tokens| {
        let start = *end;
        *end += tokens;
        Some(x.clone().slice_dim(1, start..*end))
    });
    parts.collect()
}

/// What [`split`] took apart.
pub(crate) fn join<B: Backend, const D: usize>(mut parts: Vec<Tensor<B, D>>) -> Tensor<B, D> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 1),
    }
}
