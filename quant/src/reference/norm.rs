//! Norms, gates and rotary positions.

use burn::tensor::activation::{sigmoid, silu};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use crate::kv::Rotary;
use crate::ops::Norm;

/// See [`CompactBackend::rms_norm`](crate::CompactBackend::rms_norm).
pub fn rms_norm<B: Backend>(x: Tensor<B, 2>, norm: Norm<B>) -> Tensor<B, 2> {
    let Norm { weight, eps, unit_offset } = norm;
    let dtype = x.dtype();
    let x = x.cast(DType::F32); // the mean of squares leaves the range of f16
    let weight = weight.cast(DType::F32).unsqueeze();
    let weight = if unit_offset { weight + 1.0 } else { weight };
    let rms = (x.clone().square().mean_dim(1) + eps).sqrt();
    (x / rms * weight).cast(dtype)
}

/// See [`CompactBackend::add_rms_norm`](crate::CompactBackend::add_rms_norm).
pub fn add_rms_norm<B: Backend>(x: Tensor<B, 2>, y: Tensor<B, 2>, norm: Norm<B>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let sum = x + y;
    (sum.clone(), rms_norm(sum, norm))
}

/// See [`CompactBackend::sigmoid_gate`](crate::CompactBackend::sigmoid_gate).
pub fn sigmoid_gate<B: Backend>(x: Tensor<B, 2>, gate: Tensor<B, 2>) -> Tensor<B, 2> {
    x * sigmoid(gate)
}

/// See [`CompactBackend::rms_norm_gated`](crate::CompactBackend::rms_norm_gated).
pub fn rms_norm_gated<B: Backend>(x: Tensor<B, 2>, z: Tensor<B, 2>, norm: Norm<B>) -> Tensor<B, 2> {
    rms_norm(x, norm) * silu(z)
}

/// See [`CompactBackend::rotary`](crate::CompactBackend::rotary).
pub fn rotary<B: Backend>(x: Tensor<B, 4>, rotary: &Rotary<B>) -> Tensor<B, 4> {
    let [_, _, _, head_dim] = x.dims();
    let [s, r] = rotary.cos.dims();
    let cos = rotary.cos.clone().reshape([1, s, 1, r]);
    let sin = rotary.sin.clone().reshape([1, s, 1, r]);
    let x1 = x.clone().slice_dim(3, 0..r);
    let x2 = x.clone().slice_dim(3, r..2 * r);
    let mut parts = vec![x1.clone() * cos.clone() - x2.clone() * sin.clone(), x2 * cos + x1 * sin];
    if 2 * r < head_dim {
        parts.push(x.slice_dim(3, 2 * r..head_dim));
    }
    Tensor::cat(parts, 3)
}
