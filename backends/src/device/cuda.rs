//! What the CUDA driver finds.

use std::ffi::CStr;

use cubecl::cuda::{CudaDevice, CudaRuntime};
use cudarc::driver::result;

use super::{DeviceError, Found, Limits, pick, start};

const INTERFACE: &str = "CUDA";

/// What computes without a driver of CUDA, in this build.
const OTHERS: &str = if cfg!(feature = "wgpu") { "cpu or wgpu" } else { "cpu" };

/// The devices in the driver's order.
///
/// # Errors
/// When the driver, the run-time compiler or the headers that kernels are compiled with are missing.
pub fn cuda_devices() -> Result<Vec<(Found, CudaDevice)>, DeviceError> {
    let none = |reason: String| DeviceError::None { interface: INTERFACE, reason };
    // SAFETY: a library is opened and closed again.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(none(format!("the driver (libcuda) is not installed; use --device {OTHERS}")));
    }
    // SAFETY: as above.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Err(none(
            "the run-time compiler (libnvrtc) is not found; install the CUDA toolkit and set LD_LIBRARY_PATH".into(),
        ));
    }
    if !headers_are_there() {
        let reason = "the toolkit's headers are not found; install the CUDA toolkit and set CUDA_PATH to it";
        return Err(none(reason.into()));
    }
    let failed = |what: &str, error: result::DriverError| none(format!("{what}: {}", in_words(error)));
    result::init().map_err(|e| failed("the driver does not start", e))?;
    let count = result::device::get_count().map_err(|e| failed("the driver counts no devices", e))?;
    (0..count)
        .map(|index| {
            let device = result::device::get(index).map_err(|e| failed(&format!("device {index}"), e))?;
            let name = result::device::get_name(device).unwrap_or_else(|_| format!("CUDA device {index}"));
            // SAFETY: the driver gave this device.
            let memory = unsafe { result::device::total_mem(device) }.ok().map(|bytes| bytes as u64);
            Ok((Found { name, driver: "CUDA".into(), memory, software: false }, CudaDevice::new(index as usize)))
        })
        .collect()
}

/// What the driver says of an error.
fn in_words(error: result::DriverError) -> String {
    let text = |found: Result<&CStr, _>| found.ok().map(|text| text.to_string_lossy().into_owned());
    match (text(error.error_string()), text(error.error_name())) {
        (Some(sentence), Some(name)) => format!("{sentence} ({name})"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => format!("error {} of the driver", error.0 as u32),
    }
}

/// Opens device `index` of [`cuda_devices`].
///
/// # Errors
/// When there is none, the index is too high, or the driver refuses.
pub fn open_cuda(index: usize) -> Result<(Found, CudaDevice, Limits), DeviceError> {
    let devices = cuda_devices()?;
    if devices.is_empty() {
        return Err(DeviceError::None { interface: INTERFACE, reason: "the driver finds no device".into() });
    }
    let (found, device) = pick(INTERFACE, devices, index)?;
    let limits = start::<CudaRuntime>(&found.name, &device)?;
    Ok((found, device, limits))
}

/// Whether the headers are where the runtime looks for them.
fn headers_are_there() -> bool {
    let stated = std::env::var_os("CUDA_PATH").map(std::path::PathBuf::from);
    let usual = ["/usr/local/cuda", "/opt/cuda", "/usr", "C:/Program Files/NVIDIA GPU Computing Toolkit/CUDA"];
    let mut places = stated.map_or_else(|| usual.iter().map(Into::into).collect(), |path| vec![path]).into_iter();
    places.any(|place| place.join("include/cuda_runtime.h").exists())
}
