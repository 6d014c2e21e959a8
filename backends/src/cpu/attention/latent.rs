//! Latent attention: over the codes of a compressed cache, without decoding them.
//!
//! With `u_t = act(W₁ c_t + b₁)` a key or value is `W₂ u_t + b₂`. Its last layer is linear, so
//! `q · (W₂ u_t + b₂) = (W₂ᵀ q) · u_t + q · b₂` and `Σ p_t (W₂ u_t + b₂) = W₂ Σ p_t u_t + b₂`: attention runs on `u`, which
//! all heads share, and `W₂` touches each query once instead of each token.

use crate::check::elements;
use crate::cpu::Level;
use crate::cpu::attention::types::{Attention, CodeDecoder};
use crate::cpu::matmul::embed::dequantize_rows;
use crate::cpu::matmul::linear::product;
use crate::cpu::matmul::weight::{Matrix, Weight};
use crate::cpu::pool::for_each_chunk;
use crate::cpu::simd::{Kernel, Simd, launch, math};
use crate::types::CodeActivation;

/// `u [b, t, h]` of every token seen; the codes themselves (`h = r`) without a hidden layer.
pub(crate) fn hidden(level: Level, codes: &[f32], decoder: &CodeDecoder, p: &Attention) -> Vec<f32> {
    let (t, r, h) = (p.past + p.seq, decoder.code_dim(), decoder.output.weight.k);
    let mut u = vec![0.0; elements("the hidden codes", &[p.batch, t, h])];
    for b in 0..p.batch {
        let codes = &codes[b * p.capacity * r..][..t * r];
        let u = &mut u[b * t * h..(b + 1) * t * h];
        match &decoder.hidden {
            None => u.copy_from_slice(codes),
            Some((layer, activation)) => {
                product(codes, t, &layer.weight, layer.bias, u);
                for_each_chunk(u, h, 16 * h, |_, u| launch(level, Activate { u, activation: *activation }));
            }
        }
    }
    u
}

/// Per kv head: `W₂ᵀ q` for every row, `[b, kv_heads, rows, h]`, and `q · b₂`.
pub(crate) fn project_queries(
    q: &[f32],
    rows: usize,
    decoder: &CodeDecoder,
    p: &Attention,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let (hd, h) = (p.head_dim, decoder.output.weight.k);
    let mut projected = vec![0.0; elements("the projected queries", &[p.batch, p.kv_heads, rows, h])];
    let mut block = vec![0.0; hd * h];
    let mut transposed = vec![0.0; hd * h];
    for g in 0..p.kv_heads {
        dequantize_rows(&decoder.output.weight, g * hd, hd, &mut block);
        for (d, row) in block.chunks_exact(h.max(1)).enumerate() {
            for (i, &value) in row.iter().enumerate() {
                transposed[i * hd + d] = value;
            }
        }
        let w = Weight { n: h, k: hd, data: Matrix::F32(&transposed) };
        for b in 0..p.batch {
            let at = (b * p.kv_heads + g) * rows;
            product(&q[at * hd..(at + rows) * hd], rows, &w, None, &mut projected[at * h..(at + rows) * h]);
        }
    }
    let bias = decoder.output.bias.map(|bias| {
        let dot = |(i, q): (usize, &[f32])| {
            let bias = &bias[i / rows % p.kv_heads * hd..][..hd];
            q.iter().zip(bias).map(|(q, b)| q * b).sum::<f32>()
        };
        q.chunks_exact(hd).enumerate().map(dot).collect()
    });
    (projected, bias)
}

/// Per kv head: `W₂ u + b₂` for every row, `[b, kv_heads, rows, head_dim]`.
pub(crate) fn project_values(u: &[f32], rows: usize, decoder: &CodeDecoder, p: &Attention) -> Vec<f32> {
    let (hd, h) = (p.head_dim, decoder.output.weight.k);
    let mut values = vec![0.0; p.batch * p.kv_heads * rows * hd];
    let mut block = vec![0.0; hd * h];
    for g in 0..p.kv_heads {
        dequantize_rows(&decoder.output.weight, g * hd, hd, &mut block);
        let w = Weight { n: hd, k: h, data: Matrix::F32(&block) };
        let bias = decoder.output.bias.map(|bias| &bias[g * hd..(g + 1) * hd]);
        for b in 0..p.batch {
            let at = (b * p.kv_heads + g) * rows;
            product(&u[at * h..(at + rows) * h], rows, &w, bias, &mut values[at * hd..(at + rows) * hd]);
        }
    }
    values
}

struct Activate<'a> {
    u: &'a mut [f32],
    activation: CodeActivation,
}

impl Kernel for Activate<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // SAFETY: `S` is enabled.
        unsafe {
            match self.activation {
                CodeActivation::Gelu => math::map::<S, _>(self.u, math::Gelu),
                CodeActivation::GeluTanh => math::map::<S, _>(self.u, math::GeluTanh),
                CodeActivation::Silu => math::map::<S, _>(self.u, math::Silu),
                CodeActivation::Relu => math::map::<S, _>(self.u, math::Relu),
            }
        }
    }
}
