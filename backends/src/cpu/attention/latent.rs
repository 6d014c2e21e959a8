//! Latent attention: over the codes of a compressed cache, without decoding them.
//!
//! With `u_t = act(W₁ c_t + b₁)` a key or value is `W₂ u_t + b₂`. Its last layer is linear, so
//! `q · (W₂ u_t + b₂) = (W₂ᵀ q) · u_t + q · b₂` and `Σ p_t (W₂ u_t + b₂) = W₂ Σ p_t u_t + b₂`: attention runs on `u`, which
//! all heads share, and `W₂` touches each query once instead of each token. Here is what `W₂` does to queries and sums.

use crate::check::elements;
use crate::cpu::Level;
use crate::cpu::attention::types::{Attention, Layer};
use crate::cpu::matmul::dense::{DenseRows, DenseScales};
use crate::cpu::matmul::dequantize::Decode;
use crate::cpu::matmul::embed::dequantize_rows;
use crate::cpu::matmul::linear::product;
use crate::cpu::matmul::packed::MAX_COLUMNS;
use crate::cpu::matmul::weight::{Matrix, Weight};
use crate::cpu::pool::{Output, parallel, with_scratch};
use crate::cpu::simd::launch;

/// Per kv head: `W₂ᵀ q` for every row, `[b, kv_heads, rows, h]`, and `q · b₂`.
pub(super) fn project_queries(
    level: Level,
    q: &[f32],
    rows: usize,
    output: &Layer,
    p: &Attention,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let (hd, h) = (p.head_dim, output.weight.k);
    let mut projected = vec![0.0; elements("the projected queries", &[p.batch, p.kv_heads, rows, h])];
    let transpose = |block: &[f32], transposed: &mut [f32]| {
        for (d, row) in block.chunks_exact(h).enumerate() {
            for (i, &value) in row.iter().enumerate() {
                transposed[i * hd + d] = value;
            }
        }
    };
    of_heads(level, [hd, h], q, rows, output, p, None, Some(&transpose), &mut projected);
    let bias = output.bias.map(|bias| {
        let dot = |(i, q): (usize, &[f32])| {
            let bias = &bias[i / rows % p.kv_heads * hd..][..hd];
            q.iter().zip(bias).map(|(q, b)| q * b).sum::<f32>()
        };
        q.chunks_exact(hd).enumerate().map(dot).collect()
    });
    (projected, bias)
}

/// Per kv head: `W₂ u + b₂` for every row, `[b, kv_heads, rows, head_dim]`.
pub(super) fn project_values(level: Level, u: &[f32], rows: usize, output: &Layer, p: &Attention) -> Vec<f32> {
    let (hd, h) = (p.head_dim, output.weight.k);
    let mut values = vec![0.0; p.batch * p.kv_heads * rows * hd];
    of_heads(level, [h, hd], u, rows, output, p, output.bias, None, &mut values);
    values
}

/// Turns the rows of `W₂` of one head, `[head_dim, h]`, into another matrix of as many elements.
type Change<'a> = &'a (dyn Fn(&[f32], &mut [f32]) + Sync);

/// `x [b, kv_heads, rows, from]` times the rows of `W₂` of each head, changed or not: `[b, kv_heads, rows, to]`.
#[allow(clippy::too_many_arguments)]
fn of_heads(
    level: Level,
    [from, to]: [usize; 2],
    x: &[f32],
    rows: usize,
    output: &Layer,
    p: &Attention,
    bias: Option<&[f32]>,
    change: Option<Change>,
    y: &mut [f32],
) {
    let (w, hd) = (&output.weight, p.head_dim);
    let bias = |g: usize| bias.map(|bias| &bias[g * to..(g + 1) * to]);
    let size = hd * w.k;
    if rows <= 2 * MAX_COLUMNS {
        // A few queries of each head: the heads are tasks.
        let out = Output::new(y, to);
        parallel(p.kv_heads, |g| {
            with_scratch(2 * size, |scratch| {
                let (mut block, mut other) = scratch.split_at_mut(size);
                for (d, out) in block.chunks_exact_mut(w.k).enumerate() {
                    launch(level, Decode { w, row: g * hd + d, first: 0, out });
                }
                if let Some(change) = change {
                    change(block, other);
                    (block, other) = (other, block);
                }
                let _ = other;
                for b in 0..p.batch {
                    for first in (0..rows).step_by(MAX_COLUMNS) {
                        let m = MAX_COLUMNS.min(rows - first);
                        let row = (b * p.kv_heads + g) * rows + first;
                        let x = &x[row * from..(row + m) * from];
                        let (w, scales, bias) = (&*block, DenseScales::None, bias(g));
                        let y = out.rows_from(row);
                        launch(level, DenseRows { w, k: from, scales, x, m, first: 0, last: to, bias, y });
                    }
                }
            });
        });
        return;
    }
    let (mut block, mut changed) = (vec![0.0; size], vec![0.0; if change.is_some() { size } else { 0 }]);
    for g in 0..p.kv_heads {
        dequantize_rows(w, g * hd, hd, &mut block);
        let data = match change {
            Some(change) => {
                change(&block, &mut changed);
                &changed
            }
            None => &block,
        };
        let w = Weight { n: to, k: from, data: Matrix::F32(data) };
        for b in 0..p.batch {
            let at = (b * p.kv_heads + g) * rows;
            product(&x[at * from..(at + rows) * from], rows, &w, bias(g), &mut y[at * to..(at + rows) * to]);
        }
    }
}
