//! Tokens to the statements of a template.

use std::collections::HashSet;
use std::rc::Rc;

use super::ast::{Body, Expr, For, Kind, Literal, Macro, Stmt, StmtKind, Target};
use super::error::{TemplateError, TemplateResult};
use super::lexer::{Token, tokenize};
use super::{filter_names, predicates};

/// The largest published templates have 30 KB.
const SOURCE_LIMIT: usize = 256 << 10;
/// Nesting of statements, as the compiler of Python bounds it.
const BLOCKS: usize = 100;
const ELIF_LIMIT: usize = 1_000;

/// Parses a template.
pub(super) fn parse(source: &str) -> TemplateResult<Body> {
    if source.len() > SOURCE_LIMIT {
        return Err(TemplateError::new(format!("it has {} bytes; the limit is {SOURCE_LIMIT}", source.len())));
    }
    let mut parser = Parser {
        tokens: tokenize(source)?,
        at: 0,
        nested: 0,
        blocks: 0,
        blocks_named: HashSet::new(),
        loops: 0,
        lenient: false,
        unknown: None,
        names: vec![Names::default()],
    };
    let (body, _) = parser.body(&[], "").map_err(|e| e.at(parser.line()))?;
    Ok(body)
}

/// The special names that the body of a macro uses.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) varargs: bool,
    pub(super) kwargs: bool,
    pub(super) caller: bool,
}

pub(super) struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
    /// Nesting of expressions.
    pub(super) nested: usize,
    blocks: usize,
    blocks_named: HashSet<Rc<str>>,
    /// Loops around, up to the next macro.
    loops: usize,
    /// Inside an `if`, filters and tests may be unknown until they are used.
    pub(super) lenient: bool,
    /// The first unknown filter or test of the expression that is being read.
    pub(super) unknown: Option<TemplateError>,
    pub(super) names: Vec<Names>,
}

