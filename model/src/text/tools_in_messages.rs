//! Tools for models whose chat template has none: told in the system message, with calls and their results as texts of messages.

use serde_json::{Value, json};

use super::answer::ToolFormat;
use super::chat::{ChatOptions, Message, SpecialText, map_value};
use super::chat_prompt::with_contents;
use super::tokenizer::TextProcessor;
use crate::{Error, Result};

/// What says in a prompt that tools are told, however the template writes the text around it.
const TOLD: &str = "You may call these functions:";

/// A character without width, at which no line breaks.
const WORD_JOINER: char = '\u{2060}';

impl TextProcessor {
    /// A chat with tools, with calls or with results, as messages that a template without tools renders; `None` where there is nothing
    /// of the kind, or where the template has tools itself. The tools are taken out of the options.
    ///
    /// The model is told of the tools, and how to write a call in `format`, in the first of these places that the template renders: behind
    /// the text of the system message, before the first question, before the last one, in a message of the user before all others, as where
    /// nobody has asked anything yet. Calls are appended to the text of the assistant, in the same format. Results
    /// are told by the user, in one message with each other and with the text that follows.
    ///
    /// # Errors
    /// [`Error::Template`] when there is no template, when it does not parse, and when it renders none of these places.
    pub fn with_tools_in_messages(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        format: ToolFormat,
    ) -> Result<Option<(Vec<Message>, ChatOptions)>> {
        let uses_tools = |message: &Message| message.role() == "tool" || !calls(message).is_empty();
        if !options.has_tools() && !messages.iter().any(uses_tools) {
            return Ok(None);
        }
        let sample = || options.clone().with("tools", json!([{"type": "function", "function": {"name": "f"}}]));
        let with_tools = if options.has_tools() { options.clone() } else { sample() };
        if self.template_reads("tools", messages, &with_tools)? {
            return Ok(None);
        }
        let mut options = options.clone();
        let mut tools = options.variables.remove("tools").unwrap_or_default();
        let mut messages = messages.to_vec();
        if options.special_text == SpecialText::Literal {
            // The messages they go to may have special tokens.
            let apart = self.special_tokens_apart();
            map_value(&mut tools, &apart);
            messages.iter_mut().for_each(|message| message.map_text_of("tool_calls", &apart));
        }
        let plain = without_roles_of_tools(&messages, format);
        let Some(instructions) = instructions(&tools, format) else { return Ok(Some((plain, options))) };
        // A template without system messages refuses them or leaves them out, as others do with messages before the last one.
        let before = self.render_with_contents(&plain, &options);
        let said = |prompt: &Result<String>| prompt.as_ref().map_or(0, |prompt| prompt.matches(TOLD).count());
        let places = [in_system_message, before_question::<false>, before_question::<true>, in_own_message];
        for place in places {
            let messages: Vec<Message> = place(&plain, &instructions);
            if said(&self.render_with_contents(&messages, &options)) > said(&before) {
                return Ok(Some((messages, options)));
            }
        }
        before?;
        let message = "the chat template has no tools, and leaves out every message in which they could be told";
        Err(Error::Template(message.to_owned()))
    }

    /// The prompt text of a chat as [`Self::chat_prompt`] renders it.
    fn render_with_contents(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        self.render_chat(messages, options).or_else(|error| {
            let Some(filled) = with_contents(messages) else { return Err(error) };
            self.render_chat(&filled, options).map_err(|_| error)
        })
    }

    /// Puts an invisible character into the texts of special tokens, and of others in angle brackets, so that they are texts wherever they
    /// stand.
    fn special_tokens_apart(&self) -> impl Fn(&str) -> String + use<> {
        let added = self.tokenizer().get_added_tokens_decoder().into_values();
        let marks = added.filter(|token| token.special || token.content.starts_with('<'));
        let mut contents: Vec<String> =
            marks.map(|token| token.content).filter(|text| text.chars().count() > 1).collect();
        contents.sort_unstable_by_key(|text| std::cmp::Reverse(text.len()));
        move |text| {
            contents.iter().fold(text.to_owned(), |text, content| {
                let mut apart = content.clone();
                apart.insert(content.chars().next().map_or(0, char::len_utf8), WORD_JOINER);
                text.replace(content, &apart)
            })
        }
    }
}

