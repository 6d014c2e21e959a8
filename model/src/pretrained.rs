//! A model directory, opened: what it is, what it would take, and the way to load it.

use std::path::Path;

use emberlm_quant::CompactBackend;
use emberlm_quant::host::HostWeight;

use crate::architecture::Architecture;
use crate::causal_lm::CausalLm;
use crate::checkpoint::{Checkpoint, OpenOptions, Weights};
use crate::config::{CrestConfig, CrestOptions, CrestOverrides, Family, GenerationConfig, KvCompression, ModelConfig};
use crate::error::{Error, Result};
use crate::loader::{SourceEntry, WeightOptions, WeightSource};
use crate::plan::{LoadPlan, Progress};
use crate::text::{StopSet, TextFiles, TextProcessor};

/// A checkpoint whose config is validated and whose tensors are recognised; no weight is loaded yet.
#[derive(Debug)]
pub struct Pretrained {
    architecture: Architecture,
    generation: GenerationConfig,
    weights: Weights,
    notes: Vec<String>,
}

/// The head, when it is not the embedding.
const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

impl Pretrained {
    /// Opens a model directory, a `.safetensors` file in one, or a directory with the model in its only subfolder.
    ///
    /// # Errors
    /// Names the file, the key or the tensor that cannot be used, and what to do.
    pub fn open(path: &Path, depth: &CrestOverrides) -> Result<Self> {
        Self::open_with(path, depth, OpenOptions::default())
    }

    /// As [`Self::open`], with options of opening.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: &Path, depth: &CrestOverrides, options: OpenOptions) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::open_with(path, options)?, depth)
    }

    /// As [`Self::open`], of a checkpoint that is already open.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_checkpoint(checkpoint: &Checkpoint, depth: &CrestOverrides) -> Result<Self> {
        let config = checkpoint.config()?;
        let generation = checkpoint.generation_config()?;
        let mut weights = Weights::resolve(checkpoint, &config)?;
        let crest = match weights.discovered_crest() {
            Some(found) => {
                let silent = CrestConfig::default();
                Some(CrestOptions::resolve(config.crest.as_ref().unwrap_or(&silent), found, depth)?)
            }
            None if *depth != CrestOverrides::default() => {
                let message = format!("is for models with adaptive depth; this is {}", config.family);
                return Err(Error::Option { option: "depth".into(), message });
            }
            None => None,
        };
        let kv_compression =
            KvCompression::resolve(config.kv_compression.as_ref(), weights.discovered_kv_compression())?;
        let mut config = config;
        let mut notes = config.notes.unused.clone();
        let tied_head = tie_head(&mut weights, &config, &mut notes)?;
        if config.family == Family::Qwen2 && !weights.canonical_names().any(is_qkv_bias) {
            config.qkv_bias = false;
            notes.push(
                "no biases of query, key and value projections are stored: they count as 0, as in transformers".into(),
            );
        }
        if checkpoint.has_adapter() {
            notes.push("the adapter in this directory is not applied: merge it into the model if it is wanted".into());
        }
        for note in &notes {
            tracing::warn!("{note}");
        }
        let notes = config.notes.assumed.iter().cloned().chain(notes).collect();
        let architecture = Architecture { config, crest, kv_compression, tied_head };
        Ok(Self { architecture, generation, weights, notes })
    }

    /// Sizes and options.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The defaults that the model's authors give for sampling.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    /// What was assumed because the files do not state it, and what they state but is not used, as sentences without a full stop.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The tensors, under canonical names.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The directory that the files were found in.
    pub fn directory(&self) -> &Path {
        self.weights.checkpoint().dir().path()
    }

    /// The tokenizer and the chat template.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] and what else [`TextProcessor::from_files`] names. A token beyond the embedding is an error when a text
    /// holds it.
    pub fn text(&self) -> Result<TextProcessor> {
        let text = TextProcessor::from_files(&TextFiles::from_dir(self.weights.checkpoint().dir())?)?;
        Ok(text.for_embedding(self.architecture.config.vocab_size))
    }

    /// Every token that ends a text: those of the generation config, the config and the tokenizer.
    pub fn stop_tokens(&self, text: &TextProcessor) -> StopSet {
        let tokenizer: Vec<u32> = text.eos_id().into_iter().collect();
        let (generation, config) = (&self.generation.eos_token_ids, &self.architecture.config.eos_token_ids);
        StopSet::union([generation.clone(), config.clone(), tokenizer])
    }

    /// Checks every tensor and adds up the bytes, loading nothing.
    ///
    /// # Errors
    /// [`Error::Tensors`] with every missing, unused and mismatched tensor.
    pub fn plan<B: CompactBackend>(&self, options: WeightOptions, device: &B::Device) -> Result<LoadPlan> {
        CausalLm::<B>::plan(&self.architecture, &self.weights, options, device)
    }

    /// Loads the model. Memory never holds more than the model and one tensor.
    ///
    /// # Errors
    /// As [`plan`](Self::plan), and when the stored data of a tensor is damaged.
    pub fn load<B: CompactBackend>(
        &self,
        options: WeightOptions,
        device: &B::Device,
        progress: Option<&dyn Fn(Progress)>,
    ) -> Result<CausalLm<B>> {
        let plan = self.plan::<B>(options, device)?;
        CausalLm::load(self.architecture.clone(), &self.weights, options, &plan, device, progress)
    }
}

fn is_qkv_bias(name: &str) -> bool {
    ["q_proj.bias", "k_proj.bias", "v_proj.bias"].iter().any(|bias| name.ends_with(bias))
}

/// Whether the head is the embedding, as transformers 5 decides it: where the config ties them and both are stored, they are tied
/// when they are equal; where one is stored, it is both. Of two equal ones, one is left out.
fn tie_head(weights: &mut Weights, config: &ModelConfig, notes: &mut Vec<String>) -> Result<bool> {
    let stored = |name| weights.entry(name).is_some();
    match (stored(EMBEDDING), stored(HEAD), config.tie_word_embeddings) {
        (true, true, false) => Ok(false),
        (true, true, true) => {
            let tied = weights.same(EMBEDDING, HEAD)?;
            if tied {
                weights.ignore(HEAD);
            } else {
                notes.push(format!(
                    "the config ties the head to the embedding (tie_word_embeddings), but the {HEAD} that is stored is another: \
                     it is used, as in transformers"
                ));
            }
            Ok(tied)
        }
        (false, true, true) => {
            weights.rename(HEAD, EMBEDDING);
            Ok(true)
        }
        (_, false, tied) => {
            // Nano says untied and stores none.
            if !tied && config.family != Family::NanoCompact {
                notes.push(format!(
                    "no {HEAD} is stored: the head is the embedding, although tie_word_embeddings is not true"
                ));
            }
            Ok(true)
        }
        (false, true, false) => Ok(false),
    }
}

impl WeightSource for Weights {
    fn entry(&self, name: &str, _expected: &[usize]) -> Option<SourceEntry> {
        let entry = self.entry(name)?;
        Some(SourceEntry { shape: entry.shape.clone(), storage: entry.storage, bytes: entry.bytes })
    }

    fn optional(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.entry(name)?.shape.clone())
    }

    fn matrix(&self, name: &str, _n: usize, _k: usize) -> Result<HostWeight> {
        self.matrix(name)
    }

    fn vector(&self, name: &str, _len: usize) -> Result<Vec<f32>> {
        self.vector(name)
    }

    fn release(&self, name: &str) {
        self.release(name);
    }

    fn names(&self) -> Vec<String> {
        self.canonical_names().map(str::to_string).collect()
    }
}
