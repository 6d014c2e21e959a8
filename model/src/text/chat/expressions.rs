//! The expressions of a template, in the order in which jinja2 binds operators.

use std::rc::Rc;

use super::ast::{CallArgs, Comparison, Expr, Kind, Literal, Operator};
use super::error::{TemplateError, TemplateResult};
use super::lexer::Token;
use super::parser::{Parser, constant};

/// Nesting of brackets, as the parser of Python bounds it.
const BRACKETS: usize = 200;

impl Parser {
    pub(super) fn expression(&mut self) -> TemplateResult<Expr> {
        self.descend()?;
        let line = self.line();
        // Whether this is a branch of a choice, in which filters may be unknown, shows behind it.
        let lenient = std::mem::replace(&mut self.lenient, true);
        let outer = self.unknown.take();
        let mut expr = self.or()?;
        let unknown = self.unknown.take();
        self.lenient = lenient;
        self.unknown = outer;
        match unknown {
            Some(fail) if !self.is_name("if") => {
                if !lenient {
                    return Err(fail);
                }
                self.unknown.get_or_insert(fail);
            }
            _ => {}
        }
        while self.skip_name("if") {
            let lenient = std::mem::replace(&mut self.lenient, true);
            let condition = self.or()?;
            let otherwise = if self.skip_name("else") { Some(Box::new(self.expression()?)) } else { None };
            self.lenient = lenient;
            expr = Expr { line, kind: Kind::Choice(Box::new((condition, expr)), otherwise) };
        }
        self.nested -= 1;
        Ok(expr)
    }

    /// Counts the nesting of expressions.
    fn descend(&mut self) -> TemplateResult<()> {
        self.nested += 1;
        if self.nested > 5 * BRACKETS {
            return Err(TemplateError::new("an expression is nested too deep"));
        }
        Ok(())
    }

    pub(super) fn or(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let mut left = self.and()?;
        while self.skip_name("or") {
            left = Expr { line, kind: Kind::Or(Box::new((left, self.and()?))) };
        }
        Ok(left)
    }

    fn and(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let mut left = self.not()?;
        while self.skip_name("and") {
            left = Expr { line, kind: Kind::And(Box::new((left, self.not()?))) };
        }
        Ok(left)
    }

    fn not(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        if !self.skip_name("not") {
            return self.compare();
        }
        self.descend()?;
        let expr = self.not()?;
        self.nested -= 1;
        Ok(Expr { line, kind: Kind::Not(Box::new(expr)) })
    }

