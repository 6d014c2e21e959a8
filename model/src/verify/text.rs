//! Tokenizer and chat template, and the ids of the tokenizer against the embedding.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::Verification;
use super::finding::{Check, Finding};
use super::numbers::AllStats;
use crate::checkpoint::ModelDir;
use crate::checkpoint::names::shown;
use crate::config::GenerationConfig;
use crate::error::Error;
use crate::pretrained::Pretrained;
use crate::text::{ChatOptions, Message, TextFiles, TextProcessor, TokenKind};

const TOKENIZER: &str = "tokenizer.json";
const EMBEDDING: &str = "model.embed_tokens.weight";
/// What a text is encoded and decoded with: letters, digits, spaces, other scripts, characters of several bytes.
const SAMPLE: &str = "The 12 brown foxes jump.\n  \"Quoted\" (x = 3.14): Grüße, русский, 日本語, 🙂";
/// Rows of the embedding that may be 0 although ordinary tokens use them: tokens that training never met.
const UNTRAINED: usize = 8;

pub(super) fn check(
    dir: &ModelDir,
    model: Option<&Pretrained>,
    generation: &GenerationConfig,
    stats: Option<&AllStats>,
    out: &mut Verification,
) {
    let text = TextFiles::from_dir(dir).and_then(|files| TextProcessor::from_files(&files));
    let text = match text {
        Ok(text) => text,
        Err(error) => {
            let finding = Finding::of(Check::Tokenizer, &error, dir.path());
            let finding = if finding.file.is_none() { finding.file(TOKENIZER) } else { finding };
            out.push(finding.advice("download the tokenizer's files again"));
            return;
        }
    };
    out.looked_at.tokens = text.vocab_size();
    vocabulary(&text, model, out);
    ends(&text, model, generation, out);
    if let Some((model, stats)) = model.zip(stats) {
        untrained_rows(&text, model, stats, out);
    }
    round_trip(&text, out);
    around(&text, model, out);
    templates(&text, out);
}

fn vocabulary(text: &TextProcessor, model: Option<&Pretrained>, out: &mut Verification) {
    let tokens = text.vocabulary();
    let mut by_id: BTreeMap<u32, &str> = BTreeMap::new();
    let mut twice = Vec::new();
    for (id, token) in &tokens {
        if let Some(other) = by_id.insert(*id, token) {
            twice.push(format!("{id} ({} and {})", shown(other), shown(token)));
        }
    }
    if let Some(first) = twice.first() {
        let finding = Finding::error(Check::Tokenizer, format!("{} ids belong to two tokens: {first}", twice.len()));
        out.push(finding.file(TOKENIZER).expected("one token for each id").advice("download this file again"));
    }
    let Some(rows) = model.map(|model| model.architecture().config.vocab_size) else { return };
    let beyond: Vec<_> = tokens.iter().filter(|(id, _)| *id as usize >= rows).collect();
    let Some((id, token)) = beyond.first() else { return };
    let ordinary = beyond.iter().any(|(id, _)| text.kind(*id) == TokenKind::Ordinary);
    let found = format!("{} tokens have ids from {rows} on: {} is {id}", beyond.len(), shown(token));
    // Tokens that were added for training and that no text holds are common.
    let finding = if ordinary {
        let finding = Finding::error(Check::Tokenizer, found);
        finding.advice("tokenizer and weights are of two models: take both from one place")
    } else {
        let finding = Finding::warning(Check::Tokenizer, found);
        finding.advice("a text that holds one of them is refused; if the author trained with them, rows of the embedding are missing")
    };
    out.push(finding.file(TOKENIZER).expected(format!("ids below {rows}, the rows of the embedding")));
}

