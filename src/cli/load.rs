//! Opening and loading a model, with its plan on stderr first and a progress bar after.

use std::path::Path;

use anyhow::{Context, Result};
use emberlm::model::{CausalLm, LoadPlan, Pretrained, Progress, WeightOptions};
use indicatif::{ProgressBar, ProgressStyle};

use super::args::{DepthArgs, Quant, QuantHead};
use super::backend::{Cpu, CpuDevice};
use super::output;

/// Opens a model directory; nothing is loaded yet.
pub fn open(path: &Path, depth: &DepthArgs) -> Result<Pretrained> {
    Pretrained::open(path, &depth.overrides()).with_context(|| format!("cannot open the model {}", path.display()))
}

/// How weights change on their way in: as the flags say, the storage of the head following that of the layers.
pub fn weight_options(
    quant: Quant,
    head: QuantHead,
    pretrained: &Pretrained,
    device: &CpuDevice,
) -> Result<WeightOptions> {
    let quantize = quant.option();
    let quantized = quantize.is_some() || plan(pretrained, WeightOptions::default(), device)?.is_quantized();
    Ok(WeightOptions { quantize, quantize_head: head.option(quantized), ..WeightOptions::default() })
}

/// Checks every tensor and adds up bytes; nothing is loaded yet.
pub fn plan(pretrained: &Pretrained, options: WeightOptions, device: &CpuDevice) -> Result<LoadPlan> {
    let plan = pretrained.plan::<Cpu>(options, device);
    plan.with_context(|| format!("cannot load the model {}", pretrained.directory().display()))
}

/// Checks every tensor, says on stderr what loading takes, and loads. `estimate` adds what running will take.
pub fn load(
    pretrained: &Pretrained,
    options: WeightOptions,
    device: &CpuDevice,
    estimate: impl FnOnce(&LoadPlan) -> String,
) -> Result<CausalLm<Cpu>> {
    let plan = plan(pretrained, options, device)?;
    output::note(&format!(
        "{}: {} parameters, {} of weights{}",
        pretrained.architecture().config.family,
        output::count(plan.parameters()),
        output::bytes(plan.weight_bytes()),
        estimate(&plan)
    ));
    let bar = progress_bar();
    let progress = |progress: Progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    };
    let model = pretrained.load::<Cpu>(options, device, Some(&progress));
    bar.finish_and_clear();
    model.with_context(|| format!("cannot load the model {}", pretrained.directory().display()))
}

/// Hidden when stderr is no terminal.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "loading [{bar:40}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
