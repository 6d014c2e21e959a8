//! The request that every endpoint becomes, and how it is handed to the engine.

use emberlm::model::engine::Request;
use emberlm::model::text::{Message, StopSet};
use serde_json::{Map, Value};

use super::answer::AnswerParser;
use super::app::App;
use super::error::ApiError;
use super::ids::new_seed;
use super::limits;
use super::options::GenerateOptions;
use super::prompt::{self, ChatPrompt};
use super::run::Ask;
use super::tools::Tools;

/// A chat to be answered, whatever API it came by.
#[derive(Debug)]
pub struct ChatJob {
    pub messages: Vec<Message>,
    pub tools: Tools,
    pub variables: Map<String, Value>,
    pub options: GenerateOptions,
}

impl ChatJob {
    /// Renders and tokenises: one ask for each answer.
    ///
    /// # Errors
    /// 400 when the template refuses the chat, or the prompt does not fit.
    pub fn asks(&self, app: &App) -> Result<Vec<Ask>, ApiError> {
        let prompt = self.prompt(app)?;
        let asks = (0..self.options.n).map(|i| {
            let request = request(app, &self.options, prompt.ids.clone(), i);
            let parser = AnswerParser::new(app.format, prompt.starts_in_thinking, &self.tools.names);
            Ask { request, parser: Some(parser), same_prompt: i > 0 }
        });
        Ok(asks.collect())
    }

    /// The tokens alone.
    ///
    /// # Errors
    /// As [`asks`](Self::asks).
    pub fn prompt(&self, app: &App) -> Result<ChatPrompt, ApiError> {
        prompt::chat(app, &self.messages, &self.tools.schemas, &self.variables)
    }
}

/// Several prompts, each continued.
///
/// # Errors
/// 400 when a prompt does not fit, or there are too many.
pub fn completion_asks(app: &App, options: &GenerateOptions, prompts: Vec<Vec<u32>>) -> Result<Vec<Ask>, ApiError> {
    let answers = prompts.len().saturating_mul(options.n);
    if answers > limits::ANSWERS {
        let message = format!("{} prompts with {} answers each, but at most {} are generated at once", prompts.len(), options.n, limits::ANSWERS);
        return Err(ApiError::field("n", message));
    }
    let mut asks = Vec::with_capacity(answers);
    for prompt in prompts {
        app.check_length(prompt.len())?;
        for i in 0..options.n {
            let request = request(app, options, prompt.clone(), i);
            asks.push(Ask { request, parser: None, same_prompt: i > 0 });
        }
    }
    Ok(asks)
}

/// As the engine takes it; the `i`th answer to its prompt.
fn request(app: &App, options: &GenerateOptions, prompt: Vec<u32>, i: usize) -> Request {
    let room = app.context.saturating_sub(prompt.len());
    let mut sampling = options.sampling;
    // Each answer has numbers of its own, and the seed that is told repeats it.
    sampling.seed = Some(sampling.seed.map_or_else(new_seed, |seed| seed.wrapping_add(i as u64)));
    Request {
        sampling,
        processors: options.processors.clone(),
        max_tokens: options.max_tokens.unwrap_or(room).min(room),
        stop_tokens: if options.ignore_eos { StopSet::default() } else { app.stop_tokens.clone() },
        stop_strings: options.stop.clone(),
        trace: options.trace,
        log_probabilities: options.logprobs,
        ..Request::new(prompt)
    }
}
