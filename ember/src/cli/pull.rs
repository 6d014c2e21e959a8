//! `ember pull`: downloads a model and does nothing else.

use std::io::{self, Write};

use anyhow::{Context, Result};
use clap::Args;
use emberlm::hub::HubName;

use super::model_name::HubArgs;
use super::{download, model_name, output};

const ABOUT: &str = "\
Examples:
  ember pull sky-lite                       0labs-in/Sky-v2.0-Lite
  ember pull org/name@v1.2                  a branch, a tag or a commit
  ember pull org/name:folder                the model in a folder of a repository
  ember chat -m sky-lite                    downloads too, where the model is not in the cache

Short names: sky-11b-int4 (0labs-in/Sky-v2.0-11B-INT4), sky-lite (0labs-in/Sky-v2.0-Lite), nano-3b (RthItalia/nano_compact_3b_qkvfp16), \
lean-8b (miike-ai/LeanLlama-8B-INT4).

Downloaded are the configs, the tokenizer, the chat templates and the safetensors files of the model: no pickles, no code. A download that \
was cut goes on where it was. Every file is checked against the hash that the hub lists. The directory is printed on stdout.

The cache is that of huggingface_hub, so each finds what the other downloaded. Environment: HF_HOME or HF_HUB_CACHE (where it is), HF_TOKEN or \
HF_TOKEN_PATH (for private and gated models), HF_ENDPOINT (another hub), HF_HUB_OFFLINE=1 (no network), SSL_CERT_FILE (or REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE: a PEM \
file with the authorities to trust instead of the system's, such as that of a proxy).";

/// Flags of `ember pull`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct PullArgs {
    /// The model: org/name, with @revision or :folder where wanted, or a short name
    #[arg(value_name = "NAME")]
    name: String,

    #[command(flatten)]
    hub: HubArgs,
}

/// Runs the command.
pub fn run(args: &PullArgs) -> Result<()> {
    let name: HubName = args.name.parse().map_err(|error| model_name::unknown(&args.name, error, "model"))?;
    let name = match &args.hub.revision {
        Some(revision) => name.at(revision).context("--revision")?,
        None => name,
    };
    let hub = model_name::open(&args.hub)?;
    let directory = download::with_progress(|on| hub.pull(&name, on), true)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{}", output::printable(&directory.display().to_string())).context(output::STDOUT)
}
