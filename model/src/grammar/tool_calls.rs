//! Grammars of tool calls, in the language of llguidance: Lark.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::references::with_references;
use super::schema::{prepared, wrong};
use crate::Result;
use crate::text::{DeclaredTool, DeclaredTools, ToolFormat};

/// Calls of one answer at most: a small model does not find an end.
const CALLS: usize = 16;
/// Bytes of a grammar. Every parameter in tags that refers to others has the schema of all of them.
const BYTES: usize = 4 << 20;

/// A text and the line end behind it: lines, none of which is the end tag. A rule that ends at the tag wherever it comes takes
/// milliseconds behind every line end, because llguidance knows stretches of tokens beforehand for plain repetitions alone.
const LINES: &str = r#"lines: line | lines line
line: LINE? "\n"
LINE: /[^\n]+/ & ~/<\/parameter>/
"#;

/// The grammar of calls of these tools.
///
/// # Errors
/// [`Error::Option`](crate::Error::Option) with the place where there is none, or one cannot be called in this format.
pub(super) fn lark(format: ToolFormat, tools: &DeclaredTools, parallel: bool) -> Result<String> {
    if tools.is_empty() {
        return Err(wrong("tools", "there is none to call"));
    }
    // One call is all that Llama 3.1 was trained on.
    let more = if parallel && format != ToolFormat::Llama3Json { CALLS - 1 } else { 0 };
    let mut lark = match more {
        0 => "start: call\n".to_owned(),
        more => format!("start: call (\"\\n\" call){{0,{more}}}\n"),
    };
    if format == ToolFormat::Qwen3Coder {
        lark.push_str(LINES);
    }
    let calls: Vec<String> = (0..tools.tools().len()).map(|i| format!("call_{i}")).collect();
    let _ = writeln!(lark, "call: {}", calls.join(" | "));
    for (i, tool) in tools.tools().iter().enumerate() {
        let place = format!("tools[{i}].function");
        match format {
            ToolFormat::Hermes => object(&mut lark, i, tool, ("<tool_call>\n", "arguments", "\n</tool_call>"), &place)?,
            ToolFormat::Llama3Json => object(&mut lark, i, tool, ("", "parameters", ""), &place)?,
            ToolFormat::Qwen3Coder => tags(&mut lark, i, tool, &place)?,
        }
        bounded(lark.len(), &place)?;
    }
    Ok(lark)
}

/// `{"name": …, "arguments": {…}}` between two texts.
fn object(lark: &mut String, i: usize, tool: &DeclaredTool, around: (&str, &str, &str), place: &str) -> Result<()> {
    let (before, key, after) = around;
    let begin = format!("{before}{{\"name\": {}, \"{key}\": ", Value::from(tool.name.as_str()));
    let schema = arguments(tool, place)?;
    let _ = writeln!(lark, "call_{i}: {} arguments_{i} {}", literal(&begin), literal(&format!("}}{after}")));
    let _ = writeln!(lark, "arguments_{i}: %json {schema}");
    Ok(())
}

/// The schema of a tool's arguments.
fn arguments(tool: &DeclaredTool, place: &str) -> Result<Value> {
    let schema = match &tool.parameters {
        Value::Object(schema) if schema.contains_key("type") || schema.contains_key("$ref") => tool.parameters.clone(),
        // Whatever a schema without a type allows, arguments are an object.
        Value::Object(schema) => {
            let mut schema = schema.clone();
            schema.insert("type".to_owned(), json!("object"));
            Value::Object(schema)
        }
        _ => json!({"type": "object"}),
    };
    prepared(&schema, &format!("{place}.parameters"))
}

