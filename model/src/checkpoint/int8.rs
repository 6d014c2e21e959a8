//! Signed bytes with one scale per 64 elements of a row.
//!
//! Layout: that of compressed-tensors' `int-quantized` with symmetric groups of 64
//! (<https://github.com/vllm-project/compressed-tensors>): `X.weight` I8 `[n, k]` and `X.weight_scale` F16 `[n, ceil(k / 64)]`.
//! There `k` is a multiple of 64; here the last group of a row may be short.

use std::collections::BTreeSet;

use emberlm_quant::format::INT8_BLOCK;
use emberlm_quant::host::{FloatType, HostInt8, HostStorage, HostWeight};

use super::dtype::Dtype;
use super::open::Checkpoint;
use super::problem::CheckpointError;
use crate::{Error, Result};

/// What is appended to the name of a weight for that of its scales.
const SCALE: &str = "_scale";

/// The name of the scales of a weight.
pub(super) fn scale_name(weight: &str) -> String {
    format!("{weight}{SCALE}")
}

/// An 8-bit weight whose parts have been found and whose sizes agree.
#[derive(Clone, Debug)]
pub(super) struct BlockInt8 {
    /// Of the codes, as in the file.
    pub(super) name: String,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// Takes every 8-bit weight with its scales out of `names`.
pub(super) fn group(checkpoint: &Checkpoint, names: &mut BTreeSet<String>) -> Result<Vec<BlockInt8>> {
    let is_codes = |name: &String| checkpoint.info(name).is_some_and(|info| info.dtype == Dtype::I8);
    let codes: Vec<String> =
        names.iter().filter(|name| names.contains(&scale_name(name)) && is_codes(name)).cloned().collect();
    codes
        .into_iter()
        .map(|name| {
            let weight = BlockInt8::check(checkpoint, name)?;
            weight.tensors().iter().for_each(|name| {
                names.remove(name);
            });
            Ok(weight)
        })
        .collect()
}

impl BlockInt8 {
    fn check(checkpoint: &Checkpoint, name: String) -> Result<Self> {
        let shape = |name: &str| checkpoint.info(name).map(|info| (info.dtype, info.shape.clone()));
        let scale = scale_name(&name);
        let (Some((_, codes)), Some((dtype, scales))) = (shape(&name), shape(&scale)) else {
            return Err(error(&name, "has no scales"));
        };
        let &[n, k] = codes.as_slice() else {
            return Err(error(&name, format!("has shape {codes:?}, expected a matrix")));
        };
        let expected = [n, k.div_ceil(INT8_BLOCK)];
        if dtype != Dtype::F16 || scales != expected {
            let message = format!(
                "is {dtype:?} {scales:?}, expected F16 {expected:?}: one scale per {INT8_BLOCK} elements of a row is what is supported"
            );
            return Err(error(&scale, message));
        }
        Ok(Self { name, n, k })
    }

    /// Names of all its tensors.
    pub(super) fn tensors(&self) -> Vec<String> {
        vec![self.name.clone(), scale_name(&self.name)]
    }

    /// The weight: views of the file. Scales are checked for NaN and infinity.
    pub(super) fn read(&self, checkpoint: &Checkpoint) -> Result<HostWeight> {
        let scale = scale_name(&self.name);
        let (codes, scales) = (checkpoint.data(&self.name)?, checkpoint.data(&scale)?);
        if let Some(at) = FloatType::F16.first_non_finite(&scales) {
            return Err(error(&scale, format!("element {at} is not a finite number")));
        }
        Ok(HostWeight { n: self.n, k: self.k, storage: HostStorage::Int8(HostInt8 { codes, scales }) })
    }
}

fn error(tensor: &str, message: impl Into<String>) -> Error {
    CheckpointError::of_tensor(tensor, message).into()
}
