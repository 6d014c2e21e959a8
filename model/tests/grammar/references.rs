//! References of a schema with escapes: of JSON pointers (`~1`, `~0`) and of URIs (`%20`).

use crate::support::files;
use emberlm_model::engine::TokenMask;
use emberlm_model::grammar::{Grammar, GrammarCompiler};
use emberlm_model::text::{DeclaredTools, TextProcessor, ToolFormat};
use serde_json::{Value, json};

fn text() -> TextProcessor {
    TextProcessor::from_files(&files("crest_k4")).unwrap()
}

/// Whether an answer is one of a grammar.
fn takes(text: &TextProcessor, grammar: &Grammar, answer: &str) -> bool {
    let mut grammar = grammar.clone();
    let ids = text.encode_literal(answer, false).unwrap();
    ids.into_iter().all(|id| grammar.accept(id).is_ok()) && grammar.is_complete()
}

/// A schema whose definitions have such a name: of days, and of lists of them, which refer to each other's parts.
fn days(container: &str, name: &str, pointer: &str) -> Value {
    let day = json!({"type": "object", "properties": {"a/b": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["a/b"], "additionalProperties": false});
    json!({
        "type": "object",
        "properties": {
            "day": {"$ref": format!("#/{container}/{pointer}")},
            "days": {"type": "array", "items": {"$ref": format!("#/{container}/{pointer}/properties/a~1b")}, "maxItems": 2},
            "same": {"$ref": "#/properties/days"},
        },
        "required": ["day"], "additionalProperties": false,
        container: {name: day, "more": {"$ref": format!("#/{container}/{pointer}")}},
    })
}

/// Names, and how a pointer has them.
const NAMES: [(&str, &str); 8] = [
    ("plain", "plain"),
    ("a b", "a%20b"),
    ("a b", "a b"),
    ("a/b", "a~1b"),
    ("a~b", "a~0b"),
    ("List[a/b, \u{e9}]", "List%5Ba~1b%2C%20%C3%A9%5D"),
    ("100%", "100%25"),
    // Spelled without escapes, which was taken before.
    ("a%20b", "a%20b"),
];

#[test]
fn references_with_escapes_are_to_what_they_name() {
    let text = text();
    let compiler = GrammarCompiler::new(&text).unwrap();
    for container in ["$defs", "definitions"] {
        for (name, pointer) in NAMES {
            let schema = days(container, name, pointer);
            let grammar = compiler.json_schema(&schema, "schema").unwrap_or_else(|error| panic!("{pointer}: {error}"));
            for (answer, taken) in [
                (r#"{"day":{"a/b":3}}"#, true),
                (r#"{"day":{"a/b":8}}"#, false),
                (r#"{"day":3}"#, false),
                (r#"{"day":{"a/b":3},"days":[7,1],"same":[2]}"#, true),
                (r#"{"day":{"a/b":3},"days":[8]}"#, false),
                (r#"{"day":{"a/b":3},"same":["7"]}"#, false),
            ] {
                assert_eq!(takes(&text, &grammar, answer), taken, "{container} {pointer}: {answer}");
            }
        }
    }
}

#[test]
fn references_with_escapes_in_tools_are_to_what_they_name() {
    let text = text();
    let compiler = GrammarCompiler::new(&text).unwrap();
    for (name, pointer) in NAMES {
        let tools = DeclaredTools::parse(&json!([{"name": "f", "parameters": days("$defs", name, pointer)}])).unwrap();
        let made = |format| compiler.tool_calls(format, &tools, false).unwrap_or_else(|e| panic!("{pointer}: {e}"));
        for (format, before, after) in [
            (ToolFormat::Hermes, "<tool_call>\n{\"name\": \"f\", \"arguments\": ", "}\n</tool_call>"),
            (ToolFormat::Llama3Json, "{\"name\": \"f\", \"parameters\": ", "}"),
        ] {
            let grammar = made(format);
            for (arguments, taken) in [
                (r#"{"day":{"a/b":3},"days":[7]}"#, true),
                (r#"{"day":{"a/b":8}}"#, false),
                (r#"{"day":{"a/b":3},"days":["7"]}"#, false),
            ] {
                let call = format!("{before}{arguments}{after}");
                assert_eq!(takes(&text, &grammar, &call), taken, "{pointer}: {call}");
            }
        }
        let grammar = made(ToolFormat::Qwen3Coder);
        for (day, days, taken) in [
            (r#"{"a/b":3}"#, "[7]", true),
            (r#"{"a/b":8}"#, "[7]", false),
            ("3", "[7]", false),
            (r#"{"a/b":3}"#, "[8]", false),
        ] {
            let tag = |name: &str, value: &str| format!("<parameter={name}>\n{value}\n</parameter>\n");
            let tags = format!("{}{}", tag("day", day), tag("same", days));
            let call = format!("<tool_call>\n<function=f>\n{tags}</function>\n</tool_call>");
            assert_eq!(takes(&text, &grammar, &call), taken, "{pointer}: {call}");
        }
    }
}

#[test]
fn parts_behind_escapes_that_nothing_fits_are_found_and_what_is_missing_is_named() {
    let text = text();
    let compiler = GrammarCompiler::new(&text).unwrap();
    let node = |required: Value| json!({"type": "object", "properties": {"n": {"$ref": "#/$defs/a~1b"}}, "required": required, "additionalProperties": false});
    let schema = |required| json!({"$ref": "#/$defs/a~1b", "$defs": {"a/b": node(required)}});
    let error = compiler.json_schema(&schema(json!(["n"])), "s").unwrap_err().to_string();
    assert!(error.contains("no answer fits it"), "{error}");
    let grammar = compiler.json_schema(&schema(json!([])), "s").unwrap();
    assert!(takes(&text, &grammar, r#"{"n":{"n":{}}}"#) && !takes(&text, &grammar, r#"{"n":1}"#));
    let error =
        compiler.json_schema(&json!({"$ref": "#/$defs/a~1c", "$defs": {"a/b": {}}}), "s").unwrap_err().to_string();
    assert!(error.contains("a~1c"), "{error}");
    // What has to be written twice counts twice.
    let large: Vec<Value> = (0..12_000).map(Value::from).collect();
    let twice = json!({"type": "object", "properties": {"a/b": {"enum": large}, "c": {"$ref": "#/properties/a~1b"}}});
    let error = compiler.json_schema(&twice, "s").unwrap_err().to_string();
    assert!(error.contains("20000 values"), "{error}");
}
