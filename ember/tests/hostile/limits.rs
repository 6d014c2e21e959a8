//! Running the program within limits, and seeing which files it opens.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::project::program;

/// Address space of the program, in KiB: 256 MiB beyond the model's files, and what a run of a tiny model maps (program, libraries,
/// two threads, below 96 MiB).
const MEMORY: u64 = (256 + 96) << 10;
/// Wall time after which a run hangs: far above the limit of processor time, because the machine may be busy.
const HANGS: Duration = Duration::from_secs(60);
/// Longest output on stderr, in bytes.
const LONGEST: usize = 16 << 10;

/// Seconds of processor time that a run may take: 2, and more where nothing but kernels is optimised.
fn seconds() -> u64 {
    if std::env::var_os("EMBERLM_PROGRAM").is_some() || !cfg!(debug_assertions) { 2 } else { 10 }
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub hung: bool,
}

impl Ended {
    /// What holds for every run: no signal, no panic, no control characters, no flood.
    pub fn decent(&self) -> Result<i32, String> {
        let told = || format!("{}: {:.2000}", self.status, self.stderr);
        if self.hung {
            return Err(format!("hangs: {}", told()));
        }
        if let Some(signal) = self.status.signal() {
            const CPU_TIME: i32 = 24;
            let what = if signal == CPU_TIME { "too slow" } else { "ended by a signal (an abort, or out of memory)" };
            return Err(format!("{what}: {}", told()));
        }
        if self.stderr.contains("panicked") || self.stderr.contains("RUST_BACKTRACE") {
            return Err(format!("panics: {}", told()));
        }
        if self.stderr.len() > LONGEST {
            return Err(format!("writes {} bytes to stderr", self.stderr.len()));
        }
        if self.stderr.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
            return Err(format!("control characters: {:?}", self.stderr));
        }
        self.status.code().ok_or_else(told)
    }

    /// The one line that begins with `error: `, of a run that must fail.
    pub fn error(&self) -> Result<&str, String> {
        let code = self.decent()?;
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        match (code, errors.as_slice()) {
            (1, [one]) if self.stdout.is_empty() => Ok(one),
            // clap's: more lines, the flag in the first.
            (2, [one, ..]) => Ok(one),
            _ => Err(format!(
                "code {code}, {} errors, stdout {:.200?}: {:.2000}",
                errors.len(),
                self.stdout,
                self.stderr
            )),
        }
    }
}

/// A run of the program.
pub struct Run {
    args: Vec<OsString>,
    stdin: Option<PathBuf>,
    variables: Vec<(&'static str, OsString)>,
    /// Bytes of the files that it may map.
    files: u64,
}

impl Run {
    pub fn new<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        Self { args, stdin: None, variables: Vec::new(), files: 0 }
    }

    pub fn with_stdin(mut self, file: &Path) -> Self {
        self.stdin = Some(file.into());
        self
    }

    pub fn with_variable(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// A run that may map this many bytes of files.
    pub fn mapping(mut self, bytes: u64) -> Self {
        self.files = bytes;
        self
    }

    /// Runs it; `logs` is a directory for what it writes.
    pub fn ended(&self, logs: &Path) -> Ended {
        let (out, err) = (logs.join("stdout"), logs.join("stderr"));
        let stdin = self.stdin.as_ref().map_or(Stdio::null(), |file| File::open(file).expect("stdin").into());
        let mut child = self
            .command()
            .stdin(stdin)
            .stdout(File::create(&out).expect("a file"))
            .stderr(File::create(&err).expect("a file"))
            .spawn()
            .expect("the program starts");
        let start = Instant::now();
        let mut hung = false;
        let status = loop {
            if let Some(status) = child.try_wait().expect("a status") {
                break status;
            }
            if start.elapsed() > HANGS && !hung {
                hung = true;
                child.kill().expect("killed");
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        let read = |file: &Path| String::from_utf8_lossy(&fs::read(file).expect("output")).into_owned();
        Ended { status, stdout: read(&out), stderr: read(&err), hung }
    }

    /// The program under `ulimit`: address space, processor time, no core file.
    pub fn command(&self) -> Command {
        let mut command = Command::new("sh");
        let memory = MEMORY + self.files / 1024;
        command
            .args(["-c", "ulimit -c 0; ulimit -v $1; ulimit -t $2; shift 2; exec \"$@\"", "sh"])
            .args([memory.to_string(), seconds().to_string()])
            .arg(program())
            .args(&self.args)
            .env_remove("RUST_BACKTRACE")
            // One arena: with more, the C library alone reserves 64 MiB per thread.
            .env("MALLOC_ARENA_MAX", "1")
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// Notes every file of some directories that any process opens.
#[cfg(target_os = "linux")]
pub struct Watch(std::os::fd::OwnedFd);

#[cfg(target_os = "linux")]
impl Watch {
    pub fn of<'a>(directories: impl IntoIterator<Item = &'a Path>) -> Self {
        use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
        let queue = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("inotify");
        for directory in directories {
            add_watch(&queue, directory, WatchFlags::OPEN).expect("a watch");
        }
        Self(queue)
    }

    /// Names of the files that were opened since the last call; directories left out.
    pub fn opened(&self) -> Vec<String> {
        use rustix::fs::inotify::{ReadFlags, Reader};
        let mut buffer = [std::mem::MaybeUninit::uninit(); 8192];
        let mut reader = Reader::new(&self.0, &mut buffer);
        let mut names = Vec::new();
        while let Ok(event) = reader.next() {
            if !event.events().contains(ReadFlags::ISDIR) {
                names.push(event.file_name().map_or("?".into(), |name| name.to_string_lossy().into_owned()));
            }
        }
        names
    }
}

/// Elsewhere nothing is seen.
#[cfg(not(target_os = "linux"))]
pub struct Watch;

#[cfg(not(target_os = "linux"))]
impl Watch {
    pub fn of<'a>(_: impl IntoIterator<Item = &'a Path>) -> Self {
        Self
    }

    pub fn opened(&self) -> Vec<String> {
        Vec::new()
    }
}
