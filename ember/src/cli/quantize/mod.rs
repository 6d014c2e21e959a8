//! `ember quantize`: a model directory in smaller number formats.

mod nano;
mod pattern;
mod rules;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use emberlm::model::export::ExportOptions;
use emberlm::model::{PlannedTensor, Pretrained};
use emberlm::quant::Activations;
use pattern::Pattern;
use rules::{Format, Rule, Rules};

use super::args::{DepthArgs, HiddenArgs, usage};
use super::backend::{Cpu, OpenDevice};
use super::export::{self, OutputArgs, SourceArgs};
use super::{load, threads};

const ABOUT: &str = "\
The linear layers of the model get --format; embedding and head stay as they are stored unless --head says otherwise, and so do halting gates, \
compressors of caches, norms and biases. What is stored quantised already stays so (ember convert makes it dense first).

A PATTERN is a run of parts of a tensor's name, with * for any characters of a part: mlp.down_proj, layers.0, layers.*.self_attn. Names are those \
that ember info and errors show (model.layers.0.mlp.down_proj.weight).

What other programs load:
  nf4, nf4-dq   transformers with bitsandbytes, whose codes and scales these are bit for bit
  int8          transformers with compressed-tensors (int-quantized, groups of 64), where rows are a multiple of 64
  nano          the layout of Nano compact (nanollm_modules, nano_compact_spec.json) on the Qwen2 body, for its author's runtime; on others \
this program
  a mixture, or a quantised embedding: this program alone; quant_method says emberlm, so that others refuse it

--format nano takes the projections but those of queries, keys and values, one after the other, and gives each the narrowest rows with which the \
logits after every prompt keep their cosine to those of the original; what may be lost is spread over the modules. --only, --skip and --rule \
hold here, too.

DIR appears when it is complete. Until then everything is in DIR.partial; a run that was cut off goes on there when it is \
repeated with the same model and flags. Nothing is ever overwritten.";

/// Flags of `ember quantize`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct QuantizeArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// Format of the linear layers
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: TargetFormat,

    /// Format of embedding and head [default: none, with nano int8-rows]
    #[arg(long, value_enum, value_name = "FORMAT")]
    head: Option<Format>,

    /// Quantise these modules only; may be repeated
    #[arg(long, value_name = "PATTERN")]
    only: Vec<Pattern>,

    /// Leave these modules as they are stored; may be repeated
    #[arg(long, value_name = "PATTERN")]
    skip: Vec<Pattern>,

    /// Another format for these modules, as in 'mlp.down_proj=int8'; may be repeated, the last one that matches counts
    #[arg(long, value_name = "PATTERN=FORMAT")]
    rule: Vec<Rule>,

    /// Keep the first K steps of every layer (CREST)
    #[arg(long, value_name = "K")]
    steps: Option<usize>,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    nano: nano::NanoArgs,
}

/// Formats of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TargetFormat {
    /// As they are stored, for --rule and --steps alone
    None,
    /// 4-bit NormalFloat in blocks of 64, 4.5 bits per weight
    Nf4,
    /// NF4 with quantised block scales, 4.13 bits per weight
    Nf4Dq,
    /// 8 bits in blocks of 64, 8.25 bits per weight
    Int8,
    /// Integer rows as narrow as the answers to some prompts allow, as Nano compact has them
    Nano,
}

impl From<TargetFormat> for Format {
    fn from(target: TargetFormat) -> Self {
        match target {
            TargetFormat::None | TargetFormat::Nano => Self::None,
            TargetFormat::Nf4 => Self::Nf4,
            TargetFormat::Nf4Dq => Self::Nf4Dq,
            TargetFormat::Int8 => Self::Int8,
        }
    }
}

/// Runs the command.
pub fn run(args: &QuantizeArgs) -> Result<()> {
    if args.format != TargetFormat::Nano
        && let Some(flag) = args.nano.given()
    {
        usage("quantize", &format!("{flag} is for --format nano"));
    }
    threads::start(args.output.threads)?;
    args.output.check()?;
    let depth = DepthArgs { steps: args.steps, threshold: None, no_halt: false };
    let pretrained = load::open(&args.source.model(), &depth, HiddenArgs::default())?;
    let nano = args.format == TargetFormat::Nano;
    let rules = Rules {
        layers: args.format.into(),
        head: args.head.unwrap_or(if nano { Format::Int8Rows } else { Format::None }),
        only: args.only.clone(),
        skip: args.skip.clone(),
        rules: args.rule.clone(),
    };
    let device = OpenDevice::<Cpu>::cpu(Activations::default());
    let tensors = load::plan::<Cpu>(&pretrained, &device.device)?.tensors;
    rules.check(&tensors)?;
    let options = ExportOptions { shard_bytes: args.output.shard_bytes(), ..ExportOptions::default() };
    let chosen = if nano { nano::choose(&args.nano, &pretrained, &rules)? } else { Vec::new() };
    let formats = nano::formats(&chosen);
    let format_of = |tensor: &PlannedTensor| match formats.get(tensor.name.as_str()) {
        Some(format) => *format,
        None => rules.of(tensor).into(),
    };
    let plan = pretrained.export(&options, format_of).with_context(|| cannot(&pretrained))?;
    let changed = plan.matrices().iter().any(|matrix| matrix.stored != matrix.written);
    let quantised = tensors.iter().any(|tensor| tensor.stored.is_quantized());
    ensure!(
        changed || args.steps.is_some(),
        "there is nothing to do: {}",
        match quantised {
            true => "the matrices are stored quantised already (ember convert makes them dense)",
            false => "these flags leave every matrix as it is stored",
        }
    );
    if nano {
        nano::report(&chosen)?;
    }
    export::write(&plan, &args.output)
}

fn cannot(pretrained: &Pretrained) -> String {
    format!("cannot quantise the model {}", pretrained.directory().display())
}
