//! A conversation with a model.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use emberlm::model::engine::{Engine, EventKind, Finish, Request, Summary, Trace};
use emberlm::model::sampling::LogitsProcessors;
use emberlm::model::text::{
    AnswerFormat, AnswerMarkers, AnswerParser, AnswerPart, ChatPrompt, DeclaredTools, Message, StopSet, TextProcessor,
};
use emberlm::quant::CompactBackend;

use super::command::{Command, HELP};
use super::conversation::Conversation;
use super::echo::HiddenInterrupt;
use super::interrupt::Interrupt;
use super::screen::{Screen, Shown};
use super::settings::Settings;
use super::totals::Totals;
use crate::cli::chat_input::ENABLE_THINKING;
use crate::cli::depth::Colours;
use crate::cli::output::{self, printable};

/// What does not change in a chat.
pub struct Setup {
    pub text: TextProcessor,
    pub format: AnswerFormat,
    pub markers: AnswerMarkers,
    pub stop_tokens: StopSet,
    pub stop_strings: Vec<String>,
    /// Tokens of the conversation at most.
    pub context: usize,
    pub family: String,
    /// The steps of the model; none without adaptive depth.
    pub num_steps: Option<usize>,
    /// Whether steps are told for every token, also where nobody looks at them.
    pub always_trace: bool,
    pub processors: LogitsProcessors,
    pub screen: Screen,
}

/// What comes after a message or a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Continue,
    /// The answer was interrupted.
    Interrupted,
    /// It was interrupted before it began, and the conversation is as it was.
    Unanswered,
    Exit,
}

/// The model and what was said. The engine keeps what it has computed of the conversation, so that a turn computes only what is new.
pub struct Session<'m, B: CompactBackend> {
    setup: Setup,
    engine: Engine<'m, B>,
    conversation: Conversation,
    /// What was asked when an interrupt came before any answer: no part of the conversation, and what /retry asks.
    unanswered: Option<Conversation>,
    settings: Settings,
    interrupt: Interrupt,
    /// Answers to the last message before the current one.
    retries: u64,
    /// What was answered last, and the settings that it was answered with.
    answered: Option<(Conversation, Settings)>,
    shows_depth: bool,
    totals: Totals,
    /// Files that this chat has saved to or loaded from, and may replace.
    files: BTreeSet<PathBuf>,
}

impl<'m, B: CompactBackend> Session<'m, B> {
    /// Without turns.
    pub fn new(
        setup: Setup,
        engine: Engine<'m, B>,
        conversation: Conversation,
        settings: Settings,
        interrupt: Interrupt,
    ) -> Self {
        let (retries, shows_depth, totals) = (0, false, Totals::default());
        let (unanswered, answered, files) = (None, None, BTreeSet::new());
        Self {
            setup,
            engine,
            conversation,
            unanswered,
            settings,
            interrupt,
            retries,
            answered,
            shows_depth,
            totals,
            files,
        }
    }

    /// What the chat took, in one line.
    pub fn summary_line(&self) -> String {
        self.totals.line(self.engine.cache_bytes())
    }

    /// Answers a message.
    ///
    /// # Errors
    /// When it cannot be answered; the conversation is as it was.
    pub fn say(&mut self, message: String) -> Result<Next> {
        let mut conversation = self.conversation.clone();
        conversation.push(Message::user(message));
        self.retries = 0;
        self.answer(conversation)
    }

    /// Does what a command says.
    ///
    /// # Errors
    /// When that cannot be done; the conversation is as it was.
    pub fn run(&mut self, command: Command) -> Result<Next> {
        match command {
            Command::ShowSystem => match self.conversation.system() {
                Some(system) => output::note(&shown_lines(system)),
                None => output::note("there is no system message; /system TEXT sets one"),
            },
            Command::System(system) => self.set_system(system.as_deref())?,
            Command::Reset => {
                self.restart(self.conversation.without_turns());
                output::note("the conversation begins anew");
            }
            Command::Retry => return self.retry(),
            Command::Save(path) => {
                ensure!(!self.conversation.messages().is_empty(), "there is nothing to save yet");
                let known = fs::canonicalize(&path).is_ok_and(|path| self.files.contains(&path));
                ensure!(
                    known || fs::symlink_metadata(&path).is_err() || Conversation::is_saved_in(&path),
                    "{} is there and holds no saved conversation: it stays as it is; choose another name",
                    path.display()
                );
                self.conversation.save(&path)?;
                self.files.extend(fs::canonicalize(&path));
                let count = self.conversation.messages().len();
                output::note(&format!("saved {} to {}", messages(count), shown_path(&path)));
            }
            Command::Load(path) => self.load(&path)?,
            Command::Depth => self.toggle_depth(),
            Command::ShowThink => output::note(&match self.settings.template.variables.get(ENABLE_THINKING) {
                Some(value) if value == true => "thinking is on".to_owned(),
                Some(_) => "thinking is off".to_owned(),
                None => "thinking is as the chat template has it; /think on or /think off says so".to_owned(),
            }),
            Command::Think(on) => self.set_thinking(on)?,
            Command::ShowSettings => output::note(&self.settings.line()),
            Command::Set(name, value) => {
                self.settings.set(&name, &value)?;
                output::note(&self.settings.line());
            }
            Command::Help => output::note(HELP),
            Command::Exit => return Ok(Next::Exit),
        }
        Ok(Next::Continue)
    }

