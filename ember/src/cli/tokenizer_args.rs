//! Flags of the commands that need no weights.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use emberlm::demo;
use emberlm::model::Pretrained;
use emberlm::model::checkpoint::{ModelDir, OpenOptions};
use emberlm::model::text::{TextFiles, TextProcessor};

use super::model_name::{HubArgs, directory};

/// Where tokenizer and templates are.
#[derive(Debug, Args)]
pub struct TokenizerArgs {
    /// Model directory or name, as in `ember pull NAME`; its tokenizer and template files are enough [default: a small model that is part of the program]
    #[arg(short, long, value_name = "DIR|NAME")]
    model: Option<PathBuf>,

    /// Follow links in the model directory that lead out of it; for links that you made, not for a directory from a stranger
    #[arg(long)]
    allow_links: bool,

    #[command(flatten)]
    hub: HubArgs,
}

impl TokenizerArgs {
    /// Tokenizer and templates of a model directory, or of the demo model; a directory with its text files alone will do.
    ///
    /// # Errors
    /// When the model is not there, or its files cannot be used.
    pub fn open(&self) -> Result<TextProcessor> {
        let Some(model) = &self.model else {
            return Ok(demo::open().context("cannot open the demo model")?.text()?);
        };
        let path = &directory(model, &self.hub)?;
        // With weights and config the size of the embedding is known.
        let alone = || {
            let dir = ModelDir::open(path)?;
            let dir = if self.allow_links { dir.allow_links() } else { dir };
            TextProcessor::from_files(&TextFiles::from_dir(&dir)?)
        };
        let text = match Pretrained::open_with(path, OpenOptions { allow_links: self.allow_links }) {
            Ok(pretrained) => pretrained.text(),
            Err(_) => alone(),
        };
        text.with_context(|| format!("cannot open the tokenizer of {}", path.display()))
    }
}
