//! What one rendering may use.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Templates of published models render in milliseconds.
const TIME: Duration = Duration::from_secs(1);
/// Room for one value and for all values together, beyond what grows with the messages.
const VALUE_BYTES: usize = 2 << 20;
const TOTAL_BYTES: usize = 48 << 20;
/// Nesting of lists and objects; deeper ones exhaust the stack when they are compared, printed or dropped.
const DEPTH: usize = 100;
/// Instructions of the template engine, per rendering and per message.
const FUEL: u64 = 300_000;
const FUEL_PER_MESSAGE: u64 = 2_000;
/// Bytes a value costs besides its text.
const NODE: usize = 24;

/// Bounds on memory and time. Every operation of a template that makes something larger asks here.
#[derive(Debug)]
pub(super) struct Budget {
    value_bytes: usize,
    left: AtomicUsize,
    deadline: Instant,
    pub(super) fuel: u64,
}

impl Budget {
    /// The budget for a context of `bytes` bytes and `messages` messages.
    pub(super) fn new(bytes: usize, messages: usize) -> Self {
        let per_byte = messages.saturating_add(32);
        Self {
            value_bytes: VALUE_BYTES.saturating_add(bytes.saturating_mul(4)),
            left: AtomicUsize::new(TOTAL_BYTES.saturating_add(bytes.saturating_mul(per_byte))),
            deadline: Instant::now() + TIME,
            fuel: FUEL.saturating_add(FUEL_PER_MESSAGE.saturating_mul(messages as u64)),
        }
    }

    /// Whether `bytes` bytes fit into one value.
    pub(super) fn check_size(&self, bytes: Option<usize>) -> Result<(), Error> {
        match bytes {
            Some(bytes) if bytes <= self.value_bytes => Ok(()),
            _ => Err(refuse(format!("a value of the template grows beyond {} bytes", self.value_bytes))),
        }
    }

    /// Takes `bytes` bytes, of output or of a new value.
    pub(super) fn spend(&self, bytes: usize) -> Result<(), Error> {
        self.check_time()?;
        let take = |left: usize| left.checked_sub(bytes);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(()),
            Err(_) => Err(refuse("the template uses too much memory".to_owned())),
        }
    }

    /// Passes a new value on if it is not too large, too deep or too much.
    pub(super) fn admit(&self, value: Value) -> Result<Value, Error> {
        let mut room = self.value_bytes;
        self.weigh(&value, &mut room, 0)?;
        let shallow = match value.as_str() {
            Some(text) => text.len(),
            None => value.len().unwrap_or(0).saturating_mul(NODE),
        };
        self.spend(shallow.saturating_add(NODE))?;
        Ok(value)
    }

    /// Passes on what a loop goes over. The engine cuts a text into characters first.
    pub(super) fn iterate(&self, value: Value) -> Result<Value, Error> {
        let characters = value.as_str().map_or(0, str::len);
        self.spend(characters.saturating_mul(NODE))?;
        Ok(value)
    }

    /// Takes the size of `value` from `room`; a part that occurs twice counts twice, as it does for whatever walks the value.
    fn weigh(&self, value: &Value, room: &mut usize, depth: usize) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(refuse(format!("values are nested more than {DEPTH} deep")));
        }
        let text = value.as_str().map_or(0, str::len);
        *room = match room.checked_sub(text.saturating_add(NODE)) {
            Some(room) => room,
            None => return self.check_size(None),
        };
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    self.weigh(&item, room, depth + 1)?;
                }
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|o| o.try_iter_pairs());
                for (key, item) in pairs.into_iter().flatten() {
                    self.weigh(&key, room, depth + 1)?;
                    self.weigh(&item, room, depth + 1)?;
                }
            }
            _ => return Ok(()),
        }
        self.check_time()
    }

    /// Whether there is time left.
    pub(super) fn check_time(&self) -> Result<(), Error> {
        if Instant::now() > self.deadline {
            return Err(refuse(format!("the template runs longer than {TIME:?}")));
        }
        Ok(())
    }
}

/// Refuses a value for an attribute of a namespace when it holds a namespace: such values can contain themselves.
pub(super) fn without_namespace(value: Value) -> Result<Value, Error> {
    if holds_namespace(&value) {
        return Err(refuse("a namespace cannot be stored in a namespace".to_owned()));
    }
    Ok(value)
}

fn holds_namespace(value: &Value) -> bool {
    let Some(object) = value.as_object() else {
        return false;
    };
    // The type is private to the engine; its name is the only mark.
    if object.type_name().ends_with("::Namespace") {
        return true;
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            value.try_iter().is_ok_and(|mut items| items.any(|v| holds_namespace(&v)))
        }
        ValueKind::Map => object.try_iter_pairs().is_some_and(|mut pairs| pairs.any(|(_, v)| holds_namespace(&v))),
        _ => false,
    }
}

pub(super) fn refuse(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
