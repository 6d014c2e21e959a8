//! `ember depth`.

#[cfg(unix)]
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::{Value, json};

#[cfg(unix)]
use crate::program::command;
use crate::program::{Ended, Scratch, ember, ember_reading, model};

const PROMPT: &str = "the quick brown fox";

fn depth(name: &str, flags: &[&str]) -> Ended {
    let model = model(name);
    let args = ["depth", "-m", model.to_str().expect("UTF-8"), "-p", PROMPT];
    ember(args.iter().chain(flags))
}

fn report(flags: &[&str]) -> Value {
    let ended = depth("crest_k4", &[flags, &["--json"]].concat()).with_code(0);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {}", ended.stdout))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The depths are those of the passes that `ember generate --trace` shows when it makes the same text.
#[test]
fn depth_is_that_of_generation() {
    let model = model("crest_k4");
    let model = model.to_str().expect("UTF-8");
    let flags = ["--greedy", "--ignore-eos", "--trace", "--json", "--cache-type", "f32", "-n", "6"];
    let ended = ember(["generate", "-m", model, "-p", PROMPT].iter().chain(&flags)).with_code(0);
    let generated: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let told = report(&[]);
    // The pass after the prompt chose the first token.
    assert_eq!(told["next"]["steps"], generated["depth"][0]["steps"]);
    assert_eq!(list(&told["tokens"]).len(), generated["prompt_tokens"].as_u64().expect("a number") as usize);
}

/// Depth is CREST's, whose cache is not compressed.
#[test]
fn depth_offers_no_hidden_values_in_the_cache() {
    let ended = depth("crest_k4", &["--cache-hidden"]).with_code(2);
    assert!(ended.stderr.contains("unexpected argument '--cache-hidden'"), "{}", ended.stderr);
    assert!(ended.stderr.contains("--cache-hidden is a flag of other commands: generate, "), "{}", ended.stderr);
}

#[test]
fn numbers_agree_with_each_other() {
    let told = report(&[]);
    let tokens = list(&told["tokens"]);
    let text: String = tokens.iter().map(|token| token["text"].as_str().expect("a text")).collect();
    assert_eq!(text, PROMPT);
    assert_eq!((&told["layers"], &told["num_steps"]), (&json!(4), &json!(4)));
    assert_eq!((&tokens[0]["steps"], &tokens[0]["log_probability"]), (&Value::Null, &Value::Null));
    let (mut sum, mut nats) = (0.0, 0.0);
    for token in &tokens[1..] {
        let steps: Vec<u64> = list(&token["steps"]).iter().filter_map(Value::as_u64).collect();
        assert!(steps.len() == 4 && steps.iter().all(|steps| (1..=4).contains(steps)), "{steps:?}");
        let mean = steps.iter().sum::<u64>() as f64 / 4.0;
        assert_eq!(token["mean_steps"].as_f64(), Some(mean));
        // Probabilities of halting are given up to the step at which the token halted.
        for (halt, &steps) in list(&token["halt"]).iter().zip(&steps) {
            assert_eq!(list(halt).iter().filter(|h| h.as_f64() > Some(0.0)).count(), (steps as usize).min(3));
        }
        sum += mean;
        nats -= token["log_probability"].as_f64().expect("a number");
    }
    let n = (tokens.len() - 1) as f64;
    assert!((told["mean_steps"].as_f64().expect("a number") - sum / n).abs() < 1e-9);
    assert!((told["perplexity"].as_f64().expect("a number").ln() - nats / n).abs() < 1e-5);
    assert_eq!(report(&["--no-halt"])["mean_steps"], json!(4.0));
    assert_eq!(report(&["--threshold", "0"])["mean_steps"], json!(1.0));
    assert_eq!(report(&["--steps", "2"])["num_steps"], json!(2));
}

#[test]
fn the_terminal_gets_the_colours_asked_for() {
    let shown = |flags: &[&str]| depth("crest_k4", flags).with_code(0).stdout;
    let plain = shown(&[]);
    assert!(!plain.contains('\x1b') && plain.starts_with(&format!("{PROMPT}\n\n")), "{plain}");
    assert_eq!(plain, shown(&["--color", "none"]));
    let (full, indexed) = (shown(&["--color", "truecolor"]), shown(&["--color", "256"]));
    assert!(full.contains("\x1b[48;2;") && !full.contains("48;5;"), "{full}");
    assert!(indexed.contains("\x1b[48;5;") && !indexed.contains("48;2;"), "{indexed}");
    // A row per layer in every block; a narrow terminal has more blocks and no longer lines.
    let rows = |shown: &str| shown.lines().filter(|line| line.starts_with(" 3  ")).count();
    let narrow = shown(&["--width", "30"]);
    assert!(rows(&narrow) > rows(&plain), "{narrow}");
    assert!(plain.contains("\nlayer\n"), "the axis: {plain}");
    // The legend has the steps that occur, in their colours.
    assert!(full.contains("\nsteps: \x1b[48;2;") && !full.contains(" 5 \x1b[0m"), "{full}");
    let map: Vec<&str> = narrow.lines().skip(2).take_while(|line| !line.starts_with("steps per layer")).collect();
    assert!(map.iter().all(|line| line.trim_end().chars().count() <= 30), "{narrow}");
    // The digits of the map are the steps.
    let told = report(&[]);
    let steps: Vec<String> = list(&told["tokens"]).iter().skip(1).map(|token| token["steps"][0].to_string()).collect();
    let first = narrow.lines().find(|line| line.starts_with(" 0  ")).expect("layer 0");
    let digits: Vec<&str> = first.split_whitespace().skip(2).collect();
    assert_eq!(digits, steps[..digits.len()], "{narrow}");
}

#[test]
fn pictures_are_whole_and_need_nothing_else() {
    let scratch = Scratch::new();
    let (svg, html) = (scratch.path("a.svg"), scratch.path("a.html"));
    let model = model("crest_k4");
    let args = ["depth", "-m", model.to_str().expect("UTF-8"), "-p", "-", "--sweep"];
    let files = ["--svg", svg.to_str().expect("UTF-8"), "--html", html.to_str().expect("UTF-8")];
    ember_reading("a < b && \"c\" > d\n", args.iter().chain(&files)).with_code(0);
    let (svg, html) =
        (std::fs::read_to_string(svg).expect("a picture"), std::fs::read_to_string(html).expect("a page"));
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert!(svg.contains("&lt;") && svg.contains("&amp;") && svg.contains("prefers-color-scheme: dark"));
    for (text, what) in [(&svg, "picture"), (&html, "page")] {
        for reference in ["href", "src=", "url(", "<script", "@import"] {
            assert!(!text.contains(reference), "{what}: {reference}");
        }
        let (opened, closed) = (text.matches("<g>").count(), text.matches("</g>").count());
        assert!(opened == closed && opened > 8, "{what}: {opened} groups, {closed} closed");
    }
    assert!(html.contains("<tr><td>0.999</td>"), "the table of thresholds");
}

/// A picture replaces what has its name when it is complete, and no picture replaces the other.
#[cfg(unix)]
#[test]
fn pictures_are_written_whole_or_not_at_all() {
    let scratch = Scratch::new();
    let (svg, link) = (scratch.path("a.svg"), scratch.path("link"));
    let model = model("crest_k4");
    let args = ["depth", "-m", model.to_str().expect("UTF-8"), "-p", PROMPT, "--svg", svg.to_str().expect("UTF-8")];
    std::fs::write(&svg, "precious").expect("written");
    // A full disk, as far as a limit on the size of files, in units of 512 bytes, stands for it.
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$@\"", "sh"]);
    let program = command(args);
    let output = limited.arg(program.get_program()).args(program.get_args()).output().expect("the shell runs");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.code() == Some(1) && stderr.contains("cannot write"), "{stderr}");
    assert_eq!(std::fs::read(&svg).expect("the file"), b"precious");

    std::os::unix::fs::symlink(&svg, &link).expect("a link");
    for other in
        [svg.clone(), scratch.path("../").join(scratch.path("").file_name().expect("a name")).join("a.svg"), link]
    {
        let html = ["--html", other.to_str().expect("UTF-8")];
        ember(args.iter().chain(&html)).fails_with(&["--svg and --html are both", "a.svg"]);
    }
    assert_eq!(std::fs::read(&svg).expect("the file"), b"precious");
    ember(args).with_code(0);
    assert!(std::fs::read_to_string(&svg).expect("a picture").starts_with("<svg"));
    assert_eq!(scratch.files(), ["a.svg", "link"], "a temporary file was left");
    let ended = ember(args.iter().take(5).chain(&["--svg", "/dev/stdout"])).with_code(0);
    assert!(ended.stdout.starts_with("<svg"), "{}", ended.stdout);
}

