//! `ember info`: what a model directory holds and what running it takes. No weight is loaded.

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::{Context, Result, ensure};
use clap::Args;
use emberlm::model::config::{CrestConfig, CrestOptions, LayerType, ModelConfig};
use emberlm::model::text::{StopSet, TextProcessor};
use emberlm::model::{DEFAULT_CHUNK, LoadPlan, PlannedTensor, Pretrained};
use emberlm::quant::kv::KvFormat;
use serde::Serialize;

use super::args::{DepthArgs, ModelArgs};
use super::backend::{Cpu, CpuDevice};
use super::estimate::{self, Estimate};
use super::memory::TokenizerMemory;
use super::{info_text, load, output};

const ABOUT: &str = "\
With --json one object is printed, with the facts of the text: path, family, model_type, architecture, auto_map, sizes, \
rope, parameters, weights (stored_bytes, bytes, peak_load_bytes, by_storage in memory, by_part), tied_head, ignored_tensors, notes, \
crest, kv_compression, cache (bytes_per_token f16 and f32, bytes_per_sequence), estimate (f16, f32, formula), generation, \
stop_tokens, chat_template, tokenizer_error. Sizes are in bytes; what a model does not have is null.";

/// Flags of `ember info`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct InfoArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Tokens of the sequence that memory is estimated for [default: 4096, or the model's context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    depth: DepthArgs,
}

/// Everything that the command tells.
#[derive(Debug, Serialize)]
pub struct Info {
    /// Directory of the files.
    pub path: String,
    /// Which computation the model is.
    pub family: &'static str,
    /// As config.json has it.
    pub model_type: String,
    /// As config.json has it.
    pub architecture: Option<String>,
    /// config.json asks for Python code of its own, which is never run.
    pub auto_map: bool,
    /// Sizes of the model.
    pub sizes: Sizes,
    /// Base and scaling of the rotary embedding.
    pub rope: String,
    /// Weights, counted.
    pub parameters: usize,
    /// Bytes of the weights.
    pub weights: WeightsInfo,
    /// The head is the embedding.
    pub tied_head: bool,
    /// Tensors of the file that the model does not need.
    pub ignored_tensors: usize,
    /// What was assumed because the files do not state it, and what they state but is not used.
    pub notes: Vec<String>,
    /// Adaptive depth.
    pub crest: Option<CrestInfo>,
    /// Compressed caches.
    pub kv_compression: Option<KvInfo>,
    /// Bytes of the cache.
    pub cache: CacheInfo,
    /// Memory for a sequence.
    pub estimate: Estimates,
    /// The author's defaults; null where they state none.
    pub generation: Generation,
    /// Tokens that end a text.
    pub stop_tokens: Vec<StopToken>,
    /// Whether there is a chat template; null when the tokenizer cannot be read.
    pub chat_template: Option<bool>,
    /// Why the tokenizer cannot be read.
    pub tokenizer_error: Option<String>,
}

/// Sizes of a model.
#[derive(Debug, Serialize)]
pub struct Sizes {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub full_attention_layers: usize,
    pub linear_attention_layers: usize,
    pub attention_heads: usize,
    pub key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    /// Tokens.
    pub context: usize,
}

/// Bytes of the weights.
#[derive(Debug, Serialize)]
pub struct WeightsInfo {
    /// In the files.
    pub stored_bytes: usize,
    /// On the device.
    pub bytes: usize,
    /// On the device and in flight while loading.
    pub peak_load_bytes: usize,
    /// By the way they are held on the device.
    pub by_storage: Vec<Share>,
    /// By part of the model.
    pub by_part: Vec<Share>,
}

/// Some of the weights.
#[derive(Debug, Default, Serialize)]
pub struct Share {
    pub name: String,
    pub tensors: usize,
    pub parameters: usize,
    pub stored_bytes: usize,
    pub bytes: usize,
}

/// Adaptive depth.
#[derive(Debug, Serialize)]
pub struct CrestInfo {
    /// MLPs per layer in the files.
    pub steps_in_checkpoint: usize,
    /// What the model runs with.
    pub options: Vec<CrestOption>,
    /// Keys of the `crest` object that mean nothing.
    pub ignored_keys: Vec<String>,
}

/// An option and where it comes from.
#[derive(Debug, Serialize)]
pub struct CrestOption {
    pub name: &'static str,
    pub value: serde_json::Value,
    pub source: Source,
}

/// Where an option comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A flag of this command.
    Overridden,
    /// config.json or crest.json.
    Stated,
    /// Shown by the tensors.
    Found,
    /// Neither.
    Default,
}

/// Compressed caches.
#[derive(Debug, Serialize)]
pub struct KvInfo {
    pub activation: &'static str,
    pub k_stage: &'static str,
    pub compressors: Vec<Compressor>,
}

/// What compresses the keys or the values of a layer.
#[derive(Debug, Serialize)]
pub struct Compressor {
    pub layer: usize,
    /// `k` or `v`.
    pub target: &'static str,
    /// Numbers per token in the cache, for each of `width` numbers.
    pub code_dim: usize,
    pub width: usize,
    pub hidden_dim: Option<usize>,
    pub encoder_bias: bool,
    pub decoder_bias: bool,
}

