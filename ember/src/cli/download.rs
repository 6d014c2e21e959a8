//! What a download shows on stderr: on a terminal a bar in total and one for the file at work, else a line per file.

use std::io::{IsTerminal, stderr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    /// In total, and of the file at work; none until something is to be downloaded.
    bars: OnceLock<(ProgressBar, ProgressBar)>,
    always: bool,
    terminal: bool,
    /// Length of the file at work where some of it is to be downloaded, for lines and the check.
    length: AtomicU64,
    checking: AtomicBool,
}

impl Bars {
    fn new(always: bool) -> Self {
        let terminal = stderr().is_terminal();
        let (length, checking) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { all: MultiProgress::new(), bars: OnceLock::new(), always, terminal, length, checking }
    }

    fn start(&self, bytes: u64) -> (ProgressBar, ProgressBar) {
        let bar = |length: u64, template: &str| {
            let bar = self.all.add(ProgressBar::new(length));
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        };
        let total =
            bar(bytes, "downloading [{bar:40}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}");
        let file = bar(0, "{prefix:11} [{bar:40}] {binary_bytes}/{binary_total_bytes} {wide_msg}");
        file.set_prefix("file");
        (total, file)
    }

    fn tell(&self, event: PullEvent<'_>) {
        if let PullEvent::Plan(plan) = &event {
            if self.always || plan.missing_files > 0 {
                self.note(&planned(plan));
            }
            if plan.missing_files > 0 {
                self.bars.get_or_init(|| self.start(plan.missing_bytes));
            }
        }
        let bars = self.bars.get();
        match event {
            PullEvent::File { name, length, kept } => {
                self.length.store(if kept < length { length } else { 0 }, Ordering::Relaxed);
                self.checking.store(false, Ordering::Relaxed);
                if let Some((_, file)) = bars.filter(|_| kept < length) {
                    file.reset();
                    file.set_length(length);
                    file.set_position(kept);
                    file.set_prefix("file");
                    file.set_message(output::printable(name));
                }
                if kept > 0 && kept < length {
                    let (kept, length) = (bytes(kept), bytes(length));
                    self.note(&format!("{}: {kept} of {length} are there from before", output::printable(name)));
                }
            }
            PullEvent::Bytes(count) => {
                let Some((total, file)) = bars else { return };
                file.inc(count);
                total.inc(count);
            }
            PullEvent::Lost(count) => {
                let Some((total, file)) = bars else { return };
                self.checking.store(false, Ordering::Relaxed);
                file.set_prefix("file");
                for bar in [total, file] {
                    bar.set_position(bar.position().saturating_sub(count));
                }
            }
            PullEvent::Hashed(count) => {
                let Some((_, file)) = bars else { return };
                if !self.checking.swap(true, Ordering::Relaxed) {
                    // The same bar again, for the hash.
                    file.set_prefix("checking");
                    file.set_position(0);
                }
                file.inc(count);
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
