//! What one rendering may use: steps, memory, output and time.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::value::{Dict, Fail, List, R, Value};

/// Templates of published models render in milliseconds.
const TIME: Duration = Duration::from_secs(1);
/// Room for one value and for all values together, beyond what grows with the messages.
const VALUE_BYTES: usize = 2 << 20;
const TOTAL_BYTES: usize = 48 << 20;
/// Nesting of lists and objects; deeper ones exhaust the stack when they are compared, printed or dropped.
pub(super) const DEPTH: usize = 100;
/// Expressions and statements evaluated, per rendering and per message.
const STEPS: usize = 1_000_000;
const STEPS_PER_MESSAGE: usize = 5_000;
/// Bytes a value costs besides its text.
pub(super) const NODE: usize = 24;
/// Bytes worked on between two looks at the clock, and what a step counts for.
const WORK: usize = 1 << 16;
const STEP_WORK: usize = 64;

/// Bounds on steps, memory and time. Whatever makes a value larger, or takes time that grows with a value, asks here.
#[derive(Debug)]
pub(super) struct Budget {
    value_bytes: usize,
    bytes_left: Cell<usize>,
    steps_left: Cell<usize>,
    work: Cell<usize>,
    deadline: Instant,
}

impl Budget {
    /// The budget for a context of `bytes` bytes and `messages` messages.
    pub(super) fn new(bytes: usize, messages: usize) -> Self {
        let per_byte = messages.saturating_add(32);
        Self {
            value_bytes: VALUE_BYTES.saturating_add(bytes.saturating_mul(4)),
            bytes_left: Cell::new(TOTAL_BYTES.saturating_add(bytes.saturating_mul(per_byte))),
            steps_left: Cell::new(STEPS.saturating_add(STEPS_PER_MESSAGE.saturating_mul(messages))),
            work: Cell::new(0),
            deadline: Instant::now() + TIME,
        }
    }

    /// Takes one step.
    pub(super) fn step(&self) -> R<()> {
        match self.steps_left.get().checked_sub(1) {
            Some(left) => self.steps_left.set(left),
            None => return Err(Fail::new("it runs for too many steps; an endless loop?")),
        }
        self.work(STEP_WORK)
    }

    /// Counts work on `bytes` bytes, and looks at the clock now and then.
    pub(super) fn work(&self, bytes: usize) -> R<()> {
        let work = self.work.get().saturating_add(bytes);
        if work < WORK {
            self.work.set(work);
            return Ok(());
        }
        self.work.set(0);
        if Instant::now() > self.deadline {
            return Err(Fail::new(format!("the template runs longer than {TIME:?}")));
        }
        Ok(())
    }

    /// Whether `bytes` bytes fit into one value.
    pub(super) fn check_size(&self, bytes: Option<usize>) -> R<()> {
        match bytes {
            Some(bytes) if bytes <= self.value_bytes => Ok(()),
            _ => Err(Fail::new(format!("a value of the template grows beyond {} bytes", self.value_bytes))),
        }
    }

    /// Takes `bytes` bytes, of output or of a new value.
    pub(super) fn spend(&self, bytes: usize) -> R<()> {
        self.work(bytes)?;
        match self.bytes_left.get().checked_sub(bytes) {
            Some(left) => self.bytes_left.set(left),
            None => return Err(Fail::new("the template uses too much memory")),
        }
        Ok(())
    }

    /// A new text.
    pub(super) fn text(&self, text: impl Into<Rc<str>> + AsRef<str>) -> R<Value> {
        self.charge_text(text.as_ref())?;
        Ok(Value::Str(text.into()))
    }

    /// A new text that needs no HTML escapes.
    pub(super) fn markup(&self, text: String) -> R<Value> {
        self.charge_text(&text)?;
        Ok(Value::Markup(text.into()))
    }

    fn charge_text(&self, text: &str) -> R<()> {
        self.check_size(Some(text.len()))?;
        self.spend(text.len().saturating_add(NODE))
    }

    /// A new list.
    pub(super) fn list(&self, items: Vec<Value>) -> R<Value> {
        Ok(Value::List(self.sequence(items)?))
    }

    /// A new tuple.
    pub(super) fn tuple(&self, items: Vec<Value>) -> R<Value> {
        Ok(Value::Tuple(self.sequence(items)?))
    }

    /// A group of `groupby`.
    pub(super) fn group(&self, key: Value, items: Vec<Value>) -> R<Value> {
        let items = vec![key, self.list(items)?];
        let (weight, depth) = self.weigh(items.iter())?;
        Ok(Value::Tuple(Rc::new(List { items, grouped: true, weight, depth })))
    }

    fn sequence(&self, items: Vec<Value>) -> R<Rc<List>> {
        self.spend(items.len().saturating_mul(NODE).saturating_add(NODE))?;
        let (weight, depth) = self.weigh(items.iter())?;
        Ok(Rc::new(List { items, grouped: false, weight, depth }))
    }

    /// A new dictionary.
    pub(super) fn dict(&self, mut dict: Dict) -> R<Value> {
        self.spend(dict.len().saturating_mul(4 * NODE).saturating_add(NODE))?;
        (dict.weight, dict.depth) = self.weigh(dict.iter().flat_map(|(k, v)| [k, v]))?;
        Ok(Value::Dict(Rc::new(dict)))
    }

    /// Size and nesting of a container of these values. A part that occurs twice counts twice, as it does for whatever walks the
    /// container.
    pub(super) fn weigh<'v>(&self, items: impl Iterator<Item = &'v Value>) -> R<(usize, usize)> {
        let (mut weight, mut depth) = (NODE, 0);
        for item in items {
            weight = item.weight().saturating_add(weight);
            depth = depth.max(item.depth());
        }
        self.check_size(Some(weight))?;
        if depth >= DEPTH {
            return Err(Fail::new(format!("values are nested more than {DEPTH} deep")));
        }
        Ok((weight, depth + 1))
    }
}
