//! Chat templates against jinja2, set up as transformers does.
//!
//! `data/chat_templates.json` holds templates with the features of published ones, and what jinja2 3.1 rendered.

use emberlm_model::text::{ChatOptions, ChatTemplate, Message};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    variables: Map<String, Value>,
    rendered: Option<String>,
    error: Option<String>,
}

const SPECIAL: [(&str, &str); 2] = [("bos_token", "<s>"), ("eos_token", "</s>")];

fn render(template: &str, messages: &[Message], options: &ChatOptions) -> Result<String, String> {
    ChatTemplate::new("default", template).and_then(|t| t.render(messages, options, SPECIAL)).map_err(|e| e.to_string())
}

#[test]
fn as_jinja2_renders() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("data/chat_templates.json")).unwrap();
    assert!(cases.len() >= 60);
    let mut failures = String::new();
    for case in &cases {
        let options = ChatOptions {
            add_generation_prompt: case.add_generation_prompt,
            variables: case.variables.clone(),
            ..ChatOptions::default()
        };
        let found = render(&case.template, &case.messages, &options);
        let right = match (&found, &case.rendered, &case.error) {
            (Ok(found), Some(wanted), None) => found == wanted,
            // Messages of templates are kept; those of Python itself are worded otherwise.
            (Err(found), None, Some(wanted)) => !case.template.contains("raise_exception(") || found.contains(wanted),
            _ => false,
        };
        if !right {
            let wanted = case.rendered.as_ref().or(case.error.as_ref());
            failures += &format!("{}:\n  found  {found:?}\n  wanted {wanted:?}\n", case.name);
        }
    }
    assert!(failures.is_empty(), "{failures}");
}
