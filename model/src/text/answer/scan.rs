//! What the formats of calls have in common.

/// White space of JSON.
pub(super) const SPACE: [char; 4] = [' ', '\n', '\r', '\t'];

/// A call as the model wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) name: String,
    /// A JSON object.
    pub(super) arguments: String,
}

/// What a text that may be a call is.
#[derive(Debug)]
pub(super) enum Scanned {
    /// That cannot be told yet.
    More,
    /// Calls, up to this byte.
    Calls { calls: Vec<Call>, end: usize },
    /// No call.
    Malformed,
}
