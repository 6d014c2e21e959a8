//! Grammars of tool calls, in the language of llguidance: Lark.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::references::with_references;
use super::schema::{prepared, wrong};
use super::texts::{Texts, literal, texts};
use crate::Result;
use crate::references::found;
use crate::text::{DeclaredTool, DeclaredTools, FORMS, Form, Forms, Kinds, ToolFormat};

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

/// The name of the rule of calls.
pub(super) const CALLS_RULE: &str = "calls";

/// The rules of calls of these tools; what a text begins with is for the caller to say.
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
        0 => format!("{CALLS_RULE}: call\n"),
        more => format!("{CALLS_RULE}: call (\"\\n\" call){{0,{more}}}\n"),
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

/// Tags, with one rule for each parameter that is not like another one.
fn tags(lark: &mut String, i: usize, tool: &DeclaredTool, place: &str) -> Result<()> {
    let name = in_tag(&tool.name, &format!("{place}.name"))?;
    // Bounds of the whole, before any part of it is written again and again.
    let parameters = arguments(tool, place)?;
    let place = format!("{place}.parameters");
    let forms = Forms::of(&parameters);
    let Some(forms) = forms.all() else {
        let message =
            format!("has more than {FORMS} alternatives, or they are nested too deep; use fewer, or several tools");
        return Err(wrong(&place, &message));
    };
    let mut tags = Tags { i, parameters: &parameters, place, rules: String::new(), known: HashMap::new(), unfit: None };
    let mut written = Vec::new();
    for form in forms {
        written.extend(tags.form(form)?);
        bounded(written.iter().map(String::len).sum(), &tags.place)?;
    }
    if written.is_empty() {
        return Err(wrong(&tags.unfit.unwrap_or(tags.place), "no answer fits it, and it is required"));
    }
    let (begin, end) = (format!("<tool_call>\n<function={name}>\n"), "</function>\n</tool_call>");
    let _ = writeln!(lark, "call_{i}: {} ({}) {}", literal(&begin), written.join(" | "), literal(end));
    lark.push_str(&tags.rules);
    Ok(())
}

/// The rules of one tool's parameters.
struct Tags<'a> {
    i: usize,
    parameters: &'a Value,
    /// Where they stand.
    place: String,
    rules: String,
    /// Numbers of rules, by names and the schemas that they are of; `None` where nothing fits.
    known: HashMap<(&'a str, Vec<*const Value>), Option<usize>>,
    /// The place of a parameter that a form asks for and nothing fits.
    unfit: Option<String>,
}

impl<'a> Tags<'a> {
    /// The parameters of one form of the arguments; `None` where nothing fits.
    fn form(&mut self, form: &Form<'a>) -> Result<Option<String>> {
        let required = form.required();
        let mut references = form.keyword("$ref").filter_map(Value::as_str);
        if let Some(reference) = references.find(|reference| found(self.parameters, reference).is_none()) {
            return Err(wrong(&self.place, &format!("$ref {reference:?} names nothing in it")));
        }
        let listed = ["const", "enum"].into_iter().find(|name| form.keyword(name).next().is_some());
        if let Some(name) = listed {
            return Err(wrong(
                &format!("{}.{name}", self.place),
                "whole arguments cannot be listed for a call in tags",
            ));
        }
        let mut rules = Vec::new();
        for key in form.keys() {
            let is_required = required.contains(key);
            match self.parameter(key, &form.schemas(key))? {
                Some(rule) => rules.push((rule, is_required)),
                None if is_required => {
                    self.unfit.get_or_insert(self.place_of(key));
                    return Ok(None);
                }
                None => {}
            }
        }
        let counts = |name| form.keyword(name).filter_map(Value::as_f64).map(|count| count as usize);
        let (least, most) = (counts("minProperties").max().unwrap_or(0), counts("maxProperties").min());
        if most.is_some_and(|most| most < rules.len()) {
            let message = "fewer parameters than are named cannot be asked for in tags; leave it out";
            return Err(wrong(&format!("{}.maxProperties", self.place), message));
        }
        let missing = least.saturating_sub(required.len());
        let optional: Vec<usize> = rules.iter().enumerate().filter(|(_, rule)| !rule.1).map(|(at, _)| at).collect();
        match missing {
            0 => Ok(Some(self.sequence(&rules))),
            // The first optional one that is there is each of them.
            1 if !optional.is_empty() => {
                let with_first = |first: &usize| {
                    let kept = |(at, (rule, required)): (usize, &(usize, bool))| {
                        (*required || at >= *first).then_some((*rule, *required || at == *first))
                    };
                    let kept: Vec<(usize, bool)> = rules.iter().enumerate().filter_map(kept).collect();
                    self.sequence(&kept)
                };
                Ok(Some(optional.iter().map(with_first).collect::<Vec<_>>().join(" | ")))
            }
            _ => {
                let message =
                    "parameters without a name cannot be asked for in tags; name them in properties and required";
                Err(wrong(&format!("{}.minProperties", self.place), message))
            }
        }
    }

