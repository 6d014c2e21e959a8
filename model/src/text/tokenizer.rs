//! Text to ids and back, with everything a model directory says about its text.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use tokenizers::Tokenizer;

use super::chat::{ChatOptions, ChatTemplate, Message};
use super::decode_stream::DecodeStream;
use super::files::TextFiles;
use super::literal;
use super::special_tokens::{self, SpecialTokens, TokenizerConfig};
use crate::{Error, Result};

/// How the text of special tokens inside messages is encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SpecialText {
    /// As the special token, like transformers.
    #[default]
    Parse,
    /// As ordinary text in messages of the roles `user` and `tool`; elsewhere as the special token.
    Literal,
}

/// Tokenizer, special tokens and chat templates of one model. Clones share one copy; use from several threads is fine.
#[derive(Debug, Clone)]
pub struct TextProcessor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tokenizer: Tokenizer,
    special: SpecialTokens,
    templates: Vec<NamedTemplate>,
    /// One above the largest id.
    id_bound: usize,
    bos: BosRule,
}

/// A template, or why it does not parse: a model with a broken template still completes plain prompts.
#[derive(Debug)]
struct NamedTemplate {
    name: String,
    parsed: std::result::Result<ChatTemplate, String>,
}

/// What to do with the ids that the post-processor of `tokenizer.json` gives when `tokenizer_config.json` disagrees.
#[derive(Debug, Clone, Copy)]
enum BosRule {
    Keep,
    Insert(u32),
    Remove,
}

impl TextProcessor {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` and `chat_template.json` of a model directory.
    ///
    /// # Errors
    /// See [`TextFiles::read`] and [`Self::from_files`].
    pub fn from_dir(directory: &Path) -> Result<Self> {
        Self::from_files(&TextFiles::read(directory)?)
    }

    /// Parses the files. `chat_template.jinja` wins over `chat_template.json`, and that over `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer library refuses the file or panics on it, or when an added token does not get the
    /// id that the file declares; [`Error::Source`] and [`Error::Config`] for the other files. A template that does not parse is
    /// an error when a chat is rendered, not here.
    pub fn from_files(files: &TextFiles) -> Result<Self> {
        let tokenizer = load(&files.tokenizer_json)?;
        check_added_tokens(&tokenizer, &files.tokenizer_json)?;
        let path = files.directory.join("tokenizer_config.json");
        let config = match &files.tokenizer_config {
            Some(bytes) => TokenizerConfig::parse(bytes, &path, |t| tokenizer.token_to_id(t))?,
            None => TokenizerConfig::default(),
        };
        let templates = templates(files, config.templates)?;
        let largest = contain(|| Ok(tokenizer.get_vocab(true).into_values().max()))?;
        let bos = bos_rule(&tokenizer, &config.special, config.add_bos_token)?;
        Ok(Self {
            inner: Arc::new(Inner {
                special: config.special,
                templates,
                id_bound: largest.map_or(0, |id| id as usize + 1),
                bos,
                tokenizer,
            }),
        })
    }

    /// The ids of a text. With `add_special`, also those that the tokenizer puts around a text, such as a leading BOS. The text of
    /// special tokens becomes those tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer fails.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let tokenizer = &self.inner.tokenizer;
        let encoding = contain(|| tokenizer.encode_fast(text, add_special))?;
        let mut ids = encoding.get_ids().to_vec();
        match self.inner.bos {
            BosRule::Insert(bos) if add_special => ids.insert(0, bos),
            BosRule::Remove if add_special && !ids.is_empty() => drop(ids.remove(0)),
            _ => {}
        }
        Ok(ids)
    }

    /// The text of `ids`, exactly as the tokens spell it: spaces before punctuation are not cleaned up. With `skip_special`,
    /// special tokens are left out. Ids without a token, as padded vocabularies have, give nothing.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        contain(|| self.inner.tokenizer.decode(ids, skip_special))
    }

    /// A stream that turns generated ids into text as they come.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream {
        DecodeStream::new(self.clone(), skip_special)
    }

    /// The id of a token by its text in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// The token of an id as the vocabulary spells it (byte-level tokens in their printable alphabet).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.tokenizer.id_to_token(id)
    }

    /// Tokens known, added ones included. The embedding of a model may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.tokenizer.get_vocab_size(true)
    }

    /// Tokens with a role: BOS, EOS, padding, unknown.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.inner.special
    }

    /// The id of the EOS token, for [`StopSet::union`](super::StopSet::union).
    pub fn eos_id(&self) -> Option<u32> {
        self.inner.special.eos.as_ref()?.id
    }

    /// Checks that every id the tokenizer can give has a row in an embedding of `rows` rows.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with the largest id.
    pub fn check_vocabulary(&self, rows: usize) -> Result<()> {
        let bound = self.inner.id_bound;
        if bound <= rows {
            return Ok(());
        }
        let id = u32::try_from(bound - 1).unwrap_or(u32::MAX);
        let token = self.token(id).unwrap_or_default();
        Err(Error::Tokenizer(format!(
            "token {token:?} has id {id}, but the model has {rows} embedding rows; tokenizer.json and the weights belong to different models"
        )))
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        !self.inner.templates.is_empty()
    }

    /// The prompt text of a chat.
    ///
    /// # Errors
    /// [`Error::Template`] when there is no template, or when it fails; with the line.
    pub fn render_chat(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        let template = self.template(options)?;
        template.render(messages, options, self.inner.special.names())
    }

    /// The prompt ids of a chat. The template has written its special tokens, so none are added again.
    ///
    /// # Errors
    /// As [`Self::render_chat`] and [`Self::encode`].
    pub fn encode_chat(&self, messages: &[Message], options: &ChatOptions) -> Result<Vec<u32>> {
        match options.special_text {
            SpecialText::Parse => self.encode(&self.render_chat(messages, options)?, false),
            SpecialText::Literal => literal::encode_chat(self, messages, options),
        }
    }

    /// The template that the options ask for: by name, or `tool_use` when there are tools and the model has one, or the default.
    fn template(&self, options: &ChatOptions) -> Result<&ChatTemplate> {
        let templates = &self.inner.templates;
        let find = |name: &str| templates.iter().find(|t| t.name == name);
        let known = || {
            let names: Vec<&str> = templates.iter().map(|t| t.name.as_str()).collect();
            names.join(", ")
        };
        let found = match &options.template {
            Some(name) => find(name).ok_or_else(|| format!("none is called {name:?}")),
            None => {
                let for_tools = options.has_tools().then(|| find("tool_use")).flatten();
                let found = for_tools.or_else(|| find("default"));
                found.ok_or_else(|| "none is called \"default\"".to_owned())
            }
        };
        match found {
            Ok(template) => template.parsed.as_ref().map_err(|e| Error::Template(e.clone())),
            Err(_) if templates.is_empty() => Err(Error::Template(
                "this model has none (no chat_template.jinja and no chat_template in tokenizer_config.json); give it a plain prompt instead".to_owned(),
            )),
            Err(message) => Err(Error::Template(format!("{message}; there are: {}", known()))),
        }
    }

    /// The tokenizer itself, for the parts of this module.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }
}

