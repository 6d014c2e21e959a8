//! `ember chat` as a person uses it.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};

use crate::program::{Scratch, command, model};

/// Ctrl-C and Ctrl-D.
const INTERRUPT: &str = "\x03";
const END: &str = "\x04";

/// The program on a terminal of its own.
struct Terminal {
    child: Child,
    keys: File,
    shown: Arc<Mutex<String>>,
    /// What was waited for.
    read: usize,
}

impl Terminal {
    fn open(args: &[&str]) -> Self {
        Self::of_kind(&[("TERM", "xterm-256color")], args)
    }

    /// One that these variables describe.
    fn of_kind(variables: &[(&str, &str)], args: &[&str]) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&controller).expect("granted");
        unlockpt(&controller).expect("unlocked");
        let name = ptsname(&controller, Vec::new()).expect("a name");
        let user = File::options().read(true).write(true).open(name.to_str().expect("UTF-8")).expect("opened");
        tcsetwinsize(&user, Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 }).expect("a size");
        // Ctrl-C becomes a signal for those whose controlling terminal it is.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(env!("CARGO_BIN_EXE_ember")).args(args);
        command.env_remove("COLORTERM").env_remove("NO_COLOR").envs(variables.iter().copied());
        let other = || Stdio::from(user.try_clone().expect("a clone"));
        let child = command.stdin(other()).stdout(other()).stderr(other()).spawn().expect("the program starts");
        let shown = Arc::new(Mutex::new(String::new()));
        let keys = File::from(controller);
        let (mut screen, written) = (keys.try_clone().expect("a clone"), shown.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            let mut all = Vec::new();
            // Linux ends a terminal that nobody has open with an error.
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                all.extend_from_slice(&bytes[..count]);
                *written.lock().expect("the screen") = String::from_utf8_lossy(&all).into_owned();
            }
        });
        Self { child, keys, shown, read: 0 }
    }

    /// Types something.
    fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("typed");
    }

    /// Types a line once there is a prompt.
    fn line(&mut self, line: &str) {
        self.prompt();
        self.keys(line);
        self.keys("\r");
    }

    /// Waits for a prompt. Returns what came before it.
    #[track_caller]
    fn prompt(&mut self) -> String {
        self.wait_for("> ")
    }

    /// Waits until this was shown, after what was waited for before. Returns what came before it.
    #[track_caller]
    fn wait_for(&mut self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            let shown = self.shown.lock().expect("the screen").clone();
            let rest = shown.get(self.read..).unwrap_or_default();
            if let Some(at) = rest.find(text) {
                self.read += at + text.len();
                return rest[..at].to_owned();
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{text:?} is not shown: {shown}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until so many bytes more were shown.
    #[track_caller]
    fn wait_for_more(&mut self, bytes: usize) {
        let begun = Instant::now();
        while self.shown.lock().expect("the screen").len() < self.read + bytes {
            assert!(begun.elapsed() < Duration::from_secs(120), "nothing more is shown");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The exit code, once it has ended.
    fn code(mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A model that does not end its answers.
fn endless(scratch: &Scratch, name: &str) -> String {
    let model = scratch.copy_of(name);
    let path = model.join("generation_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
    config["min_new_tokens"] = json!(1_000_000);
    std::fs::write(&path, config.to_string()).expect("written");
    model.to_str().expect("UTF-8").to_owned()
}

#[test]
fn an_interrupt_ends_the_answer_and_not_the_program() {
    let scratch = Scratch::new();
    let model = endless(&scratch, "leanllama");
    let saved = scratch.path("talk.json");
    let mut terminal = Terminal::open(&["chat", "-m", &model, "-n", "-1", "--seed", "1"]);
    terminal.wait_for("/help lists the commands");
    // At an empty prompt it says how to leave.
    terminal.prompt();
    terminal.keys(INTERRUPT);
    terminal.wait_for("Ctrl-D or /exit leaves");
    terminal.line("hello");
    terminal.wait_for("hello");
    // The line end after the message, then some of the answer.
    terminal.wait_for("\n");
    terminal.wait_for_more(8);
    terminal.keys(INTERRUPT);
    let answer = terminal.prompt();
    assert!(!answer.contains("^C"), "the key is in the answer: {answer:?}");
    terminal.keys(&format!("/save {}\r", saved.display()));
    terminal.wait_for("saved 2 messages");
    terminal.line("/set max-tokens 4");
    terminal.wait_for("max-tokens 4");
    terminal.line("go on");
    terminal.wait_for("the answer ends after 4 tokens");
    terminal.prompt();
    terminal.keys(END);
    terminal.wait_for("2 answers: ");
    terminal.wait_for(" of cache");
    assert_eq!(terminal.code(), Some(0));
}

/// What was asked is no part of the conversation until something is answered, and is not lost.
#[test]
fn an_interrupt_before_the_answer_leaves_the_question_for_a_retry() {
    let scratch = Scratch::new();
    let saved = scratch.path("talk.json");
    let model = model("leanllama");
    // A pass for each of some 1,000 tokens, so that there is time, also on a machine that does much else.
    let system = "Name a river. ".repeat(200);
    let flags = ["-n", "4", "--greedy", "--chunk", "1", "--activations", "f32", "--device", "cpu", "--system", &system];
    let mut terminal = Terminal::open(&[&["chat", "-m", model.to_str().expect("UTF-8")][..], &flags].concat());
    let question = "What is a river? ".repeat(24);
    let interrupted = |terminal: &mut Terminal, line: &str| {
        terminal.prompt();
        terminal.keys(line);
        terminal.wait_for(line.trim_end().rsplit(' ').next().expect("a word"));
        terminal.keys("\r");
        terminal.wait_for("\n");
        std::thread::sleep(Duration::from_millis(20));
        terminal.keys(INTERRUPT);
        terminal.wait_for("there is no answer yet; /retry");
    };
    interrupted(&mut terminal, &question);
    terminal.line(&format!("/save {}", saved.display()));
    terminal.wait_for("saved 1 message to");
    interrupted(&mut terminal, "/retry");
    terminal.line("/retry");
    terminal.wait_for("the answer ends after 4 tokens");
    terminal.line(&format!("/save {}", saved.display()));
    terminal.wait_for("saved 3 messages");
    terminal.prompt();
    terminal.keys(END);
    terminal.wait_for("1 answer: ");
    assert_eq!(terminal.code(), Some(0));
    let told: Value = serde_json::from_slice(&std::fs::read(&saved).expect("a file")).expect("JSON");
    assert_eq!(told[1]["content"].as_str().map(str::trim_end), Some(question.trim_end()));
    assert!(told[2]["content"].as_str().is_some_and(|answer| !answer.is_empty()), "{told}");
}

/// Without a terminal the program ends with the answer.
#[test]
fn an_interrupt_ends_a_chat_through_pipes() {
    let scratch = Scratch::new();
    let model = endless(&scratch, "leanllama");
    let mut child = command(["chat", "-m", &model, "-n", "-1"]).stdin(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("a pipe").write_all(b"hello\nagain\n").expect("written");
    // The first text shows that an answer has begun.
    let mut out = child.stdout.take().expect("a pipe");
    out.read_exact(&mut [0]).expect("a text");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    std::io::copy(&mut out, &mut std::io::sink()).expect("the rest");
    let ended = child.wait_with_output().expect("an end");
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("\n1 answer: "), "{stderr}");
}

/// An error leaves the conversation as it was, and the program goes on.
#[test]
fn errors_are_told_and_change_nothing() {
    let scratch = Scratch::new();
    let [saved, again, broken] = ["a.json", "b.json", "broken.json"].map(|name| scratch.path(name));
    std::fs::write(&broken, "[{\"role\": \"user\"").expect("written");
    let model = model("leanllama");
    let mut terminal = Terminal::open(&["chat", "-m", model.to_str().expect("UTF-8"), "-n", "4", "--greedy"]);
    terminal.line("hello\\");
    terminal.wait_for("... ");
    terminal.keys("there\r");
    terminal.wait_for("the answer ends after 4 tokens");
    terminal.line(&format!("/save {}", saved.display()));
    terminal.wait_for("saved 2 messages");
    terminal.line(&format!("/load {}", broken.display()));
    terminal.wait_for("error: ");
    assert!(terminal.wait_for("is no JSON").contains("broken.json"));
    terminal.line("/sing");
    terminal.wait_for("error: there is no command /sing");
    terminal.line(&format!("/save {}", again.display()));
    terminal.wait_for("saved 2 messages");
    terminal.line("/exit");
    terminal.wait_for("1 answer: ");
    assert_eq!(terminal.code(), Some(0));
    let [saved, again] = [saved, again].map(|path| std::fs::read_to_string(path).expect("a file"));
    assert_eq!(saved, again);
    assert!(saved.contains("hello\\nthere"), "{saved}");
}

/// The note that an answer is the same again is for one that is.
#[test]
fn a_retry_under_other_settings_is_not_called_the_same() {
    const SAME: &str = "which gives the same answer";
    let model = model("crest_k4");
    let mut terminal = Terminal::open(&["chat", "-m", model.to_str().expect("UTF-8"), "-n", "4", "--greedy"]);
    terminal.line("hello");
    terminal.wait_for("the answer ends after 4 tokens");
    for change in ["/set steps 1", "/system Be brief."] {
        terminal.line(change);
        terminal.line("/retry");
        assert!(!terminal.wait_for("the answer ends after 4 tokens").contains(SAME), "{change}");
        terminal.line("/retry");
        terminal.wait_for(SAME);
        terminal.wait_for("the answer ends after 4 tokens");
    }
    terminal.line("/exit");
    assert_eq!(terminal.code(), Some(0));
}

/// By the same rule in every command: <https://no-color.org>, and terminals that say they have none.
#[test]
fn colours_are_for_terminals_that_have_them() {
    let args = ["tokenize", "-p", "Once upon a time"];
    for (variables, colours) in [
        (&[("TERM", "xterm-256color")][..], true),
        (&[("TERM", "xterm-256color"), ("NO_COLOR", "")], true),
        (&[("TERM", "xterm-256color"), ("NO_COLOR", "1")], false),
        (&[("TERM", "dumb")], false),
        (&[("TERM", "dumb"), ("COLORTERM", "truecolor")], false),
    ] {
        let mut terminal = Terminal::of_kind(variables, &args);
        let shown = terminal.wait_for(" tokens, ");
        assert_eq!(shown.contains('\x1b'), colours, "{variables:?}: {shown:?}");
        assert_eq!(terminal.code(), Some(0));
    }
}

/// Lines that come faster than they are read, as a paste on a terminal that does not mark it.
#[test]
fn lines_typed_ahead_are_not_lost() {
    let scratch = Scratch::new();
    let saved = scratch.path("a.json");
    let model = model("leanllama");
    let mut terminal = Terminal::open(&["chat", "-m", model.to_str().expect("UTF-8"), "-n", "2", "--greedy"]);
    terminal.prompt();
    terminal.keys(&format!("\"\"\"\rone\r/two\r\"\"\"\rthree\r/save {}\r", saved.display()));
    terminal.wait_for("saved 4 messages");
    terminal.prompt();
    terminal.keys(END);
    assert_eq!(terminal.code(), Some(0));
    let told: Value = serde_json::from_slice(&std::fs::read(&saved).expect("a file")).expect("JSON");
    assert_eq!((&told[0]["content"], &told[2]["content"]), (&json!("one\n/two"), &json!("three")));
}

/// Thoughts are dim; with /depth each token has the colour of its steps.
#[test]
fn thoughts_and_depth_are_seen() {
    let model = model("crest_k4");
    let model = model.to_str().expect("UTF-8");
    let mut terminal = Terminal::open(&["chat", "-m", model, "-n", "6", "--greedy", "--activations", "int8"]);
    terminal.line("hello");
    let answer = terminal.wait_for("the answer ends after 6 tokens");
    assert!(answer.contains("\x1b[2m") && !answer.contains("\x1b[48;5;"), "{answer:?}");
    terminal.line("/depth");
    terminal.wait_for("mean steps of a token: ");
    terminal.line("/retry");
    let answer = terminal.wait_for("the answer ends after 6 tokens");
    assert!(answer.contains("\x1b[48;5;") && !answer.contains("\x1b[2m"), "{answer:?}");
    terminal.prompt();
    terminal.keys(END);
    assert!(terminal.wait_for(" of cache").contains("steps per layer and token"));
    assert_eq!(terminal.code(), Some(0));
}

/// Only a file that the user asks for remembers what was typed.
#[test]
fn a_history_is_kept_where_it_was_asked_for() {
    let scratch = Scratch::new();
    let history = scratch.path("history");
    let model = model("leanllama");
    let args = ["chat", "-m", model.to_str().expect("UTF-8"), "-n", "2", "--greedy"];
    let mut terminal = Terminal::open(&[&args[..], &["--history", history.to_str().expect("UTF-8")]].concat());
    terminal.line("remember the otter");
    terminal.wait_for("the answer ends after 2 tokens");
    terminal.prompt();
    terminal.keys(END);
    assert_eq!(terminal.code(), Some(0));
    let mut terminal = Terminal::open(&[&args[..], &["--history", history.to_str().expect("UTF-8")]].concat());
    terminal.prompt();
    terminal.keys("\x1b[A");
    terminal.wait_for("remember the otter");
    terminal.keys("\r");
    terminal.wait_for("the answer ends after 2 tokens");
    terminal.prompt();
    terminal.keys(END);
    assert_eq!(terminal.code(), Some(0));
}

/// Not after a long talk, which it would not remember.
#[test]
fn a_history_that_cannot_be_kept_is_told_at_once() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("file"), "").expect("written");
    for place in [scratch.path("none/history"), scratch.path("file/history"), scratch.path("")] {
        let mut terminal = Terminal::open(&["chat", "--history", place.to_str().expect("UTF-8")]);
        terminal.wait_for("error: cannot write the history");
        assert_eq!(terminal.code(), Some(1), "{}", place.display());
    }
    assert_eq!(scratch.files(), ["file"]);
}