/// Bytes of the cache.
#[derive(Debug, Serialize)]
pub struct CacheInfo {
    pub bytes_per_token: ByFormat<usize>,
    /// Whatever its length.
    pub bytes_per_sequence: usize,
}

/// By number format of the cache.
#[derive(Debug, Serialize)]
pub struct ByFormat<T> {
    pub f16: T,
    pub f32: T,
}

/// Memory for a sequence.
#[derive(Debug, Serialize)]
pub struct Estimates {
    #[serde(flatten)]
    pub by_format: ByFormat<Estimate>,
    pub formula: &'static str,
}

/// The author's defaults.
#[derive(Debug, Serialize)]
pub struct Generation {
    pub do_sample: Option<bool>,
    pub temperature: Option<f64>,
    pub top_k: Option<usize>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub max_new_tokens: Option<usize>,
}

/// A token that ends a text.
#[derive(Debug, Serialize)]
pub struct StopToken {
    pub id: u32,
    /// Null when the tokenizer does not have it.
    pub text: Option<String>,
}

/// Runs the command.
pub fn run(args: &InfoArgs) -> Result<()> {
    let pretrained = load::open(&args.model, &args.depth)?;
    let (quant, head) = (args.model.quant, args.model.quant_head);
    let options = load::weight_options::<Cpu>(quant, head, &pretrained, &CpuDevice::default())?;
    let plan = load::plan::<Cpu>(&pretrained, options, &CpuDevice::default())?;
    let architecture = pretrained.architecture();
    let limit = architecture.config.max_position_embeddings;
    let context = args.context.map_or_else(|| estimate::usual_context(architecture), |n| n as usize);
    ensure!(context <= limit, "--context {context} is more than the {limit} tokens of this model");
    let info = Info::new(&pretrained, &plan, &args.depth, context);
    write(&info, args.json).context(output::STDOUT)
}

fn write(info: &Info, json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, info)?;
        writeln!(out)?;
    } else {
        info_text::write(&mut out, info)?;
    }
    Ok(out.flush()?)
}

impl Info {
    fn new(pretrained: &Pretrained, plan: &LoadPlan, depth: &DepthArgs, context: usize) -> Self {
        let architecture = pretrained.architecture();
        let config = &architecture.config;
        let text = pretrained.text();
        let tokenizer = text.as_ref().map(|text| TokenizerMemory::of(pretrained, text)).unwrap_or_default();
        let estimate =
            |format| Estimate::new(architecture, plan, format, context, DEFAULT_CHUNK).with_tokenizer(tokenizer);
        let per_token = |format| estimate::cache_bytes(architecture, format).0;
        Self {
            path: pretrained.directory().display().to_string(),
            family: config.family.as_str(),
            model_type: config.model_type.clone(),
            architecture: config.architecture.clone(),
            auto_map: config.auto_map,
            sizes: Sizes::new(config),
            rope: config.rope.to_string(),
            parameters: plan.parameters(),
            weights: WeightsInfo::new(plan),
            tied_head: architecture.tied_head,
            ignored_tensors: pretrained.weights().ignored().len(),
            notes: pretrained.notes().to_vec(),
            crest: crest_info(pretrained, depth),
            kv_compression: kv_info(pretrained),
            cache: CacheInfo {
                bytes_per_token: ByFormat { f16: per_token(KvFormat::F16), f32: per_token(KvFormat::F32) },
                bytes_per_sequence: estimate::cache_bytes(architecture, KvFormat::F32).1,
            },
            estimate: Estimates {
                by_format: ByFormat { f16: estimate(KvFormat::F16), f32: estimate(KvFormat::F32) },
                formula: estimate::FORMULA,
            },
            generation: generation(pretrained),
            stop_tokens: stop_tokens(pretrained, text.as_ref().ok()),
            chat_template: text.as_ref().ok().map(TextProcessor::has_chat_template),
            tokenizer_error: text.err().map(|e| e.to_string()),
        }
    }
}

impl Sizes {
    fn new(config: &ModelConfig) -> Self {
        let count = |kind| config.layer_types.iter().filter(|&&k| k == kind).count();
        Self {
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            layers: config.num_hidden_layers,
            full_attention_layers: count(LayerType::FullAttention),
            linear_attention_layers: count(LayerType::LinearAttention),
            attention_heads: config.num_attention_heads,
            key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
            context: config.max_position_embeddings,
        }
    }
}

impl WeightsInfo {
    fn new(plan: &LoadPlan) -> Self {
        Self {
            stored_bytes: plan.tensors.iter().map(|tensor| tensor.stored_bytes).sum(),
            bytes: plan.weight_bytes(),
            peak_load_bytes: plan.peak_bytes(),
            by_storage: shares(plan, |tensor| tensor.storage.to_string(), |a, b| b.bytes.cmp(&a.bytes)),
            by_part: shares(plan, |tensor| tensor.part().to_string(), |_, _| std::cmp::Ordering::Equal),
        }
    }
}

