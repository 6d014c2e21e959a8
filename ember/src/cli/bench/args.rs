//! The flags of `ember bench`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use emberlm::model::engine::DraftOptions;

use crate::cli::args::{CacheType, DraftArgs, HiddenArgs, Quant, QuantHead, by_flag};
use crate::cli::device_args::{ActivationType, DeviceChoice};
use crate::cli::model_name::HubArgs;

/// Flags of `ember bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Model directory or name, as in `ember pull NAME` [default: a small model that is part of the program]
    #[arg(short, long, value_name = "DIR|NAME", conflicts_with = "shape")]
    pub model: Option<PathBuf>,

    /// Follow links in the model directory that lead out of it
    #[arg(long)]
    pub allow_links: bool,

    /// Copy the weights of a model into memory instead of reading them from the mapped files
    #[arg(long, conflicts_with = "shape")]
    pub no_mmap: bool,

    /// Random weights of a known shape (bench-1b, crest-2b, crest-11b, sky-lite, lean-8b, nano-3b) or of a config.json
    #[arg(long, value_name = "NAME|FILE.json")]
    pub shape: Option<String>,

    /// Storage of the linear layers [default: none; for a short name what the model's card recommends]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub quant: Option<Quant>,

    /// Storage of the embedding and the head
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub quant_head: QuantHead,

    /// Prompt lengths to measure; 0 leaves prompts out
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "128,512", value_name = "N,..")]
    pub n_prompt: Vec<usize>,

    /// Numbers of tokens to generate; 0 leaves decoding out
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "64", value_name = "N,..")]
    pub n_gen: Vec<usize>,

    /// Sequences that generate together, as many tokens each as `--n-gen` says; several numbers are measured one after the other
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N,..", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub parallel: Vec<u16>,

    /// Tokens already in the cache before a measurement; several numbers are measured one after the other
    #[arg(
        short = 'd',
        long,
        aliases = ["n-depth", "depth"],
        value_delimiter = ',',
        default_value = "0",
        value_name = "N,.."
    )]
    pub context: Vec<usize>,

    /// Fill the cache of `--context` with random numbers instead of computing it
    #[arg(long, alias = "random-depth", requires = "context")]
    pub random_context: bool,

    /// Thread counts to measure
    #[arg(short, long, value_delimiter = ',', value_name = "N,..", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Vec<u16>,

    /// Repetitions of each measurement
    #[arg(short, long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub repetitions: u32,

    /// Measure from the first pass on; otherwise each measurement is made once before, to warm up
    #[arg(long)]
    pub no_warmup: bool,

    /// Tokens per pass over a prompt
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunk: u32,

    /// Type of activations [default: auto]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub activations: Option<ActivationType>,

    /// Number formats of cached keys and values; several are measured in turns, with their caches in memory together
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [CacheType::default()], value_name = "TYPE,..")]
    pub cache_type: Vec<CacheType>,

    #[command(flatten)]
    pub hidden: HiddenArgs,

    /// Run exactly K steps for every token (CREST); several are measured in turns. Steps beyond the largest K are
    /// not loaded
    #[arg(long, value_delimiter = ',', value_name = "K,..", conflicts_with = "threshold")]
    pub force_steps: Vec<usize>,

    /// The sequences of `--parallel` take the numbers of `--force-steps` in turn, all in one pass
    #[arg(long, requires = "force_steps")]
    pub mixed_steps: bool,

    /// Threshold at which a token halts (CREST)
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub threshold: Option<f32>,

    #[command(flatten)]
    pub draft: DraftArgs,

    /// Accept every drafted token with this probability, whatever the model says: the speed that such guesses would have
    #[arg(
        long,
        value_name = "P",
        allow_negative_numbers = true,
        help_heading = "Drafts (measured beside decoding without them)"
    )]
    pub draft_acceptance: Option<f64>,

    /// Device: auto, cpu, wgpu, wgpu:N, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,

    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub hub: HubArgs,
}

impl BenchArgs {
    /// The drafts that are measured beside decoding without them, for a model of so many steps.
    pub fn draft(&self, num_steps: Option<usize>) -> Result<Option<DraftOptions>> {
        let options = self.draft.options(num_steps)?;
        ensure!(
            options.is_some() || self.draft_acceptance.is_none(),
            "--draft-acceptance is for drafts: add --draft prompt-lookup or --draft-steps K"
        );
        let options = options.map(|draft| DraftOptions { forced_acceptance: self.draft_acceptance, ..draft });
        options.map_or(Ok(()), |draft| draft.check(num_steps)).map_err(by_flag)?;
        Ok(options)
    }

    /// The storage that is asked for, or is recommended for the model that is named.
    pub fn quant(&self) -> Quant {
        Quant::or_recommended(self.quant, self.model.as_deref())
    }
}
