//! The syntax tree of a template.

use std::rc::Rc;

#[derive(Debug)]
pub(super) struct Expr {
    pub(super) line: u32,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Const(Literal),
    Name(Rc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Binary(Operator, Box<(Expr, Expr)>),
    And(Box<(Expr, Expr)>),
    Or(Box<(Expr, Expr)>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    /// Condition, value where it holds, value where not.
    Choice(Box<(Expr, Expr)>, Option<Box<Expr>>),
    Attribute(Box<Expr>, Rc<str>),
    Item(Box<(Expr, Expr)>),
    /// `start:stop:step` between brackets.
    Slice(Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, CallArgs),
    /// Without an operand, the filter of a block.
    Filter(Option<Box<Expr>>, Rc<str>, CallArgs),
    Test(Box<Expr>, Rc<str>, CallArgs),
}

/// A constant as it is written.
#[derive(Debug)]
pub(super) enum Literal {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Remainder,
    Power,
}

impl Operator {
    pub(super) fn sign(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::FloorDivide => "//",
            Self::Remainder => "%",
            Self::Power => "**",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

#[derive(Debug, Default)]
pub(super) struct CallArgs {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(Rc<str>, Expr)>,
    pub(super) star: Option<Box<Expr>>,
    pub(super) double_star: Option<Box<Expr>>,
}

/// What is assigned to.
#[derive(Debug)]
pub(super) enum Target {
    Name(Rc<str>),
    /// An attribute of a namespace.
    Attribute(Rc<str>, Rc<str>),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) struct Stmt {
    pub(super) line: u32,
    pub(super) kind: StmtKind,
}

pub(super) type Body = Vec<Stmt>;

#[derive(Debug)]
pub(super) enum StmtKind {
    Data(Rc<str>),
    Emit(Vec<Expr>),
    For(Rc<For>),
    If(Vec<(Expr, Body)>, Body),
    Set(Target, Expr),
    SetBlock(Target, Option<Expr>, Body),
    With(Vec<(Target, Expr)>, Body),
    FilterBlock(Expr, Body),
    Macro(Rc<Macro>),
    CallBlock(Expr, Rc<Macro>),
    /// `{% generation %}`: its text, in a scope of its own.
    Generation(Body),
    Block {
        scoped: bool,
        required: bool,
        body: Body,
    },
    AutoEscape(Expr, Body),
    /// A tag that loads another template, of which there is none.
    Load(&'static str),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) iterated: Expr,
    pub(super) filter: Option<Expr>,
    pub(super) recursive: bool,
    pub(super) body: Body,
    pub(super) otherwise: Body,
}

/// A macro, or the body of a `call` block, which has no name.
#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: Option<Rc<str>>,
    pub(super) parameters: Vec<Rc<str>>,
    /// Defaults of the last parameters.
    pub(super) defaults: Vec<Expr>,
    pub(super) body: Body,
    /// Whether the body names `varargs`, `kwargs` and `caller`: a macro takes what it uses.
    pub(super) takes_varargs: bool,
    pub(super) takes_kwargs: bool,
    pub(super) takes_caller: bool,
}
