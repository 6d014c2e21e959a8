//! `ember info`: what a model directory holds and what running it takes. No weight is loaded.

mod collect;
mod facts;
mod text;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use facts::Info;

use super::args::{DepthArgs, HiddenArgs, ModelArgs};
use emberlm::quant::Activations;

use super::backend::{Cpu, OpenDevice};
use super::{estimate, load, output};

const ABOUT: &str = "\
With --json one object is printed, with the facts of the text: path, family, model_type, architecture, auto_map, sizes, \
rope, parameters, weights (stored_bytes, bytes, peak_load_bytes, by_storage in memory, by_part), activations (what this processor rounds to where \
nothing else is asked for), tied_head, ignored_tensors, notes, \
crest, kv_compression, cache (bytes_per_token by type: q8, f16, f32; bytes_per_sequence), estimate (by type: q8, f16, f32; formula), generation, \
stop_tokens, chat_template, tokenizer_error. Sizes are in bytes; what a model does not have is null.";

/// Flags of `ember info`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct InfoArgs {
    /// Model directory or name, as with -m
    #[arg(value_name = "DIR|NAME", conflicts_with = "model")]
    directory: Option<PathBuf>,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    hidden: HiddenArgs,

    /// Tokens of the sequence that memory is estimated for [default: 4096, or the model's context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    depth: DepthArgs,
}

/// Runs the command.
pub fn run(args: &InfoArgs) -> Result<()> {
    let directory = args.directory.as_ref().or(args.model.model.as_ref());
    let model = ModelArgs { model: directory.cloned(), ..args.model.clone() };
    let device = OpenDevice::cpu(Activations::Auto);
    let pretrained = load::prepare(load::open(&model, &args.depth, args.hidden)?, load::Storage::of(&model), &device)?;
    let plan = load::plan::<Cpu>(&pretrained, &device.device)?;
    let architecture = pretrained.architecture();
    let limit = architecture.config.max_position_embeddings;
    let context = args.context.map_or_else(|| estimate::usual_context(architecture), |n| n as usize);
    ensure!(context <= limit, "--context {context} is more than the {limit} tokens of this model");
    let info = Info::new(&pretrained, &plan, &args.depth, context, device.arithmetic_with(&plan));
    write(&info, args.json).context(output::STDOUT)
}

fn write(info: &Info, json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, info)?;
        writeln!(out)?;
    } else {
        text::write(&mut out, info)?;
    }
    Ok(out.flush()?)
}