    fn sequence(&self, rules: &[(usize, bool)]) -> String {
        let named = |(rule, is_required): &(usize, bool)| {
            format!("parameter_{}_{rule}{}", self.i, if *is_required { "" } else { "?" })
        };
        if rules.is_empty() { literal("") } else { rules.iter().map(named).collect::<Vec<_>>().join(" ") }
    }

    fn place_of(&self, key: &str) -> String {
        format!("{}.properties.{key}", self.place)
    }

    /// The number of the rule of a parameter that fits all of these schemas; `None` where nothing does.
    fn parameter(&mut self, key: &'a str, schemas: &[&'a Value]) -> Result<Option<usize>> {
        let like = (key, schemas.iter().map(|schema| std::ptr::from_ref(*schema)).collect());
        if let Some(rule) = self.known.get(&like) {
            return Ok(*rule);
        }
        let place = self.place_of(key);
        let made = match texts(schemas, self.parameters, &place)? {
            Texts::These(texts, Kinds::NONE) if texts.is_empty() => None,
            texts => Some(self.rule(key, schemas, texts, &place)?),
        };
        self.known.insert(like, made);
        Ok(made)
    }

    fn rule(&mut self, key: &str, schemas: &[&Value], texts: Texts, place: &str) -> Result<usize> {
        const END: &str = "\n</parameter>\n";
        let (i, p) = (self.i, self.known.len());
        let begin = literal(&format!("<parameter={}>\n", in_tag(key, place)?));
        let schema = match schemas {
            [one] => (*one).clone(),
            several => json!({ "allOf": several }),
        };
        let mut kinds = Vec::new();
        let json = match texts {
            Texts::Free => {
                let _ = writeln!(self.rules, "parameter_{i}_{p}: {begin} lines {}", literal("</parameter>\n"));
                return Ok(p);
            }
            // By the letter other values fit too, texts in quotes among them.
            Texts::Json(kinds) if means_type(&schema) => Some(json!({"type": kinds.names(), "allOf": [schema]})),
            Texts::Json(_) => Some(schema),
            Texts::These(texts, others) => {
                if !texts.is_empty() {
                    // With what ends it: a text can go on behind a line end.
                    let _ = writeln!(self.rules, "TEXT_{i}_{p}: ({}) {}", texts.join(" | "), literal(END));
                    kinds.push(format!("TEXT_{i}_{p}"));
                }
                (others != Kinds::NONE).then(|| json!({"type": others.names(), "allOf": [schema]}))
            }
        };
        if let Some(schema) = json {
            let schema = prepared(&by_itself(&schema, self.parameters), place)?;
            let _ = writeln!(self.rules, "value_{i}_{p}: %json {schema}");
            kinds.push(format!("value_{i}_{p} {}", literal(END)));
        }
        let _ = writeln!(self.rules, "parameter_{i}_{p}: {begin} ({})", kinds.join(" | "));
        bounded(self.rules.len(), place)?;
        Ok(p)
    }
}

/// Whether a schema has no type, and keywords of one.
fn means_type(schema: &Value) -> bool {
    schema.get("type").is_none() && ["properties", "items"].iter().any(|keyword| schema.get(*keyword).is_some())
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

/// A name that can stand in a tag.
fn in_tag<'a>(name: &'a str, place: &str) -> Result<&'a str> {
    if name.is_empty() || name.contains(['<', '>', '\n']) || name.len() > 256 {
        return Err(wrong(place, &format!("{name:?} cannot be written in a tag; take letters, digits, _ and -")));
    }
    Ok(name)
}