/// What no XML file may hold, and what has a meaning in one; the page scrolls where the picture is wider than it.
#[test]
fn pictures_of_any_text_can_be_read() {
    let scratch = Scratch::new();
    let (svg, html) = (scratch.path("a.svg"), scratch.path("a.html"));
    let files = ["--svg", svg.to_str().expect("UTF-8"), "--html", html.to_str().expect("UTF-8")];
    for text in [
        "\u{ffff} \u{fffe} \u{fdd0} \u{10fffe}",
        "a \0 \u{1} \x1b[2J \u{85} \u{9b}m \x7f b",
        "]]> <!-- '\"&lt; --> \u{202e}x",
    ] {
        let args = ["depth", "-p", "-", "--json"];
        let ended = ember_reading(text, args.iter().chain(&files)).with_code(0);
        let told: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        let whole: String = list(&told["tokens"]).iter().filter_map(|token| token["text"].as_str()).collect();
        assert_eq!(whole, text, "JSON has the text as it is");
        for path in [&svg, &html] {
            let picture = std::fs::read_to_string(path).expect("a picture");
            let wrong = |c: &char| {
                (c.is_control() && *c != '\n')
                    || matches!(*c, '\u{fdd0}'..='\u{fdef}' | '\u{202e}')
                    || u32::from(*c) & 0xfffe == 0xfffe
            };
            assert_eq!(picture.chars().find(wrong), None, "{}: {text:?}", path.display());
            assert!(!picture.contains("]]>") && !picture.contains("<!-- "), "{}", path.display());
        }
    }
    let (svg, html) =
        (std::fs::read_to_string(svg).expect("a picture"), std::fs::read_to_string(html).expect("a page"));
    assert!(html.contains("width=device-width") && html.contains("overflow-x: auto"));
    assert!(!html.contains("max-width: 100%"), "a picture that shrinks cannot be read on a phone");
    assert!(svg.contains(">layer</text>") && svg.contains(">steps</text>"), "the axis and the legend");
}

