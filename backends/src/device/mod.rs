//! The GPUs of a machine, found and opened without a panic: the runtimes themselves end their thread when a driver is missing.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cube")]
mod kernel_cache;
#[cfg(feature = "wgpu")]
mod wgpu;

use std::fmt;

#[cfg(feature = "cube")]
use crate::panics::catch_quietly_with_threads;

#[cfg(feature = "cuda")]
pub use cuda::{cuda_devices, open_cuda};
#[cfg(feature = "wgpu")]
pub use wgpu::{
    AutoGraphicsApi, RuntimeOptions, WgpuDevice, WgpuSetup, init_device, init_setup, open_wgpu, wgpu_devices,
};

/// What is known of a device before it is used.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// As the driver has it.
    pub name: String,
    /// Interface and driver.
    pub driver: String,
    /// Memory of its own in bytes, where the driver tells it.
    pub memory: Option<u64>,
    /// A processor that stands in for a GPU.
    pub software: bool,
}

/// What limits a device that was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of the largest buffer.
    pub max_buffer: u64,
    /// Bytes of shared memory per cube.
    pub shared_memory: usize,
    /// Units per cube.
    pub units: u32,
    /// Units per plane, least and most.
    pub plane: (u32, u32),
    /// Whether planes can add; else units add over shared memory.
    pub plane_operations: bool,
    /// Types of activations that are multiplied by matrix instructions when there are many rows.
    pub matrix_types: Vec<&'static str>,
    /// Number types that the device computes with.
    pub types: Vec<&'static str>,
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// There is no such interface on this machine, or no device behind it.
    None {
        /// The interface.
        interface: &'static str,
        /// What was looked for and not found, and what to do.
        reason: String,
    },
    /// The index is too high.
    Index {
        /// The interface.
        interface: &'static str,
        /// What was asked for.
        index: usize,
        /// The devices there are.
        names: Vec<String>,
    },
    /// The device does not start.
    Start {
        /// The device.
        name: String,
        /// What its driver says.
        reason: String,
    },
}

impl std::error::Error for DeviceError {}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None { interface, reason } => write!(f, "no {interface} device: {reason}"),
            Self::Index { interface, index, names } => {
                write!(f, "no {interface} device {index}; there are {}:", names.len())?;
                names.iter().enumerate().try_for_each(|(i, name)| write!(f, " {i} is {name},"))?;
                write!(f, " and no more")
            }
            Self::Start { name, reason } => write!(f, "{name} does not start: {reason}"),
        }
    }
}

/// The limits of the device of a client.
#[cfg(feature = "cube")]
pub fn limits<R: cubecl::Runtime>(client: &cubecl::client::ComputeClient<R>) -> Limits {
    use cubecl::features::{Plane, TypeUsage};
    use cubecl::ir::{ElemType, FloatKind, IntKind, StorageType};

    let properties = client.properties();
    let hardware = &properties.hardware;
    let kinds: [(&str, ElemType); 5] = [
        ("f32", ElemType::Float(FloatKind::F32)),
        ("f16", ElemType::Float(FloatKind::F16)),
        ("bf16", ElemType::Float(FloatKind::BF16)),
        ("i8", ElemType::Int(IntKind::I8)),
        ("i64", ElemType::Int(IntKind::I64)),
    ];
    let computes = |kind: ElemType| properties.type_usage(StorageType::from(kind)).contains(TypeUsage::Arithmetic);
    Limits {
        max_buffer: properties.memory.max_page_size,
        shared_memory: hardware.max_shared_memory_size,
        units: hardware.max_units_per_cube,
        plane: (hardware.plane_size_min, hardware.plane_size_max),
        plane_operations: properties.features.plane.contains(Plane::Ops),
        matrix_types: crate::cube::matrix_types(client),
        types: kinds.into_iter().filter(|(_, kind)| computes(*kind)).map(|(name, _)| name).collect(),
    }
}

/// Starts the runtime of a device; what it would end its thread with becomes an error.
#[cfg(feature = "cube")]
fn start<R: cubecl::Runtime>(name: &str, device: &R::Device) -> Result<Limits, DeviceError> {
    contained(|| kernel_cache::forbid().map(|()| limits(&R::client(device))))
        .flatten()
        .map_err(|reason| DeviceError::Start { name: name.to_owned(), reason })
}

/// Calls `f`, which launches work on a device or waits for it. Where a card is lost (pulled out, reset, its driver started anew), the
/// runtimes panic, on a thread of their own and on the one that waits: that becomes an error.
///
/// # Errors
/// The message of the first panic of the runtime's thread that no caller was told of, else that of this thread, whatever its reason.
#[cfg(feature = "cube")]
pub fn contained<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    /// How CubeCL names the threads that its devices live on.
    const THREADS: &str = "DS";
    catch_quietly_with_threads(THREADS, f).map_err(|message| message.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The device at `index` of those that were found.
fn pick<T>(interface: &'static str, found: Vec<(Found, T)>, index: usize) -> Result<(Found, T), DeviceError> {
    let names: Vec<String> = found.iter().map(|(found, _)| found.name.clone()).collect();
    found.into_iter().nth(index).ok_or(DeviceError::Index { interface, index, names })
}
