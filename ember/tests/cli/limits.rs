//! What the system refuses.

#[cfg(target_os = "linux")]
use crate::program::ember;
use crate::program::{Ended, command};

/// `ember` under a limit of the shell; none where the shell does not know it.
#[cfg(target_os = "linux")]
fn limited(limit: &str, args: &[&str]) -> Option<Ended> {
    let script = format!("ulimit {limit} || exit 77; exec \"$0\" \"$@\"");
    let program = env!("CARGO_BIN_EXE_ember");
    let output = std::process::Command::new("bash").args(["-c", &script, program]).args(args).output().ok()?;
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let ended = Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
    (ended.code != Some(77)).then_some(ended)
}

/// Fewer threads give the same text. (Nobody refuses processes to root; memory is refused to everybody.)
#[cfg(target_os = "linux")]
#[test]
fn threads_that_the_system_refuses_are_not_needed() {
    let story = ["generate", "-p", "Once upon", "-n", "5", "--greedy", "--quant", "nf4"];
    let told = ember(story).with_code(0).stdout;
    let mut refused = 0;
    for limit in ["-v 1500000", "-v 400000", "-v 250000", "-u 1", "-u 3"] {
        for threads in ["1", "4", "64"] {
            let Some(ended) = limited(limit, &[&story[..], &["--threads", threads]].concat()) else { continue };
            let ended = ended.with_code(0);
            assert_eq!(ended.stdout, told, "ulimit {limit}, {threads} threads: {}", ended.stderr);
            refused +=
                usize::from(ended.stderr.contains(&format!("warning: the system refuses {threads} threads, so")));
        }
        let chat = limited(limit, &["depth", "-p", "Once upon", "--threads", "16"]);
        if let Some(ended) = chat {
            assert!(ended.with_code(0).stdout.contains("Once"), "ulimit {limit}");
        }
    }
    assert!(refused > 0, "a limit refused threads");
}

/// rayon's own variable has the bounds of the flag, which goes before it.
#[test]
fn the_variable_for_threads_is_bounded_like_the_flag() {
    let run = |value: &str, flags: &[&str]| {
        let mut command = command([&["generate", "-p", "Once", "-n", "1"], flags].concat());
        let output = command.env("RAYON_NUM_THREADS", value).output().expect("the program runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    };
    for value in ["1025", "1000000", "many", "-1"] {
        run(value, &[]).fails_with(&[&format!("RAYON_NUM_THREADS={value}"), "from 1 to 1024"]);
        run(value, &["--threads", "1"]).with_code(0);
    }
    for value in ["", "0", "1", "3"] {
        run(value, &[]).with_code(0);
    }
}
