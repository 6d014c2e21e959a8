//! A byte-level BPE tokenizer, trained on the stories.

use std::path::Path;

use anyhow::{Result, anyhow};
use emberlm::model::text::{TextFiles, TextProcessor};
use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split as SplitOn, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer as Inner, TokenizerBuilder};

use crate::data::{Class, Document, END, IM_END, IM_START, Split, document};
use crate::random::Random;

/// Tokens, the 256 bytes and the special ones included.
pub const VOCABULARY: usize = 640;

/// Documents that the merges are learned from, and their stream of random numbers.
const DOCUMENTS: usize = 6000;
const STREAM: u64 = 1 << 40;

/// A word with the space before it, one digit, punctuation, white space.
const PIECES: &str = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+";

const CHAT_TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

pub struct Tokenizer(Inner);

impl Tokenizer {
    /// Learns the merges from the training text of a seed.
    pub fn train(seed: u64) -> Result<Self> {
        let bpe = BPE::builder().build().map_err(error)?;
        let split = SplitOn::new(SplitPattern::Regex(PIECES.into()), SplitDelimiterBehavior::Isolated, false);
        let bytes = ByteLevel::new(false, false, false);
        let mut inner = TokenizerBuilder::new()
            .with_model(bpe)
            .with_pre_tokenizer(Some(Sequence::new(vec![split.map_err(error)?.into(), bytes.into()])))
            .with_decoder(Some(bytes))
            .with_normalizer(None::<tokenizers::NormalizerWrapper>)
            .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
            .build()
            .map_err(error)?;
        let mut trainer = BpeTrainer::builder()
            .vocab_size(VOCABULARY - 3)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut random = Random::new(seed, STREAM);
        let texts: Vec<String> = (0..DOCUMENTS).map(|_| document(&mut random, Split::Train).text).collect();
        // What the special tokens are called is no text.
        let texts = texts.iter().map(|text| text.replace(END, "").replace(IM_START, "").replace(IM_END, ""));
        inner.train(&mut trainer, texts).map_err(error)?;
        let special = [END, IM_START, IM_END].map(|token| AddedToken::from(token, true).normalized(false));
        inner.add_special_tokens(special).map_err(error)?;
        Ok(Self(inner.into()))
    }

    pub fn vocab_size(&self) -> usize {
        self.0.get_vocab_size(true)
    }

    /// The ids of a document and the class of each.
    pub fn encode(&self, document: &Document) -> Result<(Vec<u32>, Vec<Class>)> {
        let encoding = self.0.encode(document.text.as_str(), false).map_err(error)?;
        let classes = encoding.get_offsets().iter().map(|&(_, end)| document.class_at(end)).collect();
        Ok((encoding.get_ids().to_vec(), classes))
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`.
    pub fn save(&self, directory: &Path) -> Result<()> {
        self.0.save(directory.join("tokenizer.json"), false).map_err(error)?;
        let config = json!({
            "bos_token": null,
            "eos_token": END,
            "pad_token": END,
            "unk_token": null,
            "add_bos_token": false,
            "clean_up_tokenization_spaces": false,
            "tokenizer_class": "Qwen2Tokenizer",
            "chat_template": CHAT_TEMPLATE,
        });
        std::fs::write(directory.join("tokenizer_config.json"), serde_json::to_string_pretty(&config)?)?;
        // What was written must be what the library reads.
        TextProcessor::from_files(&TextFiles::read(directory)?)?;
        Ok(())
    }
}

fn error(error: tokenizers::Error) -> anyhow::Error {
    anyhow!("tokenizer: {error}")
}
