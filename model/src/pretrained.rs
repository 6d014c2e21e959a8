//! A model directory, opened: what it is, what it would take, and the way to load it.

use std::path::{Path, PathBuf};

use emberlm_quant::host::HostWeight;
use emberlm_quant::{Activations, CompactBackend};

use crate::architecture::Architecture;
use crate::causal_lm::CausalLm;
use crate::checkpoint::{Checkpoint, OpenOptions, Weights};
use crate::config::{
    CrestConfig, CrestOptions, CrestOverrides, Family, GenerationConfig, KvCompression, ModelConfig, ModelOptions,
};
use crate::error::Result;
use crate::generate::GenerateOptions;
use crate::limits::check_activations;
use crate::loader::{SourceEntry, WeightOptions, WeightSource};
use crate::plan::{LoadPlan, Progress, QuantizeOnLoad};
use crate::text::{StopSet, TextFiles, TextProcessor};

/// A checkpoint whose config is validated and whose tensors are recognised, and how it is to be loaded; no weight is loaded yet.
///
/// ```no_run
/// # use emberlm_model::{Pretrained, QuantizeOnLoad, Result};
/// # use emberlm_quant::Activations;
/// # fn load<B: emberlm_quant::CompactBackend>(device: &B::Device) -> Result<()> {
/// let pretrained = Pretrained::open("path/to/a/model")?.quantize(QuantizeOnLoad::Nf4).activations(Activations::Int8);
/// let (text, model) = (pretrained.text()?, pretrained.load::<B>(device)?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pretrained {
    architecture: Architecture,
    generation: GenerationConfig,
    weights: Weights,
    notes: Vec<String>,
    options: WeightOptions,
    activations: Activations,
}

/// The head, when it is not the embedding.
const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

