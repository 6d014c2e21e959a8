//! bitsandbytes' 4-bit tensors: a packed weight and four to six side tensors that belong to it.
//!
//! Layout: `QuantState.as_dict(packed=True)` in <https://github.com/bitsandbytes-foundation/bitsandbytes>. Blocks run over the
//! flattened matrix and may cross rows; the true shape stands in the JSON of the quant state.

use std::collections::{BTreeMap, BTreeSet};

use emberlm_quant::host::{FloatType, HostCodeBook4, HostScales, HostStorage, HostWeight};
use serde::Deserialize;

use super::dtype::Dtype;
use super::names::{list, shown};
use super::open::Checkpoint;
use super::problem::TensorProperty;
use crate::config::{QuantType, json};
use crate::{Error, Result};

/// What a 4-bit weight has beside its codes.
pub(crate) const SIDES: [&str; 6] = [
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "quant_state.bitsandbytes__nf4",
    "quant_state.bitsandbytes__fp4",
];
/// Longest JSON of a quant state, in bytes.
const MAX_STATE: usize = 4096;

/// A 4-bit weight whose parts have been found and whose sizes agree (`Params4bit` of bitsandbytes).
#[derive(Clone, Debug)]
pub(super) struct Params4bit {
    /// Of the packed weight, as in the file.
    pub(super) name: String,
    pub(super) kind: QuantType,
    pub(super) n: usize,
    pub(super) k: usize,
    block: usize,
    stored: FloatType,
    nested: Option<Nested>,
    state: String,
}

#[derive(Clone, Debug)]
struct Nested {
    block: usize,
    offset: f32,
}

/// The JSON of a quant state. Unknown keys are allowed: newer versions may add some.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: u64,
    dtype: String,
    shape: Vec<u64>,
    nested_blocksize: Option<u64>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

/// Takes every 4-bit tensor with its side tensors out of `names`.
pub(super) fn group(checkpoint: &Checkpoint, names: &mut BTreeSet<String>) -> Result<Vec<Params4bit>> {
    let mut bases: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for name in names.iter() {
        if let Some((base, side)) =
            SIDES.iter().find_map(|side| Some((name.strip_suffix(side)?.strip_suffix('.')?, *side)))
        {
            bases.entry(base.to_owned()).or_default().insert(side);
        }
        if name.ends_with(".SCB") {
            let message = "belongs to 8-bit bitsandbytes storage, which is not supported: use the 4-bit or the half precision model";
            return Err(checkpoint.tensor_error(name, message).into());
        }
    }
    let mut weights = Vec::new();
    for (base, sides) in bases {
        weights.push(Params4bit::check(checkpoint, &base, &sides)?);
        names.remove(&base);
        for side in sides {
            names.remove(&format!("{base}.{side}"));
        }
    }
    Ok(weights)
}

