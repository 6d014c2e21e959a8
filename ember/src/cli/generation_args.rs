//! Flags of the commands that generate text.

use clap::Args;

use super::args::{DepthArgs, DraftArgs};
use super::device_args::DeviceArgs;
use super::sampling::SamplingArgs;

/// How tokens are chosen, and what computes them.
#[derive(Debug, Args)]
pub struct GenerationArgs {
    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub depth: DepthArgs,

    #[command(flatten)]
    pub draft: DraftArgs,

    #[command(flatten)]
    pub device: DeviceArgs,
}
