//! From schemas to grammars.

use std::fmt;
use std::sync::Arc;

use emberlm_quant::panics::catch_quietly;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::mask::{Grammar, LineEnds};
use super::schema::{prepared, wrong};
use super::tool_calls::{self, CALLS_RULE};
use super::vocabulary::token_table;
use crate::text::{DeclaredTools, TextProcessor, ToolFormat};
use crate::{Error, Result};

/// Bytes of stack for a compiler. Only what is used takes memory.
const STACK: usize = 256 << 20;

/// Makes grammars for the tokens of one model. Clones share one token table.
#[derive(Clone)]
pub struct GrammarCompiler {
    factory: Arc<ParserFactory>,
    line_ends: Arc<LineEnds>,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").finish_non_exhaustive()
    }
}

/// What a grammar may cost. The numbers are those of llguidance, and less where a stranger could take memory or time with them.
fn limits() -> ParserLimits {
    ParserLimits {
        // 1 to 2 kB each.
        max_lexer_states: 50_000,
        max_grammar_size: 100_000,
        // A run over the whole vocabulary for each.
        precompute_large_lexemes: false,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

impl GrammarCompiler {
    /// A compiler for the tokens of a model. That takes a moment for a large vocabulary: make one per model.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the tokens do not spell the bytes of a text, or there are none.
    pub fn new(text: &TextProcessor) -> Result<Self> {
        let failed = |message: String| Error::Tokenizer(format!("no grammar can be made for its tokens: {message}"));
        let made = catch_quietly(|| {
            let tokens: TokEnv = token_table(text)?;
            let line_ends = Arc::new(LineEnds::of(tokens.tok_trie()));
            let mut factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices())
                .map_err(|e| failed(format!("{e:#}")))?;
            factory.quiet();
            *factory.limits_mut() = limits();
            Ok(Self { factory: Arc::new(factory), line_ends })
        });
        made.map_err(failed)?
    }

    /// Answers that a JSON schema describes. `place` is where the schema stands, for messages.
    ///
    /// # Errors
    /// [`Error::Option`] with the place where the schema is too large, has keywords that are not kept, or describes nothing.
    pub fn json_schema(&self, schema: &Value, place: &str) -> Result<Grammar> {
        self.compile(TopLevelGrammar::from_json_schema(prepared(schema, place)?), place)
    }

    /// Answers that are any JSON object.
    ///
    /// # Errors
    /// As [`Self::json_schema`].
    pub fn json_object(&self) -> Result<Grammar> {
        self.json_schema(&json!({"type": "object"}), "response_format")
    }

    /// Answers that are calls of declared tools, as the model writes them: one, or several with `parallel` where the format has
    /// several. To demand one tool, declare that one alone.
    ///
    /// # Errors
    /// [`Error::Option`] with the place where there is no tool, a name does not fit the format, or as [`Self::json_schema`].
    pub fn tool_calls(&self, format: ToolFormat, tools: &DeclaredTools, parallel: bool) -> Result<Grammar> {
        let lark = format!("start: {CALLS_RULE}\n{}", calls(format, tools, parallel)?);
        self.compile(TopLevelGrammar::from_lark(lark), "tools")
    }

    /// Answers that are calls as in [`Self::tool_calls`], or what a JSON schema describes; it comes with the place where it stands.
    ///
    /// # Errors
    /// As both, and where the model writes calls as bare JSON, which could be either.
    pub fn tool_calls_or_json_schema(
        &self,
        format: ToolFormat,
        tools: &DeclaredTools,
        parallel: bool,
        (schema, place): (&Value, &str),
    ) -> Result<Grammar> {
        if format == ToolFormat::Llama3Json {
            let why = "cannot stand beside tools that may be called: this model writes calls as JSON too; demand a call, or leave the tools out";
            return Err(wrong(place, why));
        }
        let calls = calls(format, tools, parallel)?;
        let lark = format!("start: {CALLS_RULE} | answer\nanswer: %json {}\n{calls}", prepared(schema, place)?);
        // Where it fails, either of them may be at fault.
        self.compile(TopLevelGrammar::from_lark(lark), "tools").or_else(|of_both| {
            self.json_schema(schema, place)?;
            Err(of_both)
        })
    }

    fn compile(&self, grammar: TopLevelGrammar, place: &str) -> Result<Grammar> {
        aside(|| self.make(grammar, place)).unwrap_or_else(Err).map_err(|message| no_grammar(place, &message))
    }

    fn make(&self, grammar: TopLevelGrammar, place: &str) -> std::result::Result<Grammar, String> {
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(error);
        }
        // Before the first token, where nothing was matched yet, it shows whether anything can be: a schema may contain itself without end.
        if matcher.deep_clone().compute_mask().is_err() {
            return Err("no answer fits it; it may contain itself without an end".to_owned());
        }
        let warnings = matcher.grammar_warnings();
        warnings.iter().for_each(|warning| tracing::debug!("{place}: {warning}"));
        Grammar::new(matcher, Arc::clone(&self.line_ends)).map_err(|error| error.to_string())
    }
}

/// The rules of calls, made where there is room: patterns of parameters are compiled for them.
fn calls(format: ToolFormat, tools: &DeclaredTools, parallel: bool) -> Result<String> {
    aside(|| tool_calls::lark(format, tools, parallel)).map_err(|message| no_grammar("tools", &message))?
}

/// Does work on a thread of its own: the compiler calls itself once per property of an object, and the stack of the caller may be small.
fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> std::result::Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK);
        let made = thread.spawn_scoped(scope, || catch_quietly(work)).map_err(|e| e.to_string())?;
        made.join().unwrap_or_else(|_| Err("the compiler failed".to_owned()))
    })
}

fn no_grammar(place: &str, message: &str) -> Error {
    wrong(place, &format!("no grammar can be made of it: {}", of_the_schema(message)))
}

/// What a message says of the schema, without the rules that were made of it, and where in them.
fn of_the_schema(message: &str) -> &str {
    let first = message.lines().next().unwrap_or_default();
    first.strip_prefix("at ").and_then(|at| Some(at.split_once("): ")?.1)).unwrap_or(first)
}

/// Stretches of strings and of white space whose tokens are known beforehand.
fn slices() -> Vec<String> {
    llguidance::earley::SlicedBiasComputer::general_slices()
}
