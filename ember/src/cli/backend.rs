//! The devices of this build; the one place where a command chooses among them.

use anyhow::{Result, bail, ensure};
use emberlm::backends::cpu::{self, Precision};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use emberlm::backends::{cube, device};
use emberlm::model::checkpoint::StorageKind;
use emberlm::model::{LoadPlan, PlannedTensor, TensorRole};
use emberlm::quant::self_test::Check;
use emberlm::quant::{Activations, CompactBackend};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use emberlm::quant::{
    host::FloatType,
    self_test::{Extent, self_test},
};

use super::device_args::{DeviceArgs, DeviceChoice};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use super::output;
use super::threads;

/// The backend of the CPU.
pub type Cpu = burn_ndarray::NdArray<f32>;

/// A device of [`Cpu`].
pub type CpuDevice = burn_ndarray::NdArrayDevice;

/// A device that a command runs on.
pub struct OpenDevice<B: CompactBackend> {
    /// As burn has it.
    pub device: B::Device,
    /// For messages and reports.
    pub name: String,
    /// In which numbers the command computes; the device has them.
    pub activations: Activations,
    /// None on the CPU.
    pub gpu: Option<Gpu>,
}

impl<B: CompactBackend> OpenDevice<B> {
    /// What [`arithmetic`](Self::arithmetic) says where nothing is rounded.
    pub const EXACT: &'static str = "exact";

    /// The type of activations, for reports.
    pub fn arithmetic(&self) -> String {
        match (&self.gpu, self.activations) {
            (None, Activations::F32) => Self::EXACT.into(),
            (_, activations) => activations.to_string(),
        }
    }

    /// As [`arithmetic`](Self::arithmetic), with what [`Activations::Auto`] comes to beside these weights.
    pub fn arithmetic_with(&self, plan: &LoadPlan) -> String {
        if self.activations != Activations::Auto {
            return self.arithmetic();
        }
        let tied = !plan.tensors.iter().any(|tensor| tensor.role == TensorRole::Head);
        let mut products = plan.tensors.iter().filter(|tensor| match tensor.role {
            TensorRole::Projection | TensorRole::Head => true,
            TensorRole::Embedding => tied,
            _ => false,
        });
        let int8 = products.clone().any(|tensor| tensor.storage.is_quantized()).then_some("int8");
        let rounds = |tensor: &PlannedTensor| {
            let has_rows = tensor.shape.first().is_some_and(|&rows| rows >= Precision::AUTO_MIN_MATRIX_ROWS);
            tensor.storage == StorageKind::Bf16 && has_rows
        };
        let bf16 = cpu::level().multiplies_bf16() && products.any(rounds);
        let rounded: Vec<&str> = int8.into_iter().chain(bf16.then_some("bf16")).collect();
        if rounded.is_empty() { Self::EXACT.into() } else { rounded.join(" and ") }
    }
}

impl OpenDevice<Cpu> {
    /// The processor.
    pub fn cpu(activations: Activations) -> Self {
        Self { device: CpuDevice::default(), name: "cpu".into(), activations, gpu: None }
    }
}

/// Counters and measurements of a GPU.
pub struct Gpu {
    /// Bytes per second of a plain read, measured when asked.
    pub read_bandwidth: Box<dyn Fn() -> f64 + Send + Sync>,
    /// Kernels of this project that were launched so far in this process.
    pub launches: fn() -> u64,
}

/// A command that runs on the backend of the chosen device: a closure would have to be generic over it.
pub trait WithBackend {
    /// The result of the command.
    type Output;

    /// Runs the command on a device.
    fn run<B: CompactBackend>(self, device: &OpenDevice<B>) -> Result<Self::Output>;
}

/// Opens the device that the arguments ask for, tests it when it is a GPU, and works on it with the activations that are `usual`
/// for the command unless a flag says otherwise.
pub fn on_device<W: WithBackend>(args: &DeviceArgs, usual: Activations, work: W) -> Result<W::Output> {
    threads::start(args.threads)?;
    let given = args.activations.map(Activations::from);
    let activations = given.unwrap_or(usual);
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    let gpu_activations = if activations == Activations::Auto { Activations::F32 } else { activations };
    let choice = match args.device {
        DeviceChoice::Auto => best(),
        choice => choice,
    };
    match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            let device = CpuDevice::default();
            check_activations::<Cpu>(activations, &device, "cpu")?;
            work.run(&OpenDevice::<Cpu> { device, name: "cpu".into(), activations, gpu: None })
        }
        #[cfg(feature = "wgpu")]
        DeviceChoice::Wgpu(index) => {
            let (found, device, limits) = device::open_wgpu(index)?;
            with_gpu::<cubecl::wgpu::WgpuRuntime, emberlm::quant::cube::Wgpu, W>(
                found,
                device,
                &limits,
                gpu_activations,
                work,
            )
        }
        #[cfg(feature = "cuda")]
        DeviceChoice::Cuda(index) => {
            let (found, device, limits) = device::open_cuda(index)?;
            with_gpu::<cubecl::cuda::CudaRuntime, emberlm::quant::cube::Cuda, W>(
                found,
                device,
                &limits,
                gpu_activations,
                work,
            )
        }
        #[allow(unreachable_patterns)] // with both features there is no other
        _ => bail!("this build does not have that device"),
    }
}

