//! The parser of one answer.

use super::format::{AnswerFormat, Thinking, ToolFormat};
use super::json_call::JsonScan;
use super::markers::AnswerMarkers;
use super::scan::{Call, SPACE, Scanned};
use super::tools::DeclaredTools;
use super::xml_call::XmlScan;
use emberlm_quant::random::SplitMix64;

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";
const CALL_END: &str = "</tool_call>";

/// What looked like a call and was none, so often: then the model does not know its format, and the rest is content.
const MALFORMED: usize = 32;

/// Something that an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerPart {
    /// Text of the answer.
    Content(String),
    /// Text of the thoughts before it.
    Reasoning(String),
    /// A call of a declared tool begins.
    ToolCallBegin {
        /// Its number in this answer, from 0.
        index: usize,
        /// Its name in the conversation: `call_` and 24 letters and digits.
        id: String,
        /// Name of the tool.
        name: String,
    },
    /// Arguments of the call: all parts with this index joined are one JSON object.
    ToolCallArguments {
        /// The number of the call.
        index: usize,
        /// The next part of the JSON text.
        delta: String,
    },
}

/// Takes an answer apart as it comes.
///
/// The parts joined do not depend on how the text is cut into pieces. Text is held back while it may be the beginning of a marker
/// or lies inside of what may be a call; a call is told when it is complete, so that its arguments are valid JSON, and what turns
/// out to be none (bad JSON, a tool that was not declared, a missing end) is content exactly as the model wrote it. White space
/// next to a call, and around thoughts, belongs to the format: it is told only between two texts.
#[derive(Clone, Debug)]
pub struct AnswerParser {
    format: ToolFormat,
    tools: DeclaredTools,
    markers: AnswerMarkers,
    id_seed: u64,
    state: State,
    /// Text that is not decided, the marker of a possible call first.
    held: String,
    /// White space before `held` that belongs to a text only if more of it follows.
    space: String,
    last: Last,
    /// Whether content was told.
    has_content: bool,
    /// Whether thoughts were told.
    has_reasoning: bool,
    /// Whether white space before the first content belongs to the format.
    trims_start: bool,
    calls: usize,
    malformed: usize,
}

#[derive(Clone, Debug)]
enum State {
    /// Thoughts may begin.
    Start,
    Thinking,
    Text,
    /// Behind so many bytes of marker something that may be a call.
    Call(usize, Scan),
}

#[derive(Clone, Debug)]
enum Scan {
    Json(JsonScan),
    Xml(XmlScan),
}

/// What stands before the white space that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Nothing,
    Content,
    Call,
}

impl AnswerParser {
    /// A parser for one answer. Without declared tools nothing is a call. The ids of calls are made of `id_seed` and their number.
    pub fn new(format: AnswerFormat, thinking: Thinking, tools: DeclaredTools, id_seed: u64) -> Self {
        let state = match thinking {
            _ if !format.thinking => State::Text,
            Thinking::Open => State::Thinking,
            Thinking::Possible => State::Start,
            Thinking::Closed => State::Text,
        };
        Self {
            format: format.tools,
            tools,
            markers: AnswerMarkers::default(),
            id_seed,
            state,
            held: String::new(),
            space: String::new(),
            last: Last::Nothing,
            has_content: false,
            has_reasoning: false,
            trims_start: format.thinking && thinking == Thinking::Closed,
            calls: 0,
            malformed: 0,
        }
    }

    /// The same parser for a model that may mark parts of its answers with special tokens; see [`push_token`](Self::push_token).
    #[must_use]
    pub fn with_markers(self, markers: &AnswerMarkers) -> Self {
        Self { markers: markers.clone(), ..self }
    }

    /// Takes the text that came with a token, and the token: one that is left out of the text may be a marker. Where it can mean nothing, it is
    /// no part of the answer, as other special tokens are not.
    pub fn push_token(&mut self, piece: &str, token: Option<u32>) -> Vec<AnswerPart> {
        let mut parts = self.push(piece);
        if let Some(marker) = token.and_then(|id| self.markers.name(id)).filter(|marker| self.is_due(marker)) {
            parts.extend(self.push(marker));
        }
        parts
    }

