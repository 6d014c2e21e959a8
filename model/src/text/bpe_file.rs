//! `tokenizer.json` of byte-pair encoding, read as what it is.
//!
//! The tokenizer library finds out what kind a vocabulary is, and how its merges are written, in trees of values of all of it: twice the
//! time and memory. What is read here is built by the library as from its own reading; what is not, the library reads.

use std::fmt;

use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PaddingParams, PostProcessorWrapper,
    PreTokenizerWrapper, Tokenizer, TokenizerBuilder, TruncationParams,
};

/// A token that is found in a text as a whole, and the id that its file declares.
#[derive(Debug, Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    #[serde(flatten)]
    pub(super) token: AddedToken,
}

/// The tokenizer of a file whose kind is BPE, and the tokens that the file adds; `None` for another kind, a file with more in it, and one with a fault.
pub(super) fn parse(json: &[u8]) -> Option<(Tokenizer, Vec<Added>)> {
    let file: File = serde_json::from_slice(json).ok()?;
    if file.version != VERSION {
        return None;
    }
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(ModelWrapper::from(file.model.build()?))
        .with_normalizer(file.normalizer)
        .with_pre_tokenizer(file.pre_tokenizer)
        .with_post_processor(file.post_processor)
        .with_decoder(file.decoder)
        .with_truncation(file.truncation)
        .with_padding(file.padding)
        .build()
        .ok()?;
    tokenizer.add_tokens(file.added_tokens.iter().map(|added| added.token.clone())).ok()?;
    Some((Tokenizer::from(tokenizer), file.added_tokens))
}

/// The one version there is.
const VERSION: &str = "1.0";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "version")]
    version: String,
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
    truncation: Option<TruncationParams>,
    padding: Option<PaddingParams>,
    model: Model,
}

fn version() -> String {
    VERSION.to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    #[serde(default, rename = "type")]
    _kind: Kind,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: Vocab,
    merges: Merges,
}

/// Other kinds name themselves before their vocabulary, as a rule: then none of it is read here.
#[derive(Deserialize, Default)]
enum Kind {
    #[default]
    #[serde(rename = "BPE")]
    Bpe,
}

impl Model {
    fn build(self) -> Option<BPE> {
        let mut builder = BpeBuilder::new().vocab_and_merges(self.vocab, self.merges.0);
        if let Some(dropout) = self.dropout {
            builder = builder.dropout(dropout);
        }
        if let Some(token) = self.unk_token {
            builder = builder.unk_token(token);
        }
        if let Some(prefix) = self.continuing_subword_prefix {
            builder = builder.continuing_subword_prefix(prefix);
        }
        if let Some(suffix) = self.end_of_word_suffix {
            builder = builder.end_of_word_suffix(suffix);
        }
        let flags = [self.fuse_unk, self.byte_fallback, self.ignore_merges].map(Option::unwrap_or_default);
        let [fuse_unk, byte_fallback, ignore_merges] = flags;
        builder.fuse_unk(fuse_unk).byte_fallback(byte_fallback).ignore_merges(ignore_merges).build().ok()
    }
}

/// Pairs of texts, or texts of two parts with a space between them, as older files have them.
struct Merges(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Merges;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merges, A::Error> {
                let (mut merges, mut kind) = (Vec::new(), None);
                while let Some(Merge { pair, spelling }) = list.next_element()? {
                    // The library takes lists of one kind alone.
                    if *kind.get_or_insert(spelling) != spelling {
                        return Err(A::Error::custom("merges are spelled in two ways"));
                    }
                    merges.push(pair);
                }
                Ok(Merges(merges))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

struct Merge {
    pair: (String, String),
    spelling: Spelling,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Pair,
    Text,
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pair of texts, or two with a space between them")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Merge, E> {
                let mut parts = text.split(' ');
                match (parts.next(), parts.next(), parts.next()) {
                    // A line of another file's heading is passed over by the library.
                    (Some(first), Some(second), None) if !text.starts_with("#version") => {
                        Ok(Merge { pair: (first.to_owned(), second.to_owned()), spelling: Spelling::Text })
                    }
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Merge, A::Error> {
                let (Some(first), Some(second)) = (parts.next_element()?, parts.next_element()?) else {
                    return Err(A::Error::custom("a merge of one part"));
                };
                // A third one is an error of the parser.
                Ok(Merge { pair: (first, second), spelling: Spelling::Pair })
            }
        }
        deserializer.deserialize_any(Either)
    }
}
