//! Keys and values that the attention kernel cannot take as they are stored: decoded before it, a piece of the tokens at a time.

use std::ops::Range;

use burn::tensor::Tensor;
use emberlm_backends::cpu;

use super::held::HeldLinear;
use super::{HostTensors, float_primitive, float_tensor};
use crate::kv::{CodeActivation, KV_TILE, KeyValue, KvParts, KvStore, activate};
use crate::modules::Linear;
use crate::{reference, split};

/// Tokens that are decoded at a time, so that what a decoder computes on the way takes little beside its result.
const PIECE: usize = 16 * KV_TILE;

/// One side of a cache as the kernel takes it.
pub(super) enum Readable<'a, B: HostTensors> {
    AsStored(KeyValue<'a, B>),
    /// Numbers of every head, in parts.
    Decoded {
        pieces: Vec<KvStore<B>>,
        last: KvStore<B>,
    },
}

impl<'a, B: HostTensors> Readable<'a, B> {
    /// The first `tokens` of a side; `dims` are batch, heads of keys and values, and their numbers.
    pub(super) fn new(kv: KeyValue<'a, B>, tokens: usize, dims: [usize; 3]) -> Self {
        if !needs_decoding(&kv) {
            return Self::AsStored(kv);
        }
        let start = tokens.saturating_sub(1) / PIECE * PIECE;
        let pieces = (0..start).step_by(PIECE).map(|at| decoded(kv, at..at + PIECE, dims));
        Self::Decoded { pieces: pieces.collect(), last: decoded(kv, start..tokens, dims) }
    }

    pub(super) fn key_value(&self) -> KeyValue<'_, B> {
        match self {
            Self::AsStored(kv) => *kv,
            Self::Decoded { pieces, last } => KeyValue::Plain(KvParts { shared: pieces, own: last }),
        }
    }
}

/// Whether the kernel cannot work on what is stored: keys that are rotated after decoding, a code per head, or a decoder in parts.
fn needs_decoding<B: HostTensors>(kv: &KeyValue<'_, B>) -> bool {
    match kv {
        KeyValue::Plain(_) => false,
        KeyValue::Compressed { codes, decoder, rotary } => {
            let split = decoder.hidden.iter().chain([&decoder.output]).any(split::in_parts);
            rotary.is_some() || codes.own.dims()[1] > 1 || split
        }
        KeyValue::Hidden { values, output, rotary } => {
            rotary.is_some() || values.own.dims()[1] > 1 || split::in_parts(output)
        }
    }
}

/// These tokens.
///
/// # Panics
/// If they are not of these dimensions.
fn decoded<B: HostTensors>(
    kv: KeyValue<'_, B>,
    tokens: Range<usize>,
    [batch, kv_heads, head_dim]: [usize; 3],
) -> KvStore<B> {
    let stored = reference::read(kv.parts(), tokens.clone());
    let [_, count, n, width] = stored.dims();
    let stored = stored.swap_dims(1, 2).reshape([batch * n * count, width]);
    // As the kernel decodes other codes: in f32, whatever activations are in.
    let (decoded, rotary) = cpu::with_precision(cpu::Precision::Exact, || match kv {
        KeyValue::Plain(_) => unreachable!("read as they are stored"),
        KeyValue::Compressed { decoder, rotary, .. } => {
            let hidden = match &decoder.hidden {
                Some(layer) => hidden_values(stored, layer, decoder.activation),
                None => stored,
            };
            (decoder.output.forward(hidden), rotary)
        }
        KeyValue::Hidden { output, rotary, .. } => (output.forward(stored), rotary),
    });
    let decoded = decoded.reshape([batch, n, kv_heads, head_dim]);
    let decoded = match rotary {
        Some(rotary) => B::rotary(decoded, &rotary.tokens(tokens)),
        None => decoded,
    };
    let decoded = B::into_floats(float_primitive(decoded));
    // As the kernel reads them: the tokens of a head after each other.
    let mut numbers = vec![0.0; decoded.len()];
    for (b, decoded) in decoded.chunks_exact(n * kv_heads * head_dim).enumerate() {
        for (token, heads) in decoded.chunks_exact(kv_heads * head_dim).enumerate() {
            for (head, row) in heads.chunks_exact(head_dim).enumerate() {
                let at = ((b * kv_heads + head) * n + token) * head_dim;
                numbers[at..at + head_dim].copy_from_slice(row);
            }
        }
    }
    KvStore::F32(float_tensor(numbers, [batch, kv_heads, n, head_dim]))
}

/// Hidden values of codes, `[m, r] -> [m, h]`.
fn hidden_values<B: HostTensors>(codes: Tensor<B, 2>, layer: &Linear<B>, activation: CodeActivation) -> Tensor<B, 2> {
    if split::in_parts(layer) {
        return activate(layer.forward(codes), activation);
    }
    let (m, h) = (codes.dims()[0], layer.weight.shape()[0]);
    let codes = float_primitive(codes);
    let mut hidden = vec![0.0; m * h];
    HeldLinear::new(layer).with(|layer| cpu::hidden_values(&B::floats(&codes), &layer, activation, &mut hidden));
    float_tensor(hidden, [m, h])
}

#[cfg(all(test, feature = "ndarray"))]
mod tests {
    use burn::tensor::Distribution;
    use burn_ndarray::NdArray;

    use super::*;
    use crate::kv::{CodeDecoder, Rotary};
    use crate::packed::PackedWeight;

    type B = NdArray;

    fn random<const D: usize>(shape: [usize; D]) -> Tensor<B, D> {
        Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Default::default())
    }

    /// Pieces end within parts of a cache, and parts within pieces: each token is rotated by its own position.
    #[test]
    fn pieces_are_the_whole() {
        let (kv_heads, head_dim, code, hidden) = (2, 8, 4, 12);
        let linear = |n, k| {
            let weights = random([n * k]).into_data().into_vec().expect("floats");
            Linear { weight: PackedWeight::from_floats(weights, n, k, &Default::default()), bias: None }
        };
        let decoder = CodeDecoder::<B> {
            hidden: Some(linear(hidden, code)),
            activation: CodeActivation::Gelu,
            output: linear(kv_heads * head_dim, hidden),
        };
        let parts = [640, 64, 1000].map(|tokens| KvStore::F32(random([2, 1, tokens, code])));
        let [first, second, own] = parts;
        let shared = [first, second];
        let codes = KvParts { shared: &shared, own: &own };
        for tokens in [1, PIECE - 1, PIECE, PIECE + 1, 1700] {
            let rotary = Rotary { cos: random([tokens, head_dim / 2]), sin: random([tokens, head_dim / 2]) };
            let keys = KeyValue::Compressed { codes, decoder: &decoder, rotary: Some(&rotary) };
            let whole = reference::rows(keys, tokens, kv_heads);
            let readable = Readable::new(keys, tokens, [2, kv_heads, head_dim]);
            let KeyValue::Plain(parts) = readable.key_value() else { panic!("not decoded") };
            assert_eq!(parts.capacity(), tokens);
            let pieces = reference::rows(KeyValue::Plain(parts), tokens, kv_heads);
            whole.into_data().assert_approx_eq::<f32>(&pieces.into_data(), burn::tensor::Tolerance::absolute(1e-5));
        }
    }
}
