//! Opening and loading a model, with its plan on stderr first and a progress bar after.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use emberlm::backends::cpu;
use emberlm::demo;
use emberlm::model::checkpoint::OpenOptions;
use emberlm::model::text::TextProcessor;
use emberlm::model::{Architecture, CausalLm, LoadPlan, Pretrained, Progress, QuantizeOnLoad, WeightOptions};
use emberlm::quant::CompactBackend;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::{DepthArgs, HiddenArgs, ModelArgs, PassArgs, Quant, QuantHead, by_flag};
use super::backend::OpenDevice;
use super::estimate::Estimate;
use super::memory::TokenizerMemory;
use super::{model_name, output};

/// Opens a model directory, or the demo model when none is given; nothing is loaded yet.
pub fn open(model: &ModelArgs, depth: &DepthArgs, hidden: HiddenArgs) -> Result<Pretrained> {
    let opened = match &model.model {
        None => demo::open(),
        Some(name) => {
            let path = model_name::directory(name, &model.hub)?;
            Pretrained::open_with(path, OpenOptions { allow_links: model.allow_links })
        }
    };
    if let (None, Some(name), quant) = (model.quant, &model.model, model.quant())
        && quant != Quant::NONE
    {
        output::note(&format!("{}: --quant {}, as its card recommends", name.display(), quant.name()));
    }
    let opened = opened.map_err(anyhow::Error::from);
    let opened = opened.and_then(|pretrained| pretrained.depth(&depth.overrides()).map_err(by_flag));
    let opened = opened.with_context(|| {
        let name = model.model.as_ref().map_or_else(|| "demo model".into(), |path| format!("model {}", path.display()));
        format!("cannot open the {name}")
    })?;
    if hidden.cache_hidden { opened.cache_hidden().map_err(by_flag) } else { Ok(opened) }
}

/// Opens a model and says how it is to be loaded, both as the flags say.
pub fn open_prepared<B: CompactBackend>(
    model: &ModelArgs,
    depth: &DepthArgs,
    hidden: HiddenArgs,
    device: &OpenDevice<B>,
) -> Result<Pretrained> {
    prepare(open(model, depth, hidden)?, Storage::of(model), device)
}

/// As [`open_prepared`], with embedding and head as they are stored unless a flag says otherwise.
pub fn open_exact<B: CompactBackend>(
    model: &ModelArgs,
    depth: &DepthArgs,
    hidden: HiddenArgs,
    device: &OpenDevice<B>,
) -> Result<Pretrained> {
    let head = match model.quant_head {
        QuantHead::Auto => QuantHead::As(Quant::NONE),
        chosen => chosen,
    };
    prepare(open(model, depth, hidden)?, Storage { head, ..Storage::of(model) }, device)
}

/// How weights are to be held.
#[derive(Clone, Copy)]
pub struct Storage {
    /// Of the dense linear layers.
    pub quant: Quant,
    /// Of a dense embedding and head.
    pub head: QuantHead,
    /// In memory, not in a mapped file.
    pub in_memory: bool,
}

impl Storage {
    /// As the file has it.
    pub const STORED: Self = Self { quant: Quant::NONE, head: QuantHead::As(Quant::NONE), in_memory: false };

    /// As the flags say.
    pub fn of(model: &ModelArgs) -> Self {
        Self { quant: model.quant(), head: model.quant_head, in_memory: model.no_mmap }
    }

    /// How an embedding is quantised: as the head. A pass reads one row of it for each token; where it is read from its file, and not the head
    /// itself, the rest of it takes no memory as it is stored. In memory it stays the same, so that the same text comes of it.
    pub fn embedding<B: CompactBackend>(
        self,
        architecture: &Architecture,
        quantized_layers: bool,
    ) -> Option<QuantizeOnLoad> {
        let stays = self.head == QuantHead::Auto && is_in_place::<B>(architecture);
        self.head.option(quantized_layers).filter(|_| !stays)
    }
}

/// Says how a model is to be loaded: weights as the flags say, the storage of the head following that of the layers; the numbers that
/// it computes in as the device is to.
pub fn prepare<B: CompactBackend>(
    pretrained: Pretrained,
    storage: Storage,
    device: &OpenDevice<B>,
) -> Result<Pretrained> {
    let pretrained = pretrained.activations(device.activations);
    let quantize = storage.quant.option();
    let stored_quantized = plan::<B>(&pretrained, &device.device)?.is_quantized();
    if quantize.is_some() && stored_quantized {
        output::note("--quant is for dense matrices; those that are stored quantised stay as they are");
    }
    let quantized = quantize.is_some() || stored_quantized;
    let quantize_head = storage.head.option(quantized);
    let quantize_embedding = storage.embedding::<B>(pretrained.architecture(), quantized);
    let in_memory = storage.in_memory;
    let options = WeightOptions { quantize, quantize_head, quantize_embedding, in_memory, ..WeightOptions::default() };
    Ok(pretrained.weight_options(options))
}