/// Characters of two columns, and of none.
#[test]
fn the_map_is_in_line_under_every_character() {
    let columns = |line: &str| -> usize {
        let wide = |c: char| {
            matches!(c, '✅' | '⚡' | '⌚' | '⭐' | '你' | '好' | '\u{1f469}' | '\u{1f467}' | '\u{1f44d}' | '\u{1f3fd}')
        };
        let none = |c: char| matches!(c, '\u{301}' | '\u{200d}' | '\u{fe0f}');
        line.chars().map(|c| if wide(c) { 2 } else { usize::from(!none(c)) }).sum()
    };
    for text in [
        "a b",
        "a ✅ b ⚡ c",
        "x ⌚ y ⭐",
        "e\u{301} x",
        "\u{1f469}\u{200d}\u{1f467} x",
        "你 好 x",
        "\u{1f44d}\u{1f3fd} ⚡\u{fe0f}",
    ] {
        let shown = ember(["depth", "-p", text, "--width", "200"]).with_code(0).stdout;
        let map: Vec<&str> = shown.lines().skip_while(|line| *line != "layer").skip(1).take(5).collect();
        let widths: Vec<usize> = map.iter().map(|line| columns(line)).collect();
        assert!(widths.iter().all(|width| width == &widths[0] && *width > 4), "{text:?}: {widths:?} in {shown}");
    }
}

