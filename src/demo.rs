//! A small trained model that is part of the crate: CREST with four steps, trained by `examples/train_tiny`.
//!
//! It writes short stories, adds, counts, sorts and copies, and thinks longer about some tokens than about others.
//!
//! ```
//! use emberlm::demo;
//! use emberlm::prelude::*;
//!
//! type Cpu = emberlm::NdArray<f32>;
//! let pretrained = demo::open()?;
//! let text = pretrained.text()?;
//! let model = pretrained.load::<Cpu>(&Default::default())?;
//! let options = GenerateOptions { stop_tokens: pretrained.stop_tokens(&text), ..Default::default() };
//! let pieces = Generator::new(&model, &text, options)?.run(&text.encode("Once upon a time", true)?)?;
//! let story: String = pieces.map(|piece| Ok(piece?.text)).collect::<Result<_>>()?;
//! assert!(story.contains('.'));
//! # Ok::<(), emberlm::model::Error>(())
//! ```

use emberlm_model::checkpoint::{Checkpoint, EmbeddedFile};
use emberlm_model::{Pretrained, Result};

/// What stands for its directory in messages.
const NAME: &str = "demo";

/// Weights are read where they lie, in words.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../demo/model.safetensors"));

static FILES: &[EmbeddedFile] = &[
    ("config.json", include_bytes!("../demo/config.json")),
    ("generation_config.json", include_bytes!("../demo/generation_config.json")),
    ("model.safetensors", &WEIGHTS.0),
    ("tokenizer.json", include_bytes!("../demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
];

/// The model, opened; it loads as any other does.
///
/// # Errors
/// None that a caller could cause.
pub fn open() -> Result<Pretrained> {
    Pretrained::from_checkpoint(&Checkpoint::open_embedded(NAME, FILES)?)
}
