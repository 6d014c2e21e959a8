//! Special tokens and added tokens, collected from the files of a model as transformers 5 collects them.
//!
//! `tokenizer.json` holds the vocabulary and most added tokens. `tokenizer_config.json` names the tokens with a role and may add
//! tokens (`added_tokens_decoder`, `extra_special_tokens`, or `additional_special_tokens` before version 5). Only where it has no
//! `added_tokens_decoder` are the older files `special_tokens_map.json`, which then wins over it, and `added_tokens.json` read.
//! Source: `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__` of transformers 5.23.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::catch_panic::catch_panic;
use super::class;
use super::files::{TextFiles, parse_object};
use crate::{Error, Result};

/// Roles that every tokenizer can have, in the order in which their tokens are added.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token with a role, as the files of a model name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its text, which templates print.
    pub text: String,
    /// Its id; `None` when the vocabulary does not hold the text.
    pub id: Option<u32>,
}

/// The tokens with a role. A role without a token is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<SpecialToken>,
    /// Ends a text or a turn.
    pub eos: Option<SpecialToken>,
    /// Fills a batch.
    pub pad: Option<SpecialToken>,
    /// Stands for unknown text.
    pub unk: Option<SpecialToken>,
    /// The other named roles (`sep_token`, `cls_token`, `mask_token` and those of one model, as `image_token`), for templates.
    pub(crate) other: Vec<(String, String)>,
}

impl SpecialTokens {
    /// Names and texts as a template sees them: roles without a token are left out.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        let roles =
            [("bos_token", &self.bos), ("eos_token", &self.eos), ("unk_token", &self.unk), ("pad_token", &self.pad)];
        roles
            .into_iter()
            .filter_map(|(name, token)| Some((name, token.as_ref()?.text.as_str())))
            .chain(self.other.iter().map(|(n, t)| (n.as_str(), t.as_str())))
    }
}

/// A token that a file names: by its text alone, or with the rules by which it is found in a text.
#[derive(Debug, Clone)]
struct Named {
    text: String,
    rules: Option<AddedToken>,
}

impl Named {
    fn token(&self) -> AddedToken {
        self.rules.clone().unwrap_or_else(|| AddedToken::from(self.text.as_str(), true))
    }
}