    /// Goes on with another conversation, and lets go of what was computed of this one.
    fn restart(&mut self, conversation: Conversation) {
        self.conversation = conversation;
        self.unanswered = None;
        self.retries = 0;
        self.engine.clear_prefix_cache();
    }

    fn set_system(&mut self, system: Option<&str>) -> Result<()> {
        let conversation = self.conversation.with_system(system);
        self.check(&conversation)?;
        self.conversation = conversation;
        self.unanswered = self.unanswered.take().map(|asked| asked.with_system(system));
        output::note(if system.is_some() { "the system message is set" } else { "there is no system message now" });
        Ok(())
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let conversation = Conversation::load(path)?;
        self.check(&conversation).with_context(|| format!("{} cannot be used", path.display()))?;
        let count = conversation.messages().len();
        self.restart(conversation);
        self.files.extend(fs::canonicalize(path));
        output::note(&format!("loaded {} from {}", messages(count), shown_path(path)));
        Ok(())
    }

    /// Whether the template takes a conversation, with a next message where it is the user's turn.
    fn check(&self, conversation: &Conversation) -> Result<()> {
        let mut conversation = conversation.clone();
        if conversation.messages().last().is_none_or(|message| message.role() != "user") {
            conversation.push(Message::user("?"));
        }
        self.setup.text.render_chat(conversation.messages(), &self.settings.template)?;
        Ok(())
    }

    fn set_thinking(&mut self, on: bool) -> Result<()> {
        let told = self.settings.template.clone().with(ENABLE_THINKING, on);
        if !self.setup.text.template_reads(ENABLE_THINKING, self.conversation.messages(), &told)? {
            output::note(
                "the chat template of this model has no switch for thinking (enable_thinking): nothing changes",
            );
            return Ok(());
        }
        self.settings.template = told;
        output::note(if on { "thinking is on" } else { "thinking is off" });
        Ok(())
    }

    fn toggle_depth(&mut self) {
        let Setup { num_steps, screen, family, .. } = &self.setup;
        let Some(num_steps) = *num_steps else {
            output::note(&format!("depth is for models with adaptive depth (CREST); this is {family}"));
            return;
        };
        if screen.colours == Colours::None {
            output::note("depth is shown in colours, and there are none here");
            return;
        }
        self.shows_depth = !self.shows_depth;
        match self.shows_depth {
            true => output::note(&format!("mean steps of a token: {}", screen.legend(num_steps))),
            false => output::note("answers are no longer coloured"),
        }
    }

    fn retry(&mut self) -> Result<Next> {
        // The answer that did not come: with the seed that it would have had.
        if let Some(conversation) = self.unanswered.clone() {
            return self.answer(conversation);
        }
        let Some(conversation) = self.conversation.up_to_last_user() else {
            bail!("there is no message to answer yet");
        };
        // The same seed would give the same answer.
        let retries = if conversation == self.conversation { 0 } else { self.retries.wrapping_add(1) };
        let before = self.answered.as_ref();
        let same =
            before.is_some_and(|(asked, settings)| *asked == conversation && settings.answers_as(&self.settings));
        if self.settings.sampling().is_greedy() && same && self.setup.screen.interactive {
            output::note("the most likely tokens are taken, which gives the same answer; /set temp 0.7 draws them");
        }
        self.retries = retries;
        self.answer(conversation)
    }

    /// Generates the answer to a conversation, shows it, and adds it to the conversation that it then is.
    fn answer(&mut self, conversation: Conversation) -> Result<Next> {
        self.interrupt.begin();
        let _hidden = HiddenInterrupt::new();
        let next = self.answer_until_interrupted(conversation);
        self.interrupt.end();
        next
    }

