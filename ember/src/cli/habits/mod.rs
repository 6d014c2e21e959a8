//! Flags that users of llama.cpp, mlx-lm and transformers type by habit.
//!
//! They are looked at before the command line is parsed, since a short flag of several letters, such as `-ngl`, would be read as a
//! short flag here with a value. What exists under another name is translated, what changes nothing is passed over (both with a
//! note), and what does not exist is an error that says what to do instead.

mod table;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::Path;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use table::Equivalent::{self, Flag, Instead, NoEffect, NoEffectOf, Words};
use table::{COMMANDS, EVERYWHERE, ForeignFlag, OF_A_COMMAND, OF_A_PAIR, SETTINGS};

/// A command line without foreign flags, and what was done about them.
#[derive(Debug, Default, PartialEq)]
pub struct Translated {
    /// As clap takes it.
    pub args: Vec<OsString>,
    /// One line for each flag that was translated or passed over.
    pub notes: Vec<String>,
}

/// Translates a whole command line, the program's name first.
///
/// # Errors
/// What to do instead of a flag that is not there.
pub fn translate(args: Vec<OsString>, program: &Command) -> Result<Translated, String> {
    let mut words: VecDeque<OsString> = args.into();
    let mut out = Translated { args: words.pop_front().into_iter().collect(), notes: Vec::new() };
    let Some(first) = words.front().map(|word| word.to_string_lossy().into_owned()) else { return Ok(out) };
    let Some(command) = program.find_subcommand(&first) else {
        if let Some((_, hint)) = COMMANDS.iter().find(|(names, _)| names.contains(&first.as_str())) {
            return Err(format!("there is no command {first}: {hint}"));
        }
        if first.starts_with('-') && !["-h", "--help", "-V", "--version"].contains(&first.as_str()) {
            return Err(format!("{first}: a command comes first, as in `ember generate -m DIR -p TEXT`"));
        }
        out.args.extend(words);
        return Ok(out);
    };
    out.args.extend(words.pop_front());
    let mut given = Given::default();
    while let Some(word) = words.pop_front() {
        if word == "--" {
            out.args.push(word);
            out.args.extend(words);
            break;
        }
        let Some(flag) = Flagged::read(&word) else {
            out.args.push(word);
            continue;
        };
        // Known flags keep their values, which may look like flags.
        if let Some(takes_value) = known(command, &flag.name) {
            let value = if takes_value && flag.value.is_none() { words.pop_front() } else { None };
            given.own(command, &flag, value.as_ref(), &mut out);
            out.args.push(word);
            out.args.extend(value);
            continue;
        }
        let spelled = if flag.name.starts_with("--") { flag.name.replace('_', "-") } else { flag.name.clone() };
        match lookup(command, &spelled).or_else(|| known(command, &spelled).map(|_| Match::SameName)) {
            None => out.args.push(word),
            Some(found) => replace(command, &flag, &spelled, found, &mut words, &mut given, &mut out)?,
        }
    }
    Ok(out)
}

/// What was found about a flag.
#[derive(Clone, Copy)]
enum Match {
    Foreign(Equivalent),
    /// It is a flag here when it is spelled with hyphens.
    SameName,
}

/// A word that is a flag, and the value after its `=`.
struct Flagged {
    name: String,
    value: Option<String>,
}

impl Flagged {
    fn read(word: &OsString) -> Option<Self> {
        let word = word.to_str().filter(|word| word.starts_with('-') && *word != "-" && !is_number(word))?;
        Some(match word.split_once('=') {
            Some((name, value)) if word.starts_with("--") => {
                Self { name: name.to_owned(), value: Some(value.to_owned()) }
            }
            _ => Self { name: word.to_owned(), value: None },
        })
    }
}

fn is_number(word: &str) -> bool {
    word.parse::<f64>().is_ok()
}

/// Whether a command has a flag, and whether it takes a value.
fn known(command: &Command, name: &str) -> Option<bool> {
    argument(command, name).map(|arg| arg.get_action().takes_values())
}

/// A flag of a command.
fn argument<'a>(command: &'a Command, name: &str) -> Option<&'a clap::Arg> {
    let is = |arg: &&clap::Arg| match (name.strip_prefix("--"), name.strip_prefix('-')) {
        (Some(long), _) => {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            arg.get_long() == Some(long) || aliases.contains(&long)
        }
        (None, Some(short)) => arg.get_short().is_some_and(|c| short.chars().eq([c])),
        (None, None) => false,
    };
    command.get_arguments().find(is)
}

