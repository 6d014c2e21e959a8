//! The author's generation defaults (`generation_config.json`).

use super::MAX_POSITIONS;
use super::fields::Fields;
use super::json;
use crate::Result;
use crate::checkpoint::ModelDir;

/// The author's generation defaults; everything is optional.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Sample, rather than take the most likely token.
    pub do_sample: Option<bool>,
    /// Divides the logits; 0 means greedy.
    pub temperature: Option<f64>,
    /// Candidates kept by rank; 0 keeps all.
    pub top_k: Option<usize>,
    /// Candidates kept by cumulative probability, in (0, 1].
    pub top_p: Option<f64>,
    /// Candidates kept by probability relative to the best, in [0, 1].
    pub min_p: Option<f64>,
    /// Above 1 discourages tokens already seen.
    pub repetition_penalty: Option<f64>,
    /// Tokens to generate at most.
    pub max_new_tokens: Option<usize>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// First token of a text.
    pub bos_token_id: Option<u32>,
    /// Token for padding.
    pub pad_token_id: Option<u32>,
}

impl GenerationConfig {
    /// File name in a model directory.
    pub const FILE: &str = "generation_config.json";

    /// Reads the file; without one, every option is unset.
    ///
    /// # Errors
    /// [`crate::Error::Config`] when the file is not valid JSON or a value is out of range.
    pub fn from_dir(dir: &ModelDir) -> Result<Self> {
        let Some(bytes) = dir.read(Self::FILE, super::MAX_CONFIG_BYTES)? else {
            return Ok(Self::default());
        };
        let path = dir.path().join(Self::FILE);
        let value = json::parse(&bytes).map_err(|message| super::not_json(&path, message))?;
        Self::read(&Fields::root(&path, &value)?)
    }

    fn read(root: &Fields) -> Result<Self> {
        Ok(Self {
            do_sample: root.boolean("do_sample")?,
            temperature: root.number("temperature", "a number from 0 to 100", |x| (0.0..=100.0).contains(&x))?,
            top_k: root.integer("top_k", 0, u32::MAX as usize)?,
            top_p: root.number("top_p", "a number above 0, at most 1", |x| x > 0.0 && x <= 1.0)?,
            min_p: root.number("min_p", "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?,
            repetition_penalty: root
                .number("repetition_penalty", "a number above 0, at most 100", |x| x > 0.0 && x <= 100.0)?,
            max_new_tokens: root.integer("max_new_tokens", 0, MAX_POSITIONS)?,
            eos_token_ids: root.token_ids("eos_token_id")?,
            bos_token_id: root.token_id("bos_token_id")?,
            pad_token_id: root.token_id("pad_token_id")?,
        })
    }
}
