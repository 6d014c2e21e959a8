//! Nano compact's integer modules: 8-bit rows, or protected 8-bit rows and narrower rows with their row numbers.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use emberlm_quant::host::{FloatType, HostRows, HostStorage, HostWeight};

use super::differences::{MissingTensor, TensorDifferences};
use super::dtype::Dtype;
use super::names::{canonical, shown};
use super::open::Checkpoint;
use super::problem::{CheckpointError, TensorProperty};
use crate::config::{NanoKind, NanoModule};
use crate::{Error, Result};

/// A module whose tensors have been found and whose sizes agree.
#[derive(Clone, Debug)]
pub(super) struct IntegerModule {
    /// `<module>.weight` in canonical names.
    pub(super) weight: String,
    pub(super) n: usize,
    pub(super) k: usize,
    wide: RowGroup,
    narrow: RowGroup,
    /// Bits of the narrow rows as stored: 2 or 4 packed, 8 otherwise.
    narrow_bits: u32,
    /// `bits` of the spec, where it says nothing about the file any more.
    spec_bits: u32,
}

/// Rows of one width: names of their tensors. No names: no rows. No row numbers: all rows, in order.
#[derive(Clone, Debug, Default)]
struct RowGroup {
    rows: usize,
    codes: Option<String>,
    scales: Option<String>,
    numbers: Option<String>,
}

impl RowGroup {
    fn tensors(&self) -> impl Iterator<Item = &String> {
        self.codes.iter().chain(&self.scales).chain(&self.numbers)
    }
}

/// Takes the tensors of every listed module out of `names`.
pub(super) fn group(
    checkpoint: &Checkpoint,
    modules: &BTreeMap<String, NanoModule>,
    names: &mut BTreeSet<String>,
) -> Result<Vec<IntegerModule>> {
    if modules.is_empty() {
        return Ok(Vec::new());
    }
    let by_canonical: BTreeMap<String, String> = names.iter().map(|name| (canonical(name), name.clone())).collect();
    let mut differences = TensorDifferences::default();
    let mut found = Vec::new();
    for (path, spec) in modules {
        let leaf = |leaf: &str| by_canonical.get(&canonical(&format!("{path}.{leaf}"))).cloned();
        let module = match spec.kind {
            NanoKind::Embedding | NanoKind::Int8Linear => IntegerModule::int8(path, spec, leaf),
            NanoKind::TruequantLinear => IntegerModule::truequant(checkpoint, path, spec, leaf)?,
        };
        match module {
            Ok(module) => found.push(module),
            Err(leaf) => {
                differences.missing.push(MissingTensor { tensor: format!("{path}.{leaf}"), expected: None });
            }
        }
        if !spec.has_bias
            && let Some(bias) = leaf("bias")
        {
            let message = "is there, but nanollm_modules says that the module has no bias";
            let error = checkpoint.tensor_error(&bias, message).found(TensorProperty::Names(vec![shown(&bias)]));
            return Err(error.into());
        }
    }
    Error::unless_same(differences)?;
    for module in &found {
        module.check(checkpoint)?;
        for name in module.tensors() {
            names.remove(&name);
        }
    }
    Ok(found)
}