/// Sums by a property, in an order; equals stay in the order of the model.
fn shares(
    plan: &LoadPlan,
    name: impl Fn(&PlannedTensor) -> String,
    order: impl Fn(&Share, &Share) -> std::cmp::Ordering,
) -> Vec<Share> {
    let mut shares: Vec<Share> = Vec::new();
    let mut index = BTreeMap::new();
    for tensor in &plan.tensors {
        let name = name(tensor);
        let at = *index.entry(name.clone()).or_insert_with(|| {
            shares.push(Share { name, ..Share::default() });
            shares.len() - 1
        });
        let Some(share) = shares.get_mut(at) else { continue };
        share.tensors += 1;
        share.parameters += tensor.parameters();
        share.stored_bytes += tensor.stored_bytes;
        share.bytes += tensor.bytes;
    }
    shares.sort_by(order);
    shares
}

fn crest_info(pretrained: &Pretrained, depth: &DepthArgs) -> Option<CrestInfo> {
    let options = pretrained.architecture().crest.as_ref()?;
    let found = pretrained.weights().crest_found()?;
    let silent = CrestConfig::default();
    let stated = pretrained.architecture().config.crest.as_ref().unwrap_or(&silent);
    let flags = depth.overrides();
    let source = |overridden: bool, stated: bool, otherwise: Source| match (overridden, stated) {
        (true, _) => Source::Overridden,
        (false, true) => Source::Stated,
        (false, false) => otherwise,
    };
    let CrestOptions {
        num_steps,
        step_input,
        gate_input,
        gate_shared,
        gate_hidden,
        gate_bias,
        halt_mode,
        halt_threshold,
        halt_weights,
        halt_enabled,
    } = options.clone();
    let option = |name, value, source| CrestOption { name, value, source };
    // The shortest decimal that is this f32, not the digits of the f64 beside it.
    let threshold = halt_threshold.to_string().parse::<f64>().unwrap_or_default();
    use Source::{Default, Found};
    let options = vec![
        option("num_steps", num_steps.into(), source(flags.num_steps.is_some(), stated.num_steps.is_some(), Found)),
        option("step_input", step_input.as_str().into(), source(false, stated.step_input.is_some(), Default)),
        option("gate_input", gate_input.as_str().into(), source(false, stated.gate_input.is_some(), Default)),
        // What is stated about the gates' form must agree with the tensors, which decide.
        option("gate_shared", gate_shared.into(), Found),
        option("gate_hidden", gate_hidden.into(), Found),
        option("gate_bias", gate_bias.into(), Found),
        option("halt_mode", halt_mode.as_str().into(), source(false, stated.halt_mode.is_some(), Default)),
        option(
            "halt_threshold",
            threshold.into(),
            source(flags.halt_threshold.is_some(), stated.halt_threshold.is_some(), Default),
        ),
        option("halt_weights", halt_weights.as_str().into(), source(false, stated.halt_weights.is_some(), Default)),
        option(
            "halt_enabled",
            halt_enabled.into(),
            source(flags.halt_enabled.is_some(), stated.halt_enabled.is_some(), Default),
        ),
    ];
    Some(CrestInfo { steps_in_checkpoint: found.num_steps, options, ignored_keys: stated.ignored.clone() })
}

fn kv_info(pretrained: &Pretrained) -> Option<KvInfo> {
    let compression = pretrained.architecture().kv_compression.as_ref()?;
    let layers = compression.layers.iter();
    let compressors = layers.flat_map(|(&layer, codecs)| {
        codecs.iter().map(move |(target, codec)| Compressor {
            layer,
            target: target.as_str(),
            code_dim: codec.code_dim,
            width: codec.width,
            hidden_dim: codec.hidden_dim,
            encoder_bias: codec.encoder_bias,
            decoder_bias: codec.decoder_bias,
        })
    });
    Some(KvInfo {
        activation: compression.activation.as_str(),
        k_stage: compression.k_stage.as_str(),
        compressors: compressors.collect(),
    })
}

fn generation(pretrained: &Pretrained) -> Generation {
    let config = pretrained.generation_config();
    Generation {
        do_sample: config.do_sample,
        temperature: config.temperature,
        top_k: config.top_k,
        top_p: config.top_p,
        min_p: config.min_p,
        repetition_penalty: config.repetition_penalty,
        max_new_tokens: config.max_new_tokens,
    }
}

fn stop_tokens(pretrained: &Pretrained, text: Option<&TextProcessor>) -> Vec<StopToken> {
    let stops = match text {
        Some(text) => pretrained.stop_tokens(text),
        None => {
            let config = &pretrained.architecture().config.eos_token_ids;
            StopSet::union([pretrained.generation_config().eos_token_ids.clone(), config.clone()])
        }
    };
    stops.ids().iter().map(|&id| StopToken { id, text: text.and_then(|text| text.token(id)) }).collect()
}
