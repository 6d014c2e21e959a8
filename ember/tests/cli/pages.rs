//! `ember completions` and `ember man`: every command and flag is in them.

use std::process::{Command, Stdio};

use crate::program::{Scratch, command, ember};

/// The commands of the program, by its help.
fn commands() -> Vec<String> {
    let help = ember(["--help"]).with_code(0).stdout;
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // What is further in belongs to the description above.
    let lines = lines.filter(|line| line.find(|c: char| c != ' ') == Some(2));
    let names: Vec<String> = lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    assert!(names.len() > 10 && names.contains(&"generate".to_owned()), "{names:?}");
    names
}

/// The long flags of a command, by its help.
fn flags(name: &str) -> Vec<String> {
    let help = ember([name, "--help"]).with_code(0).stdout;
    let flag = |line: &str| {
        let line = line.trim_start();
        let long = line.strip_prefix("--").or_else(|| line.strip_prefix('-')?.get(1..)?.strip_prefix(", --"))?;
        let end = long.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(long.len());
        Some(format!("--{}", &long[..end]))
    };
    let names: Vec<String> = help.lines().filter_map(flag).collect();
    assert!(names.contains(&"--help".to_owned()), "{name}: {names:?}");
    names
}

/// Lines end where the terminal does, between words; pages do not follow it.
#[test]
fn help_is_as_wide_as_the_terminal() {
    let output = |args: &[&str], columns: usize| {
        let output = command(args).env("COLUMNS", columns.to_string()).output().expect("it runs");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    for name in commands() {
        for (columns, most) in [(40, 40), (80, 80), (100, 100), (400, 100)] {
            for flag in ["--help", "-h"] {
                for line in output(&[&name, flag], columns).lines() {
                    let one_word = line.split_whitespace().count() == 1;
                    // Headings and names of flags are not broken.
                    let whole = columns == 40 && (!line.starts_with("    ") || line.trim_start().starts_with('-'));
                    assert!(line.chars().count() <= most || one_word || whole, "{name} {flag} at {columns}: {line}");
                }
            }
        }
    }
    assert_eq!(output(&["man"], 40), output(&["man"], 400));
    assert_eq!(output(&["completions", "bash"], 40), output(&["completions", "bash"], 400));
}

#[test]
fn completions_know_every_command_and_flag() {
    let commands = commands();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = ember(["completions", shell]).with_code(0).stdout;
        for name in &commands {
            assert!(script.contains(name.as_str()), "{shell}: no {name}");
        }
        for flag in flags("generate") {
            // fish: -l NAME
            let name = flag.trim_start_matches('-');
            let known = script.contains(&flag) || script.contains(&format!(" -l {name}"));
            assert!(known, "{shell}: no {flag} of generate");
        }
    }
    let ended = ember(["completions", "cmd"]).with_code(2);
    assert!(ended.stderr.contains("bash") && ended.stderr.contains("zsh"), "{}", ended.stderr);
}

/// What bash makes of the words of a line, the last of which is typed in part.
#[cfg(unix)]
#[test]
fn bash_completes_commands_flags_and_values() {
    let completed = |words: &[&str]| {
        let script = format!(
            "source <(\"$0\" completions bash) || exit 77; COMP_WORDS=({}); COMP_CWORD={}; _ember ember \"{}\" \"{}\"; \
             echo \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len() - 1,
            words[words.len() - 1],
            words[words.len() - 2],
        );
        let output = Command::new("bash").args(["-c", &script, env!("CARGO_BIN_EXE_ember")]).output().expect("bash");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    };
    assert_eq!(completed(&["ember", "gen"]), "generate");
    assert_eq!(completed(&["ember", "generate", "--max-t"]), "--max-tokens");
    assert_eq!(completed(&["ember", "completions", "z"]), "zsh");
}

#[test]
fn every_command_has_a_page() {
    let scratch = Scratch::new();
    let dir = scratch.path("share/man1");
    let dir = dir.to_str().expect("UTF-8");
    let commands = commands();
    for _ in ["made", "replaced"] {
        ember(["man", dir]).with_code(0);
        let pages = std::fs::read_dir(dir).expect("pages").count();
        // That of the program, none for `help`.
        assert_eq!(pages, commands.len());
    }
    let read = |name: &str| std::fs::read_to_string(format!("{dir}/{name}.1")).expect("a page");
    assert_eq!(ember(["man"]).with_code(0).stdout, read("ember"));
    for name in commands.iter().filter(|name| *name != "help") {
        let page = read(&format!("ember-{name}"));
        assert!(page.contains(&format!(".TH ember-{name} 1 ")), "{page:.200}");
        // Hyphens of flags are written \\-.
        let plain = page.replace("\\-", "-");
        for flag in flags(name) {
            assert!(plain.contains(&flag), "ember-{name}.1: no {flag}");
        }
    }
    let program = read("ember");
    assert!(program.contains("ember\\-generate(1)") && !program.contains("ember\\-help(1)"), "{program}");
}

/// Pages and scripts are read by `head`, and directories are sometimes files.
#[test]
fn pages_that_cannot_be_written() {
    for args in [["completions", "bash"].as_slice(), &["man"]] {
        let mut child = command(args).stdout(Stdio::piped()).spawn().expect("the program starts");
        drop(child.stdout.take());
        assert!(child.wait().expect("it ends").success(), "{args:?}");
    }
    let scratch = Scratch::new();
    std::fs::write(scratch.path("file"), "").expect("written");
    let path = scratch.path("file/man1");
    ember(["man", path.to_str().expect("UTF-8")]).fails_with(&["cannot make the directory", "man1"]);
}
