//! The suite on wgpu: WGSL with feature `wgpu`, SPIR-V with feature `vulkan`.

// The parts that are not for GPUs.
#![allow(dead_code)]

#[macro_use]
mod suite;

use emberlm_backends::device::{DeviceError, open_wgpu, wgpu_devices};

type Backend = emberlm::quant::cube::Wgpu;

whole_suite!(gpu);

#[test]
fn a_table_beyond_a_buffer() {
    suite::split::a_table_beyond_a_buffer::<Backend>(&Default::default());
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let count = wgpu_devices().len();
    let error = open_wgpu(count).expect_err("one more than there are");
    match &error {
        DeviceError::Index { index, names, .. } => assert_eq!((*index, names.len()), (count, count)),
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains(&format!("no wgpu device {count}")), "{error}");
    let (found, _, limits) = open_wgpu(0).expect("the device of these tests");
    assert!(!found.name.is_empty() && limits.max_buffer > 0 && limits.types.contains(&"f32"), "{found:?} {limits:?}");
}
