//! Text to ids and back, with everything a model directory says about its text.

use std::path::Path;
use std::sync::Arc;

use serde_json::Map;
use tokenizers::Tokenizer;

use super::byte_tokens::{is_byte_level, push_token_bytes, single_byte};
use super::catch_panic::catch_panic;
use super::chat::{ChatOptions, ChatTemplate, Message};
use super::class;
use super::files::{TextFiles, check_json, parse_object};
use super::special_tokens::{Declared, SpecialTokens};
use super::templates::Templates;
use super::tokenizer_file;
use crate::{Error, Result};

/// What a token is to its tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Part of the vocabulary, or no token at all.
    Ordinary,
    /// Found in a text as a whole, before the rest is cut into ordinary tokens.
    Added,
    /// Added, and left out of decoded text on demand.
    Special,
}

/// Tokenizer, special tokens and chat templates of one model. Clones share one copy; use from several threads is fine.
#[derive(Debug, Clone)]
pub struct TextProcessor {
    inner: Arc<Inner>,
    /// Rows of the embedding that the ids are for, where that is known.
    rows: Option<usize>,
}

#[derive(Debug)]
struct Inner {
    tokenizer: Tokenizer,
    special: SpecialTokens,
    templates: Templates,
}

impl TextProcessor {
    /// Reads the [text files](TextFiles) of a model directory.
    ///
    /// # Errors
    /// See [`TextFiles::read`] and [`Self::from_files`].
    pub fn from_dir(directory: &Path) -> Result<Self> {
        Self::from_files(&TextFiles::read(directory)?)
    }

    /// Parses the files.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer library refuses the file or panics on it, or when an added token does not get the
    /// id that `tokenizer.json` declares; [`Error::Source`] and [`Error::Config`] for the other files, and for one that is empty, a
    /// git-lfs pointer or a web page. A template that does not parse is an error when a chat is rendered, not here.
    pub fn from_files(files: &TextFiles) -> Result<Self> {
        let path = files.directory.join("tokenizer.json");
        check_json(&files.tokenizer_json, &path)?;
        let config = match &files.tokenizer_config {
            Some(bytes) => parse_object(bytes, &files.directory.join("tokenizer_config.json"))?,
            None => Map::new(),
        };
        let in_file = |e| match e {
            Error::Tokenizer(message) => Error::Tokenizer(format!("{}: {message}", path.display())),
            other => other,
        };
        let rebuilt = class::rebuild(&files.tokenizer_json, &config).map_err(in_file)?;
        let json = rebuilt.as_deref().unwrap_or(&files.tokenizer_json);
        let parsed = tokenizer_file::parse(json).map_err(in_file)?;
        parsed.check_added_tokens()?;
        let mut tokenizer = parsed.tokenizer;
        let declared = Declared::parse(files, &config)?;
        declared.add_to(&mut tokenizer)?;
        let special = declared.special_tokens(&tokenizer);
        warn_of_ignored(&declared, &tokenizer, &special)?;
        let templates = Templates::new(files, &config);
        Ok(Self { inner: Arc::new(Inner { tokenizer, special, templates }), rows: None })
    }

    /// The same processor for a model whose embedding has `rows` rows: encoding then refuses a text with a token beyond them.
    /// Tokenizers may have such tokens, as one that was added for training and that no text holds.
    #[must_use]
    pub fn for_embedding(self, rows: usize) -> Self {
        Self { rows: Some(rows), ..self }
    }

    /// The same processor without that check, for looking at tokens.
    #[must_use]
    pub fn without_embedding(self) -> Self {
        Self { rows: None, ..self }
    }

    /// Rows of the embedding that the ids are for, where that is known.
    pub fn embedding(&self) -> Option<usize> {
        self.rows
    }

