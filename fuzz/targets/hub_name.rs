//! Names of models on a hub: whatever is taken can only mean a place in the cache, and means the same when it is read again. A NUL byte
//! separates the name from a revision to put into it.
#![no_main]

use std::path::{Component, Path};

use emberlm_model::hub::{HubName, short_name, similar_short_name};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (name, revision) = text.split_once('\0').unwrap_or((text, "main"));
    let _ = (short_name(name), similar_short_name(name));
    match name.parse::<HubName>() {
        Ok(name) => {
            check(&name);
            if let Ok(other) = name.clone().at(revision) {
                assert_eq!(other.revision(), revision);
                check(&other);
            }
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 2000 && !message.contains(|c: char| c.is_control()), "{message:?}");
        }
    }
});

fn check(name: &HubName) {
    assert_eq!(name.to_string().parse::<HubName>().expect("a name that was read"), *name);
    assert_eq!(name.repository().matches('/').count(), 1);
    for part in [Some(name.repository()), Some(name.revision()), name.subfolder()].into_iter().flatten() {
        let inside = Path::new(part).components().all(|part| matches!(part, Component::Normal(_)));
        let plain =
            !part.contains(|c: char| c.is_control() || matches!(c, '\\' | ':' | '?' | '*' | '"' | '<' | '>' | '|'));
        assert!(inside && plain, "{part:?}");
    }
}