impl Parser {
    pub(super) fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |t| &t.0)
    }

    pub(super) fn peek_second(&self) -> &Token {
        self.tokens.get(self.at.saturating_add(1)).map_or(&Token::End, |t| &t.0)
    }

    pub(super) fn line(&self) -> u32 {
        let last = || self.tokens.last();
        self.tokens.get(self.at).or_else(last).map_or(1, |t| t.1)
    }

    pub(super) fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at = self.at.saturating_add(1);
        token
    }

    pub(super) fn is_operator(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Operator(s) if *s == sign)
    }

    pub(super) fn skip_operator(&mut self, sign: &str) -> bool {
        let found = self.is_operator(sign);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn expect_operator(&mut self, sign: &str) -> TemplateResult<()> {
        if self.skip_operator(sign) { Ok(()) } else { Err(self.unexpected(&format!("{sign:?}"))) }
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(n) if **n == *name)
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn expect_name(&mut self) -> TemplateResult<Rc<str>> {
        match self.next() {
            Token::Name(name) => Ok(name),
            _ => {
                self.at = self.at.saturating_sub(1);
                Err(self.unexpected("a name"))
            }
        }
    }

    pub(super) fn unexpected(&self, expected: &str) -> TemplateError {
        TemplateError::new(format!("unexpected {}, expected {expected}", self.peek().describe())).at(self.line())
    }

    /// Statements up to a tag of `ends`, which is left to read; its name is given. Without ends, up to the end of input.
    fn body(&mut self, ends: &[&'static str], opened: &str) -> TemplateResult<(Body, &'static str)> {
        self.blocks += 1;
        if self.blocks > BLOCKS {
            return Err(TemplateError::new(format!("tags are nested more than {BLOCKS} deep")));
        }
        let mut body = Body::new();
        loop {
            let line = self.line();
            match self.next() {
                Token::End if ends.is_empty() => break,
                Token::End => {
                    let message =
                        format!("unexpected end of input: the tag {opened} is not closed ({})", ends.join(", "));
                    return Err(TemplateError::new(message));
                }
                Token::Data(text) => body.push(Stmt { line, kind: StmtKind::Data(text) }),
                Token::VariableBegin => {
                    let expr = self.tuple(true, &[])?;
                    match self.next() {
                        Token::VariableEnd => {}
                        _ => {
                            self.at = self.at.saturating_sub(1);
                            return Err(self.unexpected("}}"));
                        }
                    }
                    body.push(Stmt { line, kind: StmtKind::Emit(vec![expr]) });
                }
                _ => {
                    let line = self.line();
                    let Token::Name(name) = self.peek().clone() else {
                        return Err(self.unexpected("the name of a tag"));
                    };
                    if let Some(end) = ends.iter().find(|end| ***end == *name) {
                        self.blocks -= 1;
                        return Ok((body, end));
                    }
                    self.next();
                    let kind = self.statement(&name, line).map_err(|e| e.at(line))?;
                    body.push(Stmt { line, kind });
                }
            }
        }
        self.blocks -= 1;
        Ok((body, ""))
    }

    fn block_end(&mut self) -> TemplateResult<()> {
        match self.next() {
            Token::BlockEnd => Ok(()),
            _ => {
                self.at = self.at.saturating_sub(1);
                Err(self.unexpected("%}"))
            }
        }
    }

    /// The statements after a tag up to one of `ends`, which is read.
    fn statements(&mut self, opened: &str, ends: &[&'static str]) -> TemplateResult<(Body, &'static str)> {
        // As in Python, a colon may follow.
        self.skip_operator(":");
        self.block_end()?;
        let (body, end) = self.body(ends, opened)?;
        self.next();
        Ok((body, end))
    }

    /// As [`Self::statements`] up to one end, in a scope where unknown filters are errors.
    fn scoped(&mut self, opened: &str, end: &'static str) -> TemplateResult<Body> {
        let lenient = std::mem::replace(&mut self.lenient, false);
        let (body, _) = self.statements(opened, &[end])?;
        self.lenient = lenient;
        Ok(body)
    }

    fn statement(&mut self, name: &str, line: u32) -> TemplateResult<StmtKind> {
        let kind = match name {
            "for" => self.for_loop()?,
            "if" => self.if_branches()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.expect_name()?;
                let (parameters, defaults) = self.signature()?;
                StmtKind::Macro(Rc::new(self.macro_body(Some(name), parameters, defaults, "macro", "endmacro")?))
            }
            "call" => {
                let (parameters, defaults) = if self.is_operator("(") { self.signature()? } else { Default::default() };
                let call = self.expression()?;
                if !matches!(call.kind, Kind::Call(..)) {
                    return Err(TemplateError::new("unexpected expression, expected a call"));
                }
                StmtKind::CallBlock(call, Rc::new(self.macro_body(None, parameters, defaults, "call", "endcall")?))
            }
            "filter" => {
                let filter = self.filter(None, true)?;
                StmtKind::FilterBlock(filter, self.scoped("filter", "endfilter")?)
            }
            "generation" => {
                let loops = std::mem::replace(&mut self.loops, 0);
                let body = self.scoped("generation", "endgeneration")?;
                self.loops = loops;
                StmtKind::Generation(body)
            }
            "print" => {
                let mut values = Vec::new();
                while *self.peek() != Token::BlockEnd {
                    if !values.is_empty() {
                        self.expect_operator(",")?;
                    }
                    values.push(self.expression()?);
                }
                StmtKind::Emit(values)
            }
            "autoescape" => {
                let on = self.expression()?;
                StmtKind::AutoEscape(on, self.scoped("autoescape", "endautoescape")?)
            }
            "block" => {
                let name = self.expect_name()?;
                if !self.blocks_named.insert(name.clone()) {
                    return Err(TemplateError::new(format!("unexpected second block {name}")));
                }
                let scoped = self.skip_name("scoped");
                let required = self.skip_name("required");
                let loops = std::mem::replace(&mut self.loops, 0);
                let body = self.scoped("block", "endblock")?;
                self.loops = loops;
                self.skip_name(&name);
                StmtKind::Block { scoped, required, body }
            }
            "break" | "continue" if self.loops == 0 => {
                return Err(TemplateError::new(format!("unexpected tag {name} outside of a loop")));
            }
            "break" => StmtKind::Break,
            "continue" => StmtKind::Continue,
            "include" | "import" | "from" | "extends" => self.load(name)?,
            _ => return Err(TemplateError::new(format!("unexpected tag {name}")).at(line)),
        };
        self.block_end()?;
        Ok(kind)
    }

    /// Tags that name another template.
    fn load(&mut self, tag: &str) -> TemplateResult<StmtKind> {
        let tag = match tag {
            "include" => "include",
            "import" => "import",
            "from" => "from",
            _ => "extends",
        };
        self.expression()?;
        // What follows matters to no one: there is no other template.
        while !matches!(self.peek(), Token::BlockEnd | Token::End) {
            self.next();
        }
        Ok(StmtKind::Load(tag))
    }

    fn for_loop(&mut self) -> TemplateResult<StmtKind> {
        let target = self.target(false)?;
        if !self.skip_name("in") {
            return Err(self.unexpected("in"));
        }
        let lenient = std::mem::replace(&mut self.lenient, false);
        let iterated = self.tuple(false, &["recursive"])?;
        let filter = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.loops += 1;
        let (body, end) = self.statements("for", &["endfor", "else"])?;
        self.loops -= 1;
        let otherwise = if end == "else" { self.statements("for", &["endfor"])?.0 } else { Body::new() };
        self.lenient = lenient;
        Ok(StmtKind::For(Rc::new(For { target, iterated, filter, recursive, body, otherwise })))
    }

    fn if_branches(&mut self) -> TemplateResult<StmtKind> {
        let lenient = std::mem::replace(&mut self.lenient, true);
        let mut branches = Vec::new();
        let mut otherwise = Body::new();
        loop {
            if branches.len() > ELIF_LIMIT {
                return Err(TemplateError::new(format!("there are more than {ELIF_LIMIT} elif tags")));
            }
            let condition = self.tuple(false, &[])?;
            let (body, end) = self.statements("if", &["elif", "else", "endif"])?;
            branches.push((condition, body));
            match end {
                "elif" => {}
                "else" => {
                    otherwise = self.statements("if", &["endif"])?.0;
                    break;
                }
                _ => break,
            }
        }
        self.lenient = lenient;
        Ok(StmtKind::If(branches, otherwise))
    }

    fn set(&mut self) -> TemplateResult<StmtKind> {
        let target = self.target(true)?;
        if self.skip_operator("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, &[])?));
        }
        let filter = if self.is_operator("|") { Some(self.filter(None, false)?) } else { None };
        Ok(StmtKind::SetBlock(target, filter, self.scoped("set", "endset")?))
    }

    fn with(&mut self) -> TemplateResult<StmtKind> {
        let mut assignments = Vec::new();
        while *self.peek() != Token::BlockEnd && !self.is_operator(":") {
            if !assignments.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target(false)?;
            self.expect_operator("=")?;
            assignments.push((target, self.expression()?));
        }
        Ok(StmtKind::With(assignments, self.scoped("with", "endwith")?))
    }

    fn signature(&mut self) -> TemplateResult<(Vec<Rc<str>>, Vec<Expr>)> {
        let (mut parameters, mut defaults) = (Vec::new(), Vec::new());
        self.expect_operator("(")?;
        while !self.is_operator(")") {
            if !parameters.is_empty() {
                self.expect_operator(",")?;
            }
            parameters.push(self.expect_name()?);
            if self.skip_operator("=") {
                defaults.push(self.expression()?);
            } else if !defaults.is_empty() {
                return Err(TemplateError::new("unexpected parameter without a default after one with a default"));
            }
        }
        self.expect_operator(")")?;
        let required = parameters.len().saturating_sub(defaults.len());
        if parameters.iter().take(required).any(|p| **p == *"caller") {
            return Err(TemplateError::new("unexpected parameter caller without a default"));
        }
        Ok((parameters, defaults))
    }

    fn macro_body(
        &mut self,
        name: Option<Rc<str>>,
        parameters: Vec<Rc<str>>,
        defaults: Vec<Expr>,
        tag: &str,
        end: &'static str,
    ) -> TemplateResult<Macro> {
        self.names.push(Names::default());
        let loops = std::mem::replace(&mut self.loops, 0);
        let body = self.scoped(tag, end)?;
        self.loops = loops;
        let used = self.names.pop().unwrap_or_default();
        let declared = |special: &str| parameters.iter().any(|p| **p == *special);
        Ok(Macro {
            takes_varargs: used.varargs && !declared("varargs"),
            takes_kwargs: used.kwargs && !declared("kwargs"),
            takes_caller: used.caller || declared("caller"),
            name,
            parameters,
            defaults,
            body,
        })
    }

    /// What is assigned to: a name, where allowed an attribute, or several.
    fn target(&mut self, attributes: bool) -> TemplateResult<Target> {
        let mut targets = Vec::new();
        let mut several = false;
        loop {
            if !targets.is_empty() {
                self.expect_operator(",")?;
                several = true;
            }
            let ends = matches!(self.peek(), Token::BlockEnd | Token::VariableEnd)
                || self.is_operator(")")
                || self.is_operator("=")
                || self.is_name("in");
            if ends && !targets.is_empty() {
                break;
            }
            targets.push(self.single_target(attributes)?);
            if !self.is_operator(",") {
                break;
            }
        }
        match targets.pop() {
            Some(only) if !several => Ok(only),
            last => {
                targets.extend(last);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn single_target(&mut self, attributes: bool) -> TemplateResult<Target> {
        if self.skip_operator("(") {
            self.nested += 1;
            if self.nested > BLOCKS {
                return Err(TemplateError::new("unexpected nesting of targets"));
            }
            let target = self.target(attributes)?;
            self.nested -= 1;
            self.expect_operator(")")?;
            return Ok(target);
        }
        let name = self.expect_name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return Err(TemplateError::new(format!("unexpected {name}: a constant cannot be assigned to")));
        }
        if attributes && self.skip_operator(".") {
            return Ok(Target::Attribute(name, self.expect_name()?));
        }
        Ok(Target::Name(name))
    }

    /// Whether a filter or test is known; inside an `if` that is asked when it is used.
    pub(super) fn check_known(&mut self, what: &str, name: &str, line: u32) -> TemplateResult<()> {
        let known = if what == "filter" { filter_names::is_known(name) } else { predicates::is_known(name) };
        if known {
            return Ok(());
        }
        let fail = TemplateError::new(format!("there is no {what} called {name}")).at(line);
        if !self.lenient {
            return Err(fail);
        }
        self.unknown.get_or_insert(fail);
        Ok(())
    }

    /// One expression, or several with commas between them as a tuple.
    pub(super) fn tuple(&mut self, choices: bool, ends: &[&str]) -> TemplateResult<Expr> {
        let line = self.line();
        let mut items = Vec::new();
        let mut several = false;
        loop {
            if several && self.at_tuple_end(ends) {
                break;
            }
            items.push(if choices { self.expression()? } else { self.or()? });
            if !self.skip_operator(",") {
                break;
            }
            several = true;
        }
        match items.pop() {
            Some(only) if !several => Ok(only),
            last => {
                items.extend(last);
                Ok(Expr { line, kind: Kind::Tuple(items) })
            }
        }
    }

    pub(super) fn at_tuple_end(&self, ends: &[&str]) -> bool {
        match self.peek() {
            Token::VariableEnd | Token::BlockEnd | Token::Operator(")") => true,
            Token::Name(name) => ends.contains(&&**name),
            _ => false,
        }
    }
}

pub(super) fn constant(line: u32, value: Literal) -> Expr {
    Expr { line, kind: Kind::Const(value) }
}
