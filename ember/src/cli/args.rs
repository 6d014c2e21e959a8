//! Flags that several commands share.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::builder::PossibleValue;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, ValueEnum};
use emberlm::model::config::CrestOverrides;
use emberlm::model::engine::{DraftOptions, DraftSource};
use emberlm::model::{Architecture, DEFAULT_CHUNK, Error, QuantizeOnLoad};
use emberlm::quant::kv::KvFormat;

use super::device_args::DeviceArgs;
use super::model_name::{self, HubArgs};

/// Options of the library and the flags that set them.
const FLAGS: &[(&str, &str)] = &[
    ("crest.num_steps", "--steps"),
    ("crest.halt_threshold", "--threshold"),
    ("crest.halt_enabled", "--no-halt"),
    ("draft.steps", "--draft-steps"),
    ("draft.forced_acceptance", "--draft-acceptance"),
    ("window", "--context"),
    ("stride", "--stride"),
    ("skip", "--skip"),
    ("min_cosine", "--min-cosine"),
    ("bits", "--bits"),
    ("cache_hidden", "--cache-hidden"),
    ("temperature", "--temp"),
    ("top_p", "--top-p"),
    ("min_p", "--min-p"),
    ("repetition_penalty", "--repeat-penalty"),
    ("stop", "--stop"),
];

/// An error about an option of the library, as one about the flag that set it; others stay as they are.
pub fn by_flag(error: Error) -> anyhow::Error {
    by_flag_of(FLAGS, error)
}

/// As [`by_flag`], where a command has other flags.
pub fn by_flag_of(flags: &[(&str, &str)], error: Error) -> anyhow::Error {
    let Error::Option { option, message } = &error else { return error.into() };
    match flags.iter().find(|(name, _)| name == option) {
        Some((_, flag)) => anyhow!("{flag} {message}"),
        None => error.into(),
    }
}

/// Ends the program as a wrong command line does: for flags that do not go together, where clap cannot tell.
pub fn usage(command: &str, message: &str) -> ! {
    let mut program = super::Cli::command();
    program.build();
    match program.find_subcommand_mut(command) {
        Some(command) => command.error(ErrorKind::ArgumentConflict, message).exit(),
        None => program.error(ErrorKind::ArgumentConflict, message).exit(),
    }
}

/// Where the model is.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Model directory (config.json, safetensors files, tokenizer.json), or a model on a hub: org/name, with @revision or :folder where wanted, or
    /// sky-11b-int4, sky-lite, nano-3b, lean-8b [default: a small model that is part of the program]
    #[arg(short, long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,

    /// Follow links in the model directory that lead out of it; for links that you made, not for a directory from a stranger
    #[arg(long)]
    pub allow_links: bool,

    /// Copy the weights into memory, on large pages where the system has them, instead of reading them from the mapped files: slower to start, and
    /// the files may change afterwards
    #[arg(long)]
    pub no_mmap: bool,

    /// Quantise the dense linear layers while loading [default: none; for a short name what the model's card recommends]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub quant: Option<Quant>,

    /// Storage of a dense embedding and head
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub quant_head: QuantHead,

    #[command(flatten)]
    pub hub: HubArgs,
}

impl ModelArgs {
    /// The storage that is asked for, or is recommended for the model that is named.
    pub fn quant(&self) -> Quant {
        Quant::or_recommended(self.quant, self.model.as_deref())
    }
}

/// A storage of embedding and head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QuantHead {
    /// Chosen by the layers' storage.
    #[default]
    Auto,
    /// This one.
    As(Quant),
}

impl QuantHead {
    /// As the loader takes it, for layers that are quantised or not.
    pub fn option(self, quantized_layers: bool) -> Option<QuantizeOnLoad> {
        match self {
            Self::Auto => quantized_layers.then_some(QuantizeOnLoad::Int8),
            Self::As(quant) => quant.option(),
        }
    }
}

