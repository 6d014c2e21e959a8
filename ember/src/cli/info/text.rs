//! The text of `ember info`.

use std::io::{Result, Write};

use emberlm::model::config::GenerationDefaults;

use super::facts::{ByFormat, CrestInfo, Info, KvInfo, OptionSource, WeightGroup};
use crate::cli::output::{bytes, count, printable};

/// Width of the names on the left.
const NAMES: usize = 23;

/// Writes the facts for a reader.
pub fn write(out: &mut impl Write, info: &Info) -> Result<()> {
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<NAMES$}{}", printable(value));
    line("model", &info.path)?;
    line("family", info.family)?;
    let architecture = info.architecture.as_deref().unwrap_or("not named");
    line("architecture", &format!("{architecture} (model_type {})", info.model_type))?;
    if info.auto_map {
        line("", "config.json asks for Python code of its own (auto_map), which is never run")?;
    }
    let sizes = &info.sizes;
    line("parameters", &count(info.parameters))?;
    let kinds = match sizes.linear_attention_layers {
        0 => String::new(),
        linear => format!(" ({} full attention, {linear} linear attention)", sizes.full_attention_layers),
    };
    line("layers", &format!("{}{kinds}", sizes.layers))?;
    line("hidden, feed-forward", &format!("{}, {}", sizes.hidden_size, sizes.intermediate_size))?;
    let (heads, kv_heads) = (sizes.attention_heads, sizes.key_value_heads);
    line("heads", &format!("{heads} ({kv_heads} for keys and values) of {}", sizes.head_dim))?;
    let head = if info.tied_head { "the embedding (tied)" } else { "of its own" };
    line("vocabulary, head", &format!("{}, {head}", sizes.vocab_size))?;
    line("context", &format!("{} tokens", sizes.context))?;
    line("rotary embedding", &info.rope)?;
    if info.ignored_tensors > 0 {
        line("ignored tensors", &info.ignored_tensors.to_string())?;
    }
    for note in &info.notes {
        line("note", note)?;
    }

    let weights = &info.weights;
    let stored = bytes(weights.stored_bytes);
    let peak = bytes(weights.peak_load_bytes);
    line("weights", &format!("{} ({stored} stored, at most {peak} while loading)", bytes(weights.bytes)))?;
    for group in &weights.by_storage {
        line(&format!("  as {}", group.name), &group_text(group))?;
    }
    for group in &weights.by_part {
        line(&format!("  {}", group.name), &group_text(group))?;
    }
    line(
        "activations",
        &format!("{} on this processor, unless a command that computes is told otherwise", info.activations),
    )?;
    let cache = &info.cache;
    let ByFormat { q8, f16, f32 } = &cache.bytes_per_token;
    let (q8, f16, f32) = (bytes(*q8), bytes(*f16), bytes(*f32));
    let fixed = match cache.bytes_per_sequence {
        0 => String::new(),
        fixed => format!("; {} per sequence besides", bytes(fixed)),
    };
    line("cache", &format!("{f16} per token in f16, {q8} in q8, {f32} in f32{fixed}"))?;
    memory_lines(info, &mut line)?;

    if let Some(crest) = &info.crest {
        line("adaptive depth", &format!("{} steps in the checkpoint", crest.steps_in_checkpoint))?;
        crest_lines(crest, &mut line)?;
    }
    match &info.kv_compression {
        Some(kv) => kv_lines(kv, &mut line)?,
        None => line("cache compression", "none")?,
    }
    line("generation", &generation_text(&info.generation))?;
    let stops = info.stop_tokens.iter().map(|stop| match &stop.text {
        Some(text) => format!("{} {text:?}", stop.id),
        None => format!("{} (no such token)", stop.id),
    });
    let stops: Vec<String> = stops.collect();
    line("stop tokens", &if stops.is_empty() { "none".to_owned() } else { stops.join(", ") })?;
    match (&info.tokenizer_error, info.chat_template) {
        (Some(error), _) => line("tokenizer", error),
        (None, Some(true)) => line("chat template", "yes"),
        (None, _) => line("chat template", "none"),
    }
}

