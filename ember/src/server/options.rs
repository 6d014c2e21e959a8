//! The fields that every generating endpoint has: how tokens are chosen, and where the answer ends.

use emberlm::model::DepthOptions;
use emberlm::model::config::GenerationConfig;
use emberlm::model::sampling::{LogitsProcessors, SamplingConfig};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, found, signed, whole};
use super::limits;
use crate::cli::sampling::SamplingArgs;

/// How an answer is generated, but for its prompt.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    pub sampling: SamplingConfig,
    pub processors: LogitsProcessors,
    /// The seed was given with a sign.
    pub signed_seed: bool,
    /// None: as many as the context holds.
    pub max_tokens: Option<usize>,
    pub stop: Vec<String>,
    pub ignore_eos: bool,
    /// Answers to each prompt.
    pub n: usize,
    pub depth: DepthOptions,
    pub trace: bool,
    /// The log probability of every token is asked for, and so many of the most probable ones.
    pub logprobs: Option<usize>,
}

/// What holds where a request says nothing.
#[derive(Debug)]
pub struct Defaults {
    pub flags: SamplingArgs,
    pub file: GenerationConfig,
    /// Whether the model has adaptive depth.
    pub adaptive_depth: bool,
    /// Ids from here on are no tokens.
    pub vocabulary: usize,
}

impl Defaults {
    /// How tokens are chosen where a request says nothing.
    pub fn sampling(&self) -> SamplingConfig {
        self.flags.config(&self.file.defaults).0
    }
}

impl GenerateOptions {
    /// The fields of a body, with the names of OpenAI's API and the usual additions to it.
    ///
    /// # Errors
    /// 400 with the first field that cannot be used.
    pub fn read(fields: Fields<'_>, defaults: &Defaults) -> Result<Self, ApiError> {
        let n = fields.integer("n", 1..=limits::CHOICES as u64)?.unwrap_or(1) as usize;
        let depth = depth(fields, defaults)?;
        let trace = fields.bool("trace")?.unwrap_or(false);
        if trace && !defaults.adaptive_depth {
            return Err(fields.wrong("trace", "is for models with adaptive depth, and this has none"));
        }
        let mut processors = defaults.file.processors.clone();
        processors.sequence_bias.extend(logit_bias(fields, defaults.vocabulary)?);
        processors.frequency_penalty = fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0);
        processors.presence_penalty = fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0);
        let seed = seed(fields)?;
        Ok(Self {
            sampling: sampling(fields, seed, defaults)?,
            signed_seed: seed.is_some_and(|seed| seed.signed),
            processors,
            max_tokens: None,
            stop: stop(fields, &defaults.file)?,
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            n,
            depth,
            trace,
            logprobs: None,
        })
    }
}

/// What the request says over the flags of the server over the author's defaults.
fn sampling(fields: Fields<'_>, seed: Option<Seed>, defaults: &Defaults) -> Result<SamplingConfig, ApiError> {
    let flags = &defaults.flags;
    let temp = fields.number("temperature", 0.0..=100.0)?;
    let top_k = top_k(fields)?;
    let top_p = fields.number("top_p", SamplingConfig::SHARES)?;
    let min_p = fields.number("min_p", SamplingConfig::SHARES)?;
    let penalty = fields.number("repetition_penalty", 0.0..=100.0)?;
    let asked = temp.is_some() || top_k.is_some() || top_p.is_some() || min_p.is_some();
    let merged = SamplingArgs {
        temp: temp.or(flags.temp),
        top_k: top_k.or(flags.top_k),
        top_p: top_p.or(flags.top_p),
        min_p: min_p.or(flags.min_p),
        repeat_penalty: penalty.or(flags.repeat_penalty),
        seed: flags.seed,
        greedy: flags.greedy && !asked,
    };
    let mut sampling = merged.config(&defaults.file.defaults).0;
    if let Some(seed) = seed {
        sampling.seed = Some(seed.bits);
    }
    sampling.validate()?;
    Ok(sampling)
}

/// The best tokens kept; 0 and -1 keep all.
fn top_k(fields: Fields<'_>) -> Result<Option<usize>, ApiError> {
    let top_k = fields.integer_or_minus_one("top_k", 0..=u64::from(u32::MAX))?;
    Ok(top_k.map(|k| k.map_or(0, |k| k as usize)))
}