/// Tags, with one rule for each parameter.
fn tags(lark: &mut String, i: usize, tool: &DeclaredTool, place: &str) -> Result<()> {
    let name = in_tag(&tool.name, &format!("{place}.name"))?;
    // Bounds of the whole, before any part of it is written again and again.
    let parameters = arguments(tool, place)?;
    let empty = Map::new();
    let properties = parameters.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let required: Vec<&str> = (parameters.get("required").and_then(Value::as_array).into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    let undeclared = required.iter().copied().filter(|key| !properties.contains_key(*key));
    let keys: Vec<&str> = properties.keys().map(String::as_str).chain(undeclared).collect();
    let begin = literal(&format!("<tool_call>\n<function={name}>\n"));
    let mut rules = String::new();
    let _ = write!(lark, "call_{i}: {begin}");
    for (p, key) in keys.into_iter().enumerate() {
        let key_place = format!("{place}.parameters.properties.{key}");
        let optional = if required.contains(&key) { "" } else { "?" };
        if properties.get(key) == Some(&Value::Bool(false)) && !required.contains(&key) {
            continue;
        }
        let _ = write!(lark, " parameter_{i}_{p}{optional}");
        let begin = literal(&format!("<parameter={}>\n", in_tag(key, &key_place)?));
        let end = "\n</parameter>\n";
        let schema = properties.get(key).cloned().unwrap_or_else(|| json!({"type": "string"}));
        if let Some(texts) = texts(&schema) {
            let texts: Vec<String> = texts.into_iter().map(literal).collect();
            let _ = writeln!(rules, "parameter_{i}_{p}: {begin} ({}) {}", texts.join(" | "), literal(end));
        } else if tool.takes_text(key) {
            let _ = writeln!(rules, "parameter_{i}_{p}: {begin} lines {}", literal("</parameter>\n"));
        } else {
            let schema = prepared(&by_itself(&schema, &parameters), &key_place)?;
            let _ = writeln!(rules, "parameter_{i}_{p}: {begin} value_{i}_{p} {}", literal(end));
            let _ = writeln!(rules, "value_{i}_{p}: %json {schema}");
            bounded(rules.len(), &key_place)?;
        }
    }
    let _ = writeln!(lark, " {}\n{rules}", literal("</function>\n</tool_call>"));
    Ok(())
}

fn bounded(bytes: usize, place: &str) -> Result<()> {
    if bytes > BYTES {
        return Err(wrong(
            place,
            &format!("makes a grammar of more than {BYTES} bytes; use fewer tools or simpler schemas"),
        ));
    }
    Ok(())
}

/// The schema of a parameter as one of its own, which means the same: what it refers to is in the schema of all parameters, which becomes a
/// definition of it.
fn by_itself(schema: &Value, parameters: &Value) -> Value {
    let mut refers = false;
    let mut alone = moved(schema, &mut refers);
    if let (true, Some(object)) = (refers, alone.as_object_mut()) {
        object.insert("$defs".to_owned(), json!({"parameters": moved(parameters, &mut refers)}));
    }
    alone
}

/// A schema whose references are to what is under a definition now; `refers` is set where there is one.
fn moved(schema: &Value, refers: &mut bool) -> Value {
    with_references(schema, &mut |pointer| {
        *refers = true;
        Some(format!("#/$defs/parameters{}", pointer.trim_start_matches('#').trim_end_matches('/')))
    })
}

/// The texts that a schema lists, where it allows nothing else.
fn texts(schema: &Value) -> Option<Vec<&str>> {
    let listed = match (schema.get("const"), schema.get("enum").and_then(Value::as_array)) {
        (Some(value), _) => vec![value.as_str()?],
        (None, Some(values)) => values.iter().map(Value::as_str).collect::<Option<_>>()?,
        (None, None) => return None,
    };
    (!listed.is_empty()).then_some(listed)
}

/// A name that can stand in a tag.
fn in_tag<'a>(name: &'a str, place: &str) -> Result<&'a str> {
    if name.is_empty() || name.contains(['<', '>', '\n']) || name.len() > 256 {
        return Err(wrong(place, &format!("{name:?} cannot be written in a tag; take letters, digits, _ and -")));
    }
    Ok(name)
}

/// A text in Lark, where it is written as in JSON.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