/// Tokenizer and chat template of a model. The end of the process frees them: one by one the allocations of a vocabulary take a tenth of a second.
pub fn text(pretrained: &Pretrained) -> emberlm::model::Result<TextProcessor> {
    let text = pretrained.text()?;
    std::mem::forget(text.clone());
    Ok(text)
}

/// Whether an embedding as it is stored is read from its file.
pub fn is_in_place<B: CompactBackend>(architecture: &Architecture) -> bool {
    B::SHARES_HOST_MEMORY && !architecture.tied_head
}

/// The name of a model from a hub, or the last part of the path of another.
pub fn name(pretrained: &Pretrained) -> String {
    let directory = pretrained.directory();
    #[cfg(feature = "hub")]
    if let Some(name) = emberlm::hub::repository_of(directory) {
        return name;
    }
    directory.file_name().map_or_else(|| directory.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Checks every tensor and adds up bytes; nothing is loaded yet.
pub fn plan<B: CompactBackend>(pretrained: &Pretrained, device: &B::Device) -> Result<LoadPlan> {
    let plan = pretrained.plan::<B>(device);
    plan.with_context(|| format!("cannot load the model {}", pretrained.directory().display()))
}

/// Checks every tensor, says on stderr what loading takes, and loads. `estimate` adds what running will take.
pub fn load<B: CompactBackend>(
    pretrained: &Pretrained,
    device: &OpenDevice<B>,
    estimate: impl FnOnce(&LoadPlan) -> String,
) -> Result<CausalLm<B>> {
    let plan = plan::<B>(pretrained, &device.device)?;
    output::note(&format!(
        "{}: {} parameters, {}{} of weights{}",
        pretrained.architecture().config.family,
        output::count(plan.parameters()),
        rounding(device, &plan),
        output::bytes(plan.weight_bytes()),
        estimate(&plan)
    ));
    // What the parser of the tokenizer has freed, and what planning has read of the files.
    cpu::release_free_memory();
    let weights = pretrained.weights();
    weights.canonical_names().for_each(|name| weights.release(name));
    let (bar, shown, started) = (progress_bar(), Cell::new(false), Instant::now());
    let progress = |progress: Progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
        if !shown.get() && started.elapsed() >= SOON {
            shown.set(true);
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    };
    let model = pretrained.load_with_progress::<B>(&device.device, progress);
    bar.finish_and_clear();
    model.with_context(|| format!("cannot load the model {}", pretrained.directory().display()))
}

/// What activations the processor rounds to; the line about a GPU says it there.
fn rounding<B: CompactBackend>(device: &OpenDevice<B>, plan: &LoadPlan) -> String {
    match device.arithmetic_with(plan) {
        arithmetic if device.gpu.is_some() || arithmetic == OpenDevice::<B>::EXACT => String::new(),
        arithmetic => format!("{arithmetic} activations, "),
    }
}

/// Loads a model that will continue texts of up to `context` tokens. `caches` makes of the bytes of one cache those of all, and says what
/// they are for where there are others than that one.
pub fn load_for_text<B: CompactBackend>(
    pretrained: &Pretrained,
    device: &OpenDevice<B>,
    text: &TextProcessor,
    passes: &PassArgs,
    context: usize,
    caches: impl FnOnce(usize) -> (usize, Option<String>),
) -> Result<CausalLm<B>> {
    load(pretrained, device, |plan| {
        let (format, chunk) = (passes.cache_type.into(), passes.chunk as usize);
        let mut estimate = Estimate::new(pretrained.architecture(), plan, format, context, chunk);
        let (bytes, whose) = caches(estimate.cache);
        estimate.cache = bytes;
        let estimate = estimate.with_tokenizer(TokenizerMemory::of(text));
        whose.map_or_else(|| estimate.note(), |whose| estimate.note_of_caches(&whose))
    })
}

/// What ends within this time needs no progress bar.
const SOON: Duration = Duration::from_millis(300);

/// Not shown yet.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    let template = "loading [{bar:40}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
