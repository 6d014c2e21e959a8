//! `ember chat`.

use std::path::Path;

use serde_json::{Value, json};

use crate::program::{Ended, Scratch, ember, ember_reading, model};

/// No rounding that depends on how tokens share passes.
const EXACT: [&str; 6] = ["--activations", "f32", "--quant-head", "none", "--cache-type", "f32"];

const SYSTEM: &str = "You are a fox who knows all rivers of the north and tells of them in short sentences.";

const TALK: [&str; 3] = ["What is a river?", "Where does it end?", "And the sea?"];

/// Chats with a fixture, line by line.
fn chat(name: &str, flags: &[&str], lines: &[&str]) -> Ended {
    let model = model(name);
    let args = ["chat", "-m", model.to_str().expect("UTF-8"), "--system", SYSTEM, "-n", "24"];
    ember_reading(&(lines.join("\n") + "\n"), args.iter().chain(&EXACT).chain(flags))
}

fn messages(path: &Path) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("a list")
}

fn text_of(message: &Value) -> &str {
    message["content"].as_str().expect("a text")
}

/// As much of a number as stands before a word of the summary.
fn before(summary: &str, words: &str) -> usize {
    let (first, _) = summary.split_once(words).unwrap_or_else(|| panic!("{words:?} is not in {summary}"));
    first.trim_end().rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a number")
}

#[test]
fn the_first_answer_is_that_of_generate() {
    for (name, flags) in [
        ("leanllama", &["--seed", "3"][..]),
        ("nano_compact", &["--greedy"]),
        ("crest_k4", &["--temp", "4", "--top-k", "0", "--top-p", "1", "--seed", "7", "--no-think"]),
        ("crest_k4", &["--temp", "4", "--top-k", "0", "--top-p", "1", "--seed", "5", "--no-think", "--steps", "2"]),
    ] {
        let path = model(name);
        let args =
            ["generate", "-m", path.to_str().expect("UTF-8"), "--system", SYSTEM, "-n", "24", "--chat", "-p", TALK[0]];
        let generated = ember(args.iter().chain(&EXACT).chain(flags)).with_code(0);
        let told = chat(name, flags, &TALK[..1]).with_code(0);
        // White space after the end of thoughts belongs to the template.
        let answer = if name == "crest_k4" { generated.stdout.trim_start() } else { &generated.stdout };
        assert_eq!(told.stdout, answer, "{name}");
        assert!(told.stdout.trim().len() > 8, "{name}: {}", told.stdout);
        let line = |ended: &Ended| ended.stderr.lines().find(|line| line.starts_with("sampling: ")).map(str::to_owned);
        assert_eq!(line(&told), line(&generated));
    }
}

/// The demo model is a chat model too.
#[test]
fn without_a_model_the_demo_answers() {
    let ended = ember_reading("Tell me of a dog\n", ["chat", "-n", "16"]).with_code(0);
    let summary = ended.stderr.lines().last().expect("a summary");
    assert!(summary.starts_with("1 answer: ") && summary.contains(" steps per layer and token"), "{summary}");
    assert!(summary.contains(" tokens/s") && summary.ends_with(" of cache"), "{summary}");
}

/// Every turn of a chat that keeps its cache is the answer of a program that computes the conversation anew. The template of
/// `crest_k4` leaves out what was thought in former turns, so that these do not begin with what the cache holds at the end of a turn.
#[test]
fn cached_turns_are_as_uncached_ones() {
    for name in ["leanllama", "crest_k4"] {
        let scratch = Scratch::new();
        let (whole, cut) = (scratch.path("whole.json"), scratch.path("cut.json"));
        let save = format!("/save {}", whole.display());
        let lines: Vec<&str> = TALK.into_iter().chain([save.as_str()]).collect();
        let together = chat(name, &["--greedy"], &lines).with_code(0);
        let summary = together.stderr.lines().last().expect("a summary");
        let told = messages(&whole);
        assert_eq!((told.len(), text_of(&told[0])), (7, SYSTEM));
        let mut computed = 0;
        for (turn, message) in TALK.into_iter().enumerate() {
            std::fs::write(&cut, json!(told[..1 + 2 * turn]).to_string()).expect("written");
            let load = format!("/load {}", cut.display());
            let again = format!("/save {}", scratch.path("again.json").display());
            let alone = chat(name, &["--greedy"], &[&load, message, &again]).with_code(0);
            let summary = alone.stderr.lines().find(|line| line.starts_with("1 answer")).expect("a summary");
            assert_eq!(before(summary, " of them from the cache"), 0, "{summary}");
            computed += before(summary, " prompt tokens");
            let expected = &told[2 + 2 * turn];
            assert_eq!(messages(&scratch.path("again.json")).last(), Some(expected), "{name}, turn {turn}");
        }
        assert_eq!(before(summary, " prompt tokens"), computed, "{summary}");
        let cached = before(summary, " of them from the cache");
        assert!(cached * 2 > computed, "{name}: {summary}");
    }
}