/// A seed as a request has it.
#[derive(Clone, Copy)]
struct Seed {
    bits: u64,
    signed: bool,
}

/// Seeds are signed in OpenAI's API and unsigned elsewhere: both are taken, and the bits count. -1 asks for a fresh one, as elsewhere in this
/// program.
fn seed(fields: Fields<'_>) -> Result<Option<Seed>, ApiError> {
    let Some(value) = fields.get("seed") else { return Ok(None) };
    match (whole(value), signed(value)) {
        (Some(bits), _) => Ok(Some(Seed { bits, signed: false })),
        (None, Some(-1)) => Ok(None),
        (None, Some(seed)) => Ok(Some(Seed { bits: seed.cast_unsigned(), signed: true })),
        (None, None) => {
            let message = format!("expected a whole number from {} to {}, found {}", i64::MIN, u64::MAX, found(value));
            Err(fields.wrong("seed", message))
        }
    }
}

fn stop(fields: Fields<'_>, file: &GenerationConfig) -> Result<Vec<String>, ApiError> {
    let given = match fields.get("stop") {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(several)) => several
            .iter()
            .map(|stop| match stop {
                Value::String(stop) => Ok(stop.clone()),
                other => Err(fields.wrong("stop", format!("expected texts, found {}", found(other)))),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => {
            return Err(fields.wrong("stop", format!("expected a text or a list of texts, found {}", found(other))));
        }
    };
    if given.len() > limits::STOPS {
        return Err(fields.wrong("stop", format!("{} strings, but at most {} are taken", given.len(), limits::STOPS)));
    }
    if let Some(long) = given.iter().map(String::len).find(|&bytes| bytes > limits::STOP_BYTES) {
        let most = limits::STOP_BYTES;
        return Err(fields.wrong("stop", format!("a string of {long} bytes, but at most {most} are taken")));
    }
    // Some clients pad their lists with empty strings, which would end every answer before it begins.
    let given = given.into_iter().filter(|stop| !stop.is_empty());
    Ok(given.chain(file.stop_strings.iter().cloned()).collect())
}

fn logit_bias(fields: Fields<'_>, vocabulary: usize) -> Result<Vec<(Vec<u32>, f32)>, ApiError> {
    let Some(map) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    if map.len() > limits::BIASES {
        let message = format!("{} entries, but at most {} are taken", map.len(), limits::BIASES);
        return Err(fields.wrong("logit_bias", message));
    }
    let entry = |(id, bias): (&String, &Value)| {
        let known = id.parse::<u32>().ok().filter(|&id| (id as usize) < vocabulary);
        let Some(known) = known else {
            return Err(fields.wrong("logit_bias", format!("{id:.40?} is no token id below {vocabulary}")));
        };
        match bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias)) {
            Some(bias) => Ok((vec![known], bias as f32)),
            None => Err(fields
                .wrong("logit_bias", format!("{known}: expected a number from -100 to 100, found {}", found(bias)))),
        }
    };
    map.iter().map(entry).collect()
}

/// `depth`: `{"threshold": 0.5, "steps": 2}`.
fn depth(fields: Fields<'_>, defaults: &Defaults) -> Result<DepthOptions, ApiError> {
    let Some(map) = fields.object("depth")? else { return Ok(DepthOptions::default()) };
    if !defaults.adaptive_depth {
        return Err(fields.wrong("depth", "is for models with adaptive depth, and this has none"));
    }
    let inner = Fields::at(map, "depth");
    let threshold = inner.number("threshold", 0.0..=1.0)?;
    let steps = inner.integer("steps", 1..=u64::from(u32::MAX))?.map(|steps| steps as usize);
    Ok(DepthOptions { threshold, steps })
}

/// `max_tokens` under any of its names, the first of them that is there; the largest number for no bound.
///
/// # Errors
/// 400 when it is no number from `least` on, and not -1.
pub fn max_tokens(fields: Fields<'_>, names: &[&str], least: u64) -> Result<Option<usize>, ApiError> {
    for name in names {
        // -1 is what other servers take for no bound.
        if let Some(tokens) = fields.integer_or_minus_one(name, least..=u64::MAX)? {
            return Ok(Some(tokens.map_or(usize::MAX, |tokens| usize::try_from(tokens).unwrap_or(usize::MAX))));
        }
    }
    Ok(None)
}
