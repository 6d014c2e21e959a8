//! `ember generate`: a prompt in, text out as it is generated.

mod report;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use clap::Args;
use emberlm::model::config::GenerationConfig;
use emberlm::model::generate::{CancelHandle, Finish, GenerateOptions, Generator, Trace};
use emberlm::model::sampling::SamplingConfig;
use emberlm::model::text::{ChatOptions, Message, StopSet, StopStrings, TextProcessor};
use emberlm::model::{DepthOptions, Error, Pretrained};
use emberlm::quant::{Activations, CompactBackend};

use super::args::{ModelArgs, PassArgs, by_flag};
use super::backend::{OpenDevice, WithBackend, on_device};
use super::estimate::draft_bytes;
use super::generation_args::GenerationArgs;
use super::sampling::or_minus_one;
use super::terminal::TerminalFilter;
use super::{chat_input, input, load, output};
use report::TracedToken;
pub use report::{drafts, shown_rate};

const ABOUT: &str = "\
With --json one object is printed at the end: text, tokens, prompt_tokens, finish (stop, length, cancelled), seed (null where nothing is drawn), \
drafted_tokens and accepted_tokens (with --draft), prefill_seconds, decode_seconds, prefill_tokens_per_second, decode_tokens_per_second (without the first token, which \
belongs to the prefill), mean_steps (per layer and token; CREST), and with --trace depth: per token its id, the steps of \
every layer and the halting probabilities.

How tokens are chosen follows generation_config.json by the rules of transformers: the most likely token unless do_sample is true \
or a flag asks for draws; a draw is at temperature 1 among the 50 best unless the file or a flag says otherwise. A line on stderr \
tells what is in force.

Ctrl-C ends the text; a second one ends the program.";

/// Flags of `ember generate`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// The prompt; - reads it from stdin, without its last line break
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,

    /// Tokens to generate at most; -1: as many as the context holds [default: max_new_tokens of generation_config.json, or 256]
    #[arg(short = 'n', long, value_name = "N", value_parser = or_minus_one(usize::MAX), allow_negative_numbers = true)]
    max_tokens: Option<usize>,

    /// End the text before this string, which may be or contain the name of a special token (may be repeated)
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    stop: Vec<String>,

    /// Do not end the text at the model's end tokens
    #[arg(long)]
    ignore_eos: bool,

    /// Put the prompt into the model's chat template, as a message of the user
    #[arg(long)]
    chat: bool,

    /// The prompt is one that `ember render` wrote: it keeps its last line break, and nothing, such as BOS, is put around it
    #[arg(long, conflicts_with = "chat")]
    rendered: bool,

    /// System message before the prompt
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    system: Option<String>,

    /// Tools that the model may call: a JSON list of function schemas
    #[arg(long, value_name = "FILE", requires = "chat")]
    tools: Option<PathBuf>,

    /// Tell the chat template not to think first (enable_thinking false)
    #[arg(long, requires = "chat")]
    no_think: bool,

    #[command(flatten)]
    passes: PassArgs,

    /// Write the depth of every token to stderr (CREST)
    #[arg(long)]
    trace: bool,

    /// Print one JSON object at the end instead of the text
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    generation: GenerationArgs,
}

/// Runs the command. False when it was interrupted.
pub fn run(args: &GenerateArgs) -> Result<bool> {
    let device = &args.generation.device;
    on_device(device, Activations::Auto, args)
}

impl WithBackend for &GenerateArgs {
    type Output = bool;

    fn run<B: CompactBackend>(self, device: &OpenDevice<B>) -> Result<bool> {
        generate(self, device)
    }
}

fn generate<B: CompactBackend>(args: &GenerateArgs, device: &OpenDevice<B>) -> Result<bool> {
    let pretrained = load::open_prepared(&args.model, &args.generation.depth, args.passes.hidden, device)?;
    let architecture = pretrained.architecture();
    if args.trace && architecture.crest.is_none() {
        bail!("--trace is for models with adaptive depth; this is {}", architecture.config.family);
    }
    let text = load::text(&pretrained)?;
    // Options and prompt are checked before the weights are loaded, which can take minutes.
    let (mut options, sampling) = options(args, &pretrained, &text)?;
    if device.gpu.is_some() && !args.trace {
        // Mean steps are a read-back more per token, which a GPU waits for.
        options.trace = Trace::Off;
    }
    let prompt = prompt(args, &text)?;
    let limit = architecture.config.max_position_embeddings;
    if prompt.is_empty() {
        return Err(Error::Prompt("it has no tokens; give some text with -p".into()).into());
    }
    if prompt.len() > limit {
        let message = format!("{} tokens, but the context of this model is {limit}; shorten it", prompt.len());
        return Err(Error::Prompt(message).into());
    }

    if let (None, Some(length)) = (args.max_tokens, pretrained.generation_config().max_length) {
        match length.checked_sub(prompt.len()) {
            Some(room @ 1..) => options.max_tokens = options.max_tokens.min(room),
            _ => output::note(&format!(
                "warning: max_length {length} of generation_config.json leaves nothing after a prompt of {} tokens, and is not used",
                prompt.len()
            )),
        }
    }
    let context = prompt.len().saturating_add(options.max_tokens).min(limit);
    let drafts = draft_bytes(architecture, options.draft);
    let caches = |cache: usize| (cache.saturating_add(drafts), None);
    let model = load::load_for_text(&pretrained, device, &text, &args.passes, context, caches)?;
    output::note(&sampling);
    let generator = Generator::new(&model, &text, options)?;
    cancel_on_interrupt(generator.cancel_handle());

    let mut shown = Shown::new(args.json);
    let mut depth = Vec::new();
    let mut pieces = generator.run(&prompt)?;
    for piece in pieces.by_ref() {
        let piece = piece?;
        if let (true, Some(token), Some(went)) = (args.trace, piece.token, piece.depth) {
            if !args.json {
                output::note(&report::trace_line(token, &text, &went));
            }
            depth.push(TracedToken { token, steps: went.steps, halt: went.halt });
        }
        shown.push(&piece.text).context(output::STDOUT)?;
    }
    let summary = pieces.summary().context("the generation has not ended")?;
    if args.json {
        report::write(&shown.text, summary, args.trace.then_some(depth)).context(output::STDOUT)?;
    } else {
        shown.finish().context(output::STDOUT)?;
    }
    output::note(&report::summary_line(summary));
    Ok(summary.finish != Finish::Cancelled)
}

