//! The parameters of a model under canonical names, whichever names and storages the checkpoint uses.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use emberlm_quant::format;
use emberlm_quant::host::{FloatType, HostStorage, HostWeight};

use super::names::owner;
use super::open::Checkpoint;
use super::problem::{CheckpointError, TensorProperty};
use super::storage_kind::StorageKind;
use super::{bnb, int8, nano};
use crate::config::{DiscoveredCrest, DiscoveredKvCompression};
use crate::{Error, Result};

/// Largest dense matrix that is checked for NaN and infinity when it is read, in bytes: gates and compressors are below,
/// and a full pass over the large ones would cost as much as loading them. Those that are copied are checked in pieces of so many.
const CHECKED: usize = 1 << 20;

/// A parameter of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterInfo {
    /// The true shape, not that of packed bytes.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub storage: StorageKind,
    /// Bytes in the file, side tensors included.
    pub bytes: usize,
    /// Names of its tensors in the file.
    pub tensors: Vec<String>,
}

/// The parameters of a checkpoint under canonical names (`model.layers.{i}....`), to be read one by one.
#[derive(Clone, Debug)]
pub struct Weights {
    pub(super) checkpoint: Checkpoint,
    pub(super) parameters: BTreeMap<String, Parameter>,
    pub(super) ignored: Vec<String>,
    pub(super) crest: Option<DiscoveredCrest>,
    pub(super) kv: Option<DiscoveredKvCompression>,
}

/// A parameter and where its numbers are.
#[derive(Clone, Debug)]
pub(super) struct Parameter {
    pub(super) info: ParameterInfo,
    pub(super) stored: StoredAs,
    /// Rows of the stored tensor that this parameter is.
    pub(super) rows: Option<Range<usize>>,
}

/// The tensors of the file that hold a parameter.
#[derive(Clone, Debug)]
pub(super) enum StoredAs {
    Dense { name: String, dtype: FloatType },
    CodeBook(bnb::Params4bit),
    Int8(int8::BlockInt8),
    Rows(nano::IntegerModule),
}

impl Weights {
    /// Shape and storage of a parameter.
    pub fn entry(&self, canonical: &str) -> Option<&ParameterInfo> {
        self.parameters.get(canonical).map(|parameter| &parameter.info)
    }

    /// Leaves a parameter out; false if there is none of this name.
    pub(crate) fn ignore(&mut self, canonical: &str) -> bool {
        let parameter = self.parameters.remove(canonical);
        let found = parameter.is_some();
        self.ignored.extend(parameter.into_iter().flat_map(|parameter| parameter.info.tensors));
        found
    }

    /// Gives a parameter another canonical name that is free.
    pub(crate) fn rename(&mut self, canonical: &str, to: &str) {
        if let (Some(parameter), false) = (self.parameters.get(canonical).cloned(), self.parameters.contains_key(to)) {
            self.parameters.remove(canonical);
            self.parameters.insert(to.to_owned(), parameter);
        }
    }

