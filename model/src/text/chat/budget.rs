//! What one rendering may use: steps, memory, output and time.

use std::cell::Cell;
use std::time::Duration;

use super::error::{TemplateError, TemplateResult};

/// Templates of published models render in milliseconds. It is time of the processor: where others keep it busy, an honest template is not refused.
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

/// What this thread has computed so far.
#[cfg(unix)]
fn computed() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}

/// How long the program has run: the system is not asked for more.
#[cfg(not(unix))]
fn computed() -> Duration {
    static BEGUN: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    BEGUN.elapsed()
}

/// Bounds on steps, memory and time. Whatever makes a value larger, or takes time that grows with a value, asks here.
#[derive(Debug)]
pub(super) struct Budget {
    value_bytes: usize,
    bytes_left: Cell<usize>,
    steps_left: Cell<usize>,
    work: Cell<usize>,
    deadline: Duration,
}

impl Budget {
    /// The budget of this thread for a context of `bytes` bytes and `messages` messages.
    pub(super) fn new(bytes: usize, messages: usize) -> Self {
        let per_byte = messages.saturating_add(32);
        Self {
            value_bytes: VALUE_BYTES.saturating_add(bytes.saturating_mul(4)),
            bytes_left: Cell::new(TOTAL_BYTES.saturating_add(bytes.saturating_mul(per_byte))),
            steps_left: Cell::new(STEPS.saturating_add(STEPS_PER_MESSAGE.saturating_mul(messages))),
            work: Cell::new(0),
            deadline: computed() + TIME,
        }
    }

    /// Takes one step.
    pub(super) fn step(&self) -> TemplateResult<()> {
        match self.steps_left.get().checked_sub(1) {
            Some(left) => self.steps_left.set(left),
            None => return Err(TemplateError::new("it runs for too many steps; an endless loop?")),
        }
        self.work(STEP_WORK)
    }

    /// Counts work on `bytes` bytes, and looks at the clock now and then.
    pub(super) fn work(&self, bytes: usize) -> TemplateResult<()> {
        let work = self.work.get().saturating_add(bytes);
        if work < WORK {
            self.work.set(work);
            return Ok(());
        }
        self.work.set(0);
        if computed() > self.deadline {
            return Err(TemplateError::new(format!("the template runs longer than {TIME:?}")));
        }
        Ok(())
    }

    /// Whether `bytes` bytes fit into one value.
    pub(super) fn check_size(&self, bytes: Option<usize>) -> TemplateResult<()> {
        match bytes {
            Some(bytes) if bytes <= self.value_bytes => Ok(()),
            _ => Err(TemplateError::new(format!("a value of the template grows beyond {} bytes", self.value_bytes))),
        }
    }

    /// Takes `bytes` bytes, of output or of a new value.
    pub(super) fn spend(&self, bytes: usize) -> TemplateResult<()> {
        self.work(bytes)?;
        match self.bytes_left.get().checked_sub(bytes) {
            Some(left) => self.bytes_left.set(left),
            None => return Err(TemplateError::new("the template uses too much memory")),
        }
        Ok(())
    }
}
