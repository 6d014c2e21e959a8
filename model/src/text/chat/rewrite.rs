//! Rewrites a template so that whatever makes values larger goes through functions of this crate.
//!
//! The engine bounds instructions and recursion, but not memory: `{% set x = x ~ x %}` doubles a text in five instructions, and
//! constants are multiplied when the template is compiled. Here `+`, `*` and `~` become calls of [`ADD`], [`REPEAT`] and
//! [`CONCAT`]; slices become calls of [`SLICE`], which counts backwards as Python does; the results of filters, calls and literals pass [`ADMIT`]; raw text is printed like an expression, so that every
//! byte of output is counted; what loops go over passes [`EACH`], and what is stored in a namespace [`STORE`]. Operations that
//! make nothing but may take long on long texts pass [`TICK`], which looks at the clock. Line numbers stay.

use minijinja::machinery::Span;
use minijinja::machinery::ast::{
    BinOp, BinOpKind, Call, CallArg, CallBlock, Compare, CompareOp, Const, Do, EmitExpr, Expr, Filter, FilterBlock,
    ForLoop, GetAttr, GetItem, IfCond, IfExpr, List, Macro, Map, Set, SetBlock, Spanned, Stmt, Template, Test, Tuple,
    UnaryOp, UnaryOpKind, Var, WithBlock,
};
use minijinja::{Error, ErrorKind, Value};

// Names that no template can spell.
pub(super) const ADD: &str = "(add)";
pub(super) const REPEAT: &str = "(repeat)";
pub(super) const CONCAT: &str = "(concat)";
pub(super) const SLICE: &str = "(slice)";
pub(super) const ADMIT: &str = "(admit)";
pub(super) const TICK: &str = "(tick)";
pub(super) const EACH: &str = "(each)";
pub(super) const STORE: &str = "(store)";

/// The rewritten statement.
pub(super) fn statement<'a>(stmt: &Stmt<'a>) -> Result<Stmt<'a>, Error> {
    Ok(match stmt {
        Stmt::Template(s) => Stmt::Template(Spanned::new(Template { children: body(&s.children)? }, s.span())),
        Stmt::EmitExpr(s) => Stmt::EmitExpr(Spanned::new(EmitExpr { expr: expression(&s.expr) }, s.span())),
        Stmt::EmitRaw(s) => {
            Stmt::EmitExpr(Spanned::new(EmitExpr { expr: constant(Value::from(s.raw), s.span()) }, s.span()))
        }
        Stmt::ForLoop(s) => Stmt::ForLoop(Spanned::new(
            ForLoop {
                target: target(&s.target),
                iter: call(EACH, [expression(&s.iter)], s.iter.span()),
                filter_expr: s.filter_expr.as_ref().map(expression),
                recursive: s.recursive,
                body: body(&s.body)?,
                else_body: body(&s.else_body)?,
            },
            s.span(),
        )),
        Stmt::IfCond(s) => Stmt::IfCond(Spanned::new(
            IfCond { expr: expression(&s.expr), true_body: body(&s.true_body)?, false_body: body(&s.false_body)? },
            s.span(),
        )),
        Stmt::WithBlock(s) => {
            let assign = |(to, value): &(Expr<'a>, Expr<'a>)| (target(to), expression(value));
            Stmt::WithBlock(Spanned::new(
                WithBlock { assignments: s.assignments.iter().map(assign).collect(), body: body(&s.body)? },
                s.span(),
            ))
        }
        Stmt::Set(s) => Stmt::Set(Spanned::new(
            Set {
                target: target(&s.target),
                expr: match &s.target {
                    Expr::Var(_) => expression(&s.expr),
                    _ => call(STORE, [expression(&s.expr)], s.span()),
                },
            },
            s.span(),
        )),
        Stmt::SetBlock(s) => Stmt::SetBlock(Spanned::new(
            SetBlock { target: target(&s.target), filter: s.filter.as_ref().map(expression), body: body(&s.body)? },
            s.span(),
        )),
        Stmt::FilterBlock(s) => Stmt::FilterBlock(Spanned::new(
            FilterBlock { filter: expression(&s.filter), body: body(&s.body)? },
            s.span(),
        )),
        Stmt::Macro(s) => Stmt::Macro(macro_declaration(s)?),
        Stmt::CallBlock(s) => Stmt::CallBlock(Spanned::new(
            CallBlock { call: plain_call(&s.call), macro_decl: macro_declaration(&s.macro_decl)? },
            s.span(),
        )),
        Stmt::Do(s) => Stmt::Do(Spanned::new(Do { call: plain_call(&s.call) }, s.span())),
        Stmt::Continue(s) => Stmt::Continue(Spanned::new(minijinja::machinery::ast::Continue, s.span())),
        Stmt::Break(s) => Stmt::Break(Spanned::new(minijinja::machinery::ast::Break, s.span())),
        // A chat template is one file of plain text: there is nothing to load, and HTML escaping is off.
        Stmt::AutoEscape(s) => return Err(unsupported("autoescape", s.span())),
        Stmt::Block(s) => return Err(unsupported("block", s.span())),
        Stmt::Extends(s) => return Err(unsupported("extends", s.span())),
        Stmt::FromImport(s) => return Err(unsupported("from", s.span())),
        Stmt::Import(s) => return Err(unsupported("import", s.span())),
        Stmt::Include(s) => return Err(unsupported("include", s.span())),
    })
}

