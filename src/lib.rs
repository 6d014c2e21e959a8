//! Compact language models in Rust: adaptive depth (CREST), integer rows (Nano compact) and compressed caches (LeanLlama), each
//! defined once as a generic [burn](https://burn.dev) module and run on any backend that implements
//! [`CompactBackend`](quant::CompactBackend).
//!
//! ```
//! use emberlm::prelude::*;
//!
//! /// Continues a text with the model in a directory, on any backend.
//! fn continue_text<B: CompactBackend>(dir: &str, prompt: &str, device: &B::Device) -> Result<String> {
//!     let pretrained = Pretrained::open(dir)?;
//!     let text = pretrained.text()?;
//!     let model = pretrained.load::<B>(device)?;
//!     // How generation_config.json says; `GenerateOptions::default()` is greedy and has no end.
//!     let options = GenerateOptions { max_tokens: 16, ..pretrained.generate_options(&text) };
//!     let pieces = Generator::new(&model, &text, options)?.run(&text.encode(prompt, true)?)?;
//!     pieces.map(|piece| Ok(piece?.text)).collect()
//! }
//!
//! type Cpu = emberlm::NdArray<f32>;
//! # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/crest_k4");
//! let story = continue_text::<Cpu>(dir, "Once upon a time", &Default::default())?;
//! assert!(!story.is_empty());
//! # Ok::<(), emberlm::model::Error>(())
//! ```
//!
//! Several texts at once share the passes of the model ([`engine`](model::engine)):
//!
//! ```
//! use emberlm::prelude::*;
//!
//! /// Continues each text.
//! fn continue_texts<B: CompactBackend>(dir: &str, prompts: &[&str], device: &B::Device) -> Result<Vec<String>> {
//!     let pretrained = Pretrained::open(dir)?;
//!     let (text, model) = (pretrained.text()?, pretrained.load::<B>(device)?);
//!     let mut engine = Engine::new(&model, &text, EngineOptions::default());
//!     let mut texts = std::collections::BTreeMap::new();
//!     for prompt in prompts {
//!         let request = Request { max_tokens: 16, ..Request::new(text.encode(prompt, true)?) };
//!         texts.insert(engine.submit(request)?, String::new());
//!     }
//!     while !engine.is_idle() {
//!         for event in engine.step() {
//!             match event.kind {
//!                 EventKind::Token(piece) => texts.entry(event.sequence).or_default().push_str(&piece.text),
//!                 EventKind::Failed(error) => return Err(error),
//!                 _ => {}
//!             }
//!         }
//!     }
//!     Ok(texts.into_values().collect())
//! }
//!
//! # type Cpu = emberlm::NdArray<f32>;
//! # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/crest_k4");
//! let texts = continue_texts::<Cpu>(dir, &["Once upon a time", "The"], &Default::default())?;
//! assert!(texts.len() == 2 && texts.iter().all(|text| !text.is_empty()));
//! # Ok::<(), emberlm::model::Error>(())
//! ```
//!
//! # Training
//! [`Pretrained::trainable`](model::Pretrained::trainable) loads every matrix as plain numbers, which have gradients on `Autodiff` of a backend
//! (`burn_autodiff`): as they are stored, 16-bit and quantised matrices have none. [`forward_uncached`](model::CausalLm::forward_uncached) is
//! the pass, and [`Pretrained::save`](model::Pretrained::save) writes the model with its tokenizer.
//!
//! # Where things are
//! [`nn`] has the layers, to build and train from a config; [`model`] opens checkpoints, defines the families and generates text; [`quant`] has the number formats, the packed weights and
//! the operations that a backend may override. `ARCHITECTURE.md` in the repository is the map.
//!
//! # Features
//! `ndarray`, on by default, runs on the processor by [`NdArray`]. `grammar` keeps answers to JSON schemas, `hub` gets models by their names; `flex`, `wgpu`, `vulkan`, `metal` and
//! `cuda` add backends. The program `ember`, with its server, is a crate of its own: `ember-lm`.
//!
//! # Untrusted input
//! Checkpoints, tokenizers and chat templates are treated as written by strangers: every file is bounded and validated before it
//! is used, and what is wrong is an [`Error`](model::Error) that names the file and the place. `SECURITY.md` says what is defended.

pub mod demo;
pub mod nn;

/// Burn itself, in the version that the operations are for.
pub use burn;
#[cfg(feature = "flex")]
pub use burn_flex::Flex;
#[cfg(feature = "ndarray")]
pub use burn_ndarray::NdArray;
pub use emberlm_backends as backends;
pub use emberlm_model as model;
#[cfg(feature = "hub")]
pub use emberlm_model::hub;
pub use emberlm_quant as quant;

/// What most programs need.
pub mod prelude {
    pub use emberlm_model::cache::Cache;
    pub use emberlm_model::config::CrestOverrides;
    pub use emberlm_model::engine::{Engine, EngineOptions, Event, EventKind, Request, SequenceId};
    pub use emberlm_model::generate::{Finish, GenerateOptions, Generator, Piece, Pieces, Summary};
    pub use emberlm_model::sampling::SamplingConfig;
    pub use emberlm_model::text::{ChatOptions, Message, StopSet, TextProcessor};
    pub use emberlm_model::{CausalLm, DepthOptions, Error, Pretrained, QuantizeOnLoad, Result, Span, WeightOptions};
    pub use emberlm_quant::kv::KvFormat;
    pub use emberlm_quant::{Activations, CompactBackend};
}
