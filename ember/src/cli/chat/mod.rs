//! `ember chat`: a conversation on a terminal, or through pipes.

mod command;
mod conversation;
mod echo;
mod input;
mod interrupt;
mod screen;
mod session;
mod settings;
mod totals;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;
use emberlm::model::engine::{Engine, EngineOptions};
use emberlm::model::text::{AnswerFormat, AnswerMarkers, ChatOptions, StopStrings, TextProcessor};
use emberlm::model::{Architecture, Pretrained};
use emberlm::quant::kv::KvFormat;
use emberlm::quant::{Activations, CompactBackend};

use self::conversation::Conversation;
use self::input::{Entry, Input};
use self::interrupt::{HOW_TO_LEAVE, Interrupt};
use self::screen::Screen;
use self::session::{Next, Session, Setup};
use self::settings::Settings;
use super::args::{ModelArgs, PassArgs, by_flag, usage};
use super::backend::{OpenDevice, WithBackend, on_device};
use super::chat_input::{ENABLE_THINKING, note_unread};
use super::estimate::{cache_bytes_per_token, draft_bytes, usual_context};
use super::generation_args::GenerationArgs;
use super::sampling::or_minus_one;
use super::{load, output};

/// States of a recurrent model that are kept beside the keys and values of a conversation.
const KEPT_STATES: usize = 8;

const ABOUT: &str = "\
On a terminal, /help lists the commands:

/system /reset /retry /save /load /depth /think /set /help /exit

Lines are edited as in a shell, and the arrow keys bring back what was typed. A line that ends with \\ goes on in the next one; \
between lines of \"\"\" everything is one message. Ctrl-C ends an answer, Ctrl-D the chat.

Without a terminal each line of stdin is a message or a command, and the answers go to stdout, without what the model thought before \
them; the first error ends the program:

  printf '%s\\n' 'Name a river.' 'Where does it end?' '/save talk.json' | ember chat -m DIR

What was computed of a conversation is kept for its next turn; memory for it is taken as the conversation grows, at most that of two \
contexts. A conversation is saved as the JSON list of messages that `ember render --messages` reads. With --seed N the answers of a \
chat are the same each time; /retry adds 1 to it for each further answer.";

/// Flags of `ember chat`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// System message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,

    /// Tell the chat template not to think first (enable_thinking false)
    #[arg(long)]
    no_think: bool,

    /// Tokens of an answer at most; -1: as many as the context holds [default: max_new_tokens of generation_config.json, or 2048]
    #[arg(short = 'n', long, value_name = "N", value_parser = or_minus_one(usize::MAX), allow_negative_numbers = true)]
    max_tokens: Option<usize>,

    /// End an answer before this string, which may be or contain the name of a special token (may be repeated)
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    stop: Vec<String>,

    /// Keep what was typed in this file, for the arrow keys of the next chat [default: in memory alone]
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,

    #[command(flatten)]
    passes: PassArgs,

    #[command(flatten)]
    generation: GenerationArgs,
}

/// Runs the command. False when it was interrupted.
pub fn run(args: &ChatArgs) -> Result<bool> {
    if args.max_tokens == Some(0) {
        usage("chat", "--max-tokens is 0, which leaves no answer: expected 1 or more, or -1");
    }
    let device = &args.generation.device;
    on_device(device, Activations::Auto, args)
}

impl WithBackend for &ChatArgs {
    type Output = bool;

    fn run<B: CompactBackend>(self, device: &OpenDevice<B>) -> Result<bool> {
        chat(self, device)
    }
}