impl IntegerModule {
    /// `Err` names a missing leaf.
    fn int8(
        path: &str,
        spec: &NanoModule,
        leaf: impl Fn(&str) -> Option<String>,
    ) -> std::result::Result<Self, &'static str> {
        let wide = RowGroup {
            rows: spec.out_features,
            codes: Some(leaf("q").ok_or("q")?),
            scales: Some(leaf("scale").or_else(|| leaf("scales")).ok_or("scale")?),
            numbers: None,
        };
        Ok(Self::new(path, spec, wide, RowGroup::default(), 8))
    }

    fn truequant(
        checkpoint: &Checkpoint,
        path: &str,
        spec: &NanoModule,
        leaf: impl Fn(&str) -> Option<String>,
    ) -> Result<std::result::Result<Self, &'static str>> {
        let packed = leaf("deg_q_packed");
        let plain = leaf("deg_q");
        if let (Some(packed), Some(_)) = (&packed, &plain) {
            let message = "claims two formats at once: deg_q is there as well";
            return Err(checkpoint.tensor_error(packed, message).into());
        }
        if let Some(packed) = packed.as_ref().filter(|_| !matches!(spec.bits, 2 | 4)) {
            let message = format!("holds {} bits, only 2 or 4 are packed", spec.bits);
            let (allowed, found) =
                (TensorProperty::Value("2 or 4".into()), TensorProperty::Value(spec.bits.to_string()));
            return Err(checkpoint.tensor_error(packed, message).instead(allowed, found).into());
        }
        let narrow_bits = if packed.is_some() { spec.bits } else { 8 };
        // Without rows the tensors may be there (empty) or not.
        let part = |rows: usize, codes: Option<String>, names: [&'static str; 3]| {
            let needed = |found: Option<String>, name| {
                if found.is_none() && rows > 0 { Err(name) } else { Ok(found) }
            };
            Ok::<_, &'static str>(RowGroup {
                rows,
                codes: needed(codes, names[0])?,
                scales: needed(leaf(names[1]), names[1])?,
                numbers: needed(leaf(names[2]), names[2])?,
            })
        };
        let parts = || {
            let wide = part(spec.prot_rows, leaf("prot_q"), ["prot_q", "prot_scale", "prot_idx"])?;
            let narrow = part(spec.deg_rows, packed.or(plain), ["deg_q", "deg_scale", "deg_idx"])?;
            Ok(Self::new(path, spec, wide, narrow, narrow_bits))
        };
        Ok(parts())
    }

    fn new(path: &str, spec: &NanoModule, wide: RowGroup, narrow: RowGroup, narrow_bits: u32) -> Self {
        let (n, k) = (spec.out_features, spec.in_features);
        let weight = canonical(&format!("{path}.weight"));
        Self { weight, n, k, wide, narrow, narrow_bits, spec_bits: spec.bits }
    }

    /// Bits of the narrow section, 8 when every row has 8 bits in memory.
    pub(super) fn bits(&self) -> u32 {
        if self.narrow.rows == 0 { 8 } else { self.narrow_bits }
    }

    /// Names of all its tensors.
    pub(super) fn tensors(&self) -> Vec<String> {
        self.wide.tensors().chain(self.narrow.tensors()).cloned().collect()
    }

    fn narrow_stride(&self) -> usize {
        if self.narrow_bits == 8 { self.k } else { self.k.saturating_mul(self.narrow_bits as usize).div_ceil(8) }
    }

    fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        let narrow_type = if self.narrow_bits == 8 { Dtype::I8 } else { Dtype::U8 };
        let parts = [(&self.wide, Dtype::I8, self.k), (&self.narrow, narrow_type, self.narrow_stride())];
        for (part, dtype, stride) in parts {
            if let Some(name) = &part.codes {
                expect(checkpoint, name, &[dtype], &[part.rows, stride])?;
            }
            if let Some(name) = &part.scales {
                expect(checkpoint, name, &[Dtype::F16, Dtype::F32, Dtype::Bf16], &[part.rows])?;
            }
            if let Some(name) = &part.numbers {
                expect(checkpoint, name, &[Dtype::I64], &[part.rows])?;
            }
        }
        Ok(())
    }

    /// The weight. Each section is in increasing order of output rows, so that both are read forwards; sections that were
    /// stored otherwise are copied into order. The two sets of row numbers must partition the rows, scales must be finite.
    pub(super) fn read(&self, checkpoint: &Checkpoint) -> Result<HostWeight> {
        let wide = self.rows(checkpoint, &self.wide)?;
        let narrow = self.rows(checkpoint, &self.narrow)?;
        let gather = |parts: &[&StoredRows; 2], order: &[(usize, usize)], stride: usize| {
            gather(parts, order, stride).ok_or_else(|| self.error(checkpoint, "has fewer rows than it says"))
        };
        let place = self.partition(checkpoint, &wide.numbers, &narrow.numbers)?;
        let host = if self.bits() == 8 {
            // One section: output order, whichever part a row came from.
            let parts = [&wide, &narrow];
            let order: Vec<(usize, usize)> = place;
            let (codes, scales) = gather(&parts, &order, self.k)?;
            HostRows {
                wide: codes,
                wide_rows: self.n,
                narrow: Bytes::new(),
                narrow_bits: if self.spec_bits == 2 { 2 } else { 4 },
                scales,
                slots: None,
            }
        } else {
            let of =
                |part: usize| -> Vec<(usize, usize)> { place.iter().copied().filter(|(p, _)| *p == part).collect() };
            let (wide_order, narrow_order) = (of(0), of(1));
            let parts = [&wide, &narrow];
            let (wide_codes, mut scales) = gather(&parts, &wide_order, self.k)?;
            let (narrow_codes, narrow_scales) = gather(&parts, &narrow_order, self.narrow_stride())?;
            scales.extend(narrow_scales);
            HostRows {
                wide: wide_codes,
                wide_rows: wide_order.len(),
                narrow: narrow_codes,
                narrow_bits: self.narrow_bits,
                scales,
                slots: slots(&place, wide_order.len()),
            }
        };
        Ok(HostWeight { n: self.n, k: self.k, storage: HostStorage::Rows(host) })
    }

    /// An error about the matrix that the module's tensors make together.
    fn error(&self, checkpoint: &Checkpoint, message: impl Into<String>) -> Error {
        let first = self.wide.tensors().chain(self.narrow.tensors()).next();
        let file = first.and_then(|name| checkpoint.file(name));
        CheckpointError::of_tensor(&self.weight, message).in_file(file).into()
    }

    fn rows(&self, checkpoint: &Checkpoint, part: &RowGroup) -> Result<StoredRows> {
        let error = |tensor: &str, message: String| Error::from(checkpoint.tensor_error(tensor, message));
        let codes = part.codes.as_ref().map_or(Ok(Bytes::new()), |name| checkpoint.data(name))?;
        let scales = match &part.scales {
            None => Vec::new(),
            Some(name) => {
                let dtype = match checkpoint.info(name).map(|info| info.dtype) {
                    Some(Dtype::F32) => FloatType::F32,
                    Some(Dtype::Bf16) => FloatType::Bf16,
                    _ => FloatType::F16,
                };
                let data = checkpoint.data(name)?;
                if let Some(at) = dtype.first_non_finite(&data) {
                    return Err(error(name, format!("the scale of row {at} is not a finite number")));
                }
                dtype.decode_all(&data)
            }
        };
        let numbers = match &part.numbers {
            None => (0..part.rows).collect(),
            Some(name) => {
                let valid = |(at, number): (usize, Option<usize>)| {
                    let number = number.filter(|&number| number < self.n);
                    number.ok_or_else(|| error(name, format!("entry {at} is not one of the {} rows", self.n)))
                };
                indices(&checkpoint.data(name)?).into_iter().enumerate().map(valid).collect::<Result<_>>()?
            }
        };
        Ok(StoredRows { codes, scales, numbers })
    }

    /// For every output row, which part holds it and where.
    fn partition(&self, checkpoint: &Checkpoint, wide: &[usize], narrow: &[usize]) -> Result<Vec<(usize, usize)>> {
        let mut place = vec![None; self.n];
        for (part, numbers) in [wide, narrow].into_iter().enumerate() {
            for (at, &number) in numbers.iter().enumerate() {
                match place.get_mut(number) {
                    Some(free @ None) => *free = Some((part, at)),
                    _ => return Err(self.error(checkpoint, format!("row {number} is stored twice"))),
                }
            }
        }
        let missing = place.iter().position(Option::is_none);
        match (missing, place.into_iter().collect::<Option<Vec<_>>>()) {
            (None, Some(place)) => Ok(place),
            (row, _) => Err(self.error(checkpoint, format!("row {} is not stored", row.unwrap_or(self.n)))),
        }
    }
}

