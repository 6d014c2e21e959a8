//! The values of a template: those of Python that jinja2 can meet; and the scopes that hold them, which macros and loops hold in turn.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::ast::{self, Literal};
use super::budget::NODE;
use super::error::{TemplateError, TemplateResult};

/// A value. Lists and dictionaries never change: the sandbox of jinja2 that transformers uses has no method that would.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A name, attribute or item that does not exist; the text says which.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<str>),
    /// A text that needs no HTML escapes, as the filters `safe` and `escape` make it.
    Markup(Rc<str>),
    List(Rc<List>),
    Tuple(Rc<List>),
    Dict(Rc<Dict>),
    Range(Range),
    /// What `map`, `select` and other lazy filters give: it can be gone through once.
    Generator(Rc<RefCell<VecDeque<Value>>>),
    /// `keys()`, `values()` or `items()` of a dictionary.
    View(Rc<Dict>, View),
    Namespace(Rc<Namespace>),
    Macro(Rc<Macro>),
    Loop(Rc<LoopState>),
    Joiner(Rc<(Value, Cell<bool>)>),
    Cycler(Rc<(Vec<Value>, Cell<usize>)>),
    /// A function of the environment, such as `range`.
    Function(&'static str),
    /// A method that is not called yet.
    Method(Rc<(Value, Rc<str>)>),
    /// `self` in a template: nothing of it can be used.
    Template,
}

/// The items of a list or tuple, with what [`Budget`] bounds.
#[derive(Debug)]
pub(super) struct List {
    pub(super) items: Vec<Value>,
    /// A group of `groupby`: a tuple whose items have the names `grouper` and `list`.
    pub(super) grouped: bool,
    pub(super) weight: usize,
    pub(super) depth: usize,
}

/// `range(start, stop, step)`; the step is not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: i128,
    pub(super) stop: i128,
    pub(super) step: i128,
}

impl Range {
    pub(super) fn len(&self) -> usize {
        let span =
            if self.step > 0 { self.stop.saturating_sub(self.start) } else { self.start.saturating_sub(self.stop) };
        let step = self.step.unsigned_abs();
        match u128::try_from(span) {
            Ok(span) => usize::try_from(span.div_ceil(step)).unwrap_or(usize::MAX),
            Err(_) => 0,
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<i128> {
        if index >= self.len() {
            return None;
        }
        self.step.checked_mul(i128::try_from(index).ok()?)?.checked_add(self.start)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Keys,
    Values,
    Items,
}

/// Attributes that a template can change.
#[derive(Debug, Default)]
pub(super) struct Namespace {
    pub(super) attributes: RefCell<Dict>,
    pub(super) weight: Cell<usize>,
    pub(super) depth: Cell<usize>,
}

/// A macro and the scope it was defined in.
#[derive(Debug)]
pub(super) struct Macro {
    pub(super) code: Rc<ast::Macro>,
    pub(super) scope: Rc<Scope>,
}

/// Names and their values, and the scope around.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub(super) variables: RefCell<HashMap<Rc<str>, Value>>,
    pub(super) parent: Option<Rc<Scope>>,
}

impl Scope {
    pub(super) fn inside(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), parent: Some(parent.clone()) })
    }

    pub(super) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            if let Some(value) = scope.variables.borrow().get(name) {
                return Some(value.clone());
            }
            scope = scope.parent.as_deref()?;
        }
    }

    pub(super) fn set(&self, name: Rc<str>, value: Value) {
        self.variables.borrow_mut().insert(name, value);
    }
}

/// `loop` of a loop.
#[derive(Debug)]
pub(super) struct LoopState {
    pub(super) index0: Cell<usize>,
    pub(super) depth0: usize,
    /// What is left of the iterated value.
    pub(super) rest: RefCell<VecDeque<Value>>,
    /// The next item, where it was looked at before its turn.
    pub(super) after: RefCell<Option<Value>>,
    pub(super) before: RefCell<Option<Value>>,
    pub(super) current: RefCell<Option<Value>>,
    pub(super) changed: RefCell<Option<Vec<Value>>>,
    /// Whether the filter has still to be asked for what is left.
    pub(super) filtered: Cell<bool>,
    pub(super) code: Rc<ast::For>,
    pub(super) scope: Rc<Scope>,
}