/// What the files say about tokens.
#[derive(Debug, Default)]
pub(super) struct Declared {
    roles: Vec<(String, Named)>,
    extra: Vec<Named>,
    /// By the id that the file gives.
    added: BTreeMap<i64, AddedToken>,
    /// Whether the tokenizer class of transformers adds its special tokens once more with plain rules.
    plain_rules: bool,
    /// `add_bos_token` and `add_eos_token`, which transformers 5 leaves to `tokenizer.json`.
    pub(super) add: [(&'static str, Option<bool>); 2],
}

impl Declared {
    /// Reads what the files say.
    ///
    /// # Errors
    /// [`Error::Source`] when a file is no JSON object, [`Error::Config`] when a value is of the wrong type.
    pub(super) fn parse(files: &TextFiles, config: &Map<String, Value>) -> Result<Self> {
        let mut values = config.clone();
        let empty = |value: Option<&Value>| match value {
            None | Some(Value::Null) => true,
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(map)) => map.is_empty(),
            Some(_) => false,
        };
        let path = files.directory.join("tokenizer_config.json");
        let mut added = BTreeMap::new();
        let rename = |values: &mut Map<String, Value>, when: bool| {
            if when && let Some(tokens) = values.remove("additional_special_tokens") {
                values.insert("extra_special_tokens".to_owned(), tokens);
            }
        };
        let without_extra = empty(values.get("extra_special_tokens"));
        rename(&mut values, without_extra);
        match values.remove("added_tokens_decoder") {
            Some(Value::Object(tokens)) => {
                for (id, token) in &tokens {
                    let place = format!("added_tokens_decoder.{id}");
                    let id: i64 = id.parse().map_err(|_| wrong(&path, &place, "the name must be a token id"))?;
                    let token = token.as_object().and_then(|token| added_token(token, false));
                    let token = token.ok_or_else(|| wrong(&path, &place, "must be an object with a text `content`"))?;
                    added.insert(id, token);
                }
            }
            Some(Value::Null) | None => read_older_files(files, &mut values, &mut added)?,
            Some(_) => return Err(wrong(&path, "added_tokens_decoder", "must be an object of ids and tokens")),
        }
        let without_extra = !values.contains_key("extra_special_tokens");
        rename(&mut values, without_extra);
        if let Some(pad) = pad_of_tokenizer(&files.tokenizer_json) {
            values.entry("pad_token").or_insert(Value::String(pad));
        }
        let class = class::name(config);
        for (role, text) in class_defaults(class, &files.tokenizer_json) {
            values.entry(*role).or_insert(Value::String((*text).to_owned()));
        }

        let (roles, extra) = roles_and_extra(&values, &path)?;
        let flag = |name: &'static str| (name, config.get(name).and_then(Value::as_bool));
        Ok(Self {
            roles,
            extra,
            added,
            plain_rules: class == "Qwen2Tokenizer",
            add: [flag("add_bos_token"), flag("add_eos_token")],
        })
    }

    /// Adds to the tokenizer what it lacks. New tokens get the next free ids, whatever id a file gives them.
    pub(super) fn add_to(&self, tokenizer: &mut Tokenizer) -> Result<()> {
        let known: HashSet<AddedToken> = tokenizer.get_added_tokens_decoder().into_values().collect();
        let mut new: Vec<AddedToken> = self.added.values().filter(|token| !known.contains(token)).cloned().collect();
        let mut texts: HashSet<String> = known.iter().chain(&new).map(|token| token.content.clone()).collect();
        for named in self.roles.iter().map(|(_, named)| named).chain(&self.extra) {
            if texts.insert(named.text.clone()) {
                new.push(named.token());
            }
        }
        let with_role: HashSet<&str> = self.roles.iter().map(|(_, named)| named.text.as_str()).collect();
        for token in &mut new {
            token.special |= with_role.contains(token.content.as_str());
        }
        catch_panic(|| {
            if !new.is_empty() {
                tokenizer.add_tokens(new)?;
            }
            if self.plain_rules {
                let all = self.roles.iter().map(|(_, named)| named).chain(&self.extra);
                let plain: Vec<AddedToken> = all.map(|named| AddedToken::from(named.text.as_str(), true)).collect();
                tokenizer.add_tokens(plain)?;
            }
            Ok(())
        })?;
        for (id, token) in &self.added {
            let found = tokenizer.token_to_id(&token.content);
            if found.map(i64::from) != Some(*id) && !token.content.is_empty() {
                let found = found.map_or("no id".to_owned(), |id| format!("id {id}"));
                tracing::warn!(
                    "added token {:?} is declared with id {id} but gets {found}, as in transformers",
                    token.content
                );
            }
        }
        Ok(())
    }

    /// The tokens with a role and their ids in the tokenizer.
    pub(super) fn special_tokens(&self, tokenizer: &Tokenizer) -> SpecialTokens {
        let mut tokens = SpecialTokens::default();
        for (role, Named { text, .. }) in &self.roles {
            let token = SpecialToken { text: text.clone(), id: tokenizer.token_to_id(text) };
            match role.as_str() {
                "bos_token" => tokens.bos = Some(token),
                "eos_token" => tokens.eos = Some(token),
                "pad_token" => tokens.pad = Some(token),
                "unk_token" => tokens.unk = Some(token),
                _ => tokens.other.push((role.clone(), token.text)),
            }
        }
        tokens
    }
}

/// Tokens that a tokenizer class of transformers has where the files name none.
fn class_defaults(class: &str, json: &[u8]) -> &'static [(&'static str, &'static str)] {
    const END: &str = "<|endoftext|>";
    match class {
        "LlamaTokenizer" if !class::is_byte_level(json) => {
            &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")]
        }
        "Qwen2Tokenizer" => &[("unk_token", END), ("eos_token", END), ("pad_token", END)],
        _ => &[],
    }
}

