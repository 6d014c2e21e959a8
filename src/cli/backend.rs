//! The devices of this build; the one place where a command chooses among them.

use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use emberlm::quant::CompactBackend;
use emberlm::quant::self_test::Check;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use emberlm::quant::self_test::{Extent, self_test};
use emberlm_backends::cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use emberlm_backends::{cube, device};

use super::args::{Activations, DeviceArgs};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use super::output;

/// The backend of the CPU.
pub type Cpu = burn_ndarray::NdArray<f32>;

/// A device of [`Cpu`].
pub type CpuDevice = burn_ndarray::NdArrayDevice;

/// A device by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU if this build and this machine have one, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// A device that wgpu finds.
    Wgpu(usize),
    /// A device of the CUDA driver.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
        let index = index.parse().map_err(|_| format!("{index:?} is no device number"))?;
        match (kind, name.contains(':')) {
            ("auto", false) => Ok(Self::Auto),
            ("cpu", false) => Ok(Self::Cpu),
            ("wgpu", _) if cfg!(feature = "wgpu") => Ok(Self::Wgpu(index)),
            ("wgpu", _) => Err("this build has no wgpu; build with --features wgpu (or vulkan, metal)".to_owned()),
            ("cuda", _) if cfg!(feature = "cuda") => Ok(Self::Cuda(index)),
            ("cuda", _) => Err("this build has no CUDA; build with --features cuda".to_owned()),
            _ => Err("use auto, cpu, wgpu, wgpu:N, cuda or cuda:N".to_owned()),
        }
    }
}

/// A device that a command runs on.
pub struct Opened<B: CompactBackend> {
    /// As burn has it.
    pub device: B::Device,
    /// For messages and reports.
    pub name: String,
    /// None on the CPU.
    pub gpu: Option<Gpu>,
}

/// What a GPU tells of itself.
pub struct Gpu {
    /// Bytes per second of a plain read, measured when asked.
    pub read_bandwidth: Box<dyn Fn() -> f64 + Send + Sync>,
    /// Kernels of this project that were launched so far in this process.
    pub launches: fn() -> u64,
}

/// What a command does, on any backend.
pub trait Work {
    /// What comes out.
    type Output;

    /// Does it.
    fn run<B: CompactBackend>(self, device: &Opened<B>) -> Result<Self::Output>;
}

/// Opens the device that the arguments ask for, tests it when it is a GPU, and works on it. On the processor products use the
/// activations that are `usual` for the command unless a flag says otherwise.
pub fn on_device<W: Work>(args: &DeviceArgs, usual: Activations, work: W) -> Result<W::Output> {
    if let Some(threads) = args.threads {
        ensure!(cpu::set_threads(threads.into()), "--threads {threads}: the threads are already running");
    }
    cpu::set_precision(Some(args.activations.unwrap_or(usual).into()));
    let choice = match args.device {
        DeviceChoice::Auto => best(),
        choice => choice,
    };
    match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            let device = CpuDevice::default();
            work.run(&Opened::<Cpu> { device, name: "cpu".into(), gpu: None })
        }
        #[cfg(feature = "wgpu")]
        DeviceChoice::Wgpu(index) => {
            let (found, device, limits) = device::open_wgpu(index)?;
            gpu::<cubecl::wgpu::WgpuRuntime, emberlm::quant::cube::Wgpu, W>(found, device, &limits, work)
        }
        #[cfg(feature = "cuda")]
        DeviceChoice::Cuda(index) => {
            let (found, device, limits) = device::open_cuda(index)?;
            gpu::<cubecl::cuda::CudaRuntime, emberlm::quant::cube::Cuda, W>(found, device, &limits, work)
        }
        #[allow(unreachable_patterns)] // with both features there is no other
        other => bail!("this build does not have {other:?}"),
    }
}

/// A GPU before the processor, CUDA before wgpu; never a processor that poses as a GPU.
fn best() -> DeviceChoice {
    #[cfg(feature = "cuda")]
    if device::cuda_devices().is_ok_and(|devices| !devices.is_empty()) {
        return DeviceChoice::Cuda(0);
    }
    #[cfg(feature = "wgpu")]
    if device::wgpu_devices().first().is_some_and(|(found, _)| !found.software) {
        return DeviceChoice::Wgpu(0);
    }
    DeviceChoice::Cpu
}