    /// Whether a marker means something here.
    fn is_due(&self, marker: &str) -> bool {
        let begins_call = self.knows_calls() && marker == self.format.marker();
        match self.state {
            State::Start => marker == THINK || begins_call,
            State::Thinking => marker == THINK_END,
            State::Text => begins_call,
            State::Call(..) => marker == CALL_END,
        }
    }

    /// Takes the next piece of the answer.
    pub fn push(&mut self, piece: &str) -> Vec<AnswerPart> {
        self.held.push_str(piece);
        self.run(false)
    }

    /// Ends the answer: what was held back. What is pushed after that begins a text.
    pub fn finish(&mut self) -> Vec<AnswerPart> {
        let mut parts = self.run(true);
        let space = std::mem::take(&mut self.space);
        let text = match self.state {
            State::Thinking => (!space.is_empty()).then_some(AnswerPart::Reasoning(space)),
            _ => (self.last != Last::Call && !self.drops_start() && !space.is_empty())
                .then_some(AnswerPart::Content(space)),
        };
        parts.extend(text);
        parts
    }

    /// Whether part of a possible call is held back, which can take long.
    pub fn holds_call(&self) -> bool {
        matches!(self.state, State::Call(..))
    }

    /// Calls told so far.
    pub fn calls(&self) -> usize {
        self.calls
    }

    fn run(&mut self, ended: bool) -> Vec<AnswerPart> {
        let mut parts = Vec::new();
        while self.step(ended, &mut parts) {}
        let mut joined: Vec<AnswerPart> = Vec::with_capacity(parts.len());
        for part in parts {
            match (joined.last_mut(), &part) {
                (Some(AnswerPart::Content(text)), AnswerPart::Content(more))
                | (Some(AnswerPart::Reasoning(text)), AnswerPart::Reasoning(more)) => text.push_str(more),
                _ => joined.push(part),
            }
        }
        joined
    }

    /// Decides the next stretch of the held text; whether there is one.
    fn step(&mut self, ended: bool, parts: &mut Vec<AnswerPart>) -> bool {
        match &mut self.state {
            State::Start => {
                let text = self.held.trim_start_matches(SPACE);
                if let Some(rest) = text.strip_prefix(THINK) {
                    self.held = rest.to_owned();
                    self.state = State::Thinking;
                } else if THINK.starts_with(text) && !ended {
                    return false;
                } else {
                    self.state = State::Text;
                }
                true
            }
            State::Thinking => {
                let found = self.held.find(THINK_END);
                let end = found.unwrap_or(self.held.len() - if ended { 0 } else { partial(&self.held, THINK_END) });
                let text = self.take(end);
                self.reasoning(&text, parts);
                if found.is_some() {
                    self.take(THINK_END.len());
                    self.space.clear();
                    self.trims_start = true;
                    self.state = State::Text;
                }
                found.is_some()
            }
            State::Text => {
                let found = self.call_begins();
                let hold = if ended { 0 } else { self.undecided() };
                let (end, marker) = found.unwrap_or((self.held.len() - hold, 0));
                let text = self.take(end);
                self.content(&text, parts);
                if found.is_some() {
                    let scan = match self.format {
                        ToolFormat::Hermes => Scan::Json(JsonScan::until(CALL_END)),
                        ToolFormat::Qwen3Coder => Scan::Xml(XmlScan::default()),
                        ToolFormat::Llama3Json => Scan::Json(JsonScan::until("")),
                    };
                    self.state = State::Call(marker, scan);
                }
                found.is_some()
            }
            State::Call(marker, scan) => {
                let marker = *marker;
                let text = self.held.get(marker..).unwrap_or_default();
                let scanned = match scan {
                    Scan::Json(scan) => scan.advance(text, ended, &self.tools),
                    Scan::Xml(scan) => scan.advance(text, ended, &self.tools),
                };
                match scanned {
                    Scanned::More => return false,
                    Scanned::Calls { calls, end } => {
                        self.take(marker + end);
                        calls.into_iter().for_each(|call| self.call(call, parts));
                    }
                    Scanned::Malformed => {
                        self.malformed += 1;
                        let text = self.take(marker.max(1));
                        self.content(&text, parts);
                    }
                }
                self.state = State::Text;
                true
            }
        }
    }