/// `special_tokens_map.json` and `added_tokens.json`.
fn read_older_files(
    files: &TextFiles,
    values: &mut Map<String, Value>,
    added: &mut BTreeMap<i64, AddedToken>,
) -> Result<()> {
    if let Some(bytes) = &files.special_tokens_map {
        let path = files.directory.join("special_tokens_map.json");
        for (key, value) in parse_object(bytes, &path)? {
            let value = match (key.as_str(), value) {
                ("extra_special_tokens", Value::Array(tokens)) => {
                    let mut all = values.get(&key).and_then(Value::as_array).cloned().unwrap_or_default();
                    let mut known: HashSet<Value> = all.iter().cloned().collect();
                    all.extend(tokens.into_iter().filter(|token| known.insert(token.clone())));
                    Value::Array(all)
                }
                ("extra_special_tokens", value) => value,
                (_, Value::Object(mut token)) => {
                    token.insert("special".to_owned(), Value::Bool(true));
                    Value::Object(token)
                }
                (_, value) => value,
            };
            values.insert(key, value);
        }
    }
    if let Some(bytes) = &files.added_tokens {
        let path = files.directory.join("added_tokens.json");
        let config = files.directory.join("tokenizer_config.json");
        let (roles, extra) = roles_and_extra(values, &config)?;
        let standard = roles.iter().filter(|(role, _)| ROLES.contains(&role.as_str())).map(|(_, named)| named);
        let special: HashSet<&str> = standard.chain(&extra).map(|named| named.text.as_str()).collect();
        for (text, id) in parse_object(bytes, &path)? {
            let id = id.as_i64().ok_or_else(|| wrong(&path, &text, "must be a token id"))?;
            let is_special = special.contains(text.as_str());
            added.insert(id, AddedToken::from(text, is_special));
        }
    }
    Ok(())
}

/// Names of roles and their tokens.
type Roles = Vec<(String, Named)>;

/// Tokens with a role, the usual ones first, and those without.
fn roles_and_extra(values: &Map<String, Value>, path: &Path) -> Result<(Roles, Vec<Named>)> {
    let mut roles = Vec::new();
    let one = |name: &str, value: &Value| -> Result<Option<Named>> {
        match value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(Named { text: text.clone(), rules: None })),
            Value::Object(token) => {
                let rules = added_token(token, true);
                let rules = rules
                    .ok_or_else(|| wrong(path, name, "must be a text, an object with a text `content`, or null"))?;
                Ok(Some(Named { text: rules.content.clone(), rules: Some(rules) }))
            }
            _ => Err(wrong(path, name, "must be a text, an object with a text `content`, or null")),
        }
    };
    for role in ROLES {
        if let Some(value) = values.get(role) {
            roles.extend(one(role, value)?.map(|named| (role.to_owned(), named)));
        }
    }
    // Roles of one model, as `image_token`.
    for (key, value) in values {
        if key.ends_with("_token") && !ROLES.contains(&key.as_str()) && value.is_string() {
            roles.extend(one(key, value)?.map(|named| (key.clone(), named)));
        }
    }
    let mut extra = Vec::new();
    let name = "extra_special_tokens";
    match values.get(name) {
        None | Some(Value::Null) => {}
        Some(Value::Array(tokens)) => {
            for token in tokens {
                extra.extend(one(name, token)?);
            }
        }
        Some(Value::Object(tokens)) => {
            roles.retain(|(known, _)| !tokens.contains_key(known));
            for (role, token) in tokens {
                roles.extend(one(&format!("{name}.{role}"), token)?.map(|named| (role.clone(), named)));
            }
        }
        Some(_) => return Err(wrong(path, name, "must be a list of tokens, or an object of names and tokens")),
    }
    Ok((roles, extra))
}

/// A token with its rules; `special` where the file does not say.
fn added_token(token: &Map<String, Value>, special: bool) -> Option<AddedToken> {
    let content = token.get("content")?.as_str()?;
    let flag = |name: &str, default: bool| token.get(name).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", special);
    Some(
        AddedToken::from(content, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special)),
    )
}

/// The padding token that `tokenizer.json` itself states.
fn pad_of_tokenizer(json: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct File {
        padding: Option<Padding>,
    }
    #[derive(serde::Deserialize)]
    struct Padding {
        pad_token: String,
    }
    serde_json::from_slice::<File>(json).ok()?.padding.map(|padding| padding.pad_token)
}

fn wrong(path: &Path, field: &str, message: &str) -> Error {
    Error::config(path, field, message)
}