/// Works on a GPU once it has shown that its kernels compute.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn gpu<R, B, W>(found: device::Found, device: R::Device, limits: &device::Limits, work: W) -> Result<W::Output>
where
    R: cubecl::Runtime,
    B: CompactBackend<Device = R::Device>,
    W: Work,
{
    let checks = self_test::<B, Cpu>(&device, &CpuDevice::default(), Extent::Short);
    if let Some(check) = checks.iter().find(|check| !check.passed()) {
        bail!(
            "{} computes wrongly: {} is off by {:e}; see `ember doctor`, update the driver, or use --device cpu",
            found.name,
            check.name,
            check.error
        );
    }
    output::note(&format!("device: {}, {}", found.name, found.driver));
    let client = R::client(&device);
    let size = limits.max_buffer.min(1 << 30) as usize;
    let gpu = Gpu { read_bandwidth: Box::new(move || cube::read_bandwidth(&client, size)), launches: cube::launches };
    work.run(&Opened::<B> { device, name: found.name, gpu: Some(gpu) })
}

/// One line for each GPU that this build could use, or why there is none.
pub fn list() -> Vec<String> {
    #[allow(unused_mut)] // without features there is nothing to add
    let mut lines = Vec::new();
    #[cfg(feature = "wgpu")]
    {
        let devices = device::wgpu_devices();
        if let Err(error) = device::open_wgpu(0) {
            lines.push(format!("wgpu: {error}"));
        }
        lines.extend(
            (0..devices.len()).map(|i| line(&format!("wgpu:{i}"), device::open_wgpu(i).map(|(f, _, l)| (f, l)))),
        );
    }
    #[cfg(feature = "cuda")]
    match device::cuda_devices() {
        Err(error) => lines.push(format!("cuda: {error}")),
        Ok(devices) => lines.extend(
            (0..devices.len()).map(|i| line(&format!("cuda:{i}"), device::open_cuda(i).map(|(f, _, l)| (f, l)))),
        ),
    }
    if lines.is_empty() {
        lines.push("this build has no GPU support; build with --features wgpu, vulkan, metal or cuda".to_owned());
    }
    lines
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn line(name: &str, opened: Result<(device::Found, device::Limits), device::DeviceError>) -> String {
    let (found, limits) = match opened {
        Ok(opened) => opened,
        Err(error) => return format!("{name}: {error}"),
    };
    let memory = found.memory.map_or("memory unknown".into(), |bytes| output::bytes(bytes as usize));
    let software = if found.software { ", runs on the processor" } else { "" };
    let plane = match limits.plane {
        (least, most) if limits.plane_operations && least == most => format!("planes of {most}"),
        _ => "no plane operations".into(),
    };
    format!(
        "{name}: {} ({}){software}; {memory}; buffers up to {}; {} units and {} of shared memory per cube; {plane}; {}",
        found.name,
        found.driver,
        output::bytes(limits.max_buffer as usize),
        limits.units,
        output::bytes(limits.shared_memory),
        limits.types.join(" ")
    )
}

/// Every operation of a device against the processor; none when the device is the processor.
///
/// # Errors
/// When there is no such device.
pub fn examine(choice: DeviceChoice) -> Result<Option<(String, Vec<Check>)>> {
    let choice = if choice == DeviceChoice::Auto { best() } else { choice };
    match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(None),
        #[cfg(feature = "wgpu")]
        DeviceChoice::Wgpu(index) => {
            let (found, device, _) = device::open_wgpu(index)?;
            let trusted = CpuDevice::default();
            Ok(Some((found.name, self_test::<emberlm::quant::cube::Wgpu, Cpu>(&device, &trusted, Extent::Whole))))
        }
        #[cfg(feature = "cuda")]
        DeviceChoice::Cuda(index) => {
            let (found, device, _) = device::open_cuda(index)?;
            let trusted = CpuDevice::default();
            Ok(Some((found.name, self_test::<emberlm::quant::cube::Cuda, Cpu>(&device, &trusted, Extent::Whole))))
        }
        #[allow(unreachable_patterns)] // with both features there is no other
        other => bail!("this build does not have {other:?}"),
    }
}