    /// The ids of a text. With `add_special`, also those that the tokenizer puts around a text, such as a leading BOS; that is as
    /// `tokenizer.json` has it, as in transformers 5, whatever `add_bos_token` says. The text of special tokens becomes those tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer fails; [`Error::Prompt`] when a token is beyond the [embedding](Self::for_embedding).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let tokenizer = &self.inner.tokenizer;
        let encoding = catch_panic(|| tokenizer.encode_fast(text, add_special))?;
        self.check_ids(encoding.get_ids())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Whether every id has a row in the embedding.
    pub(super) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let Some(rows) = self.rows else { return Ok(()) };
        let beyond = |id: &&u32| usize::try_from(**id).map_or(true, |id| id >= rows);
        let Some(&id) = ids.iter().find(beyond) else { return Ok(()) };
        let token = self.token(id).unwrap_or_default();
        Err(Error::Prompt(format!(
            "token {token:?} has id {id}, but the embedding of this model has {rows} rows; leave it out of the text, or take the \
             tokenizer and the weights of one model"
        )))
    }

    /// The text of `ids`, exactly as the tokens spell it: spaces before punctuation are not cleaned up. With `skip_special`,
    /// special tokens are left out. Ids without a token, as padded vocabularies have, give nothing.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        catch_panic(|| self.inner.tokenizer.decode(ids, skip_special))
    }

    /// The id of a token by its text in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// The token of an id as the vocabulary spells it (byte-level tokens in their printable alphabet).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.tokenizer.id_to_token(id)
    }

    /// The bytes that a token stands for, with byte-level tokenizers and for tokens of one byte (`<0xE6>`); `None` for others.
    pub fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.token(id)?;
        if let Some(byte) = single_byte(&token) {
            return Some(vec![byte]);
        }
        let byte_level = is_byte_level(&self.inner.tokenizer);
        let mut bytes = Vec::new();
        if byte_level {
            push_token_bytes(&token, &mut bytes);
        }
        byte_level.then_some(bytes)
    }

    /// What the token of an id is to the tokenizer.
    pub fn kind(&self, id: u32) -> TokenKind {
        match self.inner.tokenizer.get_added_vocabulary().get_added_tokens_decoder().get(&id) {
            None => TokenKind::Ordinary,
            Some(token) if token.special => TokenKind::Special,
            Some(_) => TokenKind::Added,
        }
    }

    /// Every token as the vocabulary spells it and its id, by id; added ones included.
    pub fn vocabulary(&self) -> Vec<(u32, String)> {
        let tokens = self.inner.tokenizer.get_vocab(true);
        let mut tokens: Vec<(u32, String)> = tokens.into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort_unstable();
        tokens
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

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        !self.inner.templates.is_empty()
    }

    /// The prompt text of a chat.
    ///
    /// # Errors
    /// [`Error::Template`] when there is no template, or when it fails; with the line.
    pub fn render_chat(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        let template = self.inner.templates.choose(options)?;
        template.render(messages, options, self.inner.special.names())
    }

    /// Whether a variable of the options, such as `tools` or `enable_thinking`, makes a difference to the prompt of a chat, or to that of
    /// one question: whether the prompt is another without it, or with the other value where it is true or false. Templates say nothing
    /// about variables that they do not read.
    ///
    /// # Errors
    /// [`Error::Template`] when there is no template, or when it does not parse.
    pub fn template_reads(&self, name: &str, messages: &[Message], options: &ChatOptions) -> Result<bool> {
        // The one that is chosen with the variable: tools may have a template of their own.
        let template = self.chat_template(options)?;
        let Some(value) = options.variables.get(name) else { return Ok(false) };
        let with = ChatOptions { now: Some(options.time()), ..options.clone() };
        let mut without = with.clone();
        without.variables.remove(name);
        let negated = value.as_bool().map(|on| with.clone().with(name, !on));
        let others: Vec<ChatOptions> = [without].into_iter().chain(negated).collect();
        let differs = |messages: &[Message]| {
            let render = |options| template.render(messages, options, self.inner.special.names()).ok();
            let rendered = render(&with);
            others.iter().any(|other| render(other) != rendered)
        };
        Ok(differs(messages) || differs(&[Message::user("a")]))
    }

    /// The template that renders a chat with these options.
    ///
    /// # Errors
    /// [`Error::Template`] when there is none, or when it does not parse.
    pub fn chat_template(&self, options: &ChatOptions) -> Result<&ChatTemplate> {
        self.inner.templates.choose(options)
    }

    /// The tokenizer itself, for the parts of this module.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }
}

/// Says where `add_bos_token` or `add_eos_token` disagree with what the post-processor of `tokenizer.json` adds.
fn warn_of_ignored(declared: &Declared, tokenizer: &Tokenizer, special: &SpecialTokens) -> Result<()> {
    if declared.add.iter().all(|(_, wanted)| wanted.is_none()) {
        return Ok(());
    }
    let around = catch_panic(|| tokenizer.encode_fast("", true))?;
    let ends = [around.get_ids().first(), around.get_ids().last()];
    for ((name, wanted), (token, end)) in declared.add.iter().zip([&special.bos, &special.eos].into_iter().zip(ends)) {
        let (Some(wanted), Some(id)) = (wanted, token.as_ref().and_then(|t| t.id)) else { continue };
        if *wanted != (end == Some(&id)) {
            let adds = if *wanted { "adds none" } else { "adds one" };
            tracing::warn!(
                "tokenizer_config.json says {name} {wanted}, but tokenizer.json {adds}; tokenizer.json counts, as in transformers 5"
            );
        }
    }
    Ok(())
}
