//! `ember convert`: a model directory with dense weights.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use emberlm::model::export::{ExportContainer, ExportOptions, MatrixFormat};
use emberlm::quant::host::FloatType;

use super::args::{DepthArgs, HiddenArgs, usage};
use super::export::{self, OutputArgs, SourceArgs};
use super::{load, threads};

const ABOUT: &str = "\
Every matrix becomes dense in --dtype: what was quantised is dequantised, as it is when the model runs in f32, and rounded once. A number beyond \
F16 is an error. Norms, biases and decays keep the type that they have, but for f32, which all tensors get. config.json says the type and nothing \
about quantisation; a Nano compact model becomes the Qwen2 that it was made of.

--format burnpack writes the weights as a record of burn-store, model.bpk, beside the same files: burn's load_from reads it into the fields of an \
emberlm::model::CausalLm (with --dtype f32 as it is; burn keeps the types of a record). A directory with such a record, converted or saved by \
a training run, is a model directory like any other; convert makes safetensors of it.

DIR appears when it is complete. Until then everything is in DIR.partial; a run that was cut off goes on there when it is \
repeated with the same model and flags. Nothing is ever overwritten.";

/// Flags of `ember convert`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct ConvertArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// Type of the matrices
    #[arg(long, value_enum, value_name = "TYPE")]
    dtype: DenseType,

    /// Format of the files that hold the weights
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = FileFormat::Safetensors)]
    format: FileFormat,

    /// Keep the first K steps of every layer (CREST)
    #[arg(long, value_name = "K")]
    steps: Option<usize>,

    #[command(flatten)]
    output: OutputArgs,
}

/// Formats of files that hold weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FileFormat {
    /// model.safetensors, or shards and their index
    Safetensors,
    /// model.bpk, a record of burn-store
    Burnpack,
}

impl From<FileFormat> for ExportContainer {
    fn from(format: FileFormat) -> Self {
        match format {
            FileFormat::Safetensors => Self::Safetensors,
            FileFormat::Burnpack => Self::Burnpack,
        }
    }
}

/// Types of dense matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DenseType {
    /// bfloat16
    Bf16,
    /// IEEE half precision, up to 65504
    F16,
    /// IEEE single precision
    F32,
}

impl From<DenseType> for FloatType {
    fn from(dtype: DenseType) -> Self {
        match dtype {
            DenseType::Bf16 => Self::Bf16,
            DenseType::F16 => Self::F16,
            DenseType::F32 => Self::F32,
        }
    }
}

/// Runs the command.
pub fn run(args: &ConvertArgs) -> Result<()> {
    if args.format == FileFormat::Burnpack && args.output.shard_size.is_some() {
        usage("convert", "--shard-size is for --format safetensors: a record of burn-store is one file");
    }
    threads::start(args.output.threads)?;
    args.output.check()?;
    let depth = DepthArgs { steps: args.steps, threshold: None, no_halt: false };
    let pretrained = load::open(&args.source.model(), &depth, HiddenArgs::default())?;
    let float = args.dtype.into();
    let (shard_bytes, container) = (args.output.shard_bytes(), args.format.into());
    let options = ExportOptions { shard_bytes, dense: Some(float), container };
    let plan = pretrained.export(&options, |_| MatrixFormat::Dense(float));
    let plan = plan.with_context(|| format!("cannot convert the model {}", pretrained.directory().display()))?;
    export::write(&plan, &args.output)
}