fn lookup(command: &Command, name: &str) -> Option<Match> {
    let find = |habits: &[ForeignFlag]| {
        habits.iter().find(|(names, _)| names.contains(&name)).map(|&(_, equivalent)| equivalent)
    };
    let own = OF_A_COMMAND.iter().find(|(of, _)| *of == command.get_name()).and_then(|(_, habits)| find(habits));
    own.or_else(|| find(EVERYWHERE)).map(Match::Foreign)
}

fn replace(
    command: &Command,
    flag: &Flagged,
    spelled: &str,
    found: Match,
    words: &mut VecDeque<OsString>,
    given: &mut Given,
    out: &mut Translated,
) -> Result<(), String> {
    let name = &flag.name;
    let here = |target: &str| match known(command, target) {
        Some(_) => Ok(()),
        None => Err(format!("{name} is {target} here, which `ember {}` does not have", command.get_name())),
    };
    match found {
        Match::SameName => {
            out.args.push(with_value(spelled, flag));
            out.notes.push(format!("{name} is {spelled} here"));
        }
        Match::Foreign(Flag(target)) => {
            here(target)?;
            let value = if flag.value.is_none() { words.pop_front() } else { None };
            if given.takes(command, target, flag, value.as_ref(), out)? {
                out.args.push(with_value(target, flag));
                out.args.extend(value);
                out.notes.push(format!("{name} is {target} here"));
            }
        }
        Match::Foreign(Words(target)) => {
            here(target.first().copied().unwrap_or_default())?;
            out.args.extend(target.iter().map(OsString::from));
            out.notes.push(format!("{name} is {} here", target.join(" ")));
        }
        Match::Foreign(NoEffect(reason)) => {
            let value = |word: &OsString| word.to_str().is_some_and(|word| is_number(word) || SETTINGS.contains(&word));
            if flag.value.is_none() && words.front().is_some_and(value) {
                words.pop_front();
            }
            out.notes.push(format!("{name} changes nothing: {reason}"));
        }
        Match::Foreign(NoEffectOf(reason)) => {
            let value = |word: &OsString| Flagged::read(word).is_none() && !Path::new(word).exists();
            let next = if flag.value.is_none() && words.front().is_some_and(value) { words.pop_front() } else { None };
            let said = format!("{name} {}", value_of(flag, next.as_ref()));
            out.notes.push(format!("{} changes nothing: {reason}", said.trim_end()));
        }
        Match::Foreign(Instead(hint)) => return Err(format!("{name} is not a flag of emberlm: {hint}")),
    }
    Ok(())
}

/// What was given so far of the flags that hold one value. Programs have two flags where there is one here.
#[derive(Default)]
struct Given(Vec<GivenFlag>);

struct GivenFlag {
    /// The flag here.
    id: clap::Id,
    /// As it was typed.
    name: String,
    value: String,
    /// Its words in the translated command line; none of a flag that is spelled as here.
    words: Option<std::ops::Range<usize>>,
}

impl Given {
    /// A flag that is spelled as here: it counts, whatever foreign ones said before.
    fn own(&mut self, command: &Command, flag: &Flagged, value: Option<&OsString>, out: &mut Translated) {
        let Some(id) = argument(command, &flag.name).filter(|arg| holds_one(arg)).map(|arg| arg.get_id().clone())
        else {
            return;
        };
        let value = value_of(flag, value);
        for at in 0..self.0.len() {
            let Some(before) = self.0.get_mut(at).filter(|before| before.id == id) else { continue };
            let Some(words) = before.words.take() else { continue };
            let translated = format!("{} is ", before.name);
            out.notes.retain(|note| !note.starts_with(&translated));
            out.notes.push(format!("{} {} changes nothing: {} {value} counts", before.name, before.value, flag.name));
            out.args.drain(words.clone());
            let behind = self.0.iter_mut().filter_map(|other| other.words.as_mut());
            for other in behind.filter(|other| other.start > words.start) {
                *other = other.start - words.len()..other.end - words.len();
            }
        }
        self.0.push(GivenFlag { id, name: flag.name.clone(), value, words: None });
    }

