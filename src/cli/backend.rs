//! The devices of this build; the one place where a command chooses among them.

use std::str::FromStr;

use anyhow::{Result, ensure};
use emberlm_backends::cpu;

use super::args::{Activations, DeviceArgs};

/// The backend of the CPU.
pub type Cpu = burn_ndarray::NdArray<f32>;

/// A device of [`Cpu`].
pub type CpuDevice = burn_ndarray::NdArrayDevice;

/// A device by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => Err("this build has only the CPU; use \"cpu\" or \"auto\"".to_owned()),
        }
    }
}

/// Sets the threads and the arithmetic, `usual` unless a flag says otherwise, and opens the device.
pub fn open(args: &DeviceArgs, usual: Activations) -> Result<CpuDevice> {
    if let Some(threads) = args.threads {
        ensure!(cpu::set_threads(threads.into()), "--threads {threads}: the threads are already running");
    }
    cpu::set_precision(Some(args.activations.unwrap_or(usual).into()));
    match args.device {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(CpuDevice::default()),
    }
}
