//! What wgpu finds.

/// How the runtime is started by hand: to share its device with what else draws or computes on it, or to keep a hand on that device.
pub use cubecl::wgpu::{AutoGraphicsApi, RuntimeOptions, WgpuDevice, WgpuSetup, init_device, init_setup};
use cubecl::wgpu::{GraphicsApi, WgpuRuntime};
use wgpu::{Adapter, Backends, DeviceType, Instance, InstanceDescriptor};

use super::{DeviceError, Found, Limits, pick, start};

const INTERFACE: &str = "wgpu";

/// The devices, GPUs first: the order of their numbers on the command line.
pub fn wgpu_devices() -> Vec<(Found, WgpuDevice)> {
    let mut devices: Vec<(Found, WgpuDevice)> =
        adapters().into_iter().map(|(adapter, device)| (describe(&adapter), device)).collect();
    devices.sort_by_key(|(found, _)| found.software);
    devices
}

/// Opens device `index` of [`wgpu_devices`].
///
/// # Errors
/// When there is none, the index is too high, or the driver refuses.
pub fn open_wgpu(index: usize) -> Result<(Found, WgpuDevice, Limits), DeviceError> {
    let devices = wgpu_devices();
    if devices.is_empty() {
        let api = AutoGraphicsApi::backend();
        let reason = format!(
            "no adapter for {api:?}; install a driver (on Linux a Vulkan ICD and its loader), or use --device cpu"
        );
        return Err(DeviceError::None { interface: INTERFACE, reason });
    }
    let (found, device) = pick(INTERFACE, devices, index)?;
    let limits = start::<WgpuRuntime>(&found.name, &device)?;
    Ok((found, device, limits))
}

/// Every adapter with the name that the runtime gives it: a kind, and a number among those of that kind.
fn adapters() -> Vec<(Adapter, WgpuDevice)> {
    let backends = Backends::from(AutoGraphicsApi::backend());
    let instance = Instance::new(InstanceDescriptor { backends, ..InstanceDescriptor::new_without_display_handle() });
    let [mut discrete, mut integrated, mut virtual_, mut software] = [(); 4].map(|()| 0usize..);
    let mut name = |kind: DeviceType| match kind {
        DeviceType::DiscreteGpu => discrete.next().map(WgpuDevice::DiscreteGpu),
        DeviceType::IntegratedGpu => integrated.next().map(WgpuDevice::IntegratedGpu),
        DeviceType::VirtualGpu => virtual_.next().map(WgpuDevice::VirtualGpu),
        // The runtime can name only the first.
        DeviceType::Cpu => software.next().filter(|&i: &usize| i == 0).map(|_| WgpuDevice::Cpu),
        DeviceType::Other => None,
    };
    let found = cubecl::future::block_on(instance.enumerate_adapters(backends));
    found
        .into_iter()
        .filter_map(|adapter| name(adapter.get_info().device_type).map(|device| (adapter, device)))
        .collect()
}

fn describe(adapter: &Adapter) -> Found {
    let info = adapter.get_info();
    let driver = [info.backend.to_string(), info.driver, info.driver_info].map(|s| s.trim().to_owned());
    Found {
        name: info.name,
        driver: driver.into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(", "),
        memory: memory(adapter),
        software: info.device_type == DeviceType::Cpu,
    }
}

/// Bytes of the largest heap that is the device's own.
#[cfg(not(target_os = "macos"))]
fn memory(adapter: &Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the adapter is only asked, and outlives the question.
    let properties = unsafe {
        let adapter = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(adapter.raw_physical_device())
    };
    let heaps = properties.memory_heaps.iter().take(properties.memory_heap_count as usize);
    heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}

#[cfg(target_os = "macos")]
fn memory(_adapter: &Adapter) -> Option<u64> {
    None
}
