//! Runs the statements of a template, with the scopes of jinja2.
//!
//! A loop, a macro, `with`, `call`, `filter`, `generation` and the block form of `set` have scopes of their own: what they set ends
//! with them. An `if` has none. A macro sees the scope that it was written in, as it is when the macro is called.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use chrono::NaiveDateTime;

use super::arguments::Args;
use super::ast::{self, Body, Expr, For, Stmt, StmtKind, Target};
use super::budget::Budget;
use super::error::{TemplateError, TemplateResult};
use super::python::{self, escape_html};
use super::value::{Dict, LoopState, Macro, Namespace, Scope, Value};

/// Expressions and statements inside each other, across macros. A level takes about a kilobyte of stack, several without
/// optimisation.
const NESTING: usize = 5_000;
/// Macros and recursive loops inside each other.
const CALLS: usize = 200;
/// Nesting that is looked through for a namespace that would contain itself.
const LINKS: usize = 50;

/// What a statement asks the loop around it to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// Runs one template once.
pub(super) struct Interpreter<'b> {
    pub(super) budget: &'b Budget,
    /// The output, and inside it the texts that macros and blocks collect.
    out: Vec<String>,
    nesting: usize,
    pub(super) calls: usize,
    /// Whether `{% autoescape %}` is on.
    pub(super) escapes: bool,
    /// What a filter block filters.
    pub(super) piped: Option<Value>,
    /// The time that `strftime_now` tells, where it is not that of the clock.
    pub(super) now: Option<NaiveDateTime>,
    root: Rc<Scope>,
    /// Scopes that macros refer to, and all namespaces: both may refer to themselves in a circle, which is cut at the end.
    captured: Vec<Rc<Scope>>,
    pub(super) namespaces: Vec<Rc<Namespace>>,
}

impl Drop for Interpreter<'_> {
    fn drop(&mut self) {
        for scope in &self.captured {
            let mut scope = Some(scope);
            while let Some(next) = scope {
                // Values may refer to scopes; none is borrowed while they are dropped.
                drop(next.variables.take());
                scope = next.parent.as_ref();
            }
        }
        let attributes: Vec<Dict> = self.namespaces.iter().map(|n| n.attributes.take()).collect();
        drop(attributes);
    }
}

impl<'b> Interpreter<'b> {
    pub(super) fn new(budget: &'b Budget, globals: Vec<(Rc<str>, Value)>, now: Option<NaiveDateTime>) -> Self {
        let outermost = Rc::new(Scope::default());
        for (name, value) in globals {
            outermost.set(name, value);
        }
        Self {
            budget,
            out: vec![String::new()],
            nesting: 0,
            calls: 0,
            escapes: false,
            piped: None,
            now,
            root: Scope::inside(&outermost),
            captured: vec![outermost],
            namespaces: Vec::new(),
        }
    }

    /// The text of a template.
    pub(super) fn run(mut self, template: &Body) -> TemplateResult<String> {
        let root = self.root.clone();
        self.captured.push(root.clone());
        self.body(template, &root)?;
        Ok(self.out.pop().unwrap_or_default())
    }

    /// Counts nesting, so that the stack is not exhausted.
    pub(super) fn nested<T>(&mut self, run: impl FnOnce(&mut Self) -> TemplateResult<T>) -> TemplateResult<T> {
        self.budget.step()?;
        if self.nesting >= NESTING {
            return Err(TemplateError::new("the template is nested too deep; an endless recursion?"));
        }
        self.nesting += 1;
        let result = run(self);
        self.nesting -= 1;
        result
    }

    /// Counts macros and recursive loops inside each other.
    pub(super) fn called<T>(&mut self, run: impl FnOnce(&mut Self) -> TemplateResult<T>) -> TemplateResult<T> {
        if self.calls >= CALLS {
            return Err(TemplateError::new(format!(
                "macros call each other more than {CALLS} deep; an endless recursion?"
            )));
        }
        self.calls += 1;
        let result = run(self);
        self.calls -= 1;
        result
    }

    pub(super) fn write(&mut self, text: &str) -> TemplateResult<()> {
        self.budget.spend(text.len())?;
        if let Some(out) = self.out.last_mut() {
            out.push_str(text);
        }
        Ok(())
    }

    /// The text that something writes.
    pub(super) fn collect(&mut self, run: impl FnOnce(&mut Self) -> TemplateResult<()>) -> TemplateResult<Value> {
        self.out.push(String::new());
        let result = run(self);
        let text = self.out.pop().unwrap_or_default();
        result?;
        if self.escapes { self.budget.markup(text) } else { self.budget.text(text) }
    }

