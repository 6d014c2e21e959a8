//! The suite on CUDA, for machines with an NVIDIA card.

// The parts that are not for GPUs.
#![allow(dead_code)]

#[macro_use]
mod suite;

use emberlm_backends::device::{DeviceError, cuda_devices, open_cuda};

type Backend = emberlm::quant::cube::Cuda;

whole_suite!(gpu);

/// With a driver, one more than there are; without, what is missing and what to do.
#[test]
fn a_device_that_is_not_there_is_an_error() {
    let found = cuda_devices();
    let error = open_cuda(99).expect_err("no machine has a hundred");
    match (&found, &error) {
        (Ok(devices), DeviceError::Index { index, names, .. }) => {
            assert_eq!((*index, names.len()), (99, devices.len()))
        }
        (Ok(devices), DeviceError::None { .. }) => assert!(devices.is_empty(), "{error}"),
        (Err(missing), error) => assert_eq!(missing, error),
        (_, other) => panic!("{other}"),
    }
    assert!(error.to_string().starts_with("no CUDA device"), "{error}");
}
