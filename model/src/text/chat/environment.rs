//! One rendering of a template: its thread, its variables and its bounds.

use std::rc::Rc;
use std::thread;

use chrono::NaiveDateTime;
use serde_json::{Map, Value as Json};

use super::budget::Budget;
use super::error::{TemplateError, TemplateResult};
use super::evaluate::FUNCTIONS;
use super::interpreter::Interpreter;
use super::parser::parse;
use super::value::Value;
use crate::{Error, Result};

/// Parser and interpreter recurse over the syntax tree and over values, within their bounds. Only what is used is ever backed by
/// memory.
const STACK: usize = 64 << 20;

/// Parses a template without running it.
pub(super) fn check(name: &str, source: &str) -> Result<()> {
    on_large_stack(|| parse(source).map(drop).map_err(|e| explain(name, &e)))
}

/// Renders a template with these variables.
pub(super) fn render(
    name: &str,
    source: &str,
    variables: &Map<String, Json>,
    messages: usize,
    now: Option<NaiveDateTime>,
) -> Result<String> {
    on_large_stack(|| {
        let budget = Budget::new(size_of(variables), messages);
        let rendered = (|| {
            let template = parse(source)?;
            Interpreter::new(&budget, globals(&budget, variables)?, now).run(&template)
        })();
        rendered.map_err(|e| explain(name, &e))
    })
}

/// What a template can name: the functions, and before them the variables.
fn globals(budget: &Budget, variables: &Map<String, Json>) -> TemplateResult<Vec<(Rc<str>, Value)>> {
    let mut globals: Vec<(Rc<str>, Value)> =
        FUNCTIONS.into_iter().map(|name| (Rc::from(name), Value::Function(name))).collect();
    globals.push(("self".into(), Value::Template));
    for (name, value) in variables {
        globals.push((Rc::from(name.as_str()), Value::from_json(budget, value)?));
    }
    Ok(globals)
}

/// Runs on a thread of its own, with a stack that the bounded recursion cannot exhaust.
fn on_large_stack<T: Send>(run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("chat template".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, run)
            .map_err(|e| Error::Template(format!("no thread to render in: {e}")))?;
        thread.join().unwrap_or_else(|_| {
            Err(Error::Template("the template engine failed on this template; please report it".to_owned()))
        })
    })
}

fn explain(name: &str, fail: &TemplateError) -> Error {
    let place = match fail.line {
        Some(line) if name == "default" => format!("line {line}: "),
        Some(line) => format!("{name}, line {line}: "),
        None => String::new(),
    };
    Error::Template(format!("{place}{}", fail.message))
}

/// Bytes of a JSON value in memory, roughly.
fn size(json: &Json) -> usize {
    const NODE: usize = 32;
    match json {
        Json::String(text) => text.len().saturating_add(NODE),
        Json::Array(items) => items.iter().map(size).fold(NODE, usize::saturating_add),
        Json::Object(map) => size_of(map).saturating_add(NODE),
        _ => NODE,
    }
}

fn size_of(map: &Map<String, Json>) -> usize {
    map.iter().map(|(k, v)| k.len().saturating_add(size(v))).fold(0, usize::saturating_add)
}
