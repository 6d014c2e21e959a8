//! Stop strings: however a text is cut into pieces, the result is that of the whole text. Stop strings and text are separated by NUL
//! bytes; every 0x01 in the text is a cut.
#![no_main]

use emberlm_model::text::StopStrings;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(data) = std::str::from_utf8(data) else { return };
    let mut parts = data.split('\0');
    let pieces: Vec<&str> = parts.next().unwrap_or_default().split('\u{1}').collect();
    let stops: Vec<&str> = parts.filter(|stop| !stop.is_empty()).take(8).collect();
    let whole = run(&stops, &[&pieces.concat()]);
    assert_eq!(run(&stops, &pieces), whole);
    let (shown, stop) = whole;
    match stop {
        // Nothing of a stop string is shown before one is found.
        Some(stop) => assert!(pieces.concat().starts_with(&format!("{shown}{stop}"))),
        None => assert_eq!(shown, pieces.concat()),
    }
});

/// Everything shown, and the stop string found.
fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
    let mut matcher = StopStrings::new(stops.iter().copied()).expect("no empty one");
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