/// Tokens that end a text or begin one, against the vocabulary.
fn ends(text: &TextProcessor, model: Option<&Pretrained>, generation: &GenerationConfig, out: &mut Verification) {
    let special = text.special_tokens();
    for (role, token) in [("bos_token", &special.bos), ("eos_token", &special.eos), ("pad_token", &special.pad)] {
        if let Some(token) = token.as_ref().filter(|token| token.id.is_none()) {
            let finding =
                Finding::error(Check::Tokenizer, format!("{} is no token of the vocabulary", shown(&token.text)));
            let finding = finding.file("tokenizer_config.json").place(role);
            out.push(finding.advice("the tokenizer's files are of two models: download all of them again"));
        }
    }
    let config = model.map(|model| model.architecture().config.eos_token_ids.as_slice()).unwrap_or_default();
    let files = [(GenerationConfig::FILE, generation.eos_token_ids.as_slice()), ("config.json", config)];
    for (file, ids) in files {
        for id in ids.iter().filter(|id| text.token(**id).is_none()) {
            let rows = model.map_or(usize::MAX, |model| model.architecture().config.vocab_size);
            // Beyond the embedding it is reported as an error already.
            if (*id as usize) < rows {
                let finding = Finding::warning(Check::Generation, format!("token {id} is not in the tokenizer"));
                let finding = finding.file(file).place("eos_token_id").expected("ids of the tokenizer");
                out.push(finding.advice("texts may never end: the file may belong to another model"));
            }
        }
    }
}

fn untrained_rows(text: &TextProcessor, model: &Pretrained, stats: &AllStats, out: &mut Verification) {
    let tensors = model.weights().entry(EMBEDDING).map(|entry| entry.tensors.as_slice()).unwrap_or_default();
    for tensor in tensors {
        let Some(stats) = stats.get(tensor).filter(|stats| stats.zero_rows > 0 && stats.zeros < stats.count) else {
            continue;
        };
        let used = |row: &&u64| {
            let id = u32::try_from(**row).ok();
            id.is_some_and(|id| text.token(id).is_some() && text.kind(id) == TokenKind::Ordinary)
        };
        let rows: Vec<&u64> = stats.listed_zero_rows.iter().filter(used).collect();
        if let Some(first) = rows.first().filter(|_| rows.len() > UNTRAINED) {
            let token = u32::try_from(**first).ok().and_then(|id| text.token(id)).unwrap_or_default();
            let found =
                format!("{} rows of ordinary tokens are 0, the first is row {first} ({})", rows.len(), shown(&token));
            let finding = Finding::warning(Check::Numbers, found).place(tensor).expected("a row for every token");
            out.push(finding.advice("download the weights again: there may be a hole in the file"));
        }
    }
}

fn round_trip(text: &TextProcessor, out: &mut Verification) {
    let failed = |message: String| Finding::error(Check::Tokenizer, message).file(TOKENIZER);
    let ids = match text.encode(SAMPLE, false) {
        Ok(ids) => ids,
        Err(error) => {
            out.push(failed(format!("a text cannot be encoded: {error}")).advice("download this file again"));
            return;
        }
    };
    match text.decode(&ids, false) {
        Ok(decoded) if decoded.trim_start() == SAMPLE => {}
        Ok(_) if ids.is_empty() => out.push(failed("a text has no tokens".into()).advice("download this file again")),
        Ok(decoded) => {
            let finding = Finding::note(Check::Tokenizer, format!("a text comes back as {decoded:?}")).file(TOKENIZER);
            out.push(finding.expected(SAMPLE).advice("tokenizers that fold case or lack a script do so"));
        }
        Err(error) => out.push(failed(format!("tokens cannot be decoded: {error}")).advice("download this file again")),
    }
}

/// What the tokenizer puts around a text, such as BOS.
fn around(text: &TextProcessor, model: Option<&Pretrained>, out: &mut Verification) {
    let text =
        model.map_or_else(|| text.clone(), |model| text.clone().for_embedding(model.architecture().config.vocab_size));
    // A text that has no tokens without it is reported already.
    if text.encode(SAMPLE, false).is_err() {
        return;
    }
    if let Err(error) = text.encode(SAMPLE, true) {
        let message = format!("what is put around a text cannot be used: {}", message(&error));
        let finding = Finding::error(Check::Tokenizer, message).file(TOKENIZER).place("post_processor");
        out.push(
            finding.advice("no text can be encoded: download this file again, and with the weights, from one place"),
        );
    }
}