/// What the model thought is not part of the answer, but of the file.
#[test]
fn thoughts_do_not_go_through_pipes() {
    let scratch = Scratch::new();
    let file = scratch.path("talk.json");
    let ended = chat("crest_k4", &["--greedy"], &[TALK[0], &format!("/save {}", file.display())]).with_code(0);
    let told = messages(&file);
    let answer = told.last().expect("an answer");
    let thought = answer["reasoning_content"].as_str().expect("thoughts");
    assert!(!thought.is_empty() && !ended.stdout.contains(thought), "{answer}");
    assert_eq!(ended.stdout.trim_end_matches('\n'), text_of(answer).trim_end_matches('\n'));
}

#[test]
fn conversations_are_saved_and_loaded() {
    let scratch = Scratch::new();
    let [first, second] = ["a.json", "my chat.json"].map(|name| scratch.path(name));
    let save = |path: &Path| format!("/save {}", path.display());
    chat("leanllama", &["--greedy"], &[TALK[0], "\"\"\"", "/two", "lines\\", "\"\"\"", &save(&first)]).with_code(0);
    let load = format!("/load {}", first.display());
    let ended = chat("leanllama", &[], &["/system Other.", &load, &save(&second), "/system"]).with_code(0);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains(&format!("loaded 5 messages from {}", first.display())), "{}", ended.stderr);
    assert!(ended.stderr.contains(SYSTEM), "{}", ended.stderr);
    assert_eq!(messages(&first), messages(&second));
    assert_eq!(text_of(&messages(&first)[3]), "/two\nlines\\");
    // Nothing else is left there.
    assert_eq!(scratch.files(), ["a.json", "my chat.json"]);
    // A conversation that ends with a question is answered by /retry. Of an object the messages are taken.
    let object = json!({"messages": [{"role": "user", "content": TALK[0]}], "tools": [{"type": "function"}]});
    std::fs::write(&first, object.to_string()).expect("written");
    let ended = chat("leanllama", &["--greedy"], &[&load, "/retry", &save(&second)]).with_code(0);
    assert_eq!(messages(&second).len(), 2);
    assert!(ended.stderr.contains("note: the tools of ") && ended.stderr.contains("are left out"), "{}", ended.stderr);
    assert_eq!(ended.stdout.trim_end(), text_of(&messages(&second)[1]).trim_end());
}

/// `/save` and `/load` are easily taken for each other.
#[test]
fn files_that_are_no_conversations_are_not_replaced() {
    let scratch = Scratch::new();
    let [notes, object, talk] = ["notes.txt", "object.json", "talk.json"].map(|name| scratch.path(name));
    let save = |path: &Path| format!("/save {}", path.display());
    std::fs::write(&notes, "keep me").expect("written");
    let question = json!([{"role": "user", "content": TALK[0]}]);
    std::fs::write(&object, json!({"messages": question, "tools": []}).to_string()).expect("written");
    std::fs::create_dir(scratch.path("folder")).expect("made");
    for path in [&notes, &object, &scratch.path("folder")] {
        let before = std::fs::read(path).ok();
        let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        let ended = chat("leanllama", &[], &["/system Other.", &save(path)]);
        ended.fails_with(&[name, "holds no saved conversation", "choose another name"]);
        assert_eq!(std::fs::read(path).ok(), before, "{name}");
    }
    // What it has saved itself, what another chat has, and what it has loaded.
    chat("leanllama", &["--greedy"], &[TALK[0], &save(&talk), TALK[1], &save(&talk)]).with_code(0);
    assert_eq!(messages(&talk).len(), 5);
    chat("leanllama", &[], &[&save(&talk)]).with_code(0);
    assert_eq!(messages(&talk).len(), 1);
    chat("leanllama", &[], &[&format!("/load {}", object.display()), &save(&object)]).with_code(0);
    assert_eq!(messages(&object).len(), 1);
    // A chat without a system message has nothing yet.
    let none = scratch.path("none.json");
    let model = model("leanllama");
    let ended = ember_reading(&(save(&none) + "\n"), ["chat", "-m", model.to_str().expect("UTF-8")]);
    ended.fails_with(&["there is nothing to save yet"]);
    assert!(!none.exists());
}

/// A conversation is as private as the file that it replaces.
#[cfg(unix)]
#[test]
fn a_saved_conversation_keeps_modes_and_links() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let scratch = Scratch::new();
    let [talk, link] = ["talk.json", "link.json"].map(|name| scratch.path(name));
    let save = |path: &Path| format!("/save {}", path.display());
    chat("leanllama", &[], &[&save(&talk)]).with_code(0);
    std::fs::set_permissions(&talk, std::fs::Permissions::from_mode(0o600)).expect("set");
    symlink("talk.json", &link).expect("a link");
    for path in [&talk, &link] {
        chat("leanllama", &["--greedy"], &[TALK[0], &save(path)]).with_code(0);
        assert_eq!(messages(&talk).len(), 3, "{}", path.display());
        assert_eq!(std::fs::metadata(&talk).expect("a file").permissions().mode() & 0o777, 0o600);
        chat("leanllama", &[], &[&save(path)]).with_code(0);
    }
    assert!(std::fs::symlink_metadata(&link).expect("a link").is_symlink());
    assert_eq!(scratch.files(), ["link.json", "talk.json"]);
}