/// How the text is continued, and a line about how tokens are chosen.
fn options(args: &GenerateArgs, pretrained: &Pretrained, text: &TextProcessor) -> Result<(GenerateOptions, String)> {
    let file = pretrained.generation_config();
    let (sampling, line) = args.generation.sampling.config(&file.defaults);
    sampling.validate().map_err(by_flag)?;
    StopStrings::new(args.stop.iter().cloned()).map_err(by_flag)?;
    warn_of_unsupported(file, &sampling);
    let rules: Vec<&str> = file.processors.names();
    let rules =
        if rules.is_empty() { String::new() } else { format!("; {} (generation_config.json)", rules.join(", ")) };
    let of_file = pretrained.generate_options(text);
    let options = GenerateOptions {
        sampling,
        max_tokens: args.max_tokens.unwrap_or(of_file.max_tokens),
        stop_tokens: if args.ignore_eos { StopSet::default() } else { of_file.stop_tokens },
        stop_strings: args.stop.iter().cloned().chain(of_file.stop_strings).collect(),
        chunk: args.passes.chunk as usize,
        cache: args.passes.cache_type.into(),
        // What the caller wants different is in the options of the model.
        depth: DepthOptions::default(),
        // Mean steps belong to the summary of every CREST run.
        trace: if pretrained.architecture().crest.is_some() { Trace::Chosen } else { Trace::Off },
        draft: args.generation.draft.of(pretrained.architecture())?,
        ..of_file
    };
    Ok((options, format!("sampling: {line}{rules}")))
}

/// Warns of the keys of generation_config.json that would change the text and are not supported.
pub fn warn_of_unsupported(defaults: &GenerationConfig, sampling: &SamplingConfig) {
    let in_draws = if sampling.is_greedy() { &[][..] } else { &defaults.unsupported_in_draws };
    let keys: Vec<&str> = defaults.unsupported.iter().chain(in_draws).map(String::as_str).collect();
    if !keys.is_empty() {
        output::note(&format!(
            "warning: {} of generation_config.json would change the text, but is not supported and has no effect",
            keys.join(", ")
        ));
    }
}

/// The tokens of the prompt.
fn prompt(args: &GenerateArgs, text: &TextProcessor) -> Result<Vec<u32>> {
    if args.rendered {
        return Ok(text.encode(&input::given_or_all_of_stdin(&args.prompt)?, false)?);
    }
    let prompt = input::given_or_stdin(&args.prompt)?;
    if !args.chat {
        return Ok(text.encode(&prompt, true)?);
    }
    let system = args.system.iter().map(Message::system);
    let messages: Vec<Message> = system.chain([Message::user(prompt)]).collect();
    let mut options = ChatOptions::prompt();
    if args.no_think {
        options = options.with(chat_input::ENABLE_THINKING, false);
    }
    if let Some(path) = &args.tools {
        options = options.with("tools", chat_input::tools(path)?);
    }
    let tokens = text.encode_chat(&messages, &options)?;
    chat_input::note_unread(text, &messages, &options)?;
    Ok(tokens)
}

/// The first Ctrl-C ends the text, the second the program. Where signals cannot be handled, the first ends the program.
fn cancel_on_interrupt(cancel: CancelHandle) {
    let asked = AtomicBool::new(false);
    let _ = ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(super::INTERRUPTED.into());
        }
        cancel.cancel();
    });
}

/// The text so far, and what of it is on stdout.
struct Shown {
    text: String,
    filter: Option<TerminalFilter>,
    silent: bool,
}

impl Shown {
    fn new(silent: bool) -> Self {
        let filter = io::stdout().is_terminal().then(TerminalFilter::default);
        Self { text: String::new(), filter, silent }
    }

    fn push(&mut self, piece: &str) -> io::Result<()> {
        self.text.push_str(piece);
        if self.silent || piece.is_empty() {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        match &mut self.filter {
            Some(filter) => out.write_all(filter.push(piece).as_bytes())?,
            None => out.write_all(piece.as_bytes())?,
        }
        out.flush()
    }

    /// Ends the last line.
    fn finish(&self) -> io::Result<()> {
        if self.text.ends_with('\n') { Ok(()) } else { writeln!(io::stdout()) }
    }
}
