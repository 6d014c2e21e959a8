//! What the tests and the fuzzing of stop strings share.

use emberlm_model::text::StopStrings;

/// Everything shown of a text that comes in these pieces, and the stop string found.
pub fn shown_and_stop<S: AsRef<str>>(stops: &[S], pieces: &[&str]) -> (String, Option<String>) {
    let mut matcher = StopStrings::new(stops.iter().map(AsRef::as_ref)).expect("no empty one");
    let mut shown = String::new();
    for piece in pieces {
        let stopped = matcher.push(piece);
        shown.push_str(&stopped.text);
        if stopped.stop.is_some() {
            return (shown, stopped.stop);
        }
    }
    shown.push_str(&matcher.finish());
    (shown, None)
}