impl LoopState {
    /// The length as far as it is known without asking the filter.
    pub(super) fn known_length(&self) -> usize {
        let after = usize::from(self.after.borrow().is_some());
        self.index0.get().saturating_add(1).saturating_add(after).saturating_add(self.rest.borrow().len())
    }
}

/// A dictionary in the order of insertion.
#[derive(Debug, Default, Clone)]
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    index: HashMap<Key, usize>,
    pub(super) weight: usize,
    pub(super) depth: usize,
}

/// A key as Python hashes it: `1`, `1.0` and `True` are the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    None,
    Int(i128),
    Float(u64),
    Str(Rc<str>),
    Tuple(Vec<Key>),
    Undefined,
    /// Other values are the same only as themselves.
    Address(usize),
}

impl Key {
    pub(super) fn new(value: &Value) -> TemplateResult<Self> {
        Ok(match value {
            Value::None => Self::None,
            Value::Bool(b) => Self::Int((*b).into()),
            Value::Int(n) => Self::Int(*n),
            Value::Float(x) => match whole(*x) {
                Some(n) => Self::Int(n),
                None => Self::Float(x.to_bits()),
            },
            Value::Str(text) | Value::Markup(text) => Self::Str(text.clone()),
            Value::Tuple(list) => Self::Tuple(list.items.iter().map(Self::new).collect::<TemplateResult<_>>()?),
            Value::List(_) | Value::Dict(_) | Value::View(_, View::Keys | View::Items) => {
                return Err(TemplateError::new(format!("a {} cannot be a key", value.kind())));
            }
            Value::Undefined(_) => Self::Undefined,
            other => Self::Address(other.address()),
        })
    }
}

impl From<&Literal> for Value {
    fn from(literal: &Literal) -> Self {
        match literal {
            Literal::None => Self::None,
            Literal::Bool(b) => Self::Bool(*b),
            Literal::Int(n) => Self::Int(*n),
            Literal::Float(x) => Self::Float(*x),
            Literal::Str(text) => Self::Str(text.clone()),
        }
    }
}

/// The integer that a float equals.
pub(super) fn whole(x: f64) -> Option<i128> {
    // 2^127 is exact as a float; the cast is exact for whole numbers below it.
    (x.fract() == 0.0 && x.abs() < 1.7e38).then_some(x as i128)
}