/// The rows of one group, as stored.
struct StoredRows {
    codes: Bytes,
    scales: Vec<f32>,
    numbers: Vec<usize>,
}

/// The codes and scales of stored rows in a new order; the file's own bytes when the order is already right. `None` when a row is
/// not stored.
fn gather(parts: &[&StoredRows; 2], order: &[(usize, usize)], stride: usize) -> Option<(Bytes, Vec<f32>)> {
    let scales = order.iter().map(|&(part, at)| parts.get(part)?.scales.get(at).copied());
    let scales: Vec<f32> = scales.collect::<Option<_>>()?;
    let length = order.len().checked_mul(stride)?;
    for (index, part) in parts.iter().enumerate() {
        let whole = length == part.codes.len();
        if whole && order.iter().enumerate().all(|(row, &place)| place == (index, row)) {
            return Some((part.codes.clone(), scales));
        }
    }
    let mut codes = Vec::with_capacity(length);
    for &(part, at) in order {
        let start = at.checked_mul(stride)?;
        codes.extend_from_slice(parts.get(part)?.codes.get(start..start.checked_add(stride)?)?);
    }
    Some((codes.into(), scales))
}

/// Which stored row holds each output row, when the wide rows come first and both sections are sorted.
fn slots(place: &[(usize, usize)], wide_rows: usize) -> Option<Vec<u32>> {
    let (mut wide, mut narrow) = (0, wide_rows as u32);
    let slot = |&(part, _): &(usize, usize)| {
        let next = if part == 0 { &mut wide } else { &mut narrow };
        let this = *next;
        *next = next.saturating_add(1);
        this
    };
    let slots: Vec<u32> = place.iter().map(slot).collect();
    let in_order = slots.iter().enumerate().all(|(row, &slot)| row == slot as usize);
    (!in_order).then_some(slots)
}

/// Checks that a tensor has one of these types and this shape.
fn expect(checkpoint: &Checkpoint, name: &str, dtypes: &[Dtype], shape: &[usize]) -> Result<()> {
    let expected = TensorProperty::Typed { types: dtypes.to_vec(), shape: shape.to_vec() };
    let Some(info) = checkpoint.info(name) else {
        let error = checkpoint.tensor_error(name, "is missing").instead(expected, TensorProperty::Absent);
        return Err(error.into());
    };
    if dtypes.contains(&info.dtype) && info.shape == shape {
        return Ok(());
    }
    Err(checkpoint.mismatch(name, expected, info.property()).into())
}

/// Little-endian i64 as row indices; `None` for one that is negative or beyond usize.
fn indices(bytes: &[u8]) -> Vec<Option<usize>> {
    bytes.as_chunks().0.iter().map(|b| usize::try_from(i64::from_le_bytes(*b)).ok()).collect()
}