#[test]
fn what_cannot_be_done_is_an_error() {
    let scratch = Scratch::new();
    let broken = scratch.path("broken.json");
    std::fs::write(&broken, "[{\"role\": \"user\", \"content\": ").expect("written");
    let load = format!("/load {}", broken.display());
    let save = format!("/save {}", scratch.path("none/a.json").display());
    let run = |lines: &[&str]| chat("leanllama", &["--greedy"], lines);
    run(&[&load]).fails_with(&["broken.json", "no JSON"]);
    std::fs::write(&broken, "[{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]").expect("written");
    run(&[&load]).fails_with(&["broken.json", "messages[0].content[0]"]);
    run(&["/load"]).fails_with(&["/load needs the name of a file"]);
    run(&["/sing a song"]).fails_with(&["there is no command /sing", "/help"]);
    let save_nothing = format!("/save {}\n", scratch.path("nothing.json").display());
    ember_reading(&save_nothing, ["chat"]).fails_with(&["nothing to save"]);
    run(&["/retry"]).fails_with(&["no message to answer"]);
    run(&["/set top-p 2"]).fails_with(&["error: top-p 2 is not allowed"]);
    run(&["/set max-tokens 0"]).fails_with(&["max-tokens is 0", "1 or more"]);
    chat("leanllama", &["-n", "0"], &[]).with_code(2);
    run(&["/set steps 2"]).fails_with(&["adaptive depth"]);
    run(&["\"\"\"", "never ended"]).fails_with(&["ends inside a message"]);
    let ended = run(&["hello", &save]).with_code(1);
    assert!(ended.stderr.contains("error: cannot write ") && ended.stderr.contains("none/a.json"), "{}", ended.stderr);
    let notes = run(&["/depth", "/think off"]).with_code(0).stderr;
    assert!(notes.contains("for models with adaptive depth (CREST)"), "{notes}");
    assert!(notes.contains("no switch for thinking"), "{notes}");
    // A command line that is wrong is told from a chat that fails.
    assert_eq!(ember(["chat", "--temp", "hot"]).code, Some(2));
    let ended = ember(["chat", "-p", "hello"]).with_code(2);
    assert!(ended.stderr.contains("ember chat < FILE"), "{}", ended.stderr);
}

#[test]
fn a_model_without_a_template_says_what_to_do() {
    let scratch = Scratch::new();
    let model = scratch.copy_of("leanllama");
    let config = model.join("tokenizer_config.json");
    let mut fields: Value = serde_json::from_slice(&std::fs::read(&config).expect("a file")).expect("JSON");
    fields.as_object_mut().expect("an object").remove("chat_template").expect("a template");
    std::fs::write(&config, fields.to_string()).expect("written");
    ember(["chat", "-m", model.to_str().expect("UTF-8")]).fails_with(&[
        "leanllama has no chat template",
        "ember generate -p TEXT",
        "chat_template.jinja",
    ]);
}

/// Another seed, which follows from the first: the whole chat can be repeated.
#[test]
fn a_retry_is_another_answer() {
    let answers = |flags: &[&str], lines: &[&str]| -> Vec<Value> {
        let scratch = Scratch::new();
        let mut all = Vec::new();
        let mut with_saves = Vec::new();
        for (i, line) in lines.iter().enumerate() {
            with_saves.extend([(*line).to_owned(), format!("/save {}", scratch.path(&i.to_string()).display())]);
        }
        chat("leanllama", flags, &with_saves.iter().map(String::as_str).collect::<Vec<_>>()).with_code(0);
        for i in 0..lines.len() {
            let told = messages(&scratch.path(&i.to_string()));
            assert_eq!(told.len(), 3, "{told:?}");
            all.push(told[2].clone());
        }
        all
    };
    let drawn = answers(&["--temp", "1", "--seed", "4"], &[TALK[0], "/retry", "/retry"]);
    assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2], "{drawn:?}");
    assert_eq!(answers(&["--temp", "1", "--seed", "4"], &[TALK[0], "/retry", "/retry"]), drawn);
    assert_eq!(answers(&["--temp", "1", "--seed", "5"], &[TALK[0]])[0], drawn[1]);
    let greedy = answers(&["--greedy"], &[TALK[0], "/retry"]);
    assert_eq!(greedy[0], greedy[1]);
    // What /set says holds from then on, and /reset forgets the turns.
    let ended = chat("leanllama", &["--greedy"], &[TALK[0], "/reset", TALK[0], "/set max-tokens 2", "/retry"]);
    let ended = ended.with_code(0);
    let summary = ended.stderr.lines().last().expect("a summary");
    assert_eq!((before(summary, " answers"), before(summary, " generated")), (3, 24 + 24 + 2), "{}", ended.stderr);
    assert!(ended.stderr.contains("the answer ends after 2 tokens"), "{}", ended.stderr);
}