    fn compare(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let left = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let comparison = match self.peek() {
                Token::Operator("==") => Comparison::Equal,
                Token::Operator("!=") => Comparison::NotEqual,
                Token::Operator("<") => Comparison::Less,
                Token::Operator("<=") => Comparison::LessOrEqual,
                Token::Operator(">") => Comparison::Greater,
                Token::Operator(">=") => Comparison::GreaterOrEqual,
                Token::Name(name) if **name == *"in" => Comparison::In,
                Token::Name(name) if **name == *"not" => match self.peek_second() {
                    Token::Name(name) if **name == *"in" => {
                        self.next();
                        Comparison::NotIn
                    }
                    _ => break,
                },
                _ => break,
            };
            self.next();
            rest.push((comparison, self.sum()?));
        }
        Ok(if rest.is_empty() { left } else { Expr { line, kind: Kind::Compare(Box::new(left), rest) } })
    }

    fn sum(&mut self) -> TemplateResult<Expr> {
        self.binary(Self::concat, &[("+", Operator::Add), ("-", Operator::Subtract)])
    }

    fn concat(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_operator("~") {
            parts.push(self.product()?);
        }
        Ok(Expr { line, kind: Kind::Concat(parts) })
    }

    fn product(&mut self) -> TemplateResult<Expr> {
        let signs = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("//", Operator::FloorDivide),
            ("%", Operator::Remainder),
        ];
        self.binary(|parser| parser.binary(|p| p.unary(true), &[("**", Operator::Power)]), &signs)
    }

    /// Operators of one rank, from left to right.
    fn binary(
        &mut self,
        operand: impl Fn(&mut Self) -> TemplateResult<Expr>,
        signs: &[(&str, Operator)],
    ) -> TemplateResult<Expr> {
        let line = self.line();
        let mut left = operand(self)?;
        while let Token::Operator(sign) = *self.peek() {
            let Some((_, operator)) = signs.iter().find(|(s, _)| *s == sign) else { break };
            self.next();
            left = Expr { line, kind: Kind::Binary(*operator, Box::new((left, operand(self)?))) };
        }
        Ok(left)
    }

    fn unary(&mut self, filters: bool) -> TemplateResult<Expr> {
        let line = self.line();
        let sign = match self.peek() {
            Token::Operator(sign @ ("-" | "+")) => Some(*sign),
            _ => None,
        };
        let mut expr = match sign {
            Some(sign) => {
                self.next();
                self.descend()?;
                let inner = Box::new(self.unary(false)?);
                self.nested -= 1;
                Expr { line, kind: if sign == "-" { Kind::Negative(inner) } else { Kind::Positive(inner) } }
            }
            None => self.primary()?,
        };
        expr = self.postfix(expr)?;
        if filters { self.filters_and_tests(expr) } else { Ok(expr) }
    }

    fn primary(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let kind = match self.next() {
            Token::Name(name) => match &*name {
                "true" | "True" => Kind::Const(Literal::Bool(true)),
                "false" | "False" => Kind::Const(Literal::Bool(false)),
                "none" | "None" => Kind::Const(Literal::None),
                _ => {
                    if let Some(names) = self.names.last_mut() {
                        names.varargs |= *name == *"varargs";
                        names.kwargs |= *name == *"kwargs";
                        names.caller |= *name == *"caller";
                    }
                    Kind::Name(name)
                }
            },
            Token::Str(first) => {
                let mut text = first.to_string();
                while let Token::Str(more) = self.peek() {
                    text.push_str(more);
                    self.next();
                }
                Kind::Const(Literal::Str(text.into()))
            }
            Token::Int(n) => Kind::Const(Literal::Int(n)),
            Token::Float(x) => Kind::Const(Literal::Float(x)),
            Token::Operator("(") => {
                if self.skip_operator(")") {
                    return Ok(Expr { line, kind: Kind::Tuple(Vec::new()) });
                }
                let inner = self.bracket(|p| p.tuple(true, &[]))?;
                self.expect_operator(")")?;
                return Ok(inner);
            }
            Token::Operator("[") => Kind::List(self.bracket(|p| p.items("]", Self::expression))?),
            Token::Operator("{") => {
                let pair = |p: &mut Self| {
                    let key = p.expression()?;
                    p.expect_operator(":")?;
                    Ok((key, p.expression()?))
                };
                Kind::Dict(self.bracket(|p| p.items("}", pair))?)
            }
            token => return Err(TemplateError::new(format!("unexpected {}", token.describe())).at(line)),
        };
        Ok(Expr { line, kind })
    }

    /// Counts the nesting of brackets, which the parser descends ten functions for.
    fn bracket<T>(&mut self, parse: impl FnOnce(&mut Self) -> TemplateResult<T>) -> TemplateResult<T> {
        self.nested += 4;
        self.descend()?;
        let parsed = parse(self)?;
        self.nested -= 5;
        Ok(parsed)
    }

    /// Items with commas between them up to `end`, which is read.
    fn items<T>(&mut self, end: &str, item: impl Fn(&mut Self) -> TemplateResult<T>) -> TemplateResult<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_operator(end) {
            if !items.is_empty() {
                self.expect_operator(",")?;
                if self.is_operator(end) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        self.expect_operator(end)?;
        Ok(items)
    }

    fn postfix(&mut self, mut expr: Expr) -> TemplateResult<Expr> {
        loop {
            let line = self.line();
            match self.peek() {
                Token::Operator(".") => {
                    self.next();
                    let kind = match self.next() {
                        Token::Name(name) => Kind::Attribute(Box::new(expr), name),
                        Token::Int(n) => Kind::Item(Box::new((expr, constant(line, Literal::Int(n))))),
                        token => {
                            return Err(TemplateError::new(format!(
                                "unexpected {}, expected a name",
                                token.describe()
                            )));
                        }
                    };
                    expr = Expr { line, kind };
                }
                Token::Operator("[") => {
                    self.next();
                    let mut parts = self.bracket(|p| p.items("]", Self::subscript))?;
                    let index = match parts.pop() {
                        Some(only) if parts.is_empty() => only,
                        last => {
                            parts.extend(last);
                            Expr { line, kind: Kind::Tuple(parts) }
                        }
                    };
                    expr = Expr { line, kind: Kind::Item(Box::new((expr, index))) };
                }
                Token::Operator("(") => expr = self.call(expr)?,
                _ => return Ok(expr),
            }
        }
    }

    fn subscript(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let part = |p: &mut Self| -> TemplateResult<Option<Expr>> {
            let absent = [":", "]", ","].iter().any(|sign| p.is_operator(sign));
            if absent { Ok(None) } else { p.expression().map(Some) }
        };
        let start = part(self)?;
        if !self.skip_operator(":") {
            return start.ok_or_else(|| self.unexpected("an expression"));
        }
        let stop = part(self)?;
        let step = if self.skip_operator(":") { part(self)? } else { None };
        Ok(Expr { line, kind: Kind::Slice(Box::new([start, stop, step])) })
    }

    fn call(&mut self, callee: Expr) -> TemplateResult<Expr> {
        let line = self.line();
        let args = self.call_args()?;
        Ok(Expr { line, kind: Kind::Call(Box::new(callee), args) })
    }

    fn call_args(&mut self) -> TemplateResult<CallArgs> {
        self.expect_operator("(")?;
        let args = self.bracket(Self::call_args_inside)?;
        self.expect_operator(")")?;
        Ok(args)
    }

    fn call_args_inside(&mut self) -> TemplateResult<CallArgs> {
        let mut args = CallArgs::default();
        let wrong = || Err(TemplateError::new("unexpected order of arguments in a call"));
        let mut first = true;
        while !self.is_operator(")") {
            if !first {
                self.expect_operator(",")?;
                if self.is_operator(")") {
                    break;
                }
            }
            first = false;
            if self.skip_operator("*") {
                if args.star.is_some() || args.double_star.is_some() {
                    return wrong();
                }
                args.star = Some(Box::new(self.expression()?));
            } else if self.skip_operator("**") {
                if args.double_star.is_some() {
                    return wrong();
                }
                args.double_star = Some(Box::new(self.expression()?));
            } else if matches!((self.peek(), self.peek_second()), (Token::Name(_), Token::Operator("="))) {
                let name = self.expect_name()?;
                self.next();
                if args.double_star.is_some() {
                    return wrong();
                }
                if args.named.iter().any(|(n, _)| *n == name) {
                    return Err(TemplateError::new(format!("unexpected second argument {name}")));
                }
                args.named.push((name, self.expression()?));
            } else {
                if args.star.is_some() || args.double_star.is_some() || !args.named.is_empty() {
                    return wrong();
                }
                args.positional.push(self.expression()?);
            }
        }
        Ok(args)
    }

    fn filters_and_tests(&mut self, mut expr: Expr) -> TemplateResult<Expr> {
        loop {
            expr = match self.peek() {
                Token::Operator("|") => self.filter(Some(expr), false)?,
                Token::Name(name) if **name == *"is" => self.test(expr)?,
                Token::Operator("(") => self.call(expr)?,
                _ => return Ok(expr),
            };
        }
    }

    /// Filters from here on, the first one without its `|` where `bare`.
    pub(super) fn filter(&mut self, mut operand: Option<Expr>, mut bare: bool) -> TemplateResult<Expr> {
        while bare || self.is_operator("|") {
            if !bare {
                self.next();
            }
            bare = false;
            let line = self.line();
            let name = self.dotted_name()?;
            self.check_known("filter", &name, line)?;
            let args = if self.is_operator("(") { self.call_args()? } else { CallArgs::default() };
            operand = Some(Expr { line, kind: Kind::Filter(operand.map(Box::new), name, args) });
        }
        operand.ok_or_else(|| self.unexpected("a filter"))
    }

    fn dotted_name(&mut self) -> TemplateResult<Rc<str>> {
        let mut name = self.expect_name()?.to_string();
        while self.skip_operator(".") {
            name.push('.');
            name.push_str(&self.expect_name()?);
        }
        Ok(name.into())
    }

    fn test(&mut self, operand: Expr) -> TemplateResult<Expr> {
        let line = self.line();
        self.next();
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        self.check_known("test", &name, line)?;
        let argument = match self.peek() {
            Token::Name(word) => !matches!(&**word, "else" | "or" | "and"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) | Token::Operator("[" | "{") => true,
            _ => false,
        };
        let mut args = CallArgs::default();
        if self.is_operator("(") {
            args = self.call_args()?;
        } else if argument {
            if self.is_name("is") {
                return Err(TemplateError::new("unexpected second is: tests cannot be chained"));
            }
            let primary = self.primary()?;
            args.positional.push(self.postfix(primary)?);
        }
        let test = Expr { line, kind: Kind::Test(Box::new(operand), name, args) };
        Ok(if negated { Expr { line, kind: Kind::Not(Box::new(test)) } } else { test })
    }
}

/// How a comparison is spelled.
impl Comparison {
    pub(super) fn sign(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::In => "in",
            Self::NotIn => "not in",
        }
    }
}