    /// Where in the held text a call may begin, and the bytes of its marker.
    fn call_begins(&self) -> Option<(usize, usize)> {
        if !self.knows_calls() {
            return None;
        }
        if self.format == ToolFormat::Llama3Json && !self.has_content {
            let text = self.held.trim_start_matches(self.separators());
            if text.starts_with('{') {
                return Some((self.held.len() - text.len(), 0));
            }
        }
        let marker = self.format.marker();
        Some((self.held.find(marker)?, marker.len()))
    }

    /// Bytes at the end of the held text that may begin a marker.
    fn undecided(&self) -> usize {
        if self.knows_calls() { partial(&self.held, self.format.marker()) } else { 0 }
    }

    fn knows_calls(&self) -> bool {
        !self.tools.is_empty() && self.malformed < MALFORMED
    }

    /// What stands between calls without being a text.
    fn separators(&self) -> &'static [char] {
        let between = self.format == ToolFormat::Llama3Json && self.last == Last::Call;
        if between { &[' ', '\n', '\r', '\t', ';'] } else { &SPACE }
    }

    /// Whether white space before the next content belongs to the format.
    fn drops_start(&self) -> bool {
        !self.has_content && (self.trims_start || self.calls > 0)
    }

    fn take(&mut self, end: usize) -> String {
        let rest = self.held.split_off(end.min(self.held.len()));
        std::mem::replace(&mut self.held, rest)
    }

    fn content(&mut self, text: &str, parts: &mut Vec<AnswerPart>) {
        self.space.push_str(text);
        if self.drops_start() {
            self.space = self.space.trim_start_matches(SPACE).to_owned();
        }
        // Where no call can come, white space at the end is text.
        let kept =
            if self.knows_calls() { self.space.trim_end_matches(self.separators()).len() } else { self.space.len() };
        if kept > 0 {
            let rest = self.space.split_off(kept);
            parts.push(AnswerPart::Content(std::mem::replace(&mut self.space, rest)));
            self.has_content = true;
            self.last = Last::Content;
        }
    }

    fn reasoning(&mut self, text: &str, parts: &mut Vec<AnswerPart>) {
        self.space.push_str(text);
        if !self.has_reasoning {
            self.space = self.space.trim_start_matches(SPACE).to_owned();
        }
        let kept = self.space.trim_end_matches(SPACE).len();
        if kept > 0 {
            let rest = self.space.split_off(kept);
            parts.push(AnswerPart::Reasoning(std::mem::replace(&mut self.space, rest)));
            self.has_reasoning = true;
        }
    }

    fn call(&mut self, call: Call, parts: &mut Vec<AnswerPart>) {
        let index = self.calls;
        self.calls += 1;
        if self.last == Last::Call {
            self.space.retain(|c| c != ';');
        }
        self.last = Last::Call;
        let id = call_id(self.id_seed, index);
        parts.push(AnswerPart::ToolCallBegin { index, id, name: call.name });
        parts.push(AnswerPart::ToolCallArguments { index, delta: call.arguments });
    }
}

/// Bytes at the end of a text that begin a marker and are not all of it.
fn partial(text: &str, marker: &str) -> usize {
    let prefixes = (1..marker.len()).rev().filter_map(|len| marker.get(..len));
    prefixes.into_iter().find(|prefix| text.ends_with(prefix)).map_or(0, str::len)
}

/// `call_` and 24 letters and digits, by the seed and the number of the call.
fn call_id(seed: u64, index: usize) -> String {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut random = SplitMix64::new(seed ^ (index as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93));
    let mut id = String::from("call_");
    for _ in 0..24 {
        let letter = LETTERS.get((random.next_word() % 62) as usize).copied().unwrap_or(b'0');
        id.push(char::from(letter));
    }
    id
}