fn chat<B: CompactBackend>(args: &ChatArgs, device: &OpenDevice<B>) -> Result<bool> {
    // What can be wrong is looked at before the weights are loaded, which can take minutes.
    let mut input = Input::open(args.history.as_deref())?;
    let pretrained = load::open_prepared(&args.model, &args.generation.depth, args.passes.hidden, device)?;
    let architecture = pretrained.architecture();
    let text = load::text(&pretrained)?;
    if !text.has_chat_template() {
        bail!(
            "the model {} has no chat template, so that it cannot be told who says what: `ember generate -p TEXT` continues a text; if \
             it is a chat model, put its chat_template.jinja into the directory",
            load::name(&pretrained)
        );
    }
    let mut options = ChatOptions::prompt();
    if args.no_think {
        options = options.with(ENABLE_THINKING, false);
    }
    note_unread(&text, &[], &options)?;
    let num_steps = architecture.crest.as_ref().map(|crest| crest.num_steps);
    let (sampling, file) = (args.generation.sampling.clone(), pretrained.generation_config());
    let settings = Settings::new(sampling, args.max_tokens, options, file, num_steps)?;
    let screen = Screen::of_stdout(input.is_terminal());
    // On a GPU the steps are a read-back more per token, which it waits for.
    let setup =
        Setup { always_trace: device.gpu.is_none(), ..setup(args, &pretrained, text, &settings.template, screen)? };
    let draft = args.generation.draft.of(architecture)?;
    let engine_options = EngineOptions { draft, ..engine_options(args, architecture, setup.context) };
    let conversation = Conversation::new(args.system.as_deref());

    let usual = usual_context(architecture);
    // That of the turn with its drafts, and what is kept for the next one.
    let drafts = draft_bytes(architecture, draft);
    let caches = |cache: usize| {
        let told = format!("a turn of {usual} tokens and what is kept for the next one");
        (cache.saturating_mul(2).saturating_add(drafts), Some(told))
    };
    let model = load::load_for_text(&pretrained, device, &setup.text, &args.passes, usual, caches)?;
    drop(pretrained);
    output::note(&settings.sampling_line());
    if input.is_terminal() {
        output::note(&format!("/help lists the commands; {HOW_TO_LEAVE}"));
    }
    let engine = Engine::new(&model, &setup.text, engine_options);
    let interrupt = Interrupt::handle(input.is_terminal());
    let mut session = Session::new(setup, engine, conversation, settings, interrupt);
    let ended = converse(&mut input, &mut session);
    let kept = input.save_history();
    let ended = ended?;
    output::note(&session.summary_line());
    kept.map(|()| ended)
}

fn setup(
    args: &ChatArgs,
    pretrained: &Pretrained,
    text: TextProcessor,
    options: &ChatOptions,
    screen: Screen,
) -> Result<Setup> {
    let (architecture, defaults) = (pretrained.architecture(), pretrained.generation_config());
    let config = &architecture.config;
    let stop_strings: Vec<String> = args.stop.iter().chain(&defaults.stop_strings).cloned().collect();
    StopStrings::new(stop_strings.iter().cloned()).map_err(by_flag)?;
    ensure!(config.max_position_embeddings > 1, "the context of this model has no room for an answer");
    Ok(Setup {
        format: AnswerFormat::detect(config.family, Some(text.chat_template(options)?.source())),
        markers: AnswerMarkers::of(&text),
        stop_tokens: pretrained.stop_tokens(&text),
        text,
        stop_strings,
        context: config.max_position_embeddings,
        family: config.family.to_string(),
        num_steps: architecture.crest.as_ref().map(|crest| crest.num_steps),
        always_trace: true,
        processors: defaults.processors.clone(),
        screen,
    })
}

/// The engine keeps the turns so far, in no more than a context and some states of linear attention.
fn engine_options(args: &ChatArgs, architecture: &Architecture, context: usize) -> EngineOptions {
    let kv_format: KvFormat = args.passes.cache_type.into();
    let (per_token, fixed) = cache_bytes_per_token(architecture, kv_format);
    let kept = context.saturating_mul(per_token).saturating_add(fixed.saturating_mul(KEPT_STATES));
    EngineOptions {
        kv_format,
        tokens_per_step: args.passes.chunk as usize,
        prefix_cache_bytes: kept,
        ..EngineOptions::default()
    }
}

/// Takes turns until the input ends. False when an answer was interrupted that no terminal asked for.
fn converse<B: CompactBackend>(input: &mut Input, session: &mut Session<'_, B>) -> Result<bool> {
    let interactive = input.is_terminal();
    loop {
        let next = match input.next()? {
            Entry::End => return Ok(true),
            Entry::Interrupted => {
                output::note(HOW_TO_LEAVE);
                continue;
            }
            Entry::Message(message) => session.say(message),
            Entry::Command(line) => command::parse(&line).and_then(|command| session.run(command)),
        };
        match next {
            Ok(Next::Continue) => {}
            Ok(Next::Interrupted) if interactive => {}
            Ok(Next::Unanswered) if interactive => {
                output::note("there is no answer yet; /retry asks for it again, another message takes its place");
            }
            Ok(Next::Interrupted | Next::Unanswered) => return Ok(false),
            Ok(Next::Exit) => return Ok(true),
            // A terminal that can be told of an error goes on.
            Err(error) if interactive && !output::is_closed_pipe(&error) => {
                output::note(&format!("error: {}", output::with_causes(&error)));
            }
            Err(error) => return Err(error),
        }
    }
}
