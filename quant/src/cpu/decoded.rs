//! Keys and values that the attention kernel cannot take as they are stored: decoded before it, a piece of the tokens at a time.

use super::{HostTensors, float_primitive, float_tensor};
use crate::kv::{KeyValue, KvParts, KvStore};
use crate::{reference, split};

/// Tokens that are decoded at a time, so that what a decoder computes on the way takes little beside its result.
const PIECE: usize = 1024;

/// One side of a cache as the kernel takes it.
pub(super) enum Readable<'a, B: HostTensors> {
    AsStored(KeyValue<'a, B>),
    /// Numbers of every head.
    Decoded(KvStore<B>),
}

impl<'a, B: HostTensors> Readable<'a, B> {
    /// The first `tokens` of a side; `dims` are batch, heads of keys and values, and their numbers.
    pub(super) fn new(kv: KeyValue<'a, B>, tokens: usize, dims: [usize; 3]) -> Self {
        if needs_decoding(&kv) { Self::Decoded(decoded(kv, tokens, dims)) } else { Self::AsStored(kv) }
    }

    pub(super) fn key_value(&self) -> KeyValue<'_, B> {
        match self {
            Self::AsStored(kv) => *kv,
            Self::Decoded(store) => KeyValue::Plain(KvParts::from(store)),
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

/// The first `tokens`, in a store with the capacity of what they are decoded from: slots of later ones are zeros that nothing has touched.
fn decoded<B: HostTensors>(kv: KeyValue<'_, B>, tokens: usize, [batch, kv_heads, head_dim]: [usize; 3]) -> KvStore<B> {
    let capacity = kv.parts().capacity();
    let mut numbers = vec![0.0; batch * kv_heads * capacity * head_dim];
    for start in (0..tokens).step_by(PIECE) {
        let end = tokens.min(start + PIECE);
        let piece = B::into_floats(float_primitive(reference::rows(kv, start..end, kv_heads)));
        let heads = numbers.chunks_exact_mut(capacity * head_dim);
        for (head, piece) in heads.zip(piece.chunks_exact((end - start) * head_dim)) {
            head[start * head_dim..end * head_dim].copy_from_slice(piece);
        }
    }
    KvStore::F32(float_tensor(numbers, [batch, kv_heads, capacity, head_dim]))
}

#[cfg(all(test, feature = "ndarray"))]
mod tests {
    use burn::tensor::{Distribution, Tensor};
    use burn_ndarray::NdArray;

    use super::*;
    use crate::kv::{CodeActivation, CodeDecoder, Rotary};
    use crate::modules::Linear;
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
            let whole = reference::rows(keys, 0..tokens, kv_heads);
            let KvStore::F32(pieces) = decoded(keys, tokens, [2, kv_heads, head_dim]) else { panic!("not decoded") };
            assert_eq!(pieces.dims(), [2, kv_heads, 1704, head_dim]);
            let [pieces, whole] = [pieces.slice_dim(2, 0..tokens), whole].map(Tensor::into_data);
            whole.assert_approx_eq::<f32>(&pieces, burn::tensor::Tolerance::absolute(1e-6));
        }
    }
}
