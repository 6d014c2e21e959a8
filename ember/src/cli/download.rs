//! What a download shows on stderr: on a terminal a bar in total and one for the file at work, else a line per file.

use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicU64, Ordering};

use emberlm::hub::{HubResult, PullEvent, PullPlan};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::output;

/// Files that take less time than it takes to read a line about them, in bytes.
const SMALL: u64 = 16 << 20;

/// Runs a download and shows how far it is. `always`: says so too when there is nothing to do.
pub fn with_progress<T>(
    run: impl FnOnce(&(dyn Fn(PullEvent<'_>) + Sync)) -> HubResult<T>,
    always: bool,
) -> HubResult<T> {
    let bars = Bars::new(always);
    let result = run(&|event| bars.tell(event));
    bars.all.clear().ok();
    result
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    file: ProgressBar,
    always: bool,
    terminal: bool,
    /// Length of the file at work, for lines.
    length: AtomicU64,
    /// Bytes of it that have come.
    came: AtomicU64,
}

impl Bars {
    fn new(always: bool) -> Self {
        let all = MultiProgress::new();
        let bar = |template: &str| {
            let bar = all.add(ProgressBar::new(0));
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        };
        let total = bar("downloading [{bar:40}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}");
        let file = bar("{prefix:11} [{bar:40}] {binary_bytes}/{binary_total_bytes} {msg}");
        let terminal = stderr().is_terminal();
        Self { all, total, file, always, terminal, length: AtomicU64::new(0), came: AtomicU64::new(0) }
    }

    fn tell(&self, event: PullEvent<'_>) {
        match event {
            PullEvent::Plan(plan) => {
                self.total.set_length(plan.missing_bytes);
                self.total.reset_eta();
                if self.always || plan.missing_files > 0 {
                    self.note(&planned(&plan));
                }
            }
            PullEvent::File { name, length, kept } => {
                self.length.store(length, Ordering::Relaxed);
                self.came.store(0, Ordering::Relaxed);
                self.file.reset();
                self.file.set_length(length);
                self.file.set_position(kept);
                self.file.set_prefix("file");
                self.file.set_message(output::printable(name));
                if kept > 0 && kept < length {
                    let (kept, length) = (bytes(kept), bytes(length));
                    self.note(&format!("{}: {kept} of {length} are there from before", output::printable(name)));
                }
            }
            PullEvent::Bytes(count) => {
                self.came.fetch_add(count, Ordering::Relaxed);
                self.file.inc(count);
                self.total.inc(count);
            }
            PullEvent::Lost(count) => {
                self.file.set_position(self.file.position().saturating_sub(count));
                self.total.set_position(self.total.position().saturating_sub(count));
            }
            PullEvent::Hashed(count) => {
                if self.file.position() >= self.length.load(Ordering::Relaxed) && self.came.load(Ordering::Relaxed) > 0
                {
                    // The same bar again, for the hash.
                    self.came.store(0, Ordering::Relaxed);
                    self.file.set_prefix("checking");
                    self.file.set_position(0);
                }
                self.file.inc(count);
            }
            PullEvent::Done { name } => {
                let length = self.length.load(Ordering::Relaxed);
                if !self.terminal && length >= SMALL {
                    output::note(&format!("{}: {}, its hash is right", output::printable(name), bytes(length)));
                }
            }
            PullEvent::Waiting { name } => {
                self.note(&format!("{}: another process downloads it; waiting", output::printable(name)));
            }
            PullEvent::Retry { reason, wait } => {
                let again =
                    if wait.is_zero() { "again".to_owned() } else { format!("again in {:.1} s", wait.as_secs_f64()) };
                self.note(&format!("{}; {again}", output::printable(reason)));
            }
            _ => {}
        }
    }

    /// A line above the bars.
    fn note(&self, line: &str) {
        self.all.suspend(|| output::note(line));
    }
}

/// Sizes before anything large is downloaded.
fn planned(plan: &PullPlan) -> String {
    let (files, model) = (if plan.files == 1 { "file" } else { "files" }, output::printable(&plan.model));
    let all = format!("{model}: {} {files}, {}", plan.files, bytes(plan.bytes));
    if plan.missing_files == 0 {
        return format!("{all}, all of them in the cache");
    }
    format!("{all}; {} to download, {} are free on the disk", bytes(plan.missing_bytes), bytes(plan.free_bytes))
}

/// Bytes for a message.
pub fn bytes(bytes: u64) -> String {
    output::bytes(usize::try_from(bytes).unwrap_or(usize::MAX))
}