/// # Errors
/// When the device does not compute so.
fn check_activations<B: CompactBackend>(activations: Activations, device: &B::Device, name: &str) -> Result<()> {
    let known: Vec<String> = known_activations::<B>(device).map(|known| known.to_string()).collect();
    ensure!(
        B::computes_with(device, activations),
        "--activations {activations}: {name} computes with {}; leave it out, or use another --device",
        known.join(", ")
    );
    Ok(())
}

/// What a device computes with.
fn known_activations<B: CompactBackend>(device: &B::Device) -> impl Iterator<Item = Activations> {
    Activations::ALL.into_iter().filter(|&activations| B::computes_with(device, activations))
}

/// A GPU before the processor, CUDA before wgpu; never a software adapter (llvmpipe), which is the processor by another way.
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
fn with_gpu<R, B, W>(
    found: device::Found,
    device: R::Device,
    limits: &device::Limits,
    activations: Activations,
    work: W,
) -> Result<W::Output>
where
    R: cubecl::Runtime,
    B: CompactBackend<Device = R::Device>,
    W: WithBackend,
{
    check_activations::<B>(activations, &device, &found.name)?;
    // The head and some other small things are in F32 always.
    let mut tests = vec![(FloatType::F32, Extent::Short)];
    if activations.float() != FloatType::F32 {
        tests.push((activations.float(), Extent::Short));
    }
    let checks = compare_operations::<B>(&device, tests);
    if let Some(check) = checks.iter().find(|check| !check.passed()) {
        bail!(
            "{} computes wrongly: {} is off by {:e}; see `ember doctor`, update the driver, or use --device cpu",
            found.name,
            check.name,
            check.error
        );
    }
    output::note(&format!("device: {}, {}, {activations} activations", found.name, found.driver));
    let client = R::client(&device);
    let size = limits.max_buffer.min(1 << 30) as usize;
    let gpu = Gpu { read_bandwidth: Box::new(move || cube::read_bandwidth(&client, size)), launches: cube::launches };
    work.run(&OpenDevice::<B> { device, name: found.name, activations, gpu: Some(gpu) })
}

/// Operations of a GPU against those of the processor.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn compare_operations<B: CompactBackend>(
    device: &B::Device,
    tests: impl IntoIterator<Item = (FloatType, Extent)>,
) -> Vec<Check> {
    let trusted = CpuDevice::default();
    tests.into_iter().flat_map(|(float, extent)| self_test::<B, Cpu>(device, &trusted, float, extent)).collect()
}

/// Every operation of a GPU in every type of activations. The unpacking of a storage is the same code in all of them.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn full_self_test<B: CompactBackend>(device: &B::Device) -> Vec<Check> {
    let extent = |float| if float == FloatType::F32 { Extent::Whole } else { Extent::OneStorage };
    compare_operations::<B>(device, known_activations::<B>(device).map(|known| (known.float(), extent(known.float()))))
}

/// One line for each GPU that this build could use, or why there is none.
pub fn describe_devices() -> Vec<String> {
    #[allow(unused_mut)] // without features there is nothing to add
    let mut lines = Vec::new();
    #[cfg(feature = "wgpu")]
    {
        let devices = device::wgpu_devices();
        if let Err(error) = device::open_wgpu(0) {
            lines.push(format!("wgpu: {error}"));
        }
        lines.extend(
            (0..devices.len()).map(|i| describe(&format!("wgpu:{i}"), device::open_wgpu(i).map(|(f, _, l)| (f, l)))),
        );
    }
    #[cfg(feature = "cuda")]
    match device::cuda_devices() {
        Err(error) => lines.push(format!("cuda: {error}")),
        Ok(devices) => lines.extend(
            (0..devices.len()).map(|i| describe(&format!("cuda:{i}"), device::open_cuda(i).map(|(f, _, l)| (f, l)))),
        ),
    }
    if lines.is_empty() {
        lines.push("this build has no GPU support; build with --features wgpu, vulkan, metal or cuda".to_owned());
    }
    lines
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn describe(name: &str, opened: Result<(device::Found, device::Limits), device::DeviceError>) -> String {
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
    let matrices = match limits.matrix_types.join(" ") {
        types if types.is_empty() => "no matrix instructions".into(),
        types => format!("matrix instructions for {types}"),
    };
    format!(
        "{name}: {} ({}){software}; {memory}; buffers up to {}; {} units and {} of shared memory per cube; {plane}; {matrices}; {}",
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
pub fn run_self_test(choice: DeviceChoice) -> Result<Option<(String, Vec<Check>)>> {
    let choice = if choice == DeviceChoice::Auto { best() } else { choice };
    match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(None),
        #[cfg(feature = "wgpu")]
        DeviceChoice::Wgpu(index) => {
            let (found, device, _) = device::open_wgpu(index)?;
            Ok(Some((found.name, full_self_test::<emberlm::quant::cube::Wgpu>(&device))))
        }
        #[cfg(feature = "cuda")]
        DeviceChoice::Cuda(index) => {
            let (found, device, _) = device::open_cuda(index)?;
            Ok(Some((found.name, full_self_test::<emberlm::quant::cube::Cuda>(&device))))
        }
        #[allow(unreachable_patterns)] // with both features there is no other
        _ => bail!("this build does not have that device"),
    }
}
