//! `ember doctor`: the devices there are, and whether one computes what it should.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::{Context, Result, bail};
use clap::Args;
use emberlm::backends::cpu;

use super::backend;
use super::device_args::DeviceChoice;
use super::output;

/// Flags of `ember doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The device to test: auto, cpu, wgpu, wgpu:N, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,

    /// Print every operation that was tested
    #[arg(short, long)]
    verbose: bool,
}

/// Runs the command.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let mut text = format!("cpu: {} threads, {}\n", cpu::threads(), cpu::features().join(" "));
    for line in backend::describe_devices() {
        let _ = writeln!(text, "{line}");
    }
    std::io::stdout().write_all(text.as_bytes()).context(output::STDOUT)?;
    let Some((name, checks)) = backend::run_self_test(args.device)? else {
        output::note("no GPU to test: the kernels of the processor are tested when emberlm is built");
        return Ok(());
    };
    let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
    let mut text = format!("{name}: {} of {} operations right\n", checks.len() - failed.len(), checks.len());
    for check in if args.verbose { checks.iter().collect() } else { failed.clone() } {
        let word = if check.passed() { "right" } else { "WRONG" };
        let _ = writeln!(text, "  {word} {} (off by {:.1e})", check.name, check.error);
    }
    // Whether anyone reads it makes no difference to what was found.
    output::unless_closed(std::io::stdout().write_all(text.as_bytes())).context(output::STDOUT)?;
    if let Some(check) = failed.first() {
        bail!("{name} computes wrongly ({}); update its driver, or use another device", check.name);
    }
    Ok(())
}