impl ValueEnum for QuantHead {
    fn value_variants<'a>() -> &'a [Self] {
        const AS: [QuantHead; 5] = [
            QuantHead::As(Quant::NONE),
            QuantHead::As(Quant(Some(QuantizeOnLoad::Int8))),
            QuantHead::As(Quant(Some(QuantizeOnLoad::Int8Rows))),
            QuantHead::As(Quant(Some(QuantizeOnLoad::Nf4))),
            QuantHead::As(Quant(Some(QuantizeOnLoad::Nf4Double))),
        ];
        const ALL: [QuantHead; 6] = [QuantHead::Auto, AS[0], AS[1], AS[2], AS[3], AS[4]];
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Auto => {
                let help = "int8 beside quantised layers, else none (eval and dump: none); on the CPU an embedding that is not the \
                            head stays as it is stored";
                Some(PossibleValue::new("auto").help(help))
            }
            Self::As(quant) => quant.to_possible_value(),
        }
    }
}

/// A format of quantisation at load, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quant(Option<QuantizeOnLoad>);

impl Quant {
    /// Every tensor as it is stored.
    pub const NONE: Self = Self(None);

    /// What was given, or what is recommended for a model whose short name was given, or none.
    pub fn or_recommended(given: Option<Self>, model: Option<&Path>) -> Self {
        given.unwrap_or_else(|| Self(model_name::recommended(model)))
    }

    /// As the flag has it.
    pub fn name(self) -> &'static str {
        self.0.map_or("none", QuantizeOnLoad::name)
    }

    /// As the loader takes it.
    pub fn option(self) -> Option<QuantizeOnLoad> {
        self.0
    }
}

impl ValueEnum for Quant {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [Quant; 5] = [
            Quant::NONE,
            Quant(Some(QuantizeOnLoad::Nf4)),
            Quant(Some(QuantizeOnLoad::Nf4Double)),
            Quant(Some(QuantizeOnLoad::Int8)),
            Quant(Some(QuantizeOnLoad::Int8Rows)),
        ];
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let Some(format) = self.0 else {
            return Some(PossibleValue::new("none").help("Keep every tensor as it is stored"));
        };
        let help = match format {
            QuantizeOnLoad::Nf4 => "4-bit NormalFloat in blocks of 64, 4.5 bits per weight",
            QuantizeOnLoad::Nf4Double => "NF4 with quantised block scales, 4.13 bits per weight",
            QuantizeOnLoad::Int8 => "8 bits in blocks of 64, 8.25 bits per weight",
            QuantizeOnLoad::Int8Rows => "8 bits with one scale per row, 8 bits per weight: for comparisons",
        };
        // The name that `ember info` shows.
        Some(PossibleValue::new(format.name()).help(help))
    }
}

/// How deep a model computes, and on what.
#[derive(Debug, Args)]
pub struct ComputeArgs {
    #[command(flatten)]
    pub depth: DepthArgs,

    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Adaptive depth (CREST models).
#[derive(Debug, Args)]
#[command(next_help_heading = "Adaptive depth (CREST)")]
pub struct DepthArgs {
    /// Steps to run at most, from 1 to those of the checkpoint
    #[arg(long, value_name = "K")]
    pub steps: Option<usize>,

    /// Threshold at which a token halts, from 0 to 1
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub threshold: Option<f32>,

    /// Run every step for every token
    #[arg(long)]
    pub no_halt: bool,
}

impl DepthArgs {
    /// As a model takes it.
    pub fn overrides(&self) -> CrestOverrides {
        CrestOverrides {
            num_steps: self.steps,
            halt_threshold: self.threshold,
            halt_enabled: self.no_halt.then_some(false),
            ..CrestOverrides::default()
        }
    }
}

/// Heading of the flags about drafts in the help. It is that of each of them: `next_help_heading` would be that of every flag after them too.
const DRAFTS: &str = "Drafts (speculative decoding)";

/// Speculative decoding.
#[derive(Clone, Copy, Debug, Args)]
pub struct DraftArgs {
    /// Guess tokens and verify several in one pass: faster where guesses are right. prompt-lookup: the text goes on as it did where its last tokens
    /// came before. Tokens are chosen as without drafts, with a seed too; a text can change as with another --chunk
    #[arg(long, value_enum, value_name = "SOURCE", group = "draft_source", conflicts_with = "draft_steps", help_heading = DRAFTS)]
    pub draft: Option<DraftKind>,

    /// Guess tokens with the model itself at K steps, fewer than it has (CREST)
    #[arg(long, value_name = "K", group = "draft_source", help_heading = DRAFTS)]
    pub draft_steps: Option<usize>,