fn templates(text: &TextProcessor, out: &mut Verification) {
    if !text.has_chat_template() {
        return;
    }
    let file = "chat_template";
    // Known at any time, so that a run is like another.
    let prompt = || ChatOptions::prompt().at("2026-01-31").unwrap_or_else(|_| ChatOptions::prompt());
    let question = || Message::user("What is a river?");
    let plain = match text.render_chat(&[question()], &prompt()) {
        Ok(plain) => plain,
        Err(error) => {
            let finding = Finding::error(Check::Template, message(&error)).place(file);
            out.push(
                finding
                    .expected("a prompt for one question")
                    .advice("download chat_template.jinja and tokenizer_config.json again"),
            );
            return;
        }
    };
    out.looked_at.chats += 1;
    if !plain.contains("What is a river?") {
        let finding = Finding::error(Check::Template, format!("the prompt of one question is {plain:?}")).place(file);
        out.push(
            finding
                .expected("the question in it")
                .advice("download chat_template.jinja and tokenizer_config.json again"),
        );
    }
    markers(text, &plain, out);
    let answered = [question(), Message::assistant("Water that flows."), Message::user("Why?")];
    let system = [Message::system("Be brief."), question()];
    let tools: Value = json!([{"type": "function", "function": {
        "name": "look_up", "description": "Looks a word up",
        "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "The word"}}, "required": ["word"]}
    }}]);
    let with_tools = prompt().with("tools", tools);
    let others = [
        ("an answer and a second question", &answered[..], prompt(), "Why?"),
        ("a system message", &system[..], prompt(), "Be brief."),
        ("tools", &answered[..1], with_tools, "look_up"),
    ];
    for (what, messages, options, part) in others {
        match text.render_chat(messages, &options) {
            Ok(rendered) => {
                out.looked_at.chats += 1;
                if !rendered.contains(part) {
                    let finding = Finding::note(Check::Template, format!("leaves {what} out")).place(file);
                    out.push(finding.advice("the model was not trained for it"));
                }
            }
            // Templates refuse what the model was not trained for by an error of their own.
            Err(error) if what != "an answer and a second question" => {
                let finding = Finding::note(Check::Template, format!("refuses {what}: {}", message(&error)));
                out.push(finding.place(file));
            }
            Err(error) => {
                let finding = Finding::error(Check::Template, message(&error)).place(file);
                out.push(finding.expected(format!("a prompt with {what}")).advice("download the template again"));
            }
        }
    }
}

fn message(error: &Error) -> String {
    match error {
        Error::Template(message) => message.clone(),
        other => other.to_string(),
    }
}

/// Texts like `<|name|>` in a prompt, each of which should be one token.
fn markers(text: &TextProcessor, prompt: &str, out: &mut Verification) {
    const LONGEST: usize = 64;
    let mut unknown: BTreeSet<&str> = BTreeSet::new();
    let mut first = None;
    for (at, _) in prompt.match_indices("<|") {
        // A template may write very many of these that never end.
        let rest = prompt.get(at..prompt.floor_char_boundary(at.saturating_add(LONGEST))).unwrap_or_default();
        let Some(marker) = rest.find("|>").and_then(|end| rest.get(..end + 2)) else { continue };
        if text.id(marker).is_none() && unknown.insert(marker) {
            first = first.or(Some(marker));
        }
    }
    if let Some(first) = first {
        let found =
            format!("the template writes {} {}, which the tokenizer does not have", unknown.len(), shown(first));
        let found = if unknown.len() == 1 {
            format!("the template writes {}, which is no token of the tokenizer", shown(first))
        } else {
            found
        };
        let finding = Finding::warning(Check::Template, found).place("chat_template");
        let finding = finding.expected("markers that are one token each");
        out.push(finding.advice("template and tokenizer are of two models: take both from one place"));
    }
}
