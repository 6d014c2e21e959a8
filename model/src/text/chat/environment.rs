//! The template engine, set up as transformers sets up jinja2, and bounded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use minijinja::machinery::{CodeGenerator, Instructions, Token, eval, make_string_output, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use super::budget::{Budget, refuse, without_namespace};
use super::{methods, operators, python, rewrite};
use crate::{Error, Result};

/// The largest published templates have 30 KB.
const SOURCE_LIMIT: usize = 256 << 10;
/// Bounds how deep operators chain in one expression, which the parser itself does not.
const TOKENS_PER_TAG: usize = 4_000;
/// `elif` branches are nested in the syntax tree, which the parser does not bound either.
const ELIF_LIMIT: usize = 1_000;
/// The engine recurses over the syntax tree and over values, within the bounds above. Only what is used is ever backed by memory.
const STACK: usize = 64 << 20;
/// Nesting of macro calls and loops in the engine, which counts a macro call four times.
const RECURSION: usize = 400;

/// A source as the engine shall see it: newlines as `\n`, like jinja2, and without the tags `generation` and `endgeneration`.
pub(super) fn prepare_source(source: String) -> String {
    let source = if source.contains('\r') { source.replace("\r\n", "\n").replace('\r', "\n") } else { source };
    without_generation_tags(source)
}

/// Replaces the tags `generation` and `endgeneration`, which mark the assistant's text for training and print nothing, by a
/// condition that always holds. White space around them is treated alike.
fn without_generation_tags(source: String) -> String {
    if !source.contains("generation") {
        return source;
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let inner = tag.trim_start_matches("{%");
        let word = inner.trim_start_matches(['-', '+']).trim_start();
        let replaced = [("endgeneration", "endif"), ("generation", "if true")].into_iter().find_map(|(name, new)| {
            let after = word.strip_prefix(name)?;
            let end = after.trim_start().trim_start_matches(['-', '+']);
            end.starts_with("%}").then_some((after, new))
        });
        if let Some((after, new)) = replaced {
            let opening = tag.len() - word.len();
            out.push_str(tag.get(..opening).unwrap_or_default());
            out.push_str(new);
            rest = after;
        } else {
            out.push_str("{%");
            rest = tag.get(2..).unwrap_or_default();
        }
    }
    out.push_str(rest);
    out
}

/// Parses a template without running it.
pub(super) fn check(name: &str, source: &str) -> Result<()> {
    on_large_stack(|| compile(name, source).map(drop).map_err(|e| explain(name, &e)))
}

/// Renders a template with these variables.
pub(super) fn render(name: &str, source: &str, variables: Map<String, Json>, messages: usize) -> Result<String> {
    let variables = Json::Object(variables);
    on_large_stack(|| {
        let budget = Arc::new(Budget::new(size(&variables), messages));
        let environment = environment(&budget).map_err(|e| explain(name, &e))?;
        let (instructions, blocks) = compile(name, source).map_err(|e| explain(name, &e))?;
        let mut text = String::new();
        let mut output = make_string_output(&mut text);
        let root = value(&variables);
        eval(&environment, &instructions, root, &blocks, &mut output, AutoEscape::None)
            .map_err(|e| explain(name, &e))?;
        Ok(text)
    })
}

/// Runs on a thread of its own, with a stack that the bounded recursion of the engine cannot exhaust.
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

type Compiled<'s> = (Instructions<'s>, BTreeMap<&'s str, Instructions<'s>>);

/// Parses, rewrites and compiles.
fn compile<'s>(name: &'s str, source: &'s str) -> std::result::Result<Compiled<'s>, minijinja::Error> {
    if source.len() > SOURCE_LIMIT {
        return Err(refuse(format!("it has {} bytes; the limit is {SOURCE_LIMIT}", source.len())));
    }
    let syntax = syntax()?;
    let mut in_tag = 0;
    let mut elifs = 0;
    for token in tokenize(source, false, syntax.clone()) {
        // Errors are reported by the parser, with their place.
        let Ok((token, span)) = token else { break };
        in_tag = match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => 0,
            _ => in_tag + 1,
        };
        elifs += usize::from(in_tag == 1 && matches!(token, Token::Ident("elif")));
        if in_tag > TOKENS_PER_TAG || elifs > ELIF_LIMIT {
            let line = span.start_line;
            return Err(refuse(format!(
                "line {line}: a tag has more than {TOKENS_PER_TAG} parts, or there are more than {ELIF_LIMIT} elif tags"
            )));
        }
    }
    let tree = rewrite::statement(&parse(source, name, syntax)?)?;
    let mut generator = CodeGenerator::new(name, source);
    generator.compile_stmt(&tree);
    Ok(generator.finish())
}

