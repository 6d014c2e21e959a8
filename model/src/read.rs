//! Numbers that a device computed, on the host.

use std::vec::IntoIter;

use burn::tensor::backend::Backend;
use burn::tensor::{Element, Tensor, TensorData, Transaction};
use emberlm_quant::CompactBackend;
use emberlm_quant::read::read;

use crate::error::{Error, Result};

/// Waits for several tensors at once; they come in the order in which they were registered.
pub(crate) fn read_back<B: Backend>(tensors: Transaction<B>) -> Result<IntoIter<TensorData>> {
    read(tensors).map(Vec::into_iter).map_err(device_error)
}

/// A device that failed.
pub(crate) fn device_error(error: emberlm_quant::Error) -> Error {
    Error::Device(error.to_string())
}

/// The elements of a tensor that was read.
pub(crate) fn elements<E: Element>(data: Option<TensorData>) -> Result<Vec<E>> {
    let elements = data.and_then(|data| data.convert::<E>().into_vec().ok());
    elements.ok_or_else(|| Error::Device("the device gave no numbers".into()))
}

/// The numbers of a tensor, from the host's memory where they are there.
pub(crate) fn floats<B: CompactBackend, const D: usize>(tensor: Tensor<B, D>) -> Result<Vec<f32>> {
    match B::host_floats(&tensor) {
        Some(numbers) => Ok(numbers),
        None => elements(read_back(Transaction::default().register(tensor))?.next()),
    }
}