fn unsupported(tag: &str, span: Span) -> Error {
    let line = span.start_line;
    let message = format!("line {line}: the tag {tag} is not supported in chat templates");
    Error::new(ErrorKind::SyntaxError, message)
}

fn body<'a>(statements: &[Stmt<'a>]) -> Result<Vec<Stmt<'a>>, Error> {
    statements.iter().map(statement).collect()
}

fn macro_declaration<'a>(s: &Spanned<Macro<'a>>) -> Result<Spanned<Macro<'a>>, Error> {
    Ok(Spanned::new(
        Macro {
            name: s.name,
            args: s.args.iter().map(target).collect(),
            defaults: expressions(&s.defaults),
            body: body(&s.body)?,
        },
        s.span(),
    ))
}

fn expressions<'a>(list: &[Expr<'a>]) -> Vec<Expr<'a>> {
    list.iter().map(expression).collect()
}

/// The rewritten expression.
fn expression<'a>(expr: &Expr<'a>) -> Expr<'a> {
    match expr {
        Expr::Var(e) => Expr::Var(Spanned::new(Var { id: e.id }, e.span())),
        Expr::Const(e) => constant(e.value.clone(), e.span()),
        Expr::Slice(e) => {
            let none = || constant(Value::from(()), e.span());
            let part = |e: &Option<Expr<'a>>| e.as_ref().map_or_else(none, expression);
            let parts = [expression(&e.expr), part(&e.start), part(&e.stop), part(&e.step)];
            call(SLICE, parts, e.span())
        }
        Expr::UnaryOp(e) => {
            let operation = UnaryOp {
                op: match e.op {
                    UnaryOpKind::Not => UnaryOpKind::Not,
                    UnaryOpKind::Neg => UnaryOpKind::Neg,
                },
                expr: expression(&e.expr),
            };
            Expr::UnaryOp(Spanned::new(operation, e.span()))
        }
        Expr::BinOp(e) => binary(e),
        Expr::Compare(e) => {
            let rewrite = |op: &CompareOp<'a>| CompareOp { op: op.op, expr: expression(&op.expr) };
            let compare = Compare { expr: expression(&e.expr), ops: e.ops.iter().map(rewrite).collect() };
            tick(Expr::Compare(Spanned::new(compare, e.span())), e.span())
        }
        Expr::IfExpr(e) => {
            let choice = IfExpr {
                test_expr: expression(&e.test_expr),
                true_expr: expression(&e.true_expr),
                false_expr: e.false_expr.as_ref().map(expression),
            };
            Expr::IfExpr(Spanned::new(choice, e.span()))
        }
        Expr::Filter(e) => {
            let filter = Filter { name: e.name, expr: e.expr.as_ref().map(expression), args: arguments(&e.args) };
            admit(Expr::Filter(Spanned::new(filter, e.span())), e.span())
        }
        Expr::Test(e) => {
            let test = Test { name: e.name, expr: expression(&e.expr), args: arguments(&e.args) };
            tick(Expr::Test(Spanned::new(test, e.span())), e.span())
        }
        Expr::GetAttr(e) => {
            let attribute = GetAttr { expr: expression(&e.expr), name: e.name };
            Expr::GetAttr(Spanned::new(attribute, e.span()))
        }
        Expr::GetItem(e) => {
            let item = GetItem { expr: expression(&e.expr), subscript_expr: expression(&e.subscript_expr) };
            tick(Expr::GetItem(Spanned::new(item, e.span())), e.span())
        }
        Expr::Call(e) => {
            let call = Expr::Call(plain_call(e));
            // `loop(...)` is no function but a jump, and has to stay in sight of the compiler.
            match &e.expr {
                Expr::Var(v) if v.id == "loop" => call,
                _ => admit(call, e.span()),
            }
        }
        Expr::List(e) => {
            let list = List { items: expressions(&e.items) };
            admit(Expr::List(Spanned::new(list, e.span())), e.span())
        }
        Expr::Tuple(e) => {
            let tuple = Tuple { items: expressions(&e.items) };
            admit(Expr::Tuple(Spanned::new(tuple, e.span())), e.span())
        }
        Expr::Map(e) => {
            let map = Map { keys: expressions(&e.keys), values: expressions(&e.values) };
            admit(Expr::Map(Spanned::new(map, e.span())), e.span())
        }
    }
}