    fn body(&mut self, body: &Body, scope: &Rc<Scope>) -> TemplateResult<Flow> {
        for statement in body {
            let flow = self.nested(|i| i.statement(statement, scope)).map_err(|e| e.at(statement.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&mut self, statement: &Stmt, scope: &Rc<Scope>) -> TemplateResult<Flow> {
        match &statement.kind {
            StmtKind::Data(text) => self.write(text)?,
            StmtKind::Emit(values) => self.emit(values, scope)?,
            StmtKind::For(code) => {
                let iterated = self.eval(&code.iterated, scope)?;
                return self.for_loop(code, iterated, scope, 0);
            }
            StmtKind::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.eval(condition, scope)?.truth() {
                        return self.body(body, scope);
                    }
                }
                return self.body(otherwise, scope);
            }
            StmtKind::Set(target, value) => {
                let value = self.eval(value, scope)?;
                self.assign(target, value, scope)?;
            }
            StmtKind::SetBlock(target, filter, body) => {
                let inner = Scope::inside(scope);
                let mut flow = Flow::Next;
                let mut value = self.collect(|i| {
                    flow = i.body(body, &inner)?;
                    Ok(())
                })?;
                if let Some(filter) = filter {
                    value = self.filter_block(filter, value, scope)?;
                }
                self.assign(target, value, scope)?;
                return Ok(flow);
            }
            StmtKind::With(assignments, body) => {
                let inner = Scope::inside(scope);
                for (target, value) in assignments {
                    let value = self.eval(value, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.body(body, &inner);
            }
            StmtKind::FilterBlock(filter, body) => {
                let inner = Scope::inside(scope);
                let mut flow = Flow::Next;
                let value = self.collect(|i| {
                    flow = i.body(body, &inner)?;
                    Ok(())
                })?;
                let value = self.filter_block(filter, value, scope)?;
                self.write(&python::text(self.budget, &value)?)?;
                return Ok(flow);
            }
            StmtKind::Macro(code) => {
                let value = self.macro_value(code, scope);
                if let Some(name) = &code.name {
                    scope.set(name.clone(), value);
                }
            }
            StmtKind::CallBlock(call, body) => {
                let caller = self.macro_value(body, scope);
                let value = self.call_with_caller(call, caller, scope)?;
                self.write(&python::text(self.budget, &value)?)?;
            }
            StmtKind::Generation(body) => {
                let inner = Scope::inside(scope);
                self.body(body, &inner)?;
            }
            StmtKind::Block { scoped, required, body } => {
                if *required {
                    return Err(TemplateError::new("a required block needs a template that extends this one"));
                }
                let outer = if *scoped { scope } else { &self.root };
                let inner = Scope::inside(outer);
                self.body(body, &inner)?;
            }
            StmtKind::AutoEscape(on, body) => {
                let on = self.eval(on, scope)?.truth();
                let before = std::mem::replace(&mut self.escapes, on);
                let inner = Scope::inside(scope);
                let flow = self.body(body, &inner);
                self.escapes = before;
                return flow;
            }
            StmtKind::Load(tag) => {
                return Err(TemplateError::new(format!(
                    "the tag {tag} is not possible: a chat template is one file, there is no other to load"
                )));
            }
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn emit(&mut self, values: &[Expr], scope: &Rc<Scope>) -> TemplateResult<()> {
        for expr in values {
            let value = self.eval(expr, scope)?;
            let text = python::text(self.budget, &value)?;
            if self.escapes && !matches!(value, Value::Markup(_)) {
                self.write(&escape_html(&text))?;
            } else {
                self.write(&text)?;
            }
        }
        Ok(())
    }

    fn filter_block(&mut self, filter: &Expr, value: Value, scope: &Rc<Scope>) -> TemplateResult<Value> {
        let outer = self.piped.replace(value);
        let filtered = self.eval(filter, scope);
        self.piped = outer;
        filtered
    }

    fn macro_value(&mut self, code: &Rc<ast::Macro>, scope: &Rc<Scope>) -> Value {
        if !self.captured.last().is_some_and(|last| Rc::ptr_eq(last, scope)) {
            self.captured.push(scope.clone());
        }
        Value::Macro(Rc::new(Macro { code: code.clone(), scope: scope.clone() }))
    }

    fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> TemplateResult<()> {
        match target {
            Target::Name(name) => scope.set(name.clone(), value),
            Target::Attribute(name, attribute) => match scope.get(name) {
                Some(Value::Namespace(namespace)) => self.set_attribute(&namespace, attribute, value)?,
                _ => {
                    return Err(TemplateError::new(format!(
                        "{name} is no namespace, its attribute {attribute} cannot be set"
                    )));
                }
            },
            Target::Tuple(targets) => {
                let values = value.iterate(self.budget)?;
                if values.len() != targets.len() {
                    let (n, m) = (values.len(), targets.len());
                    return Err(TemplateError::new(format!("{n} values cannot be assigned to {m} names")));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value, scope)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn set_attribute(&self, namespace: &Rc<Namespace>, name: &str, value: Value) -> TemplateResult<()> {
        if name.starts_with('_') {
            return Err(TemplateError::new(format!(
                "a namespace cannot have the attribute {name}: names begin with no underscore"
            )));
        }
        if holds(self.budget, &value, namespace, 0)? {
            return Err(TemplateError::new("a namespace cannot contain itself"));
        }
        let mut attributes = namespace.attributes.borrow_mut();
        attributes.insert(Value::str(name), value)?;
        let (weight, depth) = self.budget.weigh(attributes.iter().map(|(_, value)| value))?;
        namespace.weight.set(weight);
        namespace.depth.set(depth);
        self.budget.spend(super::budget::NODE)
    }

    /// Runs a loop over `iterated`.
    fn for_loop(&mut self, code: &Rc<For>, iterated: Value, scope: &Rc<Scope>, depth0: usize) -> TemplateResult<Flow> {
        let items: VecDeque<Value> = match &iterated {
            Value::Loop(state) => state.rest.borrow_mut().drain(..).collect(),
            other => other.iterate(self.budget)?.into(),
        };
        let state = Rc::new(LoopState {
            index0: Cell::new(0),
            depth0,
            rest: RefCell::new(items),
            after: RefCell::default(),
            before: RefCell::default(),
            current: RefCell::default(),
            changed: RefCell::default(),
            filtered: Cell::new(code.filter.is_some()),
            code: code.clone(),
            scope: scope.clone(),
        });
        let mut count = 0;
        let mut completed = false;
        loop {
            let next = state.after.borrow_mut().take();
            let next = match next {
                Some(next) => Some(next),
                None => self.fetch(&state)?,
            };
            let Some(item) = next else { break };
            state.index0.set(count);
            count += 1;
            let before = state.current.replace(Some(item.clone()));
            *state.before.borrow_mut() = before;
            let inner = Scope::inside(scope);
            inner.set("loop".into(), Value::Loop(state.clone()));
            self.assign(&code.target, item, &inner)?;
            match self.body(&code.body, &inner)? {
                Flow::Break => break,
                Flow::Continue => {}
                Flow::Next => completed = true,
            }
        }
        // As jinja2 has it, the alternative runs too where every run of the body was cut short.
        if !completed {
            let inner = Scope::inside(scope);
            return self.body(&code.otherwise, &inner);
        }
        Ok(Flow::Next)
    }

    /// The next item that passes the filter of the loop.
    fn fetch(&mut self, state: &Rc<LoopState>) -> TemplateResult<Option<Value>> {
        loop {
            let Some(item) = state.rest.borrow_mut().pop_front() else { return Ok(None) };
            let filter = state.code.filter.as_ref().filter(|_| state.filtered.get());
            let Some(filter) = filter else { return Ok(Some(item)) };
            let inner = Scope::inside(&state.scope);
            self.assign(&state.code.target, item.clone(), &inner)?;
            if self.eval(filter, &inner)?.truth() {
                return Ok(Some(item));
            }
        }
    }

    /// The item after the current one.
    fn peek(&mut self, state: &Rc<LoopState>) -> TemplateResult<Option<Value>> {
        if state.after.borrow().is_none() {
            let next = self.fetch(state)?;
            *state.after.borrow_mut() = next;
        }
        Ok(state.after.borrow().clone())
    }

    pub(super) fn loop_length(&mut self, state: &Rc<LoopState>) -> TemplateResult<usize> {
        if state.filtered.get() {
            let mut passed = VecDeque::new();
            while let Some(item) = self.fetch(state)? {
                passed.push_back(item);
            }
            state.filtered.set(false);
            *state.rest.borrow_mut() = passed;
        }
        Ok(state.known_length())
    }

    /// An attribute of `loop`.
    pub(super) fn loop_attribute(&mut self, state: &Rc<LoopState>, name: &str) -> TemplateResult<Option<Value>> {
        let index0 = state.index0.get();
        Ok(Some(match name {
            "index0" => Value::int(index0),
            "index" => Value::int(index0.saturating_add(1)),
            "first" => Value::Bool(index0 == 0),
            "last" => Value::Bool(self.peek(state)?.is_none()),
            "length" => Value::int(self.loop_length(state)?),
            "revindex" => Value::int(self.loop_length(state)?.saturating_sub(index0)),
            "revindex0" => Value::int(self.loop_length(state)?.saturating_sub(index0.saturating_add(1))),
            "depth0" => Value::int(state.depth0),
            "depth" => Value::int(state.depth0.saturating_add(1)),
            "previtem" => match (index0, &*state.before.borrow()) {
                (1.., Some(item)) => item.clone(),
                _ => Value::undefined("there is no previous item"),
            },
            "nextitem" => self.peek(state)?.unwrap_or_else(|| Value::undefined("there is no next item")),
            _ => return Ok(None),
        }))
    }

    /// `loop(items)` of a recursive loop.
    pub(super) fn recurse(&mut self, state: &Rc<LoopState>, args: Args) -> TemplateResult<Value> {
        if !state.code.recursive {
            return Err(TemplateError::new("loop can be called only where the loop is marked recursive"));
        }
        let [items] = args.positional("loop", 1)?;
        let items = items.unwrap_or(Value::None);
        self.called(|i| {
            i.collect(|i| i.for_loop(&state.code, items, &state.scope, state.depth0.saturating_add(1)).map(drop))
        })
    }

    /// Calls a macro.
    pub(super) fn call_macro(&mut self, value: &Rc<Macro>, args: Args) -> TemplateResult<Value> {
        let code = &value.code;
        let name = code.name.as_deref().unwrap_or("caller");
        let scope = Scope::inside(&value.scope);
        let Args { positional, named } = args;
        let mut named: Vec<(Rc<str>, Value)> = named;
        let count = code.parameters.len();
        let mut values = positional.into_iter();
        let first_default = count.saturating_sub(code.defaults.len());
        for (i, parameter) in code.parameters.iter().enumerate() {
            let by_name = named.iter().position(|(n, _)| n == parameter);
            let value = match (values.next(), by_name) {
                (Some(_), Some(_)) => return Err(TemplateError::new(format!("{name} is given {parameter} twice"))),
                (Some(value), None) => value,
                (None, Some(at)) => named.remove(at).1,
                (None, None) => match i.checked_sub(first_default).and_then(|d| code.defaults.get(d)) {
                    Some(default) => self.eval(default, &scope)?,
                    None => Value::undefined(format!("parameter {parameter} was not provided")),
                },
            };
            scope.set(parameter.clone(), value);
        }
        if code.takes_caller && !code.parameters.iter().any(|p| **p == *"caller") {
            let at = named.iter().position(|(n, _)| **n == *"caller");
            let caller = at.map(|at| named.remove(at).1);
            scope.set(
                "caller".into(),
                caller.unwrap_or_else(|| Value::undefined("caller is undefined: there is no call block")),
            );
        }
        if code.takes_kwargs {
            let mut dict = Dict::default();
            for (key, value) in named {
                dict.insert(Value::Str(key), value)?;
            }
            scope.set("kwargs".into(), self.budget.dict(dict)?);
        } else if let Some((key, _)) = named.first() {
            return Err(TemplateError::new(format!("{name} has no parameter {key}")));
        }
        let rest: Vec<Value> = values.collect();
        if code.takes_varargs {
            scope.set("varargs".into(), self.budget.tuple(rest)?);
        } else if !rest.is_empty() {
            return Err(TemplateError::new(format!("{name} takes at most {count} arguments")));
        }
        self.called(|i| i.collect(|i| i.body(&code.body, &scope).map(drop)))
    }
}

/// Whether a value contains the namespace.
fn holds(budget: &Budget, value: &Value, namespace: &Rc<Namespace>, depth: usize) -> TemplateResult<bool> {
    budget.work(1)?;
    if depth > LINKS {
        return Err(TemplateError::new(format!("values with a namespace in them are nested more than {LINKS} deep")));
    }
    let any = |values: &mut dyn Iterator<Item = &Value>| -> TemplateResult<bool> {
        for value in values {
            if holds(budget, value, namespace, depth + 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    match value {
        Value::Namespace(other) => {
            if Rc::ptr_eq(other, namespace) {
                return Ok(true);
            }
            // Borrowed only while this set is being prepared.
            let attributes = other.attributes.borrow();
            any(&mut attributes.iter().map(|(_, v)| v))
        }
        Value::List(list) | Value::Tuple(list) if depth < LINKS => any(&mut list.items.iter()),
        Value::Dict(dict) | Value::View(dict, _) if depth < LINKS => any(&mut dict.iter().map(|(_, v)| v)),
        Value::Generator(items) => any(&mut items.borrow().iter()),
        Value::Cycler(cycler) => any(&mut cycler.0.iter()),
        _ => Ok(false),
    }
}
