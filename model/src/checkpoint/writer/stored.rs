//! Which tensors of a file hold a weight: their names and shapes (slots), which are known before the weight is, and their data.

use bytes::Bytes;
use emberlm_quant::format::{FP4, INT8_BLOCK};
use emberlm_quant::host::{FloatType, HostCodeBook4, HostScales, HostStorage, HostWeight};

use crate::Result;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::dtype::Dtype;
use crate::checkpoint::int8::scale_name;
use crate::config::QuantType;

/// Longest JSON of a quant state that is written, in bytes: two sizes, two block sizes and an offset.
const LONGEST_STATE: usize = 256;
/// Block scales per nested scale.
const NESTED_BLOCK: usize = 256;
/// Elements per block of 4-bit codes.
const CODE_BLOCK: usize = 64;

/// A tensor that a file is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Its one size is the longest possible, not the exact one.
    pub(crate) at_most: bool,
}

/// A tensor with its data.
#[derive(Clone, Debug)]
pub(crate) struct StoredTensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Bytes,
    /// The tensor of the source whose bytes these are, from its first byte on: its pages are given back as they are written.
    pub(crate) source: Option<String>,
}

impl Slot {
    pub(crate) fn new(name: impl Into<String>, dtype: Dtype, shape: &[usize]) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec(), at_most: false }
    }

    /// Bytes of its data; those of the longest possible where they are not known.
    pub(crate) fn bytes(&self) -> usize {
        self.shape.iter().fold(self.dtype.size(), |bytes, &dim| bytes.saturating_mul(dim))
    }

    /// The tensor with this data.
    pub(crate) fn fill(self, data: Bytes) -> Result<StoredTensor> {
        let Self { name, dtype, mut shape, at_most } = self;
        if at_most {
            shape = vec![data.len()];
        }
        let bytes = shape.iter().fold(dtype.size(), |bytes, &dim| bytes.saturating_mul(dim));
        if bytes != data.len() || (at_most && bytes > LONGEST_STATE) {
            let message = format!("would be {dtype:?} {shape:?}, but its data are {} bytes", data.len());
            return Err(CheckpointError::of_tensor(&name, message).into());
        }
        Ok(StoredTensor { name, dtype, shape, data, source: None })
    }
}

/// A tensor of plain numbers.
pub(crate) fn dense_slots(name: &str, float: FloatType, shape: &[usize]) -> Vec<Slot> {
    vec![Slot::new(name, float.into(), shape)]
}

/// How a weight of 4-bit codes is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodeBookLayout {
    pub(crate) kind: QuantType,
    /// Elements per block.
    pub(crate) block: usize,
    /// Block scales per nested scale, where block scales are quantised themselves.
    pub(crate) nested: Option<usize>,
}

impl CodeBookLayout {
    /// What the quantiser makes.
    pub(crate) fn nf4(double: bool) -> Self {
        Self { kind: QuantType::Nf4, block: CODE_BLOCK, nested: double.then_some(NESTED_BLOCK) }
    }

    /// That of a weight. Another code book than FP4's is said to be NF4: it stands in the file, too.
    pub(crate) fn of(w: &HostCodeBook4) -> Self {
        let kind = if w.code_book == FP4 { QuantType::Fp4 } else { QuantType::Nf4 };
        let nested = match &w.scales {
            HostScales::Single(_) => None,
            HostScales::Double { block, .. } => Some(*block),
        };
        Self { kind, block: w.block, nested }
    }
}

/// bitsandbytes' 4-bit storage: the packed weight and its sides.
pub(crate) fn code_book_slots(name: &str, [n, k]: [usize; 2], layout: CodeBookLayout) -> Vec<Slot> {
    let (elements, double) = (n.saturating_mul(k), layout.nested.is_some());
    let blocks = elements.div_ceil(layout.block.max(1));
    let side = |side: &str, dtype, size| Slot::new(format!("{name}.{side}"), dtype, &[size]);
    let mut out = vec![
        Slot::new(name, Dtype::U8, &[elements.div_ceil(2), 1]),
        side("absmax", if double { Dtype::U8 } else { Dtype::F32 }, blocks),
        side("quant_map", Dtype::F32, 16),
    ];
    if let Some(nested) = layout.nested {
        out.push(side("nested_absmax", Dtype::F32, blocks.div_ceil(nested.max(1))));
        out.push(side("nested_quant_map", Dtype::F32, 256));
    }
    let state = format!("quant_state.bitsandbytes__{}", layout.kind);
    out.push(Slot { at_most: true, ..side(&state, Dtype::U8, LONGEST_STATE) });
    out
}

