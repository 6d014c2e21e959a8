//! The request that every endpoint becomes, and how it is handed to the engine.

use emberlm::model::engine::{Request, Trace};
use emberlm::model::text::{AnswerParser, ChatPrompt, Message, StopSet, Thinking};
use serde_json::{Map, Value};

use super::app::App;
use super::error::ApiError;
use super::form::Form;
use super::ids::{fresh, new_seed, nth_seed};
use super::limits;
use super::options::GenerateOptions;
use super::prompt::{self, PromptEnd, PromptForm};
use super::run::Ask;
use super::tools::Tools;

/// A chat to be answered, whatever API it came by.
#[derive(Debug)]
pub struct ChatJob {
    pub messages: Vec<Message>,
    /// How the prompt ends, where the answer may have begun.
    pub prompt: PromptForm,
    pub tools: Tools,
    pub variables: Map<String, Value>,
    /// What the answer has to be.
    pub form: Form,
    pub options: GenerateOptions,
}

impl ChatJob {
    /// Renders and tokenises: one ask for each answer.
    ///
    /// # Errors
    /// 400 when the template refuses the chat, the prompt does not fit, or an answer has begun in another form.
    pub fn asks(&self, app: &App) -> Result<Vec<Ask>, ApiError> {
        let prompt = self.prompt(app)?;
        app.check_length(prompt.tokens.len())?;
        let form = self.form.with_tools(&self.tools);
        let mask = form.mask(app.compiler.as_ref(), app.format, prompt.thinking);
        let mut mask = mask.map_err(|error| self.tools.places.told(error))?;
        if let (Some(mask), PromptEnd::Begun(begun)) = (&mut mask, &self.prompt.end) {
            let begun = app.text.encode_literal(begun, false)?;
            begun.into_iter().try_for_each(|token| mask.accept(token)).map_err(|_| {
                let message = "the answer that has begun does not fit the form that is asked for";
                ApiError::invalid(Some("messages"), message)
            })?;
        }
        let asks = (0..self.options.n).map(|i| {
            let mut request = request(app, &self.options, prompt.tokens.clone(), i);
            request.prefix_boundaries.clone_from(&prompt.boundaries);
            request.grammar.clone_from(&mask);
            let parser = AnswerParser::new(app.format, prompt.thinking, self.tools.declared.clone(), fresh());
            let parser = Some(parser.with_markers(&app.markers));
            Ask { request, parser, same_prompt: i > 0, silent: false, signed_seed: self.options.signed_seed }
        });
        Ok(asks.collect())
    }

    /// The tokens alone, however many.
    ///
    /// # Errors
    /// 400 when the template refuses the chat.
    pub fn prompt(&self, app: &App) -> Result<ChatPrompt, ApiError> {
        prompt::chat(app, &self.messages, &self.tools.schemas, &self.variables, &self.prompt)
    }
}

/// Several prompts, each continued, in a form where one is asked for. With `echo` their own tokens are scored where those of the answers are.
///
/// # Errors
/// 400 when a prompt does not fit, or there are too many.
pub fn completion_asks(
    app: &App,
    options: &GenerateOptions,
    form: &Form,
    prompts: Vec<Vec<u32>>,
    echo: bool,
) -> Result<Vec<Ask>, ApiError> {
    let answers = prompts.len().saturating_mul(options.n);
    if answers > limits::ANSWERS {
        let message = format!(
            "{} prompts with {} answers each, but at most {} are generated at once",
            prompts.len(),
            options.n,
            limits::ANSWERS
        );
        return Err(ApiError::field("n", message));
    }
    // A text is continued as it stands, and nothing in it is a thought.
    let mask = form.mask(app.compiler.as_ref(), app.format, Thinking::Closed)?;
    let mut asks = Vec::with_capacity(answers);
    for prompt in prompts {
        app.check_length(prompt.len())?;
        for i in 0..options.n {
            let mut request = request(app, options, prompt.clone(), i);
            // A prompt is read where a token is to follow.
            let silent = request.max_tokens == 0;
            request.max_tokens = request.max_tokens.max(1);
            request.prompt_log_probabilities = options.logprobs.filter(|_| echo);
            request.grammar.clone_from(&mask);
            let signed_seed = options.signed_seed;
            asks.push(Ask { request, parser: None, same_prompt: i > 0, silent, signed_seed });
        }
    }
    Ok(asks)
}

/// As the engine takes it; the `i`th answer to its prompt.
fn request(app: &App, options: &GenerateOptions, prompt: Vec<u32>, i: usize) -> Request {
    let room = app.context.saturating_sub(prompt.len());
    let mut sampling = options.sampling;
    // Each answer has numbers of its own, and the seed that is told repeats it.
    sampling.seed = Some(sampling.seed.map_or_else(new_seed, |seed| nth_seed(seed, i, options.signed_seed)));
    Request {
        sampling,
        processors: options.processors.clone(),
        max_tokens: options.max_tokens.unwrap_or(room).min(room),
        stop_tokens: if options.ignore_eos { StopSet::default() } else { app.stop_tokens.clone() },
        stop_strings: options.stop.clone(),
        trace: if options.trace { Trace::Chosen } else { Trace::Off },
        log_probabilities: options.logprobs,
        depth: options.depth,
        ..Request::new(prompt)
    }
}