    fn answer_until_interrupted(&mut self, mut conversation: Conversation) -> Result<Next> {
        let prompt = self.setup.text.chat_prompt(conversation.messages(), &self.settings.template)?;
        let (tokens, context) = (prompt.tokens.len(), self.setup.context);
        ensure!(
            tokens < context,
            "the conversation has {tokens} tokens with this message, and the context of this model is {context}; /reset begins anew, \
             /save keeps it in a file"
        );
        let asked = (conversation.clone(), self.settings.clone());
        let Answered { content, reasoning, summary } = self.generate(prompt)?;
        let interrupted = summary.finish == Finish::Cancelled;
        let answered = !(interrupted && content.is_empty() && reasoning.is_empty());
        self.totals.add(&summary, answered);
        if !answered {
            self.unanswered = Some(conversation);
            return Ok(Next::Unanswered);
        }
        let mut message = Message::assistant(content);
        if !reasoning.is_empty() {
            message = message.with("reasoning_content", reasoning);
        }
        conversation.push(message);
        self.conversation = conversation;
        self.unanswered = None;
        // One that was cut may be longer at another try.
        self.answered = (!interrupted).then_some(asked);
        match summary.finish {
            Finish::Stop => Ok(Next::Continue),
            Finish::Cancelled => Ok(Next::Interrupted),
            Finish::Length => {
                let generated = summary.generated.len();
                output::note(&match tokens + generated >= context {
                    true => format!("the answer ends with the context of {context} tokens; /reset begins anew"),
                    false => format!("the answer ends after {generated} tokens; /set max-tokens N allows more"),
                });
                Ok(Next::Continue)
            }
        }
    }

    fn generate(&mut self, prompt: ChatPrompt) -> Result<Answered> {
        let parser = AnswerParser::new(self.setup.format, prompt.thinking, DeclaredTools::default(), 0);
        let mut parser = parser.with_markers(&self.setup.markers);
        let id = self.engine.submit(self.request(prompt))?;
        let shows_depth = self.setup.num_steps.filter(|_| self.shows_depth);
        let mut answer = Told {
            shown: Shown::new(self.setup.screen, shows_depth),
            content: String::new(),
            reasoning: String::new(),
        };
        loop {
            if self.interrupt.is_asked() {
                self.engine.cancel(id);
            }
            for event in self.engine.step() {
                match event.kind {
                    EventKind::Token(piece) => {
                        let steps = piece.depth.as_ref().filter(|depth| !depth.steps.is_empty());
                        answer
                            .tell(parser.push_token(&piece.text, piece.token), steps.map(|depth| depth.mean_steps()))?;
                    }
                    EventKind::Finished(finished) => {
                        answer.tell(parser.finish(), None)?;
                        let Told { shown, content, reasoning } = answer;
                        shown.finish().context(output::STDOUT)?;
                        return Ok(Answered { content, reasoning, summary: finished.summary });
                    }
                    EventKind::Failed(error) => {
                        // The message about it gets a line of its own.
                        let _ = answer.shown.finish();
                        return Err(error.into());
                    }
                    _ => {}
                }
            }
        }
    }

    fn trace(&self) -> Trace {
        match self.setup.num_steps.is_some() && (self.setup.always_trace || self.shows_depth) {
            true => Trace::Chosen,
            false => Trace::Off,
        }
    }

    fn request(&self, prompt: ChatPrompt) -> Request {
        let mut sampling = self.settings.sampling();
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(self.retries));
        Request {
            sampling,
            processors: self.setup.processors.clone(),
            max_tokens: self.settings.max_tokens(),
            stop_tokens: self.setup.stop_tokens.clone(),
            stop_strings: self.setup.stop_strings.clone(),
            depth: self.settings.depth,
            trace: self.trace(),
            prefix_boundaries: prompt.boundaries,
            ..Request::new(prompt.tokens)
        }
    }
}

/// An answer so far.
struct Told {
    shown: Shown,
    content: String,
    reasoning: String,
}

impl Told {
    fn tell(&mut self, parts: Vec<AnswerPart>, mean_steps: Option<f64>) -> Result<()> {
        for part in parts {
            let told = match &part {
                AnswerPart::Content(text) => {
                    self.content.push_str(text);
                    self.shown.answer(text, mean_steps)
                }
                AnswerPart::Reasoning(text) => {
                    self.reasoning.push_str(text);
                    self.shown.thoughts(text, mean_steps)
                }
                // No tool is declared.
                AnswerPart::ToolCallBegin { .. } | AnswerPart::ToolCallArguments { .. } => Ok(()),
            };
            told.context(output::STDOUT)?;
        }
        Ok(())
    }
}

/// An answer that has ended.
struct Answered {
    content: String,
    reasoning: String,
    summary: Summary,
}

fn messages(count: usize) -> String {
    if count == 1 { "1 message".to_owned() } else { format!("{count} messages") }
}

fn shown_path(path: &Path) -> String {
    printable(&path.display().to_string())
}

/// A text of several lines without what could steer a terminal.
fn shown_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}