/// Signed bytes and their scales.
pub(crate) fn int8_slots(name: &str, [n, k]: [usize; 2]) -> Vec<Slot> {
    let scales = Slot::new(scale_name(name), Dtype::F16, &[n, k.div_ceil(INT8_BLOCK)]);
    vec![Slot::new(name, Dtype::I8, &[n, k]), scales]
}

/// The data of a weight in the slots of its storage; integer rows have [another place](super::rows).
///
/// # Errors
/// When the weight is not what the slots are for.
pub(crate) fn encode(slots: &[Slot], weight: &HostWeight) -> Result<Vec<StoredTensor>> {
    let data = match &weight.storage {
        HostStorage::Dense(_, data) => vec![data.clone()],
        HostStorage::CodeBook4(w) => code_book(w, [weight.n, weight.k]),
        HostStorage::Int8(w) => vec![w.codes.clone(), w.scales.clone()],
        HostStorage::Rows(_) => Vec::new(),
    };
    fill(slots, data)
}

pub(super) fn fill(slots: &[Slot], data: Vec<Bytes>) -> Result<Vec<StoredTensor>> {
    if slots.len() != data.len() {
        let tensor = slots.first().map_or("", |slot| slot.name.as_str());
        let message = format!("has {} parts, {} are expected", data.len(), slots.len());
        return Err(CheckpointError::of_tensor(tensor, message).into());
    }
    slots.iter().cloned().zip(data).map(|(slot, data)| slot.fill(data)).collect()
}

fn code_book(w: &HostCodeBook4, [n, k]: [usize; 2]) -> Vec<Bytes> {
    let floats = |values: &[f32]| Bytes::from(values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    let dtype = match w.stored {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::Bf16 => "bfloat16",
    };
    // As Python's `json` writes it, so that the file is the one that bitsandbytes writes.
    let (kind, block) = (CodeBookLayout::of(w).kind, w.block);
    let mut state =
        format!("{{\"quant_type\": \"{kind}\", \"blocksize\": {block}, \"dtype\": \"{dtype}\", \"shape\": [{n}, {k}]");
    let mut out = vec![w.codes.clone()];
    match &w.scales {
        HostScales::Single(absmax) => out.extend([absmax.clone(), floats(&w.code_book)]),
        HostScales::Double { codes, map, absmax, block, offset } => {
            out.extend([codes.clone(), floats(&w.code_book), floats(absmax), floats(map)]);
            let offset = python_float(f64::from(*offset));
            let nested =
                format!(", \"nested_blocksize\": {block}, \"nested_dtype\": \"float32\", \"nested_offset\": {offset}");
            state.push_str(&nested);
        }
    }
    state.push('}');
    out.push(state.into_bytes().into());
    out
}

/// A finite number as Python writes it: the shortest digits that give it back, with an exponent of two digits or more below 1e-4
/// and from 1e16 on.
fn python_float(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 || (1e-4..1e16).contains(&magnitude) {
        return format!("{value:?}");
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::python_float;

    #[test]
    fn floats_are_spelled_as_python_does() {
        let pairs = [
            (0.0, "0.0"),
            (0.5, "0.5"),
            (1e-4, "0.0001"),
            (0.03125, "0.03125"),
            (f64::from(0.012_345_678_f32), "0.012345677800476551"),
            (1.25e-5, "1.25e-05"),
            (-3e-11, "-3e-11"),
            (1e16, "1e+16"),
            (f64::from(1e-38_f32), "9.99999935045640e-39"),
        ];
        for (value, text) in pairs {
            let parsed: f64 = text.parse().expect("a number");
            let shown = python_float(value);
            assert_eq!(shown.parse::<f64>().expect("a number"), value);
            if parsed == value {
                assert_eq!(shown, text);
            }
        }
    }
}
