//! Tables of cases and what must come of each.

use std::path::Path;

use super::limits::{Ended, Run, Watch};
use super::model::Place;

/// What must come of a case.
#[derive(Clone, Copy, Debug)]
pub enum Must {
    /// One error that contains these: the file and the place.
    Fail(&'static [&'static str]),
    /// It runs.
    Work,
    /// It runs, or fails with an error that contains these.
    WorkOrFail(&'static [&'static str]),
}

pub use Must::{Fail, Work, WorkOrFail};

/// What a case is called, what must come of it, and how the model is broken.
pub type Case = (String, Must, Box<dyn Fn(&Place)>);

pub fn case(name: impl Into<String>, must: Must, change: impl Fn(&Place) + 'static) -> Case {
    (name.into(), must, Box::new(change))
}

/// `ember info` and a few tokens of `ember generate`.
pub const INFO_AND_GENERATE: &[&[&str]] = &[&["info"], GENERATE];
/// A few tokens.
pub const GENERATE: &[&str] = &["generate", "-p", "The river", "-n", "3", "--threads", "2", "--seed", "1"];
/// A few tokens of a chat.
pub const CHAT: &[&str] = &["generate", "--chat", "-p", "The river", "-n", "3", "--threads", "2", "--seed", "1"];

/// Runs every command on every case of a table, each on a fresh copy of the fixture; all that failed are told together.
pub fn run(fixture: &str, commands: &[&[&str]], cases: Vec<Case>) {
    let mut wrong = Vec::new();
    let count = cases.len();
    for (name, must, change) in cases {
        let place = Place::with(fixture);
        change(&place);
        for command in commands {
            if let Err(message) = check(&place, &on_model(&place, command), must) {
                wrong.push(format!("{name} ({}): {message}", command[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
}

/// A command on the model of a place.
pub fn on_model(place: &Place, command: &[&str]) -> Run {
    let model = place.model();
    Run::new([command, &["-m", model.to_str().expect("UTF-8")]].concat())
}

/// Runs on a place and checks the end, and that no file beside the model was opened.
pub fn check(place: &Place, run: &Run, must: Must) -> Result<Ended, String> {
    let watch = Watch::of([place.root(), place.outside().as_path()]);
    let ended = run.ended(&place.logs());
    let opened = watch.opened();
    if !opened.is_empty() {
        return Err(format!("opened {opened:?} outside the model directory"));
    }
    judge(&ended, must, place.root())?;
    Ok(ended)
}

/// Whether a run ended as it must. Names are looked for without the directories of the test.
pub fn judge(ended: &Ended, must: Must, root: &Path) -> Result<(), String> {
    let code = ended.decent()?;
    let parts = match (must, code) {
        (Work | WorkOrFail(_), 0) => return Ok(()),
        (Work, _) => return Err(format!("code {code}: {:.2000}", ended.stderr)),
        (Fail(parts) | WorkOrFail(parts), _) => parts,
    };
    let error = ended.error()?.replace(&root.display().to_string(), "");
    match parts.iter().find(|part| !error.contains(**part)) {
        Some(part) => Err(format!("{part:?} is not in: {error}")),
        None => Ok(()),
    }
}