impl Pretrained {
    /// Opens a model directory, a `.safetensors` file in one, or a directory with the model in its only subfolder.
    ///
    /// # Errors
    /// Names the file, the key or the tensor that cannot be used, and what to do.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, OpenOptions::default())
    }

    /// As [`Self::open`], with options of opening.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::open_with(path.as_ref(), options)?)
    }

    /// As [`Self::open`], of a checkpoint that is already open.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_parts(checkpoint, checkpoint.config()?, checkpoint.generation_config()?)
    }

    /// As [`Self::from_checkpoint`], of configs that have been read.
    pub(crate) fn from_parts(
        checkpoint: &Checkpoint,
        mut config: ModelConfig,
        generation: GenerationConfig,
    ) -> Result<Self> {
        let mut weights = Weights::resolve(checkpoint, &config)?;
        let directory = checkpoint.dir().path();
        let crest = crest_options(&config, &weights, &CrestOverrides::default())
            .map_err(|error| config.by_file(directory, error))?;
        let kv_compression = kv_compression(&config, &weights, directory)?;
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
        let (options, activations) = (WeightOptions::default(), Activations::default());
        Ok(Self { architecture, generation, weights, notes, options, activations })
    }

    /// With another depth than the checkpoint states (CREST).
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) when a value is out of range, or the model has no adaptive depth and something is asked for.
    pub fn depth(mut self, overrides: &CrestOverrides) -> Result<Self> {
        self.architecture.crest = crest_options(&self.architecture.config, &self.weights, overrides)?;
        Ok(self)
    }

    /// With hidden values of the decoders cached in place of codes (LeanLlama), in the format of the cache: more memory than codes, less
    /// than what they stand for, and no hidden layer to compute for every cached token in each pass. With cache and
    /// activations in F32 the results are those of codes but for the rounding of sums; F16 and 8 bits round hidden values.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) when hidden values [take the place](crate::config::KvCompression::caches_hidden) of no codes.
    pub fn cache_hidden(mut self) -> Result<Self> {
        self.architecture.cache_hidden()?;
        Ok(self)
    }

    /// With the dense linears of the layers quantised while they are loaded.
    #[must_use]
    pub fn quantize(mut self, format: QuantizeOnLoad) -> Self {
        self.options.quantize = Some(format);
        self
    }

    /// With a dense embedding and head quantised while they are loaded.
    #[must_use]
    pub fn quantize_head(mut self, format: QuantizeOnLoad) -> Self {
        (self.options.quantize_head, self.options.quantize_embedding) = (Some(format), Some(format));
        self
    }

    /// With every matrix loaded as plain F32, whatever its storage: on `Autodiff` of a backend all parameters then have gradients. As they are
    /// stored, 16-bit and quantised matrices have none.
    ///
    /// ```no_run
    /// # use emberlm_model::{Pretrained, Result};
    /// # use emberlm_quant::CompactBackend;
    /// # fn fine_tune<B: CompactBackend>(device: &B::Device) -> Result<()> {
    /// // `B` is `Autodiff` of a backend.
    /// let pretrained = Pretrained::open("path/to/a/model")?.trainable();
    /// let mut model = pretrained.load::<B>(device)?;
    /// // ... optimizer steps with `CausalLm::forward_uncached` ...
    /// pretrained.save(&model, "path/to/the/new/model")
    /// # }
    /// ```
    #[must_use]
    pub fn trainable(mut self) -> Self {
        self.options.trainable = true;
        self
    }

    /// With all options of weights at once.
    #[must_use]
    pub fn weight_options(mut self, options: WeightOptions) -> Self {
        self.options = options;
        self
    }

    /// With a model that computes in these numbers.
    #[must_use]
    pub fn activations(mut self, activations: Activations) -> Self {
        self.activations = activations;
        self
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
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) and what else [`TextProcessor::from_files`] names. A token beyond the embedding is an error when a text
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

    /// How the model's authors have texts continued: sampling, rules about tokens, the length and what ends a text as
    /// `generation_config.json` says, by the rules of transformers, with the [stop tokens](Self::stop_tokens) of all files. What no file says is
    /// [`GenerateOptions::default`].
    pub fn generate_options(&self, text: &TextProcessor) -> GenerateOptions {
        let (file, others) = (&self.generation, GenerateOptions::default());
        GenerateOptions {
            sampling: file.sampling(),
            processors: file.processors.clone(),
            max_tokens: file.defaults.max_new_tokens.unwrap_or(others.max_tokens),
            stop_tokens: self.stop_tokens(text),
            stop_strings: file.stop_strings.clone(),
            ..others
        }
    }

    /// Checks every tensor and adds up the bytes, loading nothing.
    ///
    /// # Errors
    /// [`Error::Differences`](crate::Error::Differences) with every missing, unused and mismatched tensor; [`Error::Option`](crate::Error::Option) when the device does not compute in these
    /// numbers.
    pub fn plan<B: CompactBackend>(&self, device: &B::Device) -> Result<LoadPlan> {
        check_activations::<B>(self.activations, device)?;
        CausalLm::<B>::plan(&self.architecture, &self.weights, self.options, device)
    }

    /// Loads the model. Memory never holds more than the model and one tensor.
    ///
    /// # Errors
    /// As [`plan`](Self::plan), and when the stored data of a tensor is damaged.
    pub fn load<B: CompactBackend>(&self, device: &B::Device) -> Result<CausalLm<B>> {
        self.load_with_progress(device, |_| ())
    }

    /// As [`load`](Self::load), and tells how far it is after every tensor.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with_progress<B: CompactBackend>(
        &self,
        device: &B::Device,
        progress: impl Fn(Progress),
    ) -> Result<CausalLm<B>> {
        let plan = self.plan::<B>(device)?;
        let (architecture, weights) = (self.architecture.clone(), &self.weights);
        let mut model = CausalLm::load(architecture, weights, self.options, &plan, device, Some(&progress))?;
        model.set_activations(self.activations)?;
        Ok(model)
    }
}

fn kv_compression(config: &ModelConfig, weights: &Weights, directory: &Path) -> Result<Option<KvCompression>> {
    let found = weights.discovered_kv_compression();
    let side = config.side_file.kv_compression;
    let resolved = KvCompression::resolve(config.kv_compression.as_ref(), found);
    match resolved.map_err(|error| config.by_file(directory, error))? {
        Some(compression) => Ok(Some(compression.with(side))),
        None if side != Default::default() => {
            Err(ModelOptions::does_not_fit(directory, "kv_compression", "no compressors are stored"))
        }
        None => Ok(None),
    }
}

/// How deep the tokens of a model go; none where it has no adaptive depth.
fn crest_options(config: &ModelConfig, weights: &Weights, overrides: &CrestOverrides) -> Result<Option<CrestOptions>> {
    match weights.discovered_crest() {
        Some(found) => {
            let silent = CrestConfig::default();
            let overrides = overrides.clone().or(config.side_file.crest.clone());
            CrestOptions::resolve(config.crest.as_ref().unwrap_or(&silent), found, &overrides).map(Some)
        }
        None => overrides.refuse_beside(config.family).map(|()| None),
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

    fn is_checked(&self) -> bool {
        true
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        self.file(name).map(Path::to_path_buf)
    }

    fn release(&self, name: &str) {
        self.release(name);
    }

    fn names(&self) -> Vec<String> {
        self.canonical_names().map(str::to_string).collect()
    }
}
