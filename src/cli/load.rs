//! Opening and loading a model, with its plan on stderr first and a progress bar after.

use std::path::Path;

use anyhow::{Context, Result};
use emberlm::demo;
use emberlm::model::checkpoint::OpenOptions;
use emberlm::model::config::CrestOverrides;
use emberlm::model::text::TextProcessor;
use emberlm::model::{CausalLm, LoadPlan, Pretrained, Progress, WeightOptions};
use emberlm::quant::CompactBackend;
use emberlm_backends::cpu;
use indicatif::{ProgressBar, ProgressStyle};

use super::args::{DepthArgs, ModelArgs, Quant, QuantHead};
use super::backend::OpenDevice;
use super::output;

/// Opens a model directory, or the demo model when none is given; nothing is loaded yet.
pub fn open(model: &ModelArgs, depth: &DepthArgs) -> Result<Pretrained> {
    let with = depth.given();
    let Some(path) = &model.model else {
        return demo::open(&depth.overrides()).with_context(|| format!("cannot open the demo model{with}"));
    };
    let options = OpenOptions { allow_links: model.allow_links };
    Pretrained::open_with(path, &depth.overrides(), options)
        .with_context(|| format!("cannot open the model {}{with}", path.display()))
}

/// Tokenizer and templates of a model directory, or of the demo model; a directory with its text files alone will do.
pub fn tokenizer(model: Option<&Path>) -> Result<TextProcessor> {
    let depth = CrestOverrides::default();
    let Some(path) = model else {
        return Ok(demo::open(&depth).context("cannot open the demo model")?.text()?);
    };
    // With weights and config the size of the embedding is known.
    let text = match Pretrained::open(path, &depth) {
        Ok(pretrained) => pretrained.text(),
        Err(_) => TextProcessor::from_dir(path),
    };
    text.with_context(|| format!("cannot open the tokenizer of {}", path.display()))
}

/// How weights change on their way in: as the flags say, the storage of the head following that of the layers.
pub fn weight_options<B: CompactBackend>(
    quant: Quant,
    head: QuantHead,
    pretrained: &Pretrained,
    device: &B::Device,
) -> Result<WeightOptions> {
    let quantize = quant.option();
    let stored_quantized = plan::<B>(pretrained, WeightOptions::default(), device)?.is_quantized();
    if quantize.is_some() && stored_quantized {
        output::note("--quant is for dense matrices; those that are stored quantised stay as they are");
    }
    let quantized = quantize.is_some() || stored_quantized;
    Ok(WeightOptions { quantize, quantize_head: head.option(quantized), ..WeightOptions::default() })
}

/// The last part of the path of a model.
pub fn name(pretrained: &Pretrained) -> String {
    let directory = pretrained.directory();
    directory.file_name().map_or_else(|| directory.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Checks every tensor and adds up bytes; nothing is loaded yet.
pub fn plan<B: CompactBackend>(
    pretrained: &Pretrained,
    options: WeightOptions,
    device: &B::Device,
) -> Result<LoadPlan> {
    let plan = pretrained.plan::<B>(options, device);
    plan.with_context(|| format!("cannot load the model {}", pretrained.directory().display()))
}

/// Checks every tensor, says on stderr what loading takes, and loads. `estimate` adds what running will take.
pub fn load<B: CompactBackend>(
    pretrained: &Pretrained,
    options: WeightOptions,
    device: &OpenDevice<B>,
    estimate: impl FnOnce(&LoadPlan) -> String,
) -> Result<CausalLm<B>> {
    let plan = plan::<B>(pretrained, options, &device.device)?;
    output::note(&format!(
        "{}: {} parameters, {} of weights{}",
        pretrained.architecture().config.family,
        output::count(plan.parameters()),
        output::bytes(plan.weight_bytes()),
        estimate(&plan)
    ));
    // What the parser of the tokenizer has freed, and what planning has read of the files.
    cpu::release_free_memory();
    let weights = pretrained.weights();
    weights.canonical_names().for_each(|name| weights.release(name));
    let bar = progress_bar();
    let progress = |progress: Progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    };
    let model = pretrained.load::<B>(options, &device.device, Some(&progress));
    bar.finish_and_clear();
    let mut model = model.with_context(|| format!("cannot load the model {}", pretrained.directory().display()))?;
    model.set_activations(device.activations)?;
    Ok(model)
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