impl Params4bit {
    fn check(checkpoint: &Checkpoint, base: &str, sides: &BTreeSet<&str>) -> Result<Self> {
        let error = |tensor: &str, message: String| Error::from(checkpoint.tensor_error(tensor, message));
        let states: Vec<&str> = sides.iter().copied().filter(|side| side.starts_with("quant_state")).collect();
        let (kind, state) = match states.as_slice() {
            [state @ "quant_state.bitsandbytes__nf4"] => (QuantType::Nf4, *state),
            [state @ "quant_state.bitsandbytes__fp4"] => (QuantType::Fp4, *state),
            [] => {
                return Err(error(base, format!("has {}, but no quant_state", side_list(sides))));
            }
            _ => return Err(error(base, "claims two formats at once, nf4 and fp4".into())),
        };
        let state = format!("{base}.{state}");
        let json = expect(checkpoint, &state, Dtype::U8, None)?;
        if json > MAX_STATE {
            let message = format!("is {json} bytes long, at most {MAX_STATE} are accepted");
            let [limit, found] = [MAX_STATE, json].map(|bytes| TensorProperty::Bytes(bytes as u64));
            return Err(checkpoint.tensor_error(&state, message).instead(limit, found).into());
        }
        let json: QuantState = json::from_slice(&checkpoint.data(&state)?).map_err(|e| error(&state, e))?;
        // A value of the state that is not what it may be.
        let says = |key: &str, found: String, expected: &str| {
            let message = format!("says {key} {found}, expected {expected}");
            let [expected, found] = [expected.to_owned(), found].map(TensorProperty::Value);
            Error::from(checkpoint.tensor_error(&state, message).instead(expected, found))
        };
        let quoted = |text: &str| format!("\"{}\"", shown(text));
        if json.quant_type != kind.as_str() {
            return Err(says("quant_type", quoted(&json.quant_type), &format!("{kind} as in the name")));
        }
        let stored = match json.dtype.as_str() {
            "float32" => FloatType::F32,
            "float16" => FloatType::F16,
            "bfloat16" => FloatType::Bf16,
            other => {
                return Err(says("dtype", quoted(other), "float32, float16 or bfloat16"));
            }
        };
        let block = power_of_two(json.blocksize, 32, 4096)
            .ok_or_else(|| says("blocksize", json.blocksize.to_string(), "a power of two from 32 to 4096"))?;
        let dims: Option<Vec<usize>> = json.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let (Some(&[n, k]), Some(elements)) = (dims.as_deref(), element_count(&json.shape)) else {
            return Err(says("shape", quoted(&format!("{:?}", json.shape)), "two sizes above 0"));
        };

        expect_packed(checkpoint, base, elements.div_ceil(2))?;
        expect(checkpoint, &format!("{base}.quant_map"), Dtype::F32, Some(16))?;
        let blocks = elements.div_ceil(block);
        let is_nested = json.nested_offset.is_some() || json.nested_blocksize.is_some();
        let side_nested = sides.contains("nested_absmax") || sides.contains("nested_quant_map");
        if is_nested != side_nested {
            let message = format!(
                "is {} by its quant state, but has {}",
                if is_nested { "double-quantised" } else { "not double-quantised" },
                side_list(sides)
            );
            return Err(error(base, message));
        }
        let absmax = format!("{base}.absmax");
        let nested = if is_nested {
            expect(checkpoint, &absmax, Dtype::U8, Some(blocks))?;
            let block = json.nested_blocksize.and_then(|b| power_of_two(b, 32, 1 << 16));
            let needs = |message: &str| error(&state, message.to_owned());
            let block =
                block.ok_or_else(|| needs("needs a nested_blocksize that is a power of two from 32 to 65536"))?;
            let offset = json.nested_offset.map(|x| x as f32).filter(|x| x.is_finite());
            let offset = offset.ok_or_else(|| needs("needs a finite nested_offset"))?;
            if let Some(dtype) = json.nested_dtype.filter(|dtype| dtype != "float32") {
                return Err(says("nested_dtype", quoted(&dtype), "float32"));
            }
            expect(checkpoint, &format!("{base}.nested_absmax"), Dtype::F32, Some(blocks.div_ceil(block)))?;
            expect(checkpoint, &format!("{base}.nested_quant_map"), Dtype::F32, Some(256))?;
            Some(Nested { block, offset })
        } else {
            expect(checkpoint, &absmax, Dtype::F32, Some(blocks))?;
            None
        };
        Ok(Self { name: base.to_owned(), kind, n, k, block, stored, nested, state })
    }

    pub(super) fn double(&self) -> bool {
        self.nested.is_some()
    }

    /// Names of all its tensors.
    pub(super) fn tensors(&self) -> Vec<String> {
        let side = |side: &str| format!("{}.{side}", self.name);
        let mut out = vec![self.name.clone(), side("absmax"), side("quant_map"), self.state.clone()];
        if self.nested.is_some() {
            out.extend([side("nested_absmax"), side("nested_quant_map")]);
        }
        out
    }

