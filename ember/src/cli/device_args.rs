//! Flags about what computes, and in which type of activations.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use emberlm::quant::Activations;

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

/// What computes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// Device: auto, cpu, wgpu, wgpu:N, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,

    /// Type of activations [default: auto; dump, eval, diff, probe: f32]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub activations: Option<ActivationType>,

    /// Threads; without it RAYON_NUM_THREADS, or all that the machine runs at once. Where the system refuses some, fewer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// Types of activations. Sums are in f32 beside all but int8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ActivationType {
    /// On the processor int8 beside quantised weights and, where it multiplies BF16 (AVX-512 BF16), bf16 beside BF16 weights, the rest (gates too) exact; on GPUs f32
    Auto,
    /// Exact
    F32,
    /// Half precision between operations; GPUs
    F16,
    /// On the processor rounded to BF16 in products with BF16 weights, the rest exact: prompts twice as fast with AVX-512 BF16; on a real model a tenth of what int8 changes. On GPUs with CUDA as f16, with the range of f32 and 8 bits
    Bf16,
    /// Rounded to 8 bits per 64 numbers, outliers to 15, in products with quantised weights, the rest exact: twice as fast; on a real model a hundredth of what NF4 changes, over half of what int8 weights change. AVX-512 VNNI and VBMI, AVX-VNNI, AVX2, NEON with the dot product; else f32
    Int8,
}

impl From<ActivationType> for Activations {
    fn from(given: ActivationType) -> Self {
        match given {
            ActivationType::Auto => Self::Auto,
            ActivationType::F32 => Self::F32,
            ActivationType::F16 => Self::F16,
            ActivationType::Bf16 => Self::Bf16,
            ActivationType::Int8 => Self::Int8,
        }
    }
}