/// The white-space rules of transformers: `trim_blocks` and `lstrip_blocks`, no trailing newline.
fn syntax() -> std::result::Result<SyntaxConfig, minijinja::Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

fn environment(budget: &Arc<Budget>) -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax()?);
    environment.set_fuel(Some(budget.fuel));
    environment.set_recursion_limit(RECURSION);
    // Prints the state of the engine.
    environment.remove_global("debug");
    // Unused by chat templates, and they make much out of little.
    for filter in ["batch", "chain", "lines", "pprint", "slice", "zip"] {
        environment.remove_filter(filter);
    }

    let b = budget.clone();
    environment.set_formatter(move |out, _, value| {
        let text = python::text(&b, value)?;
        b.spend(text.len())?;
        out.write_str(&text).map_err(minijinja::Error::from)
    });
    let b = budget.clone();
    environment.add_function(rewrite::ADD, move |l: Value, r: Value| operators::add(&b, &l, &r));
    let b = budget.clone();
    environment.add_function(rewrite::REPEAT, move |l: Value, r: Value| operators::repeat(&b, &l, &r));
    let b = budget.clone();
    environment.add_function(rewrite::CONCAT, move |l: Value, r: Value| operators::concat(&b, &l, &r));
    let b = budget.clone();
    environment.add_function(rewrite::SLICE, move |v: Value, start: Value, stop: Value, step: Value| {
        operators::slice(&b, &v, &start, &stop, &step)
    });
    let b = budget.clone();
    environment.add_function(rewrite::TICK, move |v: Value| b.check_time().map(|()| v));
    let b = budget.clone();
    environment.add_function(rewrite::EACH, move |v: Value| b.iterate(v));
    let b = budget.clone();
    environment.add_function(rewrite::ADMIT, move |v: Value| b.admit(v));
    environment.add_function(rewrite::STORE, without_namespace);

    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    let b = budget.clone();
    environment.add_filter("tojson", move |v: Value, options: Kwargs| python::to_json(&b, &v, &options));
    methods::add_to(&mut environment, budget);
    Ok(environment)
}

/// How a template refuses a chat.
fn raise_exception(message: Value) -> std::result::Result<Value, minijinja::Error> {
    Err(refuse(message.to_string()))
}

/// The local time in `strftime` format.
fn strftime_now(format: String) -> std::result::Result<String, minijinja::Error> {
    use std::fmt::Write;
    let mut out = String::new();
    match write!(out, "{}", chrono::Local::now().format(&format)) {
        Ok(()) => Ok(out),
        Err(_) => Err(refuse(format!("strftime_now: {format:?} is no time format"))),
    }
}

fn explain(name: &str, error: &minijinja::Error) -> Error {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it runs for too many steps; an endless loop?".to_owned(),
        ErrorKind::InvalidOperation | ErrorKind::SyntaxError => {
            error.detail().unwrap_or("invalid operation").to_owned()
        }
        kind => match error.detail() {
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    };
    let place = match error.line() {
        Some(line) if name == "default" => format!("line {line}: "),
        Some(line) => format!("{name}, line {line}: "),
        None => String::new(),
    };
    let cause = std::error::Error::source(error).map_or(String::new(), |e| format!(" ({e})"));
    Error::Template(format!("{place}{what}{cause}"))
}

/// Bytes of text and structure.
fn size(json: &Json) -> usize {
    match json {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(|v| 24 + size(v)).sum(),
        Json::Object(map) => map.iter().map(|(k, v)| 48 + k.len() + size(v)).sum(),
        _ => 8,
    }
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), value(v)))),
    }
}