/// Parses `tokenizer.json`, without the truncation and padding it may ask for: a prompt is never cut silently.
fn load(json: &[u8]) -> Result<Tokenizer> {
    contain(|| {
        let mut tokenizer = Tokenizer::from_bytes(json)?;
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        Ok(tokenizer)
    })
}

/// Checks that added tokens have their declared ids. The library numbers them by position and only logs a difference; the model
/// would then be fed other tokens than it was trained on.
fn check_added_tokens(tokenizer: &Tokenizer, json: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    let file: File = serde_json::from_slice(json).map_err(|e| Error::Tokenizer(format!("tokenizer.json: {e}")))?;
    for Added { id, content } in file.added_tokens {
        let found = tokenizer.token_to_id(&content);
        // An empty text is never a token; the library drops it.
        if found != Some(id) && !content.is_empty() {
            let found = found.map_or("no id".to_owned(), |id| format!("id {id}"));
            return Err(Error::Tokenizer(format!(
                "tokenizer.json: added token {content:?} declares id {id} but gets {found}; the ids of added tokens must continue the vocabulary"
            )));
        }
    }
    Ok(())
}

/// The templates of a model directory, from the file that wins.
fn templates(files: &TextFiles, in_config: Vec<(String, String)>) -> Result<Vec<NamedTemplate>> {
    let sources = if let Some(bytes) = &files.chat_template_jinja {
        let path = files.directory.join("chat_template.jinja");
        let source = String::from_utf8(bytes.clone())
            .map_err(|e| Error::Source { path, message: format!("is not UTF-8: {e}") })?;
        vec![("default".to_owned(), source)]
    } else if let Some(bytes) = &files.chat_template_json {
        let path = files.directory.join("chat_template.json");
        special_tokens::templates(&special_tokens::parse_object(bytes, &path)?, &path)?
    } else {
        in_config
    };
    let parse = |(name, source): (String, String)| {
        let parsed = match ChatTemplate::new(name.clone(), source) {
            Ok(template) => Ok(template),
            Err(Error::Template(message)) => {
                tracing::warn!("chat template {name:?}: {message}");
                Err(message)
            }
            Err(other) => return Err(other),
        };
        Ok(NamedTemplate { name, parsed })
    };
    sources.into_iter().map(parse).collect()
}

/// Compares `add_bos_token` with what the post-processor does.
fn bos_rule(tokenizer: &Tokenizer, special: &SpecialTokens, add_bos_token: Option<bool>) -> Result<BosRule> {
    let (Some(bos), Some(wanted)) = (special.bos.as_ref().and_then(|t| t.id), add_bos_token) else {
        return Ok(BosRule::Keep);
    };
    let empty = contain(|| tokenizer.encode_fast("", true))?;
    let added = empty.get_ids().first() == Some(&bos);
    Ok(match (wanted, added) {
        (true, false) => BosRule::Insert(bos),
        (false, true) => BosRule::Remove,
        _ => BosRule::Keep,
    })
}

/// Runs the tokenizer library, which panics on some crafted files and texts, and turns a panic into an error.
pub(super) fn contain<T>(run: impl FnOnce() -> std::result::Result<T, tokenizers::Error>) -> Result<T> {
    // The tokenizer is only read (or just being made) here, so no half-changed state survives a panic.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|e| Error::Tokenizer(e.to_string())),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(Error::Tokenizer(format!(
                "the tokenizer library failed on this file or text ({message}); tokenizer.json is probably damaged"
            )))
        }
    }
}
