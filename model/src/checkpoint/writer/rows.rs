//! Nano compact's tensors of integer rows, and what its config says about them.

use bytes::Bytes;
use emberlm_quant::host::{HostRows, HostStorage, HostWeight};
use half::f16;
use serde_json::{Value, json};

use super::stored::{Slot, StoredTensor, fill};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::dtype::Dtype;
use crate::{Error, Result};

/// How the rows of a module are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowLayout {
    /// `embedding`: rows of 8 bits, in order.
    Embedding,
    /// `int8_linear`: rows of 8 bits, in order.
    Int8,
    /// `truequant_linear`: `keep` rows of 8 bits, the others of `bits`.
    Mixed { bits: u32, keep: usize },
}

impl RowLayout {
    /// That of a weight.
    pub(crate) fn of(rows: &HostRows, n: usize, is_embedding: bool) -> Self {
        match rows.wide_rows < n || rows.slots.is_some() {
            true => Self::Mixed { bits: rows.narrow_bits, keep: rows.wide_rows },
            false if is_embedding => Self::Embedding,
            false => Self::Int8,
        }
    }

    /// The entry of `nanollm_modules`.
    pub(crate) fn spec(self, [n, k]: [usize; 2], has_bias: bool) -> Value {
        match self {
            Self::Embedding => json!({ "kind": "embedding", "num_embeddings": n, "embedding_dim": k }),
            Self::Int8 => json!({ "kind": "int8_linear", "in_features": k, "out_features": n, "has_bias": has_bias }),
            Self::Mixed { bits, keep } => json!({
                "kind": "truequant_linear", "in_features": k, "out_features": n, "prot_rows": keep,
                "deg_rows": n.saturating_sub(keep), "bits": bits, "has_bias": has_bias,
            }),
        }
    }

    /// The tensors of the module `path`.
    pub(crate) fn slots(self, path: &str, [n, k]: [usize; 2]) -> Vec<Slot> {
        let slot = |leaf: &str, dtype, shape: &[usize]| Slot::new(format!("{path}.{leaf}"), dtype, shape);
        let Self::Mixed { bits, keep } = self else {
            return vec![slot("q", Dtype::I8, &[n, k]), slot("scale", Dtype::F16, &[n])];
        };
        let narrow = n.saturating_sub(keep);
        // Narrow rows of 6 bits, and none, are bytes.
        let packed = matches!(bits, 2 | 4) && narrow > 0;
        vec![
            slot("prot_q", Dtype::I8, &[keep, k]),
            slot("prot_scale", Dtype::F16, &[keep]),
            slot("prot_idx", Dtype::I64, &[keep]),
            match packed {
                true => slot("deg_q_packed", Dtype::U8, &[narrow, k.saturating_mul(bits as usize).div_ceil(8)]),
                false => slot("deg_q", Dtype::I8, &[narrow, k]),
            },
            slot("deg_scale", Dtype::F16, &[narrow]),
            slot("deg_idx", Dtype::I64, &[narrow]),
        ]
    }

    /// The data of a weight that `quantize_int8_rows` or `quantize_truequant` made for this layout.
    ///
    /// # Errors
    /// When the weight is not of this layout.
    pub(crate) fn encode(self, slots: &[Slot], weight: &HostWeight) -> Result<Vec<StoredTensor>> {
        let HostStorage::Rows(rows) = &weight.storage else { return Err(not_of_layout(slots)) };
        let data = match self {
            Self::Embedding | Self::Int8 => vec![rows.wide.clone(), halves(&rows.scales)],
            Self::Mixed { bits, keep } => mixed(rows, (bits, keep), weight).ok_or_else(|| not_of_layout(slots))?,
        };
        fill(slots, data)
    }
}

/// Wide and narrow rows, in the order in which they are stored.
fn mixed(rows: &HostRows, (bits, keep): (u32, usize), weight: &HostWeight) -> Option<Vec<Bytes>> {
    let (n, k) = (weight.n, weight.k);
    // Which output each stored row is.
    let mut outputs: Vec<i64> = (0..i64::try_from(n).ok()?).collect();
    for (output, &slot) in rows.slots.iter().flatten().enumerate() {
        *outputs.get_mut(slot as usize)? = i64::try_from(output).ok()?;
    }
    let numbers = |outputs: &[i64]| Bytes::from(outputs.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    let kept_bytes = keep.checked_mul(k)?;
    let (kept, narrow) = if matches!(bits, 2 | 4) && keep < n {
        (rows.wide.clone(), rows.narrow.clone())
    } else {
        (rows.wide.get(..kept_bytes).map(|_| rows.wide.slice(..kept_bytes))?, rows.wide.slice(kept_bytes..))
    };
    let (kept_scales, scales) = rows.scales.split_at_checked(keep)?;
    let (kept_outputs, outputs) = outputs.split_at_checked(keep)?;
    Some(vec![kept, halves(kept_scales), numbers(kept_outputs), narrow, halves(scales), numbers(outputs)])
}

/// Exact: the quantisers have rounded scales to F16.
fn halves(scales: &[f32]) -> Bytes {
    scales.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect::<Vec<u8>>().into()
}

fn not_of_layout(slots: &[Slot]) -> Error {
    let tensor = slots.first().map_or("", |slot| slot.name.as_str());
    CheckpointError::of_tensor(tensor, "is not stored as rows of this layout").into()
}