    /// The weight: codes and block scales are views of the file. Scales are checked for NaN and infinity.
    pub(super) fn read(&self, checkpoint: &Checkpoint) -> Result<HostWeight> {
        let error = |tensor: &str, message: &str| Error::from(checkpoint.tensor_error(tensor, message));
        let side = |side: &str| {
            let name = format!("{}.{side}", self.name);
            checkpoint.data(&name).map(|data| (name, data))
        };
        let finite = |(name, data): (String, bytes::Bytes)| match FloatType::F32.first_non_finite(&data) {
            Some(at) => Err(error(&name, &format!("element {at} is not a finite number"))),
            None => Ok(data),
        };
        let map = finite(side("quant_map")?)?;
        let code_book =
            <[f32; 16]>::try_from(FloatType::F32.decode_all(&map)).map_err(|_| error(&self.name, "needs 16 codes"))?;
        let (scales, largest_scale) = match &self.nested {
            None => {
                let absmax = finite(side("absmax")?)?;
                let largest = largest(absmax.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
                (HostScales::Single(absmax), largest)
            }
            Some(nested) => {
                let map = FloatType::F32.decode_all(&finite(side("nested_quant_map")?)?);
                let absmax = FloatType::F32.decode_all(&finite(side("nested_absmax")?)?);
                let largest_map = largest(map.iter().copied());
                let bound = largest_map * largest(absmax.iter().copied()) + nested.offset.abs();
                let scales = HostScales::Double {
                    codes: side("absmax")?.1,
                    map,
                    absmax,
                    block: nested.block,
                    offset: nested.offset,
                };
                (scales, bound)
            }
        };
        if !(largest(code_book.into_iter()) * largest_scale).is_finite() {
            return Err(error(&self.name, "has scales that overflow"));
        }
        let codes = checkpoint.data(&self.name)?;
        let book = HostCodeBook4 { codes, code_book, block: self.block, scales, stored: self.stored };
        Ok(HostWeight { n: self.n, k: self.k, storage: HostStorage::CodeBook4(book) })
    }
}

/// Element count of a tensor that must exist with this type and (where stated) this many elements.
fn expect(checkpoint: &Checkpoint, name: &str, dtype: Dtype, elements: Option<usize>) -> Result<usize> {
    let expected = TensorProperty::Elements { count: elements, dtype };
    let Some(info) = checkpoint.info(name) else { return Err(incomplete(checkpoint, name, expected)) };
    let found = info.bytes.checked_div(info.dtype.size()).unwrap_or(0);
    if info.dtype != dtype || elements.is_some_and(|elements| elements != found) {
        return Err(checkpoint.mismatch(name, expected, info.property()).into());
    }
    Ok(found)
}

/// A packed weight of so many bytes, which `bnb_4bit_quant_storage` lets authors store as a tensor of another type.
fn expect_packed(checkpoint: &Checkpoint, name: &str, bytes: usize) -> Result<()> {
    let expected = TensorProperty::Bytes(bytes as u64);
    let Some(info) = checkpoint.info(name) else { return Err(incomplete(checkpoint, name, expected)) };
    let storage = matches!(info.dtype, Dtype::U8 | Dtype::I8 | Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64);
    if storage && info.bytes == bytes {
        return Ok(());
    }
    let message =
        format!("is {} of {} bytes, expected {expected} as U8, I8, F16, BF16, F32 or F64", info.property(), info.bytes);
    Err(checkpoint.tensor_error(name, message).instead(expected, info.property()).into())
}

fn incomplete(checkpoint: &Checkpoint, name: &str, expected: TensorProperty) -> Error {
    let error = checkpoint.tensor_error(name, "is missing: this quantised tensor is incomplete");
    error.instead(expected, TensorProperty::Absent).into()
}

fn element_count(shape: &[u64]) -> Option<usize> {
    let count = shape.iter().try_fold(1u64, |count, &dim| count.checked_mul(dim))?;
    usize::try_from(count).ok().filter(|&count| count > 0 && count < usize::MAX / 8)
}

/// The largest magnitude.
fn largest(numbers: impl Iterator<Item = f32>) -> f32 {
    numbers.fold(0.0, |largest, x| largest.max(x.abs()))
}

fn power_of_two(x: u64, min: usize, max: usize) -> Option<usize> {
    usize::try_from(x).ok().filter(|x| x.is_power_of_two() && (min..=max).contains(x))
}

fn side_list(sides: &BTreeSet<&str>) -> String {
    list(&sides.iter().collect::<Vec<_>>())
}