    /// Canonical names of all parameters, sorted.
    pub fn canonical_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.parameters.keys().map(String::as_str)
    }

    /// Names in the file of tensors that the model does not need.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// What the tensors show about adaptive depth (CREST).
    pub fn discovered_crest(&self) -> Option<&DiscoveredCrest> {
        self.crest.as_ref()
    }

    /// The cache compressors that the tensors hold (LeanLlama).
    pub fn discovered_kv_compression(&self) -> Option<&DiscoveredKvCompression> {
        self.kv.as_ref()
    }

    /// The checkpoint that the parameters are read from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// A matrix in its storage. Buffers are views of the file, except rows that must be brought into order.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is no such parameter, it is not a matrix, its scales (or, for
    /// small ones, its numbers) are not finite, or its rows are not a partition.
    pub fn matrix(&self, canonical: &str) -> Result<HostWeight> {
        let parameter = self.parameter(canonical)?;
        let &[n, k] = parameter.info.shape.as_slice() else {
            return Err(self.error(parameter, format!("has shape {:?}, expected a matrix", parameter.info.shape)));
        };
        if n == 0 || k == 0 {
            return Err(self.error(parameter, format!("has shape {:?}, expected sizes above 0", parameter.info.shape)));
        }
        let weight = match &parameter.stored {
            StoredAs::Dense { name, dtype } => {
                let data = self.slice(parameter, self.checkpoint.data(name)?, dtype.size())?;
                if data.len() <= CHECKED {
                    self.check_finite(name, *dtype, 0, &data)?;
                }
                return Ok(HostWeight { n, k, storage: HostStorage::Dense(*dtype, data) });
            }
            StoredAs::CodeBook(weight) => weight.read(&self.checkpoint)?,
            StoredAs::Int8(weight) => weight.read(&self.checkpoint)?,
            StoredAs::Rows(module) => module.read(&self.checkpoint)?,
        };
        if parameter.rows.is_none() && (weight.n, weight.k) == (n, k) {
            return Ok(weight);
        }
        // Rows of a quantised matrix need not start at a block: these are a few gates, read in full.
        let numbers = dequantise(&weight).map_err(|error| self.error(parameter, format!("cannot be read: {error}")))?;
        let numbers: Vec<u8> = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
        let data = self.slice(parameter, numbers.into(), FloatType::F32.size())?;
        Ok(HostWeight { n, k, storage: HostStorage::Dense(FloatType::F32, data) })
    }

    /// The whole matrix of the file that a parameter is rows of, in its storage.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub(crate) fn whole_matrix(&self, canonical: &str) -> Result<HostWeight> {
        let parameter = self.parameter(canonical)?;
        match &parameter.stored {
            StoredAs::Dense { name, dtype } => match self.checkpoint.info(name).map(|info| info.shape.as_slice()) {
                Some(&[n, k]) => {
                    let data = self.checkpoint.data(name)?;
                    self.check_finite(name, *dtype, 0, &data)?;
                    Ok(HostWeight { n, k, storage: HostStorage::Dense(*dtype, data) })
                }
                _ => Err(self.error(parameter, "is no matrix".into())),
            },
            StoredAs::CodeBook(weight) => weight.read(&self.checkpoint),
            StoredAs::Int8(weight) => weight.read(&self.checkpoint),
            StoredAs::Rows(module) => module.read(&self.checkpoint),
        }
    }

    /// All numbers of a parameter of any shape and storage, as f32 in row-major order.
    ///
    /// # Errors
    /// As [`Self::matrix`], and [`Error::Tensor`] when any number is NaN or infinite.
    pub fn vector(&self, canonical: &str) -> Result<Vec<f32>> {
        let parameter = self.parameter(canonical)?;
        match &parameter.stored {
            StoredAs::Dense { name, dtype } => {
                let data = self.slice(parameter, self.checkpoint.data(name)?, dtype.size())?;
                self.check_finite(name, *dtype, 0, &data)?;
                Ok(dtype.decode_all(&data))
            }
            _ => dequantise(&self.matrix(canonical)?)
                .map_err(|error| self.error(parameter, format!("cannot be read: {error}"))),
        }
    }

    /// As [`Self::matrix`], with the numbers of large ones tested, too.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub(crate) fn tested_matrix(&self, canonical: &str) -> Result<HostWeight> {
        let weight = self.matrix(canonical)?;
        if let (HostStorage::Dense(_, data), StoredAs::Dense { name, .. }) =
            (&weight.storage, &self.parameter(canonical)?.stored)
        {
            self.check_copied(canonical, name, data)?;
        }
        Ok(weight)
    }

    /// Tests what is to be copied of a tensor of the file as it is tested when it is read; a large one, too. Codes that are stored under a
    /// type of numbers are none. Pages are given back as they have been read.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a number is NaN or infinite.
    pub(crate) fn check_copied(&self, canonical: &str, tensor: &str, data: &[u8]) -> Result<()> {
        let codes = match self.parameters.get(canonical).map(|parameter| &parameter.stored) {
            Some(StoredAs::CodeBook(weight)) => weight.name == tensor,
            _ => false,
        };
        let dtype = self.checkpoint.info(tensor).and_then(|info| info.dtype.float());
        let Some(dtype) = dtype.filter(|_| !codes) else { return Ok(()) };
        let (mut start, mut elements) = (0usize, 0usize);
        for piece in data.chunks(CHECKED) {
            self.check_finite(tensor, dtype, elements, piece)?;
            self.checkpoint.release_part(tensor, start, piece.len());
            start = start.saturating_add(piece.len());
            elements = start.checked_div(dtype.size()).unwrap_or(0);
        }
        Ok(())
    }

    /// Under which name the file of a dense parameter would hold it: the name that it has, or that its packed weight has, or the module
    /// path of integer rows and `.weight`.
    pub(crate) fn file_name(&self, canonical: &str) -> Option<String> {
        let name = match &self.parameters.get(canonical)?.stored {
            StoredAs::Dense { name, .. } => name.clone(),
            StoredAs::CodeBook(weight) => weight.name.clone(),
            StoredAs::Int8(weight) => weight.name.clone(),
            StoredAs::Rows(module) => format!("{}.weight", owner(module.tensors().first()?)),
        };
        Some(name)
    }

    /// Which rows of a tensor of the file a parameter is, where it is not all of it.
    pub(crate) fn rows_of(&self, canonical: &str) -> Option<Range<usize>> {
        self.parameters.get(canonical)?.rows.clone()
    }

    /// Advises the system that the pages of a parameter are not needed for now; see [`Checkpoint::release`].
    pub fn release(&self, canonical: &str) {
        if let Some(parameter) = self.parameters.get(canonical) {
            parameter.info.tensors.iter().for_each(|name| self.checkpoint.release(name));
        }
    }

    fn parameter(&self, canonical: &str) -> Result<&Parameter> {
        let absent = || {
            let message = format!("is not in the checkpoint {}", self.checkpoint.dir().path().display());
            CheckpointError::of_tensor(canonical, message).found(TensorProperty::Absent)
        };
        self.parameters.get(canonical).ok_or_else(|| absent().into())
    }

    /// The file that holds a parameter, or its first tensor where there are several.
    pub fn file(&self, canonical: &str) -> Option<&Path> {
        let parameter = self.parameters.get(canonical)?;
        parameter.info.tensors.first().and_then(|name| self.checkpoint.file(name))
    }

    /// The rows of a parameter out of the data of the stored tensor.
    fn slice(&self, parameter: &Parameter, data: Bytes, size: usize) -> Result<Bytes> {
        let Some(rows) = &parameter.rows else {
            return Ok(data);
        };
        let width = parameter.info.shape.iter().skip(1).try_fold(size, |width, &dim| width.checked_mul(dim));
        let range = width.and_then(|width| Some(rows.start.checked_mul(width)?..rows.end.checked_mul(width)?));
        match range.filter(|range| range.end <= data.len()) {
            Some(range) => Ok(data.slice(range)),
            None => Err(self.error(parameter, format!("has no row {}", rows.end))),
        }
    }

    /// Tests a part of a tensor that begins at this element.
    fn check_finite(&self, tensor: &str, dtype: FloatType, start: usize, data: &[u8]) -> Result<()> {
        match dtype.first_non_finite(data) {
            Some(at) => {
                let at = start.saturating_add(at);
                Err(self.checkpoint.tensor_error(tensor, format!("element {at} is not a finite number")).into())
            }
            None => Ok(()),
        }
    }

    fn error(&self, parameter: &Parameter, message: String) -> Error {
        let name = parameter.info.tensors.first().map_or("", String::as_str);
        self.checkpoint.tensor_error(name, message).into()
    }
}

/// The matrix in f32. For tensors that are read as vectors; large ones stay quantised.
///
/// # Errors
/// When its parts do not fit its shape, or its scales are not finite.
fn dequantise(weight: &HostWeight) -> Result<Vec<f32>, emberlm_quant::Error> {
    format::check(weight)?;
    Ok(format::dequantize(weight))
}