/// The calls of a message, each an object with `function` or with its fields at the upper level.
fn calls(message: &Message) -> &[Value] {
    message.fields().get("tool_calls").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// What the model is told of its tools; `None` where there are none.
fn instructions(tools: &Value, format: ToolFormat) -> Option<String> {
    let tools = tools.as_array().filter(|tools| !tools.is_empty())?;
    let list: Vec<String> = tools.iter().map(Value::to_string).collect();
    let how = match format {
        ToolFormat::Hermes => {
            "a JSON object in tags:\n<tool_call>\n{\"name\": NAME, \"arguments\": {...}}\n</tool_call>"
        }
        ToolFormat::Qwen3Coder => {
            "tags:\n<tool_call>\n<function=NAME>\n<parameter=NAME>\nVALUE\n</parameter>\n</function>\n</tool_call>"
        }
        ToolFormat::Llama3Json => "nothing but a JSON object:\n{\"name\": NAME, \"parameters\": {...}}",
    };
    Some(format!("# Tools\n{TOLD}\n{}\nTo call one, answer with {how}", list.join("\n")))
}

fn in_system_message(messages: &[Message], instructions: &str) -> Vec<Message> {
    match messages.split_first() {
        Some((first, rest)) if first.role() == "system" && first.text().is_some() => {
            let mut all = vec![joined(first, instructions)];
            all.extend_from_slice(rest);
            all
        }
        _ => [Message::system(instructions)].into_iter().chain(messages.iter().cloned()).collect(),
    }
}

/// The messages with the instructions before the text of the first message of a user, or of the last one.
fn before_question<const LAST: bool>(messages: &[Message], instructions: &str) -> Vec<Message> {
    let mut messages = messages.to_vec();
    let mut questions = messages.iter_mut().filter(|message| message.role() == "user" && message.text().is_some());
    if let Some(question) = if LAST { questions.next_back() } else { questions.next() } {
        let text = question.text().unwrap_or_default();
        let told = format!("{instructions}\n\n{text}");
        *question = question.clone().with("content", told);
    }
    messages
}

/// The messages with the instructions as one of the user, before all but those of the system.
fn in_own_message(messages: &[Message], instructions: &str) -> Vec<Message> {
    let system = messages.iter().take_while(|message| message.role() == "system").count();
    let (system, others) = messages.split_at(system);
    [system, &[Message::user(instructions)], others].concat()
}

/// A message with more text behind its own.
fn joined(message: &Message, text: &str) -> Message {
    let own = message.text().unwrap_or_default();
    let between = if own.is_empty() { "" } else { "\n\n" };
    message.clone().with("content", format!("{own}{between}{text}"))
}

/// Messages of system, user and assistant alone, with the same texts and with what tools were asked and told.
fn without_roles_of_tools(messages: &[Message], format: ToolFormat) -> Vec<Message> {
    let mut plain: Vec<Message> = Vec::with_capacity(messages.len());
    // Whether the last message is of results, which the text of the user that follows belongs to.
    let mut results = false;
    for message in messages {
        let is_result = message.role() == "tool";
        let told = match () {
            () if is_result => {
                let content = message.fields().get("content").unwrap_or(&Value::Null);
                let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
                Message::user(format!("<tool_response>\n{text}\n</tool_response>"))
            }
            () if calls(message).is_empty() => message.clone(),
            () => {
                let written: Vec<String> = calls(message).iter().map(|call| written(call, format)).collect();
                joined(message, &written.join("\n")).with("tool_calls", Value::Null)
            }
        };
        match (plain.last_mut(), told.text()) {
            (Some(last), Some(text)) if results && told.role() == "user" => {
                let before = last.text().unwrap_or_default();
                *last = Message::user(format!("{before}\n{text}"));
            }
            _ => plain.push(told),
        }
        results = is_result;
    }
    plain
}

/// A call as the model would have written it.
fn written(call: &Value, format: ToolFormat) -> String {
    let function = call.get("function").unwrap_or(call);
    let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
    let arguments = match function.get("arguments").unwrap_or(&Value::Null) {
        Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| json!({})),
        Value::Null => json!({}),
        other => other.clone(),
    };
    let object = |key: &str| format!("{{\"name\": {}, \"{key}\": {arguments}}}", Value::from(name));
    match format {
        ToolFormat::Hermes => format!("<tool_call>\n{}\n</tool_call>", object("arguments")),
        ToolFormat::Llama3Json => object("parameters"),
        ToolFormat::Qwen3Coder => {
            let parameter = |(key, value): (&String, &Value)| {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                format!("<parameter={key}>\n{value}\n</parameter>\n")
            };
            let parameters: String = arguments.as_object().into_iter().flatten().map(parameter).collect();
            format!("<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>")
        }
    }
}