    /// Whether a foreign flag is to be translated; not when what it says is said already.
    ///
    /// # Errors
    /// When it says something else.
    fn takes(
        &mut self,
        command: &Command,
        target: &str,
        flag: &Flagged,
        value: Option<&OsString>,
        out: &mut Translated,
    ) -> Result<bool, String> {
        let Some(id) = argument(command, target).filter(|arg| holds_one(arg)).map(|arg| arg.get_id().clone()) else {
            return Ok(true);
        };
        let (name, said) = (&flag.name, value_of(flag, value));
        let start = out.args.len();
        let words = Some(start..start + 1 + usize::from(value.is_some()));
        let Some(before) = self.0.iter_mut().find(|given| given.id == id) else {
            self.0.push(GivenFlag { id, name: name.clone(), value: said, words });
            return Ok(true);
        };
        if before.value == said {
            out.notes.push(format!("{name} is {target} here, as {} is", before.name));
            return Ok(false);
        }
        let wins = |name: &str| OF_A_PAIR.contains(&name);
        match (&before.words, wins(&before.name), wins(name)) {
            (None, ..) | (Some(_), true, false) => {
                out.notes.push(format!("{name} {said} changes nothing: {} {} counts", before.name, before.value));
                Ok(false)
            }
            (Some(range), false, true) => {
                let translated = format!("{} is {target} here", before.name);
                out.notes.retain(|note| *note != translated);
                out.notes.push(format!("{name} is {target} here"));
                out.notes.push(format!("{} {} changes nothing: {name} {said} counts", before.name, before.value));
                if let Some(word) = out.args.get_mut(range.end - 1) {
                    *word = if range.len() == 1 { format!("{target}={said}").into() } else { said.clone().into() };
                }
                (before.name, before.value) = (name.clone(), said);
                Ok(false)
            }
            _ => Err(format!(
                "{} {} and {name} {said} are both {target} here, which has one value: give both the same, or one of them",
                before.name, before.value
            )),
        }
    }
}

/// Whether a flag holds one value, or one list.
fn holds_one(arg: &clap::Arg) -> bool {
    match arg.get_action() {
        clap::ArgAction::Set => true,
        clap::ArgAction::Append => arg.get_value_delimiter().is_some(),
        _ => false,
    }
}

fn value_of(flag: &Flagged, next: Option<&OsString>) -> String {
    let next = || next.map(|word| word.to_string_lossy().into_owned());
    flag.value.clone().or_else(next).unwrap_or_default()
}

fn with_value(target: &str, flag: &Flagged) -> OsString {
    match &flag.value {
        Some(value) => format!("{target}={value}").into(),
        None => target.into(),
    }
}

/// A tip for a word that clap refuses because the command takes no positional argument, or one fewer: models and prompts come after
/// flags here, while `ollama run MODEL PROMPT` takes them as they are.
pub fn tip_for_stray_word(error: &clap::Error, args: &[OsString], program: &Command) -> Option<String> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return None };
    if error.kind() != ErrorKind::UnknownArgument || word.starts_with('-') {
        return None;
    }
    let command = program.find_subcommand(args.get(1)?)?;
    let name = command.get_name();
    let has = |flag: &str| known(command, flag).is_some();
    if has("--model") && Path::new(word).is_dir() {
        return Some(format!("a model directory comes after -m: ember {name} -m {word}"));
    }
    if has("--prompt") {
        return Some(format!("a text comes after -p, in quotes where it has spaces: ember {name} -p \"...\""));
    }
    has("--text").then(|| format!("a file with the text comes after -f: ember {name} -f {word}"))
}

/// A tip for a flag that clap refuses, and that other commands have: one that is spelled alike here is not what was meant.
pub fn tip_for_flag_of_others(error: &clap::Error, args: &[OsString], program: &Command) -> Option<String> {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return None };
    if error.kind() != ErrorKind::UnknownArgument || !flag.starts_with("--") {
        return None;
    }
    let flag = whole_name(flag, program).unwrap_or_else(|| flag.clone());
    // One that was cut short may be of this command.
    if args.get(1).and_then(|name| program.find_subcommand(name)).is_some_and(|own| known(own, &flag).is_some()) {
        return None;
    }
    let others = program.get_subcommands().filter(|command| known(command, &flag).is_some());
    let others: Vec<&str> = others.map(Command::get_name).collect();
    (!others.is_empty()).then(|| format!("{flag} is a flag of other commands: {}", others.join(", ")))
}