    /// Tokens of a draft at most; how many there are follows what was right of late
    #[arg(long, value_name = "N", requires = "draft_source", default_value_t = DraftOptions::MAX_TOKENS as u16, value_parser = clap::value_parser!(u16).range(1..=64), help_heading = DRAFTS)]
    pub draft_max: u16,
}

/// Sources of drafts that need no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DraftKind {
    /// What followed the last tokens earlier in prompt and output; for every model
    PromptLookup,
}

impl DraftArgs {
    /// As an engine takes it, for a model of so many steps; none in one without adaptive depth.
    pub fn options(&self, num_steps: Option<usize>) -> Result<Option<DraftOptions>> {
        let source = match (self.draft, self.draft_steps) {
            (Some(DraftKind::PromptLookup), _) => DraftSource::PromptLookup,
            (None, Some(steps)) => DraftSource::Steps(steps),
            (None, None) => return Ok(None),
        };
        let options = DraftOptions { max_tokens: self.draft_max.into(), ..DraftOptions::new(source) };
        options.check(num_steps).map_err(by_flag)?;
        Ok(Some(options))
    }

    /// [`options`](Self::options) for a model.
    pub fn of(&self, architecture: &Architecture) -> Result<Option<DraftOptions>> {
        self.options(architecture.crest.as_ref().map(|crest| crest.num_steps))
    }
}

/// How sequences are fed and kept.
#[derive(Clone, Copy, Debug, Args)]
pub struct PassArgs {
    /// Tokens per pass over a prompt. Another N adds sums in another order. Where activations (beside quantised and BF16 weights) or the cache are
    /// rounded, that can change a text; with --activations f32 --cache-type f32 neither is
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CHUNK as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub chunk: u32,

    /// Number format of cached keys and values
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    pub cache_type: CacheType,

    #[command(flatten)]
    pub hidden: HiddenArgs,
}

/// What is cached of compressed keys and values.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct HiddenArgs {
    /// Cache hidden values of compressed keys and values (LeanLlama) instead of their codes: less to compute for every cached token. They have the number
    /// format of the cache, and take much more memory than codes (lean-8b: 256 bytes of a token and layer in f16, codes 16), less than values (2,048)
    #[arg(long)]
    pub cache_hidden: bool,
}

/// Number formats of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CacheType {
    /// 8 bits with a scale for every 64 numbers of a head, 8.5 bits per number
    #[value(alias = "q8_0")]
    Q8,
    /// Half precision
    #[default]
    F16,
    /// Exact
    F32,
}

impl From<CacheType> for KvFormat {
    fn from(cache: CacheType) -> Self {
        match cache {
            CacheType::Q8 => Self::Q8,
            CacheType::F16 => Self::F16,
            CacheType::F32 => Self::F32,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::any::TypeId;

    use clap::CommandFactory;

    /// What is cached and in which format is read together.
    #[test]
    fn flags_of_the_cache_stand_beside_each_other() {
        let program = crate::cli::Cli::command();
        let mut seen = 0;
        for command in program.get_subcommands() {
            let names: Vec<&str> = command.get_arguments().map(|arg| arg.get_id().as_str()).collect();
            let of_cache = |name: &&str| name.contains("cache_type") || name.contains("cache_hidden");
            let (first, last) = (names.iter().position(of_cache), names.iter().rposition(of_cache));
            let (Some(first), Some(last)) = (first, last) else { continue };
            assert!(names[first..=last].iter().all(of_cache), "{}: {names:?}", command.get_name());
            seen += usize::from(last > first);
        }
        assert!(seen >= 5, "{seen} commands have both");
    }

    /// Else `--threshold -0.5` is an unexpected argument `-0`, and not a number that is out of range.
    #[test]
    fn numbers_with_a_fraction_may_have_a_sign() {
        let program = crate::cli::Cli::command();
        for command in program.get_subcommands() {
            for flag in command.get_arguments() {
                let number = flag.get_value_parser().type_id();
                if number == TypeId::of::<f32>() || number == TypeId::of::<f64>() {
                    assert!(flag.is_allow_negative_numbers_set(), "{} --{}", command.get_name(), flag.get_id());
                }
            }
        }
    }
}