/// What running takes, by part.
fn memory_lines(info: &Info, line: &mut impl FnMut(&str, &str) -> Result<()>) -> Result<()> {
    let ByFormat { q8, f16, f32 } = &info.estimate.by_format;
    let [eighth, half, single] = [q8, f16, f32].map(|estimate| bytes(estimate.total));
    let context = f16.context;
    line(
        "memory",
        &format!("about {half} for {context} tokens with an f16 cache, {eighth} with q8, {single} with f32"),
    )?;
    line("  weights", &format!("{:>10}", bytes(f16.weights)))?;
    line(
        "  cache",
        &format!("{:>10} in f16, {} in q8, {} in f32", bytes(f16.cache), bytes(q8.cache), bytes(f32.cache)),
    )?;
    line("  scratch", &format!("{:>10} ({} tokens per pass)", bytes(f16.scratch), f16.chunk))?;
    line("  tokenizer", &format!("{:>10}", bytes(f16.tokenizer)))?;
    line("  program", &format!("{:>10}", bytes(f16.program)))
}

fn group_text(group: &WeightGroup) -> String {
    let stored = match group.stored_bytes {
        stored if stored == group.bytes => String::new(),
        stored => format!(" ({} stored)", bytes(stored)),
    };
    let plural = if group.tensors == 1 { "" } else { "s" };
    let (held, parameters) = (bytes(group.bytes), count(group.parameters));
    format!("{held:>10}{stored} in {} tensor{plural}, {parameters} parameters", group.tensors)
}

fn crest_lines(crest: &CrestInfo, line: &mut impl FnMut(&str, &str) -> Result<()>) -> Result<()> {
    for option in &crest.options {
        let source = source(option.source);
        let value = match &option.value {
            serde_json::Value::String(value) => value.clone(),
            serde_json::Value::Null => "none".to_owned(),
            value => value.to_string(),
        };
        line(&format!("  {}", option.name), &format!("{value} ({source})"))?;
    }
    match crest.ignored_keys.is_empty() {
        true => Ok(()),
        false => line("  ignored keys", &crest.ignored_keys.join(", ")),
    }
}

fn source(source: OptionSource) -> &'static str {
    match source {
        OptionSource::Overridden => "overridden",
        OptionSource::Stated => "stated",
        OptionSource::SideFile => "stated in ember.json",
        OptionSource::Found => "found in the tensors",
        OptionSource::Default => "default",
    }
}

fn kv_lines(kv: &KvInfo, line: &mut impl FnMut(&str, &str) -> Result<()>) -> Result<()> {
    let (activation, stage) = (source(kv.activation_source), source(kv.k_stage_source));
    line("cache compression", &format!("activation {} ({activation}), keys {} ({stage})", kv.activation, kv.k_stage))?;
    for c in &kv.compressors {
        let cached = if c.cache_hidden { " (cached)" } else { "" };
        let decoder = c.hidden_dim.map_or("linear decoder".to_owned(), |h| format!("decoder over {h}{cached}"));
        let biases = match (c.encoder_bias, c.decoder_bias) {
            (false, false) => "no biases",
            (true, true) => "biases",
            (true, false) => "bias of the encoder",
            (false, true) => "biases of the decoder",
        };
        let text = format!("{}: {} numbers to {}, {decoder}, {biases}", c.target, c.width, c.code_dim);
        line(&format!("  layer {}", c.layer), &text)?;
    }
    Ok(())
}

fn generation_text(generation: &GenerationDefaults) -> String {
    fn show<T: ToString>(name: &str, value: Option<T>) -> Option<String> {
        value.map(|value| format!("{name} {}", value.to_string()))
    }
    let stated = [
        show("do_sample", generation.do_sample),
        show("temperature", generation.temperature),
        show("top_k", generation.top_k),
        show("top_p", generation.top_p),
        show("min_p", generation.min_p),
        show("repetition_penalty", generation.repetition_penalty),
        show("max_new_tokens", generation.max_new_tokens),
    ];
    let stated: Vec<String> = stated.into_iter().flatten().collect();
    if stated.is_empty() { "nothing stated".to_owned() } else { stated.join(", ") }
}
