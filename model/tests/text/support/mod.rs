//! What the tests of broken text files share.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod byte_fallback;
pub mod stop_strings;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use emberlm_model::text::TextFiles;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

pub fn files(name: &str) -> TextFiles {
    TextFiles::read(&fixture(name)).unwrap()
}

/// Runs `test` of `module` (the caller's `module_path!()`) in a process of its own, so that an abort or an endless loop is a failure and not the end of all
/// tests; measures the memory it takes where the system tells.
pub fn in_child(module: &str, test: &str, run: impl FnOnce()) {
    if std::env::var_os("EMBERLM_CHILD").is_some() {
        let before = peak_memory();
        run();
        if let (Some(before), Some(after)) = (before, peak_memory()) {
            let grown = after - before;
            assert!(grown < 256 << 20, "{} MiB", grown >> 20);
            println!("{} MiB", grown >> 20);
        }
        return;
    }
    // Names of tests begin below the crate.
    let test = module.split_once("::").map_or_else(|| test.to_owned(), |(_, module)| format!("{module}::{test}"));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([&test, "--exact", "--nocapture", "--test-threads=1"])
        .env("EMBERLM_CHILD", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(90) {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test}: {}\n{text}\n{errors}", output.status);
    assert!(text.contains("1 passed"), "{test} did not run:\n{text}");
}

/// What this process has computed so far, where the system tells: a busy machine does not count.
pub fn computed() -> Duration {
    #[cfg(unix)]
    {
        use rustix::time::{ClockId, clock_gettime};
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
    }
    #[cfg(not(unix))]
    {
        static BEGUN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        BEGUN.elapsed()
    }
}

/// The largest resident size of this process in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