impl Dict {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Value, &Value)> + ExactSizeIterator {
        self.entries.iter().map(|(k, v)| (k, v))
    }

    pub(super) fn insert(&mut self, key: Value, value: Value) -> TemplateResult<()> {
        let hashed = Key::new(&key)?;
        match self.index.get(&hashed).and_then(|&at| self.entries.get_mut(at)) {
            // Python keeps the first key.
            Some(entry) => entry.1 = value,
            None => {
                self.index.insert(hashed, self.entries.len());
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &Value) -> TemplateResult<Option<&Value>> {
        Ok(self.find(&Key::new(key)?))
    }

    pub(super) fn get_str(&self, key: &str) -> Option<&Value> {
        self.find(&Key::Str(key.into()))
    }

    fn find(&self, key: &Key) -> Option<&Value> {
        self.index.get(key).and_then(|&at| self.entries.get(at)).map(|entry| &entry.1)
    }
}

impl Value {
    pub(super) fn undefined(what: impl Into<Rc<str>>) -> Self {
        Self::Undefined(what.into())
    }

    /// A generator that gives these items.
    pub(super) fn generator(items: Vec<Value>) -> Self {
        Self::Generator(Rc::new(RefCell::new(items.into())))
    }

    pub(super) fn int(n: usize) -> Self {
        Self::Int(i128::try_from(n).unwrap_or(i128::MAX))
    }

    /// A text of its own, of a JSON document or a constant of this program.
    pub(super) fn str(text: &str) -> Self {
        Self::Str(text.into())
    }

    /// The text of a `str`.
    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// An integer; a bool is one in Python.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(n) => Some(*n),
            Self::Bool(b) => Some((*b).into()),
            _ => None,
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// `bool(value)`.
    pub(super) fn truth(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(b) => *b,
            Self::Int(n) => *n != 0,
            Self::Float(x) => *x != 0.0,
            other => other.len().is_none_or(|n| n > 0),
        }
    }

    /// `len(value)`, of what has a length.
    pub(super) fn len(&self) -> Option<usize> {
        Some(match self {
            Self::Undefined(_) => 0,
            Self::Str(text) | Self::Markup(text) => text.chars().count(),
            Self::List(list) | Self::Tuple(list) => list.items.len(),
            Self::Dict(dict) | Self::View(dict, _) => dict.len(),
            Self::Range(range) => range.len(),
            _ => return None,
        })
    }

    /// The name of the type in Python.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "undefined value",
            Self::None => "None",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) | Self::Markup(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Range(_) => "range",
            Self::Generator(_) => "generator",
            Self::View(_, View::Keys) => "dict_keys",
            Self::View(_, View::Values) => "dict_values",
            Self::View(_, View::Items) => "dict_items",
            Self::Namespace(_) => "namespace",
            Self::Macro(_) => "macro",
            Self::Loop(_) => "loop",
            Self::Joiner(_) => "joiner",
            Self::Cycler(_) => "cycler",
            Self::Function(_) => "function",
            Self::Method(_) => "method",
            Self::Template => "template",
        }
    }

    /// Bytes that a walk over the value meets.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Str(text) | Self::Markup(text) => text.len().saturating_add(NODE),
            Self::List(list) | Self::Tuple(list) => list.weight,
            Self::Dict(dict) | Self::View(dict, _) => dict.weight,
            Self::Namespace(namespace) => namespace.weight.get().saturating_add(NODE),
            Self::Generator(items) => items.borrow().iter().fold(NODE, |sum, item| item.weight().saturating_add(sum)),
            _ => NODE,
        }
    }

    pub(super) fn depth(&self) -> usize {
        match self {
            Self::List(list) | Self::Tuple(list) => list.depth,
            Self::Dict(dict) | Self::View(dict, _) => dict.depth,
            Self::Namespace(namespace) => namespace.depth.get().saturating_add(1),
            Self::Generator(items) => items.borrow().iter().map(Self::depth).max().unwrap_or(0).saturating_add(1),
            Self::Method(method) => method.0.depth().saturating_add(1),
            Self::Joiner(joiner) => joiner.0.depth().saturating_add(1),
            Self::Cycler(cycler) => cycler.0.iter().map(Self::depth).max().unwrap_or(0).saturating_add(1),
            _ => 0,
        }
    }

    /// Where a shared value lies: its identity.
    pub(super) fn address(&self) -> usize {
        match self {
            Self::Str(v) | Self::Markup(v) => Rc::as_ptr(v).cast::<u8>() as usize,
            Self::List(v) | Self::Tuple(v) => Rc::as_ptr(v) as usize,
            Self::Dict(v) | Self::View(v, _) => Rc::as_ptr(v) as usize,
            Self::Generator(v) => Rc::as_ptr(v) as usize,
            Self::Namespace(v) => Rc::as_ptr(v) as usize,
            Self::Macro(v) => Rc::as_ptr(v) as usize,
            Self::Loop(v) => Rc::as_ptr(v) as usize,
            Self::Joiner(v) => Rc::as_ptr(v) as usize,
            Self::Cycler(v) => Rc::as_ptr(v) as usize,
            Self::Method(v) => Rc::as_ptr(v) as usize,
            Self::Function(name) => name.as_ptr() as usize,
            _ => 0,
        }
    }
}
