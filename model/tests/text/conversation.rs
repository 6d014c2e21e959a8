//! Messages of chat APIs, and the boundaries in the prompts that are made of them.

use crate::support::files;
use emberlm_model::text::{ChatOptions, Message, SpecialText, TextProcessor, Thinking, normalize_messages};
use serde_json::{Value, json};

fn messages(list: Value) -> Vec<Message> {
    serde_json::from_value(list).unwrap()
}

fn normalized(list: Value) -> Value {
    serde_json::to_value(normalize_messages(messages(list)).unwrap()).unwrap()
}

#[test]
fn contents_are_texts() {
    let found = normalized(json!([
        {"role": "user", "content": "plain"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}]},
        {"role": "user", "content": null},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}], "tool_calls": []},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "12"}]},
        {"role": "assistant"},
    ]));
    let wanted = json!([
        {"role": "user", "content": "plain"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "a\nb"},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "tool_call_id": "1", "content": "12"},
        {"role": "assistant", "content": ""},
    ]);
    assert_eq!(found, wanted);
}

#[test]
fn system_messages_are_one_at_the_front() {
    let found = normalized(json!([
        {"role": "user", "content": "hi"},
        {"role": "developer", "content": "short"},
        {"role": "assistant", "content": "yes"},
        {"role": "system", "content": [{"type": "text", "text": "in"}, {"type": "text", "text": "German"}]},
        {"role": "system", "content": null},
        {"role": "system", "content": ""},
    ]));
    let wanted = json!([
        {"role": "system", "content": "short\n\nin\nGerman"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
    ]);
    assert_eq!(found, wanted);
    assert_eq!(normalized(json!([{"role": "system", "content": ""}])), json!([]));
}

#[test]
fn a_header_that_changes_with_every_request_is_dropped() {
    let header = "x-anthropic-billing-header: cc_version=2.1; cch=1f2e;";
    for content in [
        json!([{"type": "text", "text": header}, {"type": "text", "text": "You help."}]),
        json!(format!("{header}\nYou help.")),
        json!(format!("{header}\n\nYou help.")),
    ] {
        let found = normalized(json!([{"role": "system", "content": content}, {"role": "user", "content": header}]));
        let wanted = json!([{"role": "system", "content": "You help."}, {"role": "user", "content": header}]);
        assert_eq!(found, wanted);
    }
    assert_eq!(normalized(json!([{"role": "system", "content": header}])), json!([]));
}

#[test]
fn arguments_of_calls_are_objects() {
    let call = |arguments: Value| {
        let found = normalized(json!([
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": arguments}}]},
        ]));
        found[0]["tool_calls"][0]["function"]["arguments"].clone()
    };
    assert_eq!(call(json!("{\"b\": 1, \"a\": \"{}\"}")), json!({"b": 1, "a": "{}"}));
    assert_eq!(call(json!({"a": [1]})), json!({"a": [1]}));
    for empty in [json!(""), json!(" "), json!("null"), json!(null), json!("{}")] {
        assert_eq!(call(empty), json!({}));
    }
}

#[test]
fn what_cannot_be_read_is_named_with_its_place() {
    let call = |function: Value| json!([{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{"function": function}]}]);
    for (list, wanted) in [
        (
            json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}]}]),
            "messages[0].content[1]: is of the type \"image_url\", but this model reads text only",
        ),
        (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text: must be a text"),
        (json!([{"role": "user", "content": [{"type": "odd"}]}]), "messages[0].content[0]: must be a part"),
        (json!([{"role": "user", "content": 7}]), "messages[0].content: must be a text, a list"),
        (json!([{"role": "user", "tool_calls": {}}]), "messages[0].tool_calls: must be a list"),
        (call(json!([])), "messages[1].tool_calls[0].function: must be an object"),
        (
            call(json!({"name": "f", "arguments": "{\"a\": "})),
            "messages[1].tool_calls[0].function.arguments: must be the JSON text",
        ),
        (
            call(json!({"name": "f", "arguments": "[1]"})),
            "messages[1].tool_calls[0].function.arguments: must be an object",
        ),
        (call(json!({"name": "f", "arguments": 1})), "messages[1].tool_calls[0].function.arguments: must be an object"),
    ] {
        let error = normalize_messages(messages(list)).unwrap_err().to_string();
        assert!(error.starts_with(wanted), "{error}");
    }
}

fn chat(list: &[(&str, &str)]) -> Vec<Message> {
    list.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

/// The texts up to the boundaries of a chat.
fn boundaries(text: &TextProcessor, messages: &[Message], options: &ChatOptions) -> Vec<String> {
    let prompt = text.chat_prompt(messages, options).unwrap();
    assert_eq!(prompt.tokens, text.encode_chat(messages, options).unwrap());
    prompt.boundaries.iter().map(|&at| text.decode(&prompt.tokens[..at], false).unwrap()).collect()
}

#[test]
fn boundaries_are_behind_the_system_message_and_before_the_answer() {
    let text = TextProcessor::from_files(&files("crest_k4")).unwrap();
    for special_text in [SpecialText::Parse, SpecialText::Literal] {
        let options = ChatOptions { special_text, ..ChatOptions::prompt() };
        let system = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n";
        let one = chat(&[("system", "be brief"), ("user", "a question")]);
        let first = format!("{system}a question<|im_end|>\n");
        assert_eq!(boundaries(&text, &one, &options), [system, &first]);

        // The next turn begins with the whole of the first, whatever was thought.
        let two = chat(&[
            ("system", "be brief"),
            ("user", "a question"),
            ("assistant", "<think>\nhm\n</think>\n\nan answer"),
            ("user", "Zebra"),
        ]);
        let second = boundaries(&text, &two, &options);
        assert_eq!(second[0], system);
        assert!(second[1].starts_with(&first), "{second:?}");
        let (one, two) = (text.chat_prompt(&one, &options).unwrap(), text.chat_prompt(&two, &options).unwrap());
        let end = *one.boundaries.last().unwrap();
        assert_eq!(one.tokens[..end], two.tokens[..end]);
        assert_eq!((one.thinking, two.thinking), (Thinking::Open, Thinking::Open));
    }
    // Nothing comes before the first question, which other chats do not share.
    let options = ChatOptions::prompt().with("enable_thinking", false);
    let alone = chat(&[("user", "a question")]);
    assert_eq!(boundaries(&text, &alone, &options), ["<|im_start|>user\na question<|im_end|>\n"]);
    assert_eq!(text.chat_prompt(&alone, &options).unwrap().thinking, Thinking::Closed);
    assert_eq!(boundaries(&text, &alone, &ChatOptions::default()), [""; 0]);
}

#[test]
fn a_boundary_is_never_inside_of_what_another_question_makes_one_token() {
    for fixture in ["nano_compact", "leanllama", "crest_k2"] {
        let text = TextProcessor::from_files(&files(fixture)).unwrap();
        for question in ["\n\nwhat", " what", "é", "Z", "a", "<|im_end|>", "\u{1f600}"] {
            let with = |question: &str| chat(&[("system", "s"), ("user", question)]);
            let prompt = text.chat_prompt(&with(question), &ChatOptions::prompt()).unwrap();
            let other = text.chat_prompt(&with("other"), &ChatOptions::prompt()).unwrap();
            let at = prompt.boundaries[0];
            assert_eq!(prompt.tokens[..at], other.tokens[..at], "{fixture} {question:?}");
            assert!(at >= 4, "{fixture} {question:?}: {at}");
        }
    }
}
