//! Values of expressions, and calls.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::arguments::{Args, text_of};
use super::ast::{CallArgs, Comparison, Expr, Kind};
use super::compare::{contains, equal, order, undefined};
use super::error::{TemplateError, TemplateResult};
use super::interpreter::Interpreter;
use super::value::{Dict, LoopState, Namespace, Range, Scope, Value};
use super::{filters, lookup, methods, operators, predicates, subscript};

/// The functions of jinja2, and those that transformers adds.
pub(super) const FUNCTIONS: [&str; 8] =
    ["range", "dict", "lipsum", "cycler", "joiner", "namespace", "raise_exception", "strftime_now"];

/// As in the sandbox of jinja2.
const LONGEST_RANGE: usize = 100_000;

impl Interpreter<'_> {
    pub(super) fn eval(&mut self, expr: &Expr, scope: &Rc<Scope>) -> TemplateResult<Value> {
        self.nested(|i| i.kind(&expr.kind, scope)).map_err(|e| e.at(expr.line))
    }

    fn evals(&mut self, exprs: &[Expr], scope: &Rc<Scope>) -> TemplateResult<Vec<Value>> {
        exprs.iter().map(|expr| self.eval(expr, scope)).collect()
    }

    fn kind(&mut self, kind: &Kind, scope: &Rc<Scope>) -> TemplateResult<Value> {
        match kind {
            Kind::Const(literal) => Ok(literal.into()),
            Kind::Name(name) => Ok(scope.get(name).unwrap_or_else(|| Value::undefined(format!("{name} is undefined")))),
            Kind::List(items) => {
                let items = self.evals(items, scope)?;
                self.budget.list(items)
            }
            Kind::Tuple(items) => {
                let items = self.evals(items, scope)?;
                self.budget.tuple(items)
            }
            Kind::Dict(pairs) => self.dict_literal(pairs, scope),
            Kind::Not(operand) => Ok(Value::Bool(!self.truth(operand, scope)?)),
            Kind::Negative(operand) => operators::signed(&self.eval(operand, scope)?, true),
            Kind::Positive(operand) => operators::signed(&self.eval(operand, scope)?, false),
            Kind::Binary(operator, operands) => {
                let left = self.eval(&operands.0, scope)?;
                let right = self.eval(&operands.1, scope)?;
                operators::binary(self.budget, *operator, &left, &right)
            }
            Kind::And(operands) => {
                let left = self.eval(&operands.0, scope)?;
                if self.value_truth(&left)? { self.eval(&operands.1, scope) } else { Ok(left) }
            }
            Kind::Or(operands) => {
                let left = self.eval(&operands.0, scope)?;
                if self.value_truth(&left)? { Ok(left) } else { self.eval(&operands.1, scope) }
            }
            Kind::Concat(parts) => {
                let parts = self.evals(parts, scope)?;
                operators::concat(self.budget, &parts, self.escapes)
            }
            Kind::Compare(left, rest) => self.compare(left, rest, scope),
            Kind::Choice(branch, otherwise) => {
                if self.truth(&branch.0, scope)? {
                    return self.eval(&branch.1, scope);
                }
                match otherwise {
                    Some(otherwise) => self.eval(otherwise, scope),
                    None => Ok(Value::undefined("the value of an if without else, whose condition does not hold")),
                }
            }
            Kind::Attribute(operand, name) => {
                let value = self.eval(operand, scope)?;
                self.attribute(&value, name)
            }
            Kind::Item(operands) => self.item(&operands.0, &operands.1, scope),
            Kind::Slice(_) => Err(TemplateError::new("a slice is possible only alone between brackets")),
            Kind::Call(callee, args) => {
                let callee = self.eval(callee, scope)?;
                let args = self.args(args, scope)?;
                self.call(&callee, args)
            }
            Kind::Filter(operand, name, args) => {
                let value = match operand {
                    Some(operand) => self.eval(operand, scope)?,
                    None => self.piped.take().unwrap_or(Value::None),
                };
                let args = self.args(args, scope)?;
                if let (Value::Loop(state), "length" | "count") = (&value, &**name) {
                    return Ok(Value::int(self.loop_length(state)?));
                }
                filters::apply(self.budget, name, &value, args)
            }
            Kind::Test(operand, name, args) => {
                let value = self.eval(operand, scope)?;
                let args = self.args(args, scope)?;
                Ok(Value::Bool(predicates::apply(self.budget, name, &value, args)?))
            }
        }
    }

    fn truth(&mut self, expr: &Expr, scope: &Rc<Scope>) -> TemplateResult<bool> {
        let value = self.eval(expr, scope)?;
        self.value_truth(&value)
    }

    fn value_truth(&mut self, value: &Value) -> TemplateResult<bool> {
        match value {
            Value::Loop(state) => Ok(self.loop_length(state)? > 0),
            // A text is empty or not whatever its length in characters.
            Value::Str(text) | Value::Markup(text) => Ok(!text.is_empty()),
            other => Ok(other.truth()),
        }
    }

    fn dict_literal(&mut self, pairs: &[(Expr, Expr)], scope: &Rc<Scope>) -> TemplateResult<Value> {
        let mut dict = Dict::default();
        for (key, value) in pairs {
            let key = self.eval(key, scope)?;
            dict.insert(key, self.eval(value, scope)?)?;
        }
        self.budget.dict(dict)
    }

    fn compare(&mut self, left: &Expr, rest: &[(Comparison, Expr)], scope: &Rc<Scope>) -> TemplateResult<Value> {
        let mut left = self.eval(left, scope)?;
        for (comparison, right) in rest {
            let right = self.eval(right, scope)?;
            let ordered = |holds: fn(std::cmp::Ordering) -> bool| -> TemplateResult<bool> {
                Ok(order(self.budget, comparison.sign(), &left, &right)?.is_some_and(holds))
            };
            let holds = match comparison {
                Comparison::Equal => equal(self.budget, &left, &right)?,
                Comparison::NotEqual => !equal(self.budget, &left, &right)?,
                Comparison::Less => ordered(std::cmp::Ordering::is_lt)?,
                Comparison::LessOrEqual => ordered(std::cmp::Ordering::is_le)?,
                Comparison::Greater => ordered(std::cmp::Ordering::is_gt)?,
                Comparison::GreaterOrEqual => ordered(std::cmp::Ordering::is_ge)?,
                Comparison::In => contains(self.budget, &right, &left)?,
                Comparison::NotIn => !contains(self.budget, &right, &left)?,
            };
            if !holds {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    fn attribute(&mut self, value: &Value, name: &str) -> TemplateResult<Value> {
        if let Value::Loop(state) = value
            && let Some(found) = self.loop_attribute(state, name)?
        {
            return Ok(found);
        }
        lookup::attribute(value, name)
    }

    fn item(&mut self, operand: &Expr, index: &Expr, scope: &Rc<Scope>) -> TemplateResult<Value> {
        let value = self.eval(operand, scope)?;
        if let Kind::Slice(parts) = &index.kind {
            let mut bounds = [Value::None, Value::None, Value::None];
            for (bound, part) in bounds.iter_mut().zip(parts.iter()) {
                if let Some(part) = part {
                    *bound = self.eval(part, scope)?;
                }
            }
            let sliceable = matches!(
                value,
                Value::Undefined(_)
                    | Value::Str(_)
                    | Value::Markup(_)
                    | Value::List(_)
                    | Value::Tuple(_)
                    | Value::Range(_)
            );
            // jinja2 computes constants before it runs the template, and looks a slice of one up like any other item.
            if !sliceable && is_constant(operand) {
                return Ok(Value::undefined(format!("a {} cannot be sliced", value.kind())));
            }
            return subscript::slice(self.budget, &value, bounds);
        }
        let key = self.eval(index, scope)?;
        if let (Value::Loop(_), Some(name)) = (&value, key.as_str()) {
            return self.attribute(&value, name);
        }
        lookup::item(self.budget, &value, &key)
    }

    fn args(&mut self, args: &CallArgs, scope: &Rc<Scope>) -> TemplateResult<Args> {
        let mut positional = self.evals(&args.positional, scope)?;
        if let Some(star) = &args.star {
            positional.extend(self.eval(star, scope)?.iterate(self.budget)?);
        }
        let mut named = Vec::with_capacity(args.named.len());
        for (name, value) in &args.named {
            named.push((name.clone(), self.eval(value, scope)?));
        }
        if let Some(double) = &args.double_star {
            let Value::Dict(dict) = self.eval(double, scope)? else {
                return Err(TemplateError::new("** in a call needs a mapping"));
            };
            for (key, value) in dict.iter() {
                let key = text_of("a name of an argument", Some(key.clone()))?;
                if named.iter().any(|(name, _)| *name == key) {
                    return Err(TemplateError::new(format!("the argument {key} is given twice")));
                }
                named.push((key, value.clone()));
            }
        }
        Ok(Args { positional, named })
    }

    /// The call of a `call` block, whose body the callee gets as `caller`.
    pub(super) fn call_with_caller(&mut self, call: &Expr, caller: Value, scope: &Rc<Scope>) -> TemplateResult<Value> {
        let Kind::Call(callee, args) = &call.kind else {
            return Err(TemplateError::new("a call block needs a call"));
        };
        let callee = self.eval(callee, scope)?;
        let mut args = self.args(args, scope)?;
        args.named.push(("caller".into(), caller));
        self.call(&callee, args).map_err(|e| e.at(call.line))
    }

    fn call(&mut self, callee: &Value, args: Args) -> TemplateResult<Value> {
        match callee {
            Value::Undefined(_) => Err(undefined(callee)),
            Value::Macro(code) => self.call_macro(code, args),
            Value::Method(method) => {
                let (value, name) = &**method;
                match value {
                    Value::Loop(state) => loop_method(self, state, name, args),
                    other => methods::call(self.budget, other, name, args),
                }
            }
            Value::Loop(state) => self.recurse(state, args),
            Value::Joiner(joiner) => {
                let [] = args.positional("a joiner", 0)?;
                let (separator, used) = &**joiner;
                Ok(if used.replace(true) { separator.clone() } else { Value::str("") })
            }
            Value::Function(name) => self.function(name, args),
            other => Err(TemplateError::new(format!("a {} cannot be called", other.kind()))),
        }
    }

    fn function(&mut self, name: &str, args: Args) -> TemplateResult<Value> {
        match name {
            "range" => range(args),
            "dict" => {
                let dict = self.new_dict(args)?;
                self.budget.dict(dict)
            }
            "cycler" => {
                if let Some((name, _)) = args.named.first() {
                    return Err(TemplateError::new(format!("cycler has no parameter {name}")));
                }
                if args.positional.is_empty() {
                    return Err(TemplateError::new("cycler needs an item"));
                }
                self.budget.weigh(args.positional.iter())?;
                Ok(Value::Cycler(Rc::new((args.positional, Cell::new(0)))))
            }
            "joiner" => {
                let [separator] = args.bind(name, ["sep"], 0)?;
                Ok(Value::Joiner(Rc::new((separator.unwrap_or_else(|| Value::str(", ")), Cell::new(false)))))
            }
            "namespace" => {
                let attributes = self.new_dict(args)?;
                for (key, _) in attributes.iter() {
                    if key.as_str().is_some_and(|key| key.starts_with('_')) {
                        return Err(TemplateError::new(
                            "a namespace has no attributes whose names begin with an underscore",
                        ));
                    }
                }
                let (weight, depth) = self.budget.weigh(attributes.iter().map(|(_, value)| value))?;
                self.budget.spend(weight)?;
                let namespace = Rc::new(Namespace {
                    attributes: RefCell::new(attributes),
                    weight: Cell::new(weight),
                    depth: Cell::new(depth),
                });
                self.namespaces.push(namespace.clone());
                Ok(Value::Namespace(namespace))
            }
            "raise_exception" => {
                let [message] = args.bind(name, ["message"], 1)?;
                let message = message.unwrap_or(Value::None);
                Err(TemplateError::new(super::python::text(self.budget, &message)?.into_owned()))
            }
            "strftime_now" => {
                let [format] = args.bind(name, ["format"], 1)?;
                let text = super::clock::strftime(self.now, &text_of(name, format)?)?;
                self.budget.text(text)
            }
            other => Err(TemplateError::new(format!("the function {other} is not supported in chat templates"))),
        }
    }

    /// `dict(mapping or pairs, name=value)`.
    fn new_dict(&mut self, args: Args) -> TemplateResult<Dict> {
        let mut dict = Dict::default();
        if args.positional.len() > 1 {
            return Err(TemplateError::new("dict takes one mapping or list of pairs"));
        }
        for given in args.positional {
            if given.is_undefined() {
                return Err(undefined(&given));
            }
            if let Value::Dict(other) = &given {
                dict = (**other).clone();
                self.budget.spend(other.len().saturating_mul(super::budget::NODE))?;
                continue;
            }
            for pair in given.iterate(self.budget)? {
                match pair.iterate(self.budget)?.as_slice() {
                    [key, value] => dict.insert(key.clone(), value.clone())?,
                    _ => return Err(TemplateError::new("dict needs pairs of a key and a value")),
                }
            }
        }
        for (name, value) in args.named {
            dict.insert(Value::Str(name), value)?;
        }
        Ok(dict)
    }
}

/// Whether an expression has no names and no calls in it.
fn is_constant(expr: &Expr) -> bool {
    let all = |exprs: &[Expr]| exprs.iter().all(is_constant);
    let args = |args: &CallArgs| {
        all(&args.positional)
            && args.named.iter().all(|(_, value)| is_constant(value))
            && args.star.is_none()
            && args.double_star.is_none()
    };
    match &expr.kind {
        Kind::Const(_) => true,
        Kind::List(items) | Kind::Tuple(items) | Kind::Concat(items) => all(items),
        Kind::Dict(pairs) => pairs.iter().all(|(key, value)| is_constant(key) && is_constant(value)),
        Kind::Not(operand) | Kind::Negative(operand) | Kind::Positive(operand) | Kind::Attribute(operand, _) => {
            is_constant(operand)
        }
        Kind::Binary(_, operands) | Kind::And(operands) | Kind::Or(operands) | Kind::Item(operands) => {
            is_constant(&operands.0) && is_constant(&operands.1)
        }
        Kind::Compare(left, rest) => is_constant(left) && rest.iter().all(|(_, right)| is_constant(right)),
        Kind::Choice(branch, otherwise) => {
            is_constant(&branch.0) && is_constant(&branch.1) && otherwise.as_deref().is_none_or(is_constant)
        }
        Kind::Slice(parts) => parts.iter().flatten().all(is_constant),
        Kind::Filter(operand, _, given) => operand.as_deref().is_some_and(is_constant) && args(given),
        Kind::Test(operand, _, given) => is_constant(operand) && args(given),
        Kind::Name(_) | Kind::Call(..) => false,
    }
}

fn loop_method(
    interpreter: &mut Interpreter<'_>,
    state: &Rc<LoopState>,
    name: &str,
    args: Args,
) -> TemplateResult<Value> {
    if let Some((name, _)) = args.named.first() {
        return Err(TemplateError::new(format!("loop has no parameter {name}")));
    }
    let values = args.positional;
    if name == "cycle" {
        let at = state.index0.get().checked_rem(values.len());
        let item = at.and_then(|at| values.get(at)).cloned();
        return item.ok_or_else(|| TemplateError::new("loop.cycle needs an item"));
    }
    let same = match &*state.changed.borrow() {
        Some(last) if last.len() == values.len() => {
            let mut same = true;
            for (a, b) in last.iter().zip(&values) {
                same &= equal(interpreter.budget, a, b)?;
            }
            same
        }
        _ => false,
    };
    *state.changed.borrow_mut() = Some(values);
    Ok(Value::Bool(!same))
}

fn range(args: Args) -> TemplateResult<Value> {
    let [a, b, c] = args.positional("range", 1)?;
    let number = |value: &Value| {
        let fail = || match value {
            Value::Undefined(_) => undefined(value),
            other => TemplateError::new(format!("range needs integers, not a {}", other.kind())),
        };
        value.as_int().ok_or_else(fail)
    };
    let first = number(&a.unwrap_or(Value::None))?;
    let (start, stop) = match b {
        None => (0, first),
        Some(stop) => (first, number(&stop)?),
    };
    let step = c.map_or(Ok(1), |step| number(&step))?;
    if step == 0 {
        return Err(TemplateError::new("the step of range cannot be 0"));
    }
    let range = Range { start, stop, step };
    if range.len() > LONGEST_RANGE {
        return Err(TemplateError::new(format!("range grows beyond {LONGEST_RANGE} numbers")));
    }
    Ok(Value::Range(range))
}