/// The flag of some command that alone begins so, where none has that name: one that was cut short.
fn whole_name(begun: &str, program: &Command) -> Option<String> {
    let flags = program.get_subcommands().flat_map(Command::get_arguments).filter_map(clap::Arg::get_long);
    let mut found: Vec<String> = flags.map(|long| format!("--{long}")).filter(|flag| flag.starts_with(begun)).collect();
    found.sort_unstable();
    found.dedup();
    if found.len() == 1 { found.pop() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, ArgAction};

    /// Some flags of the real commands.
    fn program() -> Command {
        let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
        let value = |name: &'static str| Arg::new(name).long(name);
        let model = || value("model").short('m');
        let generate = Command::new("generate").args([
            model(),
            value("prompt").short('p').allow_hyphen_values(true),
            value("max-tokens").short('n'),
            value("threads"),
            value("temp").visible_alias("temperature"),
            value("top-k"),
            value("repeat-penalty"),
            value("stop"),
            value("quant"),
            value("chunk"),
            value("cache-type"),
            flag("chat"),
            flag("greedy"),
        ]);
        let eval = Command::new("eval").args([
            model(),
            value("text").short('f'),
            value("context").short('c'),
            value("stride"),
        ]);
        Command::new("ember").subcommands([generate, eval])
    }

    fn run(line: &str) -> Result<(String, Vec<String>), String> {
        run_by(&program(), line)
    }

    fn run_by(program: &Command, line: &str) -> Result<(String, Vec<String>), String> {
        let args = line.split(' ').map(OsString::from).collect();
        let translated = translate(args, program)?;
        let words: Vec<&str> = translated.args.iter().filter_map(|word| word.to_str()).collect();
        Ok((words.join(" "), translated.notes))
    }

    #[test]
    fn what_has_another_name_is_translated_with_a_note() {
        for (line, wanted) in [
            ("ember generate -p x --n-predict 8", "ember generate -p x --max-tokens 8"),
            ("ember generate -p x --max_new_tokens=8", "ember generate -p x --max-tokens=8"),
            ("ember generate -p x -t 2 --top_k 5", "ember generate -p x --threads 2 --top-k 5"),
            ("ember generate -p x --repetition-penalty 1.1", "ember generate -p x --repeat-penalty 1.1"),
            ("ember generate -p x --n-predict -1", "ember generate -p x --max-tokens -1"),
            ("ember generate -p x -cnv -r <|a|>", "ember generate -p x --chat --stop <|a|>"),
            ("ember generate -hf a/b -p x", "ember generate --model a/b -p x"),
            ("ember generate -p x --load-in-4bit", "ember generate -p x --quant nf4"),
            ("ember generate --model_name_or_path d -p x", "ember generate --model d -p x"),
            ("ember eval -m d --file x --ctx-size 512", "ember eval -m d --text x --context 512"),
            ("ember eval -f x --ppl-stride 256", "ember eval -f x --stride 256"),
            ("ember generate -p x -n 8 -ngl 99", "ember generate -p x -n 8"),
            ("ember generate -p x -no-cnv -fa --mlock -c 512 -n 8", "ember generate -p x -n 8"),
            ("ember eval -f x -ngl -1 -m d", "ember eval -f x -m d"),
            ("ember generate -fa on --numa distribute -p x -ngl auto", "ember generate -p x"),
            // A word that is no setting is left for an error.
            ("ember generate -p x --mlock file", "ember generate -p x file"),
        ] {
            let (got, notes) = run(line).unwrap();
            assert_eq!(got, wanted, "{line}");
            assert!(!notes.is_empty(), "{line}");
        }
        assert_eq!(run("ember generate -p x --n-predict 8").unwrap().1, ["--n-predict is --max-tokens here"]);
    }

    /// Programs have two flags, or two names of one, where there is one flag here.
    #[test]
    fn flags_that_are_one_here_are_given_once() {
        for (flags, wanted, note) in [
            ("-b 512 -ub 512", "--chunk 512", "-ub is --chunk here, as -b is"),
            ("-b 2048 -ub 512", "--chunk 512", "-b 2048 changes nothing: -ub 512 counts"),
            ("-ub 512 -b 2048", "--chunk 512", "-b 2048 changes nothing: -ub 512 counts"),
            ("--batch-size=2048 -ub 512", "--chunk=512", "--batch-size 2048 changes nothing: -ub 512 counts"),
            ("--chunk 64 -b 2048", "--chunk 64", "-b 2048 changes nothing: --chunk 64 counts"),
            (
                "-b 2048 -ctk q8 --chunk 64 -ctv q8",
                "--cache-type q8 --chunk 64",
                "-ctv is --cache-type here, as -ctk is",
            ),
            ("-ctk q8_0 -ctv q8_0", "--cache-type q8_0", "-ctk is --cache-type here"),
        ] {
            let (got, notes) = run(&format!("ember generate {flags} -p x")).unwrap();
            assert_eq!(got, format!("ember generate {wanted} -p x"), "{flags}");
            assert!(notes.iter().any(|said| said == note), "{flags}: {notes:?}");
            // What changes nothing is nothing here.
            for (name, _) in notes.iter().filter_map(|note| note.split_once(" changes nothing")) {
                let (name, _) = name.split_once(' ').unwrap();
                assert!(!notes.iter().any(|note| note.starts_with(&format!("{name} is "))), "{flags}: {notes:?}");
            }
        }
        // Also where a flag takes a list: keys in one format and values in another are no two measurements.
        let program = <crate::cli::Cli as clap::CommandFactory>::command();
        for command in ["generate -p x", "bench"] {
            let error = run_by(&program, &format!("ember {command} -ctk q8_0 -ctv f16")).unwrap_err();
            assert!(error.contains("-ctk q8_0 and -ctv f16 are both --cache-type here"), "{error}");
            assert!(error.contains("give both the same"), "{error}");
        }
        let (got, notes) = run_by(&program, "ember bench --cache-type q8,f16 -ctk f16 -n 2 -n 3").unwrap();
        assert_eq!(got, "ember bench --cache-type q8,f16 -n 2 -n 3");
        assert_eq!(notes, ["-ctk f16 changes nothing: --cache-type q8,f16 counts"]);
    }

    /// A hint that names a flag which is nowhere sends its reader in circles.
    #[test]
    fn hints_name_flags_that_are_there() {
        let program = <crate::cli::Cli as clap::CommandFactory>::command();
        let everywhere = OF_A_COMMAND.iter().flat_map(|(_, habits)| habits.iter()).chain(EVERYWHERE);
        for (names, equivalent) in everywhere {
            let told: Vec<&str> = match equivalent {
                Instead(hint) | NoEffect(hint) | NoEffectOf(hint) => {
                    hint.split(|c: char| !(c.is_alphanumeric() || c == '-')).collect()
                }
                Flag(flag) => vec![*flag],
                Words(words) => words.to_vec(),
            };
            for flag in told.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
                let found = program.get_subcommands().any(|command| known(command, flag).is_some());
                assert!(found, "{names:?}: no command has {flag}");
            }
        }
    }

    #[test]
    fn what_is_not_there_says_what_to_do_instead() {
        for (line, parts) in [
            ("ember generate -p x -f prompt.txt", ["-f ", "-p - < FILE"]),
            ("ember generate -p x --num_beams 4", ["--num_beams", "--top-k"]),
            ("ember generate -p x --dtype bfloat16", ["--dtype", "--activations"]),
            ("ember generate -p x --max-kv-size 512", ["--max-kv-size", "never cut"]),
            ("ember generate -hff a.gguf -p x", ["-hff", "-m org/name"]),
            ("ember eval -f x --n-predict 5", ["--n-predict", "`ember eval` does not have"]),
            ("ember eval -f x --prompt y", ["--prompt", "-f -"]),
            ("ember eval -f x --chunks 2", ["--chunks", "head -c"]),
            ("ember -m d -p x", ["-m", "ember generate"]),
            ("ember run -m d", ["run", "ember chat"]),
        ] {
            let error = run(line).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{line}: {error}");
        }
    }

    /// Values are never read as flags, nor flags that are known.
    #[test]
    fn command_lines_of_this_program_stay_as_they_are() {
        for line in [
            "ember",
            "ember --help",
            "ember -V",
            "ember sing -t 2",
            "ember generate -p -t -n 8",
            "ember generate -p -ngl --temperature 0.5 --chat -n8 -mdir",
            "ember generate --prompt=--n-predict -n -1 --temp -1",
            "ember generate --stop -r --unknown -x",
            "ember generate -p x -- -t 2",
            "ember eval -f - -c 512 -m d",
        ] {
            assert_eq!(run(line).unwrap(), (line.to_owned(), Vec::new()), "{line}");
        }
    }

    #[test]
    fn no_name_is_in_two_places() {
        for (of, habits) in OF_A_COMMAND.iter().copied().chain([("all", EVERYWHERE)]) {
            let mut names: Vec<&str> = habits.iter().flat_map(|(names, _)| names.iter().copied()).collect();
            names.sort_unstable();
            let all = names.len();
            names.dedup();
            assert_eq!(names.len(), all, "{of}");
        }
    }
}
