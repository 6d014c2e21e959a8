//! Where the facts come from: config, tensors, plan and tokenizer.

use std::collections::BTreeMap;

use emberlm::model::config::{CrestConfig, CrestOptions, LayerType, ModelConfig};
use emberlm::model::text::{StopSet, TextProcessor};
use emberlm::model::{DEFAULT_CHUNK, LoadPlan, PlannedTensor, Pretrained};
use emberlm::quant::kv::KvFormat;

use super::facts::{
    ByFormat, CacheInfo, Compressor, CrestInfo, CrestOption, Estimates, Info, KvInfo, OptionSource, Sizes, StopToken,
    WeightGroup, WeightsInfo,
};
use crate::cli::args::DepthArgs;
use crate::cli::estimate::{self, Estimate};
use crate::cli::memory::TokenizerMemory;

impl Info {
    /// The facts about a model; memory is estimated for a sequence of `context` tokens, and this processor rounds activations so.
    pub fn new(
        pretrained: &Pretrained,
        plan: &LoadPlan,
        depth: &DepthArgs,
        context: usize,
        activations: String,
    ) -> Self {
        let architecture = pretrained.architecture();
        let config = &architecture.config;
        let text = pretrained.text();
        let tokenizer = text.as_ref().map(TokenizerMemory::of).unwrap_or_default();
        let estimate =
            |format| Estimate::new(architecture, plan, format, context, DEFAULT_CHUNK).with_tokenizer(tokenizer);
        let per_token = |format| estimate::cache_bytes_per_token(architecture, format).0;
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
            activations,
            tied_head: architecture.tied_head,
            ignored_tensors: pretrained.weights().ignored().len(),
            notes: pretrained.notes().to_vec(),
            crest: crest_info(pretrained, depth),
            kv_compression: kv_info(pretrained),
            cache: CacheInfo {
                bytes_per_token: ByFormat::of(per_token),
                bytes_per_sequence: estimate::cache_bytes_per_token(architecture, KvFormat::F32).1,
            },
            estimate: Estimates { by_format: ByFormat::of(estimate), formula: estimate::formula() },
            generation: pretrained.generation_config().defaults,
            stop_tokens: stop_tokens(pretrained, text.as_ref().ok()),
            chat_template: text.as_ref().ok().map(TextProcessor::has_chat_template),
            tokenizer_error: text.err().map(|e| e.to_string()),
        }
    }
}

impl<T> ByFormat<T> {
    fn of(f: impl Fn(KvFormat) -> T) -> Self {
        Self { q8: f(KvFormat::Q8), f16: f(KvFormat::F16), f32: f(KvFormat::F32) }
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
            by_storage: groups(plan, |tensor| tensor.storage.to_string(), |a, b| b.bytes.cmp(&a.bytes)),
            by_part: groups(plan, |tensor| tensor.part.to_string(), |_, _| std::cmp::Ordering::Equal),
        }
    }
}

/// Sums by a property, in an order; equals stay in the order of the model.
fn groups(
    plan: &LoadPlan,
    name: impl Fn(&PlannedTensor) -> String,
    order: impl Fn(&WeightGroup, &WeightGroup) -> std::cmp::Ordering,
) -> Vec<WeightGroup> {
    let mut groups: Vec<WeightGroup> = Vec::new();
    let mut index = BTreeMap::new();
    for tensor in &plan.tensors {
        let name = name(tensor);
        let at = *index.entry(name.clone()).or_insert_with(|| {
            groups.push(WeightGroup { name, ..WeightGroup::default() });
            groups.len() - 1
        });
        let Some(group) = groups.get_mut(at) else { continue };
        group.tensors += 1;
        group.parameters += tensor.parameters();
        group.stored_bytes += tensor.stored_bytes;
        group.bytes += tensor.bytes;
    }
    groups.sort_by(order);
    groups
}

fn crest_info(pretrained: &Pretrained, depth: &DepthArgs) -> Option<CrestInfo> {
    let options = pretrained.architecture().crest.as_ref()?;
    let found = pretrained.weights().discovered_crest()?;
    let silent = CrestConfig::default();
    let stated = pretrained.architecture().config.crest.as_ref().unwrap_or(&silent);
    let side = &pretrained.architecture().config.side_file.crest;
    let flags = depth.overrides();
    let source = |overridden: bool, stated: bool, side: bool, otherwise: OptionSource| match (overridden, stated) {
        (true, _) => OptionSource::Overridden,
        (false, true) => OptionSource::Stated,
        (false, false) if side => OptionSource::SideFile,
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
    use OptionSource::{Default, Found};
    let options = vec![
        option(
            "num_steps",
            num_steps.into(),
            source(flags.num_steps.is_some(), stated.num_steps.is_some(), side.num_steps.is_some(), Found),
        ),
        option(
            "step_input",
            step_input.as_str().into(),
            source(false, stated.step_input.is_some(), side.step_input.is_some(), Default),
        ),
        option(
            "gate_input",
            gate_input.as_str().into(),
            source(false, stated.gate_input.is_some(), side.gate_input.is_some(), Default),
        ),
        // What is stated about the gates' form must agree with the tensors, which decide.
        option("gate_shared", gate_shared.into(), Found),
        option("gate_hidden", gate_hidden.into(), Found),
        option("gate_bias", gate_bias.into(), Found),
        option(
            "halt_mode",
            halt_mode.as_str().into(),
            source(false, stated.halt_mode.is_some(), side.halt_mode.is_some(), Default),
        ),
        option(
            "halt_threshold",
            threshold.into(),
            source(
                flags.halt_threshold.is_some(),
                stated.halt_threshold.is_some(),
                side.halt_threshold.is_some(),
                Default,
            ),
        ),
        option(
            "halt_weights",
            halt_weights.as_str().into(),
            source(false, stated.halt_weights.is_some(), side.halt_weights.is_some(), Default),
        ),
        option(
            "halt_enabled",
            halt_enabled.into(),
            source(flags.halt_enabled.is_some(), stated.halt_enabled.is_some(), side.halt_enabled.is_some(), Default),
        ),
    ];
    Some(CrestInfo { steps_in_checkpoint: found.num_steps, options, ignored_keys: stated.ignored.clone() })
}

fn kv_info(pretrained: &Pretrained) -> Option<KvInfo> {
    let compression = pretrained.architecture().kv_compression.as_ref()?;
    let config = &pretrained.architecture().config;
    let (stated, side) = (config.kv_compression.clone().unwrap_or_default(), config.side_file.kv_compression);
    let source = |stated: bool, side: bool| match (stated, side) {
        (true, _) => OptionSource::Stated,
        (false, true) => OptionSource::SideFile,
        (false, false) => OptionSource::Default,
    };
    let layers = compression.layers.iter();
    let compressors = layers.flat_map(|(&layer, codecs)| {
        codecs.iter().map(move |(target, codec)| Compressor {
            layer,
            target: target.as_str(),
            code_dim: codec.code_dim,
            width: codec.width,
            hidden_dim: codec.hidden_dim,
            cache_hidden: compression.cached_hidden(*target, codec).is_some(),
            encoder_bias: codec.encoder_bias,
            decoder_bias: codec.decoder_bias,
        })
    });
    Some(KvInfo {
        activation: compression.activation.as_str(),
        activation_source: source(stated.activation.is_some(), side.activation.is_some()),
        k_stage: compression.k_stage.as_str(),
        k_stage_source: source(stated.k_stage.is_some(), side.k_stage.is_some()),
        compressors: compressors.collect(),
    })
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