fn binary<'a>(e: &Spanned<BinOp<'a>>) -> Expr<'a> {
    let operands = [expression(&e.left), expression(&e.right)];
    match e.op {
        BinOpKind::Add => call(ADD, operands, e.span()),
        BinOpKind::Mul => call(REPEAT, operands, e.span()),
        BinOpKind::Concat => call(CONCAT, operands, e.span()),
        _ => {
            let [left, right] = operands;
            let operation = BinOp { op: e.op, left, right };
            let operation = Expr::BinOp(Spanned::new(operation, e.span()));
            match e.op {
                BinOpKind::ScAnd | BinOpKind::ScOr => operation,
                _ => tick(operation, e.span()),
            }
        }
    }
}

fn plain_call<'a>(e: &Spanned<Call<'a>>) -> Spanned<Call<'a>> {
    // The compiler reads methods and functions off the callee, so only what the method is called on is rewritten.
    let callee = Call { expr: expression(&e.expr), args: arguments(&e.args) };
    Spanned::new(callee, e.span())
}

fn arguments<'a>(args: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
    let rewrite = |arg: &CallArg<'a>| match arg {
        CallArg::Pos(e) => CallArg::Pos(expression(e)),
        CallArg::Kwarg(name, e) => CallArg::Kwarg(name, expression(e)),
        CallArg::PosSplat(e) => CallArg::PosSplat(expression(e)),
        CallArg::KwargSplat(e) => CallArg::KwargSplat(expression(e)),
    };
    args.iter().map(rewrite).collect()
}

/// What is assigned to: names, attributes and lists of them, which the compiler wants to see as they are.
fn target<'a>(expr: &Expr<'a>) -> Expr<'a> {
    let targets = |items: &[Expr<'a>]| items.iter().map(target).collect();
    match expr {
        Expr::List(e) => Expr::List(Spanned::new(List { items: targets(&e.items) }, e.span())),
        Expr::Tuple(e) => Expr::Tuple(Spanned::new(Tuple { items: targets(&e.items) }, e.span())),
        other => expression(other),
    }
}

fn constant<'a>(value: Value, span: Span) -> Expr<'a> {
    Expr::Const(Spanned::new(Const { value }, span))
}

fn tick(expr: Expr<'_>, span: Span) -> Expr<'_> {
    call(TICK, [expr], span)
}

fn admit(expr: Expr<'_>, span: Span) -> Expr<'_> {
    call(ADMIT, [expr], span)
}

fn call<'a, const N: usize>(name: &'static str, args: [Expr<'a>; N], span: Span) -> Expr<'a> {
    let callee = Call {
        expr: Expr::Var(Spanned::new(Var { id: name }, span)),
        args: args.into_iter().map(CallArg::Pos).collect(),
    };
    Expr::Call(Spanned::new(callee, span))
}
