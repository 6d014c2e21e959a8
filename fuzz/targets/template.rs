//! A chat template, rendered.
#![no_main]

use emberlm_model::text::{ChatOptions, ChatTemplate, Message};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|data: &[u8]| {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let Ok(template) = ChatTemplate::new("default", source) else { return };
    let messages = [
        Message::system("Be brief."),
        Message::user("What is a river?"),
        Message::assistant("Water.").with("tool_calls", json!([{"function": {"name": "f", "arguments": {"x": 1}}}])),
    ];
    let options = ChatOptions::prompt().with("tools", json!([{"type": "function", "function": {"name": "f"}}]));
    let _ = template.render(&messages, &options, [("bos_token", "<s>"), ("eos_token", "</s>")]);
});
