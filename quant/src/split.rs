//! Weights in parts: what the operations on [`PackedWeight::Split`] are in terms of those on its parts.

use burn::tensor::{Int, Tensor};

use crate::CompactBackend;
use crate::modules::Linear;
use crate::packed::{PackedWeight, SplitWeight};

/// A product with one weight, with a bias or without.
pub(crate) type Operation<B> = fn(Tensor<B, 2>, &PackedWeight<B>, Option<Tensor<B, 1>>) -> Tensor<B, 2>;

/// The outputs of the parts beside each other.
pub(crate) fn linear<B: CompactBackend>(
    x: Tensor<B, 2>,
    w: &SplitWeight<B>,
    bias: Option<Tensor<B, 1>>,
    of_part: Operation<B>,
) -> Tensor<B, 2> {
    let mut first = 0;
    let outputs = w.parts.iter().map(|part| {
        let part = part.weight();
        let rows = first..first + part.shape()[0];
        first = rows.end;
        of_part(x.clone(), &part, bias.clone().map(|bias| bias.slice_dim(0, rows)))
    });
    Tensor::cat(outputs.collect(), 1)
}

/// The rows of the part that has them. Every part is asked; one that has not the row gives another, which is not used. An id that
/// no part has gives NaN, as it does in one part.
pub(crate) fn embed<B: CompactBackend>(ids: Tensor<B, 1, Int>, w: &SplitWeight<B>) -> Tensor<B, 2> {
    let [m] = ids.dims();
    let mut first = 0;
    let mut rows: Option<Tensor<B, 2>> = None;
    for part in &w.parts {
        let part = part.weight();
        let [n, k] = part.shape();
        let within = (ids.clone() - first as i64).clamp(0, n as i64 - 1);
        let found = B::packed_embed(within, &part);
        rows = Some(match rows {
            None => found,
            Some(rows) => {
                let here = ids.clone().greater_equal_elem(first as i64).unsqueeze_dim::<2>(1).expand([m, k]);
                rows.mask_where(here, found)
            }
        });
        first += n;
    }
    let rows = rows.expect("a split weight has parts");
    let width = rows.dims()[1];
    let unknown = ids.clone().lower_elem(0).bool_or(ids.greater_equal_elem(first as i64));
    rows.mask_fill(unknown.unsqueeze_dim::<2>(1).expand([m, width]), f32::NAN)
}

/// Whether the weight of a layer is in parts.
pub(crate) fn in_parts<B: CompactBackend>(layer: &Linear<B>) -> bool {
    matches!(layer.weight, PackedWeight::Split(_))
}
