//! Chat templates against jinja2, set up as transformers does.
//!
//! `data/chat_templates.json` holds templates with the features of published ones, and what jinja2 3.1 rendered;
//! `data/template_constructs.json` the constructs of the language by themselves.

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
    let cases: Vec<Case> = serde_json::from_str(include_str!("../data/chat_templates.json")).unwrap();
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

#[derive(Deserialize)]
struct Constructs {
    cases: Vec<(String, Option<String>)>,
    chats: Vec<Vec<Message>>,
    nested: Vec<(String, usize, Option<String>)>,
}

#[test]
fn constructs_render_as_in_jinja2() {
    let constructs: Constructs = serde_json::from_str(include_str!("../data/template_constructs.json")).unwrap();
    assert!(constructs.cases.len() >= 2_000);
    let messages = [Message::user("hi")];
    let mut failures = String::new();
    let alone = constructs.cases.iter().map(|(template, wanted)| (template, &messages[..], wanted));
    let nested =
        constructs.nested.iter().map(|(template, chat, wanted)| (template, &constructs.chats[*chat][..], wanted));
    for (template, messages, wanted) in alone.chain(nested) {
        let found = render(template, messages, &ChatOptions::default());
        if found.as_ref().ok() != wanted.as_ref() {
            failures += &format!("{template}\n  found  {found:?}\n  wanted {wanted:?}\n");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn the_time_can_be_given() {
    let template = "{{ strftime_now('%Y-%m-%d %H:%M:%S|%d %b %Y|%-d|%f|%z%Z|%%') }}";
    let shown =
        |date: &str| render(template, &[Message::user("hi")], &ChatOptions::default().at(date).unwrap()).unwrap();
    assert_eq!(shown("2026-01-05 09:30"), "2026-01-05 09:30:00|05 Jan 2026|5|000000||%");
    assert_eq!(shown("2026-01-05T09:30:15"), "2026-01-05 09:30:15|05 Jan 2026|5|000000||%");
    assert_eq!(shown(" 2026-12-31 "), "2026-12-31 12:00:00|31 Dec 2026|31|000000||%");
    for wrong in ["", "today", "2026-13-01", "2026-02-30", "31.12.2026"] {
        let error = ChatOptions::default().at(wrong).unwrap_err().to_string();
        assert!(error.contains("date") && error.contains("2026-01-31"), "{error}");
    }
}

/// A null is left out, as `apply_chat_template` of transformers 5 does; where that fails, it is none to a template that asks for it.
#[test]
fn a_null_that_a_template_needs_is_none() {
    let call = r#"[{"role": "assistant", "content": null, "name": null, "tool_calls": [{"function": {"name": "f"}}]}]"#;
    let missing = r#"[{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]"#;
    let text = r#"[{"role": "assistant", "content": "a", "name": null}]"#;
    // As DeepSeek's templates do it.
    let none = "{% for m in messages %}{% if m['content'] is none %}{{ m['tool_calls'][0]['function']['name'] }}{% endif %}\
                {% if m['content'] is not none %}{{ '<' + m['content'] + '>' }}{% endif %}{% endfor %}";
    let equal = "{% for m in messages %}{{ 'call' if m.content == None else '<' + m.content + '>' }}{% endfor %}";
    let fields = "{% for m in messages %}{{ m.keys() | list }}{% endfor %}";
    for (template, messages, wanted) in [
        (none, call, "f"),
        (none, missing, "f"),
        (none, text, "<a>"),
        (equal, call, "call"),
        (equal, text, "<a>"),
        (fields, call, "['role', 'tool_calls']"),
        (fields, text, "['role', 'content']"),
        // It does not fail.
        (&format!("{fields}{{{{ messages[0].content is none }}}}"), call, "['role', 'tool_calls']False"),
    ] {
        let messages: Vec<Message> = serde_json::from_str(messages).unwrap();
        assert_eq!(render(template, &messages, &ChatOptions::default()).unwrap(), wanted, "{template}");
    }
}
