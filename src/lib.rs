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
//!     let options = GenerateOptions { max_tokens: 16, ..pretrained.generate_options(&text) };
//!     let mut texts = std::collections::BTreeMap::new();
//!     for prompt in prompts {
//!         let request = options.request(text.encode(prompt, true)?);
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
//! A chat, with a tool that the model may call:
//!
//! ```
//! use emberlm::model::text::{AnswerFormat, AnswerParser, AnswerPart, DeclaredTools};
//! use emberlm::prelude::*;
//! use serde_json::json;
//!
//! /// What the model says to a question: text, thoughts and calls.
//! fn ask<B: CompactBackend>(dir: &str, question: &str, device: &B::Device) -> Result<Vec<AnswerPart>> {
//!     let pretrained = Pretrained::open(dir)?;
//!     let (text, model) = (pretrained.text()?, pretrained.load::<B>(device)?);
//!     let tools = json!([{"type": "function", "function": {
//!         "name": "weather",
//!         "description": "The weather of a city now",
//!         "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
//!     }}]);
//!     let declared = DeclaredTools::parse(&tools)?;
//!     let options = ChatOptions::prompt().with("tools", tools);
//!     let prompt = text.chat_prompt(&[Message::user(question)], &options)?;
//!     let template = text.chat_template(&options)?.source();
//!     let format = AnswerFormat::detect(model.architecture().config.family, Some(template));
//!     let mut parser = AnswerParser::new(format, prompt.thinking, declared, 1);
//!     let options = GenerateOptions { max_tokens: 16, ..pretrained.generate_options(&text) };
//!     let mut parts = Vec::new();
//!     for piece in Generator::new(&model, &text, options)?.run(&prompt.tokens)? {
//!         parts.extend(parser.push(&piece?.text));
//!     }
//!     parts.extend(parser.finish());
//!     Ok(parts)
//! }
//!
//! # type Cpu = emberlm::NdArray<f32>;
//! # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/nano_compact");
//! assert!(!ask::<Cpu>(dir, "Is it raining in Oslo?", &Default::default())?.is_empty());
//! # Ok::<(), emberlm::model::Error>(())
//! ```
//!
//! A program with threads hands its requests to an engine on a thread of its own
//! ([`EngineHandle`](model::engine::EngineHandle)):
//!
//! ```
//! use std::sync::mpsc;
//!
//! use emberlm::prelude::*;
//!
//! /// Continues a text; from any thread.
//! fn continue_text(handle: &EngineHandle, prompt: Vec<u32>) -> std::result::Result<String, Box<dyn std::error::Error>> {
//!     let (sender, updates) = mpsc::channel();
//!     let request = Request { max_tokens: 16, ..Request::new(prompt) };
//!     // Called on the engine's thread, where it must not block; `false` cancels the request, and so does dropping the ticket.
//!     let _ticket = handle.submit(request, move |update| sender.send(update).is_ok())?;
//!     let mut text = String::new();
//!     for update in updates {
//!         match update {
//!             EventKind::Token(piece) => text.push_str(&piece.text),
//!             EventKind::Failed(error) => return Err(error.into()),
//!             _ => {}
//!         }
//!     }
//!     Ok(text)
//! }
//!
//! # type Cpu = emberlm::NdArray<f32>;
//! # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/crest_k4");
//! let pretrained = Pretrained::open(dir)?;
//! let (text, model) = (pretrained.text()?, pretrained.load::<Cpu>(&Default::default())?);
//! let handle = EngineHandle::spawn(model, &text, EngineOptions::default(), HandleOptions::default())?;
//! assert!(!continue_text(&handle, text.encode("Once upon a time", true)?)?.is_empty());
//! assert!(handle.join(None), "it has ended");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Before loading
//! [`Pretrained::open`](model::Pretrained::open) reads headers and configs alone. What weights and caches will take is known then:
//!
//! ```
//! use emberlm::prelude::*;
//!
//! type Cpu = emberlm::NdArray<f32>;
//! # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/crest_k4");
//! let pretrained = Pretrained::open(dir)?.quantize(QuantizeOnLoad::Nf4);
//! // Every tensor is checked too. What is left beside them are numbers of a pass, the tokenizer and the program.
//! let plan = pretrained.plan::<Cpu>(&Default::default())?;
//! let cache = pretrained.architecture().cache_bytes(4096, KvFormat::F16);
//! println!("{} bytes of weights, {} while they load, {cache} of cache", plan.weight_bytes(), plan.peak_bytes());
//! for note in pretrained.notes() {
//!     println!("{note}");
//! }
//! # Ok::<(), emberlm::model::Error>(())
//! ```
//!
//! # Threads
//! Everything that is loaded can be shared between threads: each may have a [`Generator`](model::generate::Generator) of its own with the same
//! [`CausalLm`](model::CausalLm). But every operation uses all cores, and each text reads all weights by itself: several texts at once are what an
//! [`Engine`](model::engine::Engine) is for, whose [`EngineHandle`](model::engine::EngineHandle) takes requests from any thread.
//!
//! # Training
//! [`Pretrained::trainable`](model::Pretrained::trainable) loads every matrix as plain numbers, which have gradients on [`Autodiff`] of a
//! backend: as they are stored, 16-bit and quantised matrices have none. [`forward_uncached`](model::CausalLm::forward_uncached) is
//! the pass, and [`Pretrained::save`](model::Pretrained::save) writes the model with its tokenizer.
//!
//! ```
//! use emberlm::Autodiff;
//! use emberlm::burn::module::AutodiffModule;
//! use emberlm::burn::nn::loss::CrossEntropyLossConfig;
//! use emberlm::burn::optim::{AdamWConfig, GradientsParams, Optimizer};
//! use emberlm::burn::tensor::{Int, Tensor};
//! use emberlm::model::{ForwardOptions, LogitsFor};
//! use emberlm::prelude::*;
//!
//! type Cpu = emberlm::NdArray<f32>;
//! # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/crest_k2");
//! # let folder = tempfile::tempdir().expect("a folder");
//! # let to = folder.path().join("trained");
//! let device = Default::default();
//! let pretrained = Pretrained::open(dir)?.trainable();
//! let text = pretrained.text()?;
//! let mut model = pretrained.load::<Autodiff<Cpu>>(&device)?;
//! let mut optimizer = AdamWConfig::new().init();
//! let ids = text.encode("Once upon a time there was a fox.", true)?;
//! let (inputs, targets) = (&ids[..ids.len() - 1], &ids[1..]);
//! for _ in 0..2 {
//!     let rows = model.ids(inputs)?.reshape([1, inputs.len()]);
//!     let options = ForwardOptions { logits: LogitsFor::All, hidden: false };
//!     let logits = model.forward_uncached(rows, options)?.logits.expect("all of them");
//!     let targets: Vec<i64> = targets.iter().map(|&id| id.into()).collect();
//!     let targets = Tensor::<Autodiff<Cpu>, 1, Int>::from_data(targets.as_slice(), &device);
//!     let loss = CrossEntropyLossConfig::new().init(&device).forward(logits, targets);
//!     let gradients = GradientsParams::from_grads(loss.backward(), &model);
//!     model = optimizer.step(1e-4, model, gradients);
//! }
//! pretrained.save(&model.valid(), &to)?;
//! # Ok::<(), emberlm::model::Error>(())
//! ```
//!
//! # Where things are
//! [`nn`] has the layers, to build and train from a config; [`model`] opens checkpoints, defines the families and generates text; [`quant`] has the number formats, the packed weights and
//! the operations that a backend may override. `ARCHITECTURE.md` in the repository is the map.
//!
//! # Features
//! `ndarray`, on by default, runs on the processor by [`NdArray`]. `grammar` keeps answers to JSON schemas, `hub` gets models by their names; `flex`, `wgpu`, `vulkan`, `metal` and
//! `cuda` add backends. The program `ember`, with its server, is a crate of its own: `ember-lm`.
//!
//! # Debug builds
//! Unoptimised kernels are too slow for real models. Profiles of dependencies do not count: `[profile.dev.package.emberlm-backends]` with
//! `opt-level = 3`, in the `Cargo.toml` of your own workspace, optimises them alone.
//!
//! # Untrusted input
//! Checkpoints, tokenizers and chat templates are treated as written by strangers: every file is bounded and validated before it
//! is used, and what is wrong is an [`Error`](model::Error) that names the file and the place. `SECURITY.md` says what is defended.

pub mod demo;
pub mod nn;

/// Burn itself, in the version that the operations are for.
pub use burn;
pub use burn_autodiff::Autodiff;
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
    pub use emberlm_model::engine::{
        Engine, EngineHandle, EngineOptions, Event, EventKind, HandleOptions, Request, SequenceId,
    };
    pub use emberlm_model::generate::{
        CancelHandle, Finish, GenerateOptions, Generator, Piece, Pieces, Summary, Trace,
    };
    pub use emberlm_model::sampling::SamplingConfig;
    pub use emberlm_model::text::{ChatOptions, Message, StopSet, TextProcessor};
    pub use emberlm_model::{CausalLm, DepthOptions, Error, Pretrained, QuantizeOnLoad, Result, Span, WeightOptions};
    pub use emberlm_quant::kv::KvFormat;
    pub use emberlm_quant::{Activations, CompactBackend};
}
