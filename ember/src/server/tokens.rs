//! `/tokenize`, `/detokenize` and `/tokenizer_info`.

use emberlm::model::text::{ChatOptions, SpecialToken};
use serde_json::{Value, json};

use super::app::App;
use super::error::ApiError;
use super::fields::{Fields, found, whole};
use super::messages_in::messages;
use super::prompt::{self, PromptForm};
use super::tools::Tools;

/// The ids of a text (`prompt`, or `content` as llama.cpp has it) or of a chat (`messages`), as a prompt for an answer has them; with
/// `return_token_strs` also the tokens as the vocabulary spells them.
///
/// # Errors
/// 400 when there is no text, or it cannot be encoded.
pub fn tokenize(app: &App, fields: Fields<'_>) -> Result<Value, ApiError> {
    let ids = match fields.list("messages")? {
        Some(list) => {
            let (tools, variables) = (Tools::read(fields)?, prompt::variables(fields)?);
            let mut messages = messages(list)?;
            let form = PromptForm::read(fields, &mut messages)?;
            prompt::chat(app, &messages, &tools.schemas, &variables, &form)?.tokens
        }
        None => {
            let text = match fields.text("prompt")? {
                Some(text) => text,
                None => fields.text("content")?.ok_or_else(|| fields.wrong("prompt", "is missing"))?,
            };
            app.text.encode(text, fields.bool("add_special_tokens")?.unwrap_or(true))?
        }
    };
    let mut told = json!({"tokens": ids, "count": ids.len(), "max_model_len": app.context});
    if let (true, Some(told)) = (fields.bool("return_token_strs")?.unwrap_or(false), told.as_object_mut()) {
        told.insert("token_strs".into(), ids.iter().map(|&id| app.text.token(id)).collect());
    }
    Ok(told)
}

/// The text of ids.
///
/// # Errors
/// 400 when one is no token.
pub fn detokenize(app: &App, fields: Fields<'_>) -> Result<Value, ApiError> {
    let list = fields.list("tokens")?.ok_or_else(|| fields.wrong("tokens", "is missing"))?;
    let id = |value: &Value| {
        let id = whole(value).and_then(|id| u32::try_from(id).ok());
        let id = id.filter(|&id| (id as usize) < app.defaults.vocabulary);
        id.ok_or_else(|| {
            fields.wrong("tokens", format!("{} is no token id below {}", found(value), app.defaults.vocabulary))
        })
    };
    let ids: Vec<u32> = list.iter().map(id).collect::<Result<_, _>>()?;
    let text = app.text.decode(&ids, false)?;
    Ok(json!({"prompt": text, "content": text}))
}

/// The tokens with a role, and the template: what evaluation harnesses ask for to do without a tokenizer of their own.
pub fn info(app: &App) -> Value {
    let special = app.text.special_tokens();
    let text = |token: &Option<SpecialToken>| token.as_ref().map(|token| token.text.clone());
    let template = app.text.chat_template(&ChatOptions::prompt()).ok().map(|template| template.source());
    json!({
        "bos_token": text(&special.bos), "eos_token": text(&special.eos), "pad_token": text(&special.pad),
        "unk_token": text(&special.unk), "chat_template": template, "model_max_length": app.context,
    })
}
