//! Command lines, devices, what stands around the program.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use super::limits::Run;
use super::model::Place;
use super::table::*;

#[test]
fn command_lines() {
    let place = Place::with("leanllama");
    place.write("text", "The river bends twice before it reaches the mill.");
    let path = |name: &str| place.path(name).display().to_string();
    let (model, text, outside) = (place.model().display().to_string(), path("text"), path("no/such/file"));
    let few = ["generate", "-m", &model, "-p", "x", "-n", "2", "--threads", "2"];
    let generate = |flags: &[&'static str]| [&few, flags].concat();
    let (made_of_escapes, long) = (path("\u{1b}]0;title\u{7}"), "x".repeat(5_000));
    let cases: Vec<(Vec<&str>, Must)> = vec![
        (vec!["sing"], Fail(&["sing"])),
        (vec!["\u{1b}[31m"], Fail(&[])),
        (vec!["generate", "-m", &made_of_escapes, "-p", "x"], Fail(&["No such file"])),
        (vec!["generate", "-m", &long, "-p", "x"], Fail(&["is not the name of a model"])),
        (vec!["generate", "-m", "", "-p", "x"], Fail(&[])),
        (vec!["generate", "-m", "/dev/null", "-p", "x"], Fail(&["/dev/null"])),
        (vec!["generate", "-m", "/dev/zero", "-p", "x"], Fail(&["/dev/zero"])),
        (vec!["info", "-m", &text], Fail(&["/text", "not supported"])),
        (generate(&["--system", "no chat"]), Fail(&["required"])),
        (generate(&["--quant", "q9"]), Fail(&["q9"])),
        (generate(&["--steps", "2"]), Fail(&["steps"])),
        (generate(&["--steps", "0"]), Fail(&["steps"])),
        (generate(&["--threshold", "NaN"]), Fail(&["threshold"])),
        (generate(&["--trace"]), Fail(&["--trace"])),
        (generate(&["--device", "abacus"]), Fail(&["wgpu:N"])),
        (generate(&["--device", "wgpu:99"]), Fail(&["wgpu"])),
        (generate(&["--device", "wgpu:-1"]), Fail(&["number"])),
        (generate(&["--device", "wgpu:99999999999999999999"]), Fail(&["number"])),
        (generate(&["--device", "cuda:99"]), Fail(&["CUDA"])),
        (generate(&["--device", "cpu:1"]), Fail(&["cpu"])),
        (generate(&["--device", ""]), Fail(&["--device"])),
        (generate(&["--device", "cpu", "--activations", "f16"]), Fail(&["--activations f16"])),
        (generate(&["--device", "cpu", "--activations", "f16"]), Fail(&["--activations f16"])),
        (generate(&["--cache-type", "f8"]), Fail(&["f8"])),
        (vec!["info", "-m", &model, "--context", "0"], Fail(&["--context"])),
        (vec!["info", "-m", &model, "--context", "18446744073709551615"], WorkOrFail(&["--context"])),
        (vec!["bench", "-m", &model, "-p", "100000000", "-n", "1"], Fail(&["100000000"])),
        (vec!["bench", "-m", &model, "-p", "18446744073709551615", "-n", "18446744073709551615"], Fail(&["context"])),
        (vec!["bench", "--shape", "no-such-shape", "-p", "1", "-n", "1"], Fail(&["no-such-shape"])),
        (vec!["bench", "--shape", "/dev/zero", "-p", "1", "-n", "1"], Fail(&["/dev/zero"])),
        (vec!["eval", "-m", &model, "--text", &outside], Fail(&["no/such/file"])),
        (vec!["eval", "-m", &model, "--text", &model], Fail(&["/model"])),
        (vec!["eval", "-m", &model, "--text", &text, "--context", "1"], Fail(&["--context"])),
        (vec!["eval", "-m", &model, "--text", &text, "--context", "18446744073709551615"], Fail(&["--context"])),
        (vec!["depth", "-m", &model, "-p", "x"], Fail(&[])),
        (vec!["dump", "-m", &model, "--input", &outside, "--out", "/nowhere"], Fail(&["no/such/file"])),
        (vec!["dump", "-m", &model, "--input", &text, "--out", "/nowhere"], Fail(&["/text"])),
    ];
    let mut wrong = Vec::new();
    for (args, must) in cases {
        if let Err(message) = check(&place, &Run::new(&args), must) {
            wrong.push(format!("{args:.60?}: {message}"));
        }
    }
    // Bytes that are no text.
    let odd = OsStr::from_bytes(b"/nowhere/\xff\xfe");
    let args = [OsStr::new("info"), OsStr::new("-m"), odd];
    if let Err(message) = check(&place, &Run::new(args), Fail(&["nowhere"])) {
        wrong.push(format!("{odd:?}: {message}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is read from stdin.
#[test]
fn standard_input() {
    let place = Place::with("leanllama");
    let model = place.model().display().to_string();
    let input = place.root().join("logs/input");
    let mut wrong = Vec::new();
    let mut put = |name: &str, bytes: &[u8], command: &[&str], must: Must| {
        fs::write(&input, bytes).expect("written");
        let args = [command, &["-m", &model]].concat();
        if let Err(message) = check(&place, &Run::new(args).with_stdin(&input), must) {
            wrong.push(format!("{name} ({}): {message}", command[0]));
        }
    };
    let generate = ["generate", "-p", "-", "-n", "2", "--threads", "2", "--seed", "1"];
    put("not UTF-8", b"a\xff\xfe", &generate, Fail(&["stdin", "UTF-8"]));
    put("NUL bytes", &[0; 100], &generate, Work);
    put("nothing", b"", &generate, Work);
    put("control characters", b"\x1b]0;x\x07\x9b", &generate, Fail(&["UTF-8"]));
    put("nothing", b"", &["eval", "-f", "-"], Fail(&["has 1 token;"]));
    put("not UTF-8", b"\xff", &["eval", "-f", "-"], Fail(&["UTF-8"]));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let file = fs::File::create(&input).expect("a file");
    file.set_len((64 << 20) + 1).expect("a sparse file");
    let args = [&generate[..], &["-m", &model]].concat();
    // The text itself and its copy may be held.
    let run = Run::new(args).with_stdin(&input).mapping(128 << 20);
    check(&place, &run, Fail(&["stdin", "longer than"])).unwrap_or_else(|e| panic!("{e}"));
}

/// A closed pipe is no error; a full disk is one.
#[test]
fn standard_output() {
    let place = Place::with("leanllama");
    let model = place.model().display().to_string();
    for command in [&["info"][..], &["info", "--json"], GENERATE, &["generate", "-p", "x", "-n", "3", "--json"]] {
        let run = Run::new([command, &["-m", &model]].concat());
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = run.command().stdin(Stdio::null()).stdout(writer).output().expect("it runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{command:?}: {stderr}");
        assert!(!stderr.contains("error") && !stderr.contains("panicked"), "{command:?}: {stderr}");
        // With nobody to tell, it still ends in order.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let other = writer.try_clone().expect("a clone");
        let status = run.command().stdin(Stdio::null()).stdout(writer).stderr(other).status().expect("it runs");
        assert_eq!(status.code(), Some(0), "{command:?}");
        #[cfg(target_os = "linux")]
        {
            let full = fs::File::options().write(true).open("/dev/full").expect("the device");
            let output = run.command().stdin(Stdio::null()).stdout(full).output().expect("it runs");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command:?}: {stderr}");
            assert!(stderr.contains("error: cannot write to stdout"), "{command:?}: {stderr}");
        }
    }
}

/// Variables of the environment that mean nothing, or too much.
#[test]
fn variables() {
    let place = Place::with("leanllama");
    let model = place.model().display().to_string();
    let args = [GENERATE, &["-m", &model]].concat();
    let without_threads: Vec<&str> = args.iter().copied().filter(|arg| !matches!(*arg, "--threads" | "2")).collect();
    let mut wrong = Vec::new();
    let mut with = |args: &[&str], name: &'static str, value: &str, must: Must| {
        let run = Run::new(args).with_variable(name, value);
        if let Err(message) = check(&place, &run, must) {
            wrong.push(format!("{name}={value}: {message}"));
        }
    };
    for value in ["0", "1", "-1", "x", ""] {
        with(&without_threads, "RAYON_NUM_THREADS", value, WorkOrFail(&["RAYON_NUM_THREADS"]));
    }
    with(&args, "EMBERLM_CPU", "scalar", Work);
    with(&args, "EMBERLM_CPU", "abacus", WorkOrFail(&["EMBERLM_CPU"]));
    with(&args, "EMBERLM_GPU", "abacus", WorkOrFail(&["EMBERLM_GPU"]));
    for (name, value) in [
        ("NO_COLOR", "1"),
        ("CLICOLOR_FORCE", "1"),
        ("TERM", "\u{1b}[31m"),
        ("RUST_LOG", "trace"),
        ("HOME", "/nowhere"),
    ] {
        with(&args, name, value, Work);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Memory that the system refuses in the middle of a text is one error, no abort.
#[cfg(target_os = "linux")]
#[test]
fn out_of_memory_in_the_middle_of_a_text() {
    for fixture in ["crest_k4", "leanllama"] {
        let place = Place::with(fixture);
        let model = place.model().display().to_string();
        let long = ["generate", "-m", &model, "-p", "x", "-n", "30000", "--ignore-eos", "--cache-type", "f32"];
        let run = Run::new(long.iter().chain(&["--threads", "2", "--seed", "1"]));
        let mut child = run.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        // The first text shows that the model is loaded.
        let mut out = child.stdout.take().expect("a pipe");
        std::io::Read::read_exact(&mut out, &mut [0]).expect("a text");
        let process = child.id().to_string();
        let limited = std::process::Command::new("prlimit").args(["--pid", &process, "--as=1048576"]).status();
        assert!(limited.expect("prlimit of util-linux").success());
        std::io::copy(&mut out, &mut std::io::sink()).expect("the rest");
        let ended = child.wait_with_output().expect("an end");
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{fixture}: {}: {stderr}", ended.status);
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(matches!(errors[..], [one] if one.contains("out of memory: the system refuses ")), "{stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{stderr}");
    }
}

/// Ctrl-C during generation ends with 130.
#[test]
fn interrupts() {
    let place = Place::with("leanllama");
    let model = place.model().display().to_string();
    let run = Run::new(["generate", "-m", &model, "-p", "x", "-n", "100000", "--ignore-eos", "--threads", "2"]);
    let mut child = run.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    // The first text shows that the handler is there.
    let mut out = child.stdout.take().expect("a pipe");
    std::io::Read::read_exact(&mut out, &mut [0]).expect("a text");
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    std::io::copy(&mut out, &mut std::io::sink()).expect("the rest");
    let ended = child.wait_with_output().expect("an end");
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("cancelled") && !stderr.contains("panicked"), "{stderr}");
}