/// A terminal says how wide it is; COLUMNS, where it is exported, wins.
#[cfg(unix)]
#[test]
fn the_map_has_the_width_of_the_terminal() {
    use std::io::Read;

    let longest = |terminal: u16, exported: Option<&str>| {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&controller).expect("granted");
        unlockpt(&controller).expect("unlocked");
        let size = Winsize { ws_row: 24, ws_col: terminal, ws_xpixel: 0, ws_ypixel: 0 };
        let name = ptsname(&controller, Vec::new()).expect("a name");
        let user = std::fs::File::options().read(true).write(true).open(name.to_str().expect("UTF-8")).expect("opened");
        tcsetwinsize(&user, size).expect("a size");
        let text = "Once upon a time there was a little girl who wanted to go to the sea";
        let mut run = command(["depth", "-p", text, "--color", "none"]);
        run.env_remove("COLUMNS").stdout(user);
        if let Some(columns) = exported {
            run.env("COLUMNS", columns);
        }
        let mut child = run.spawn().expect("the program starts");
        drop(run);
        let mut shown = Vec::new();
        // Linux ends a terminal that nobody has open with an error.
        let _ = std::fs::File::from(controller).read_to_end(&mut shown);
        assert!(child.wait().expect("the program ends").success());
        let shown = String::from_utf8(shown).expect("UTF-8");
        let rows = shown.lines().filter(|line| line.starts_with(" 0  "));
        rows.map(|row| row.trim_end().len()).max().unwrap_or_else(|| panic!("no rows in {shown}"))
    };
    let (narrow, wide) = (longest(40, None), longest(120, None));
    assert!((30..=40).contains(&narrow) && (80..=120).contains(&wide), "{narrow} and {wide} columns");
    assert!(longest(120, Some("60")) <= 60);
    assert_eq!(longest(40, Some("many")), narrow);
}

#[test]
fn a_sweep_goes_from_shallow_to_deep() {
    let told = report(&["--sweep"]);
    let sweep = list(&told["sweep"]);
    // Of the same tokens as without it.
    let exact = ["--activations", "f32", "--threshold", "0.9"];
    let (alone, swept) = (report(&exact), report(&[&exact[..], &["--sweep"]].concat()));
    let row =
        list(&swept["sweep"]).iter().find(|row| (row["threshold"].as_f64().expect("a number") - 0.9).abs() < 1e-6);
    let steps = |told: &Value| told["mean_steps"].as_f64().expect("a number");
    assert!((steps(row.expect("a row")) - steps(&alone)).abs() < 1e-9, "{row:?}, {}", alone["mean_steps"]);
    let column = |key: &str| -> Vec<f64> { sweep.iter().filter_map(|row| row[key].as_f64()).collect() };
    let (thresholds, steps) = (column("threshold"), column("mean_steps"));
    assert_eq!((thresholds.len(), steps.len()), (9, 9));
    assert!(thresholds.is_sorted() && steps.is_sorted() && steps[0] < steps[8], "{steps:?}");
    assert!(column("milliseconds_per_token").iter().all(|&ms| ms > 0.0));
    assert_eq!(told["halt_threshold"].as_f64().map(|t| t as f32), Some(0.85));
    let table = depth("crest_k4", &["--sweep"]).with_code(0).stdout;
    assert!(table.lines().last().expect("a line").trim_start().starts_with("0.999 "), "{table}");
}

/// What turns the order of a line around is shown as what it is.
#[test]
fn a_text_cannot_turn_its_line_around() {
    let model = model("crest_k4");
    let text = "a\u{202e}b\u{2066}c";
    let ended = ember(["depth", "-m", model.to_str().expect("UTF-8"), "-p", text]).with_code(0);
    assert!(ended.stdout.starts_with("a\u{fffd}b\u{fffd}c\n"), "{:?}", ended.stdout);
    assert!(!ended.stdout.contains(['\u{202e}', '\u{2066}']), "{:?}", ended.stdout);
    let ended = ember(["tokenize", "-m", model.to_str().expect("UTF-8"), "-p", text]).with_code(0);
    assert!(!ended.stdout.contains(['\u{202e}', '\u{2066}']), "{:?}", ended.stdout);
}

#[test]
fn what_has_no_depth_is_refused() {
    depth("leanllama", &[]).fails_with(&["adaptive depth", "leanllama"]);
    let model = model("crest_k4");
    let model = model.to_str().expect("UTF-8");
    ember(["depth", "-m", model, "-p", ""]).fails_with(&["prompt", "no tokens"]);
    depth("crest_k4", &["--svg", "/nowhere/a.svg"]).fails_with(&["cannot write", "/nowhere/a.svg"]);
}
